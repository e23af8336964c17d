"""Admission of nodes: registration by an agent, cordon, reservations, removal.

**Pure.**
"""

from __future__ import annotations

from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.admit.offers import check_offers
from controller.commit import Change
from controller.state import State
from controller.store import keys
from controller.store.protocol import range_absent, unchanged
from controller.tables import Stored
from cumulet.convert import timestamp
from cumulet.errors import FailedPreconditionError
from cumulet.v1 import agent_pb2, instance_pb2, node_pb2

MUTABLE = ("meta.labels", "spec")
RATIO_MAX: Final = 64.0  # more than any overcommit that still runs
FORGOTTEN: Final = "NodeForgotten"


def register(state: State, context: Context, hello: agent_pb2.AgentHello) -> Change | None:
    """The node of a new agent; None if it is registered already."""
    if state.find(keys.NODES, hello.node) is not None:
        return None
    violations = Violations()
    given = node_pb2.Node()
    given.meta.name = hello.node
    given.meta.labels.update(hello.labels)
    meta = common.new_meta(given.meta, "", context, violations)
    violations.raise_any(f"the agent of {hello.node!r} was not accepted")
    change = common.put_new(state, keys.NODES, (meta.name,), node_pb2.Node(meta=meta))
    change.events.append(
        common.event(context, "node", meta, "Registered", f"node {meta.name} joined from {hello.address}")
    )
    return change


def update(
    state: State, context: Context, parts: tuple[str, ...], given: node_pb2.Node, mask: FieldMask
) -> Change:
    row, merged = common.updated(state, keys.NODES, parts, given, mask, MUTABLE)
    violations = Violations()
    common.check_security_level(merged.spec.security_level, violations)
    common.check_resources(merged.spec.reserved, "spec.reserved", violations)
    for name, ratio in merged.spec.allocation_ratio.items():
        if not 0 < ratio <= RATIO_MAX:  # also refuses NaN
            violations.add(
                f"spec.allocation_ratio.{name}", f"{ratio} is not more than 0 and at most {RATIO_MAX}"
            )
    check_offers(state, merged.spec, violations)
    violations.raise_any(f"node {parts[0]} was not changed")
    return common.put_changed(keys.NODES, parts, row, merged)


def cordon(state: State, context: Context, name: str, cordoned: bool, reason: str) -> Change:
    """Idempotent: a cordoned node can be cordoned again, with another reason."""
    row = common.get_live_row(state, keys.NODES, name)
    changed = node_pb2.Node()
    changed.CopyFrom(row.message)
    changed.spec.cordoned = cordoned
    changed.spec.cordon_reason = reason if cordoned else ""
    if changed.spec == row.message.spec:
        return Change()
    changed.meta.generation += 1
    change = common.put_changed(keys.NODES, (name,), row, changed)
    word = "Cordoned" if cordoned else "Uncordoned"
    change.events.append(
        common.event(context, "node", changed.meta, word, f"node {name} was {word.lower()} {reason}".strip())
    )
    return change


def delete(
    state: State, context: Context, parts: tuple[str, ...], etag: str, *, force: bool = False
) -> Change:
    """Remove a node. Forced: its placements are forgotten on the operator's word that it is off for good.

    Raises FailedPreconditionError while instances are placed there and it is not forced.
    """
    (name,) = parts
    row = common.get_row(state, keys.NODES, name)
    common.check_etag(keys.NODES, parts, row, etag)
    placed = state.placements_on(name)
    if placed and not force:
        raise FailedPreconditionError(
            f"node {name} still has {len(placed)} instance(s): delete or move them first. If the machine is "
            "off for good, --force forgets them and places them anew",
            hints=[f"cumulet node cordon {name}", f"cumulet node delete {name} --force"],
        )
    if placed:
        return _declare_off(context, parts, row)
    change = common.remove(keys.NODES, parts, row)
    change.compares.append(range_absent(keys.PLACEMENTS.prefix(name)))
    for table in (keys.SESSIONS, keys.NODE_STATUS):
        change.writes[table.key(name)] = None
    return change


def _declare_off(context: Context, parts: tuple[str, ...], row: Stored) -> Change:
    """Mark the node: the leader forgets its placements, a batch at a time, and then the node."""
    marked = node_pb2.Node()
    marked.CopyFrom(row.message)
    marked.meta.deleted_at.CopyFrom(timestamp(context.now))
    change = common.put_changed(keys.NODES, parts, row, marked)
    text = f"node {parts[0]} was declared off for good by an operator"
    change.events.append(common.event(context, "node", marked.meta, "DeclaredOff", text, warning=True))
    return change


def forget_placement(state: State, context: Context, node: str, uid: str) -> Change:
    """Release one placement of a node that was declared off; its epoch is remembered for the next one.

    The copy there gets a tombstone: the machine may come back after the instance was deleted, and absence
    from its plan would leave the copy for ever.
    """
    row = state.placements_on(node)[uid]
    key = keys.PLACEMENTS.key(node, uid)
    status_key = keys.INSTANCE_STATUS.key(uid)
    status_row = state.find(keys.INSTANCE_STATUS, uid)
    status = instance_pb2.InstanceStatus(epoch=row.message.epoch)
    change = Change(
        compares=[
            unchanged(key, row.mod_revision),
            unchanged(status_key, status_row.mod_revision if status_row else 0),
        ],
        writes={
            key: None,
            status_key: common.encode(status),
            keys.TOMBSTONES.key(node, uid): common.encode(row.message),
        },
    )
    found = state.find_instance(uid)
    if found is not None:
        text = f"node {node} was declared off for good; the instance is placed anew"
        change.events.append(
            common.event(context, "instance", found[1].message.meta, FORGOTTEN, text, warning=True)
        )
    return change
