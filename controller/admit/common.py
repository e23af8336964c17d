"""What admission has in common: meta, labels, etags, field masks, events, references.

**Pure.** Everything is checked before a Change exists; refusals carry all violations at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from controller.commit import Change
from controller.state import State
from controller.store import keys
from controller.store.keys import Table
from controller.store.protocol import absent, created_at, unchanged
from controller.tables import Stored
from cumulet import convert
from cumulet.convert import timestamp
from cumulet.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
)
from cumulet.names import LABELS_MAX, label_error, name_error, new_uid
from cumulet.resources import QuantityError, validate_resources
from cumulet.v1 import event_pb2, meta_pb2, operation_pb2

SECURITY_LEVEL_MAX: Final = 5  # MLPS 2.0 has five levels; 0 is "not graded"
DESCRIPTION_MAX: Final = 1024
CHOICES_SHOWN: Final = 8  # names that an unknown one is answered with
OBJECT_BYTES_MAX: Final = 256 * 1024  # several objects must fit one transaction of 1.5 MiB

NOUNS: Final = {
    keys.PROJECTS: "project",
    keys.NODES: "node",
    keys.FLAVORS: "flavor",
    keys.IMAGES: "image",
    keys.KEY_PAIRS: "key-pair",
    keys.NETWORKS: "network",
    keys.SUBNETS: "subnet",
    keys.PORTS: "port",
    keys.PLACEMENT_GROUPS: "placement-group",
    keys.ROUTERS: "router",
    keys.EXTERNAL_NETWORKS: "external-network",
    keys.FLOATING_IPS: "floating-ip",
    keys.LOAD_BALANCERS: "load-balancer",
    keys.SECURITY_GROUPS: "security-group",
    keys.INSTANCES: "instance",
    keys.OPERATIONS: "operation",
}


# What an object refers to: table, row as it was seen, and the key's parts.
Referred = tuple[Table, Stored, str] | tuple[Table, Stored, str, str]


@dataclass(frozen=True, slots=True)
class Context:
    """What a change may know besides the State."""

    now: float
    rng: random.Random
    source: str = "api"


class Violations:
    """Collects field violations and raises them together."""

    def __init__(self) -> None:
        self.found: list[FieldViolation] = []

    def add(self, field: str, description: str | None) -> None:
        """Note a violation; None is none."""
        if description:
            self.found.append(FieldViolation(field, description))

    def raise_any(self, what: str) -> None:
        """Raises InvalidArgumentError with all that was found."""
        if self.found:
            raise InvalidArgumentError.of(what, self.found)


def describe(table: Table, parts: Sequence[str]) -> str:
    """How an object is called in messages: `network default/web`, `node n1`."""
    return f"{NOUNS[table]} {'/'.join(parts)}"


def get_row(state: State, table: Table, *parts: str) -> Stored:
    """The object. Raises NotFoundError naming it and how to list its kind."""
    row = state.find(table, *parts)
    if row is None:
        noun = NOUNS[table]
        scope = f" --project {parts[0]}" if len(parts) > 1 else ""
        raise NotFoundError(
            f"{describe(table, parts)} does not exist", hints=[f"cumulet {noun} list{scope}".rstrip()]
        )
    return row


def get_live_row(state: State, table: Table, *parts: str) -> Stored:
    """The object, not being deleted. Raises NotFoundError, FailedPreconditionError."""
    row = get_row(state, table, *parts)
    if row.message.meta.HasField("deleted_at"):
        raise FailedPreconditionError(f"{describe(table, parts)} is being deleted")
    return row


def check_etag(table: Table, parts: Sequence[str], row: Stored, etag: str) -> None:
    """Raises ConflictError when the caller's etag is not the present one."""
    if etag and etag != etag_of(row):
        raise ConflictError(
            f"{describe(table, parts)} was changed since you read it (etag {etag}, now {etag_of(row)}): "
            "read it again and repeat the change"
        )


def etag_of(row: Stored) -> str:
    return str(row.mod_revision)


def new_meta(given: meta_pb2.Meta, project: str, context: Context, violations: Violations) -> meta_pb2.Meta:
    """Meta of a new object from what the caller gave: name and labels only."""
    violations.add("meta.name", name_error(given.name))
    if project and given.project not in ("", project):
        violations.add("meta.project", f"is {given.project!r}, but the request is for project {project!r}")
    check_labels(given.labels, violations)
    return meta_pb2.Meta(
        uid=new_uid(context.rng),
        name=given.name,
        project=project,
        labels=given.labels,
        generation=1,
        created_at=timestamp(context.now),
    )


def unknown(noun: str, name: str, known: Iterable[tuple[str, ...]]) -> str:
    """That a name is missing or names nothing, and what could have been meant."""
    said = f"{noun} {name!r} does not exist" if name else f"a {noun} is required"
    return said + choices(known)


def choices(known: Iterable[tuple[str, ...]]) -> str:
    names = sorted(parts[-1] for parts in known)[:CHOICES_SHOWN]
    return f" (there are: {', '.join(names)})" if names else " (there are none yet)"


def check_labels(labels: Any, violations: Violations, field: str = "meta.labels") -> None:
    if len(labels) > LABELS_MAX:
        violations.add(field, f"{len(labels)} labels, at most {LABELS_MAX}")
    for key, value in labels.items():
        violations.add(field, label_error(key, value))


def check_description(text: str, violations: Violations) -> None:
    if len(text) > DESCRIPTION_MAX:
        violations.add("spec.description", f"has {len(text)} characters, at most {DESCRIPTION_MAX}")


def check_security_level(level: int, violations: Violations) -> None:
    if not 0 <= level <= SECURITY_LEVEL_MAX:
        violations.add("spec.security_level", f"{level} is not a level: 0 to {SECURITY_LEVEL_MAX}")


def check_resources(message: meta_pb2.Resources, field: str, violations: Violations) -> None:
    """Negative, malformed and absurd quantities, each with its field."""
    try:
        resources = convert.resources_from(message)
    except QuantityError as error:
        violations.add(f"{field}.{error.field}", error.description)
        return
    for found in validate_resources(resources, field):
        violations.add(found.field, found.description)


def put_new(state: State, table: Table, parts: tuple[str, ...], message: Any) -> Change:
    """A change that creates an object. Raises AlreadyExistsError, InvalidArgumentError (too large)."""
    row = state.find(table, *parts)
    if row is not None:
        if row.message.meta.HasField("deleted_at"):
            raise FailedPreconditionError(
                f"{describe(table, parts)} is still being deleted: wait for that, or choose another name"
            )
        raise AlreadyExistsError(
            f"{describe(table, parts)} exists already",
            hints=[f"cumulet {NOUNS[table]} show {parts[-1]}"],
        )
    key = table.key(*parts)
    return Change(compares=[absent(key)], writes={key: encode(message)})


def put_changed(table: Table, parts: tuple[str, ...], row: Stored, message: Any) -> Change:
    """A change that replaces an object as it was read."""
    key = table.key(*parts)
    return Change(compares=[unchanged(key, row.mod_revision)], writes={key: encode(message)})


def remove(table: Table, parts: tuple[str, ...], row: Stored) -> Change:
    """A change that removes an object as it was read."""
    key = table.key(*parts)
    return Change(compares=[unchanged(key, row.mod_revision)], writes={key: None})


def encode(message: Message) -> bytes:
    """The stored form. Raises InvalidArgumentError over OBJECT_BYTES_MAX."""
    data: bytes = message.SerializeToString(deterministic=True)
    if len(data) > OBJECT_BYTES_MAX:
        raise InvalidArgumentError(f"the object has {len(data)} bytes, at most {OBJECT_BYTES_MAX}")
    return data


def rest_on(change: Change, table: Table, row: Stored, *parts: str) -> None:
    """Guard that a referred object still is the one that was seen (its values may change)."""
    change.compares.append(created_at(table.key(*parts), row.create_revision))


def merge_masked(old: Any, new: Any, mask: FieldMask, mutable: Iterable[str]) -> Any:
    """The old message with the masked fields of the new one; an empty mask means every mutable field.

    Raises InvalidArgumentError for a path that does not exist or cannot be changed.
    """
    allowed = tuple(mutable)
    paths = list(mask.paths) or list(allowed)
    violations = Violations()
    for path in paths:
        if not any(path == known or path.startswith(f"{known}.") for known in allowed):
            violations.add("update_mask", f"{path!r} cannot be changed; what can: {', '.join(allowed)}")
        elif not FieldMask(paths=[path]).IsValidForDescriptor(old.DESCRIPTOR):
            violations.add("update_mask", f"{path!r} does not exist")
    violations.raise_any("the update was refused")
    merged = type(old)()
    merged.CopyFrom(old)
    FieldMask(paths=paths).MergeMessage(new, merged, replace_message_field=True, replace_repeated_field=True)
    return merged


def updated(
    state: State,
    table: Table,
    parts: tuple[str, ...],
    new: Any,
    mask: FieldMask,
    mutable: Iterable[str],
) -> tuple[Stored, Any]:
    """The stored row and the message as it would become. Raises what reading and merging raise."""
    row = get_live_row(state, table, *parts)
    check_etag(table, parts, row, new.meta.etag)
    merged = merge_masked(row.message, new, mask, mutable)
    violations = Violations()
    check_labels(merged.meta.labels, violations)
    violations.raise_any(f"{describe(table, parts)} was not changed")
    if merged.spec != row.message.spec:
        merged.meta.generation += 1
    return row, merged


def event(
    context: Context,
    noun: str,
    meta: meta_pb2.Meta,
    reason: str,
    message: str,
    *,
    warning: bool = False,
) -> event_pb2.Event:
    """One event of an object; its uid is given when it is committed."""
    return event_pb2.Event(
        target=operation_pb2.ObjectRef(kind=noun, project=meta.project, name=meta.name, uid=meta.uid),
        reason=reason,
        message=message,
        at=timestamp(context.now),
        source=context.source,
        warning=warning,
    )
