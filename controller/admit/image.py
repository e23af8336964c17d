"""Admission of images.

**Pure**, but for `held`: which files the file store has is asked by digest through a function.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.admit.requirements import check_capabilities
from controller.commit import Change
from controller.scheduling import ARCHITECTURE
from controller.state import State
from controller.store import keys
from controller.store.protocol import range_unchanged_since
from cumulet.errors import FailedPreconditionError
from cumulet.v1 import image_pb2

MUTABLE = (
    "meta.labels",
    "spec.description",
    "spec.min_memory_mib",
    "spec.min_disk_gib",
    "spec.kernel_args",
    "spec.capabilities",
)
KERNEL_ARGS_MAX: Final = 2048  # COMMAND_LINE_SIZE of x86-64 Linux
_ARCHITECTURE: Final = re.compile(r"[a-z0-9_]{1,32}")

Held = Callable[[str], image_pb2.ImageFile | None]


def create(state: State, context: Context, project: str, given: image_pb2.Image, *, held: Held) -> Change:
    """`held(sha256)`: the uploaded file as it was checked, or None."""
    violations = Violations()
    meta = common.new_meta(given.meta, "", context, violations)
    spec = image_pb2.ImageSpec()
    spec.CopyFrom(given.spec)
    _check(spec, violations)
    formats = (image_pb2.FILE_FORMAT_QCOW2, image_pb2.FILE_FORMAT_RAW)
    _take_file(spec.disk, "spec.disk", formats, held, violations)
    if spec.HasField("kernel") != spec.HasField("initrd"):
        violations.add("spec.initrd", "kernel and initrd come together: give both or neither")
    elif spec.HasField("kernel"):
        _take_file(spec.kernel, "spec.kernel", (image_pb2.FILE_FORMAT_BLOB,), held, violations)
        _take_file(spec.initrd, "spec.initrd", (image_pb2.FILE_FORMAT_BLOB,), held, violations)
    violations.raise_any(f"image {given.meta.name!r} was not created")
    change = common.put_new(state, keys.IMAGES, (meta.name,), image_pb2.Image(meta=meta, spec=spec))
    change.events.append(common.event(context, "image", meta, "Created", f"image {meta.name} was imported"))
    return change


def update(
    state: State, context: Context, parts: tuple[str, ...], given: image_pb2.Image, mask: FieldMask
) -> Change:
    row, merged = common.updated(state, keys.IMAGES, parts, given, mask, MUTABLE)
    violations = Violations()
    _check(merged.spec, violations)
    violations.raise_any(f"image {parts[0]} was not changed")
    return common.put_changed(keys.IMAGES, parts, row, merged)


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    row = common.get_row(state, keys.IMAGES, *parts)
    common.check_etag(keys.IMAGES, parts, row, etag)
    users = [
        "/".join(where)
        for where, instance in state.rows(keys.INSTANCES).items()
        if instance.message.spec.image == parts[0]
    ]
    if users:
        raise FailedPreconditionError(
            f"image {parts[0]} is used by {len(users)} instance(s), such as {users[0]}: delete them first"
        )
    change = common.remove(keys.IMAGES, parts, row)
    change.compares.append(range_unchanged_since(keys.INSTANCES.prefix(), state.revision))
    return change


def _check(spec: image_pb2.ImageSpec, violations: Violations) -> None:
    common.check_description(spec.description, violations)
    if len(spec.kernel_args) > KERNEL_ARGS_MAX or not spec.kernel_args.isprintable():
        violations.add("spec.kernel_args", f"must be at most {KERNEL_ARGS_MAX} printable characters")
    if spec.architecture and not _ARCHITECTURE.fullmatch(spec.architecture):
        violations.add("spec.architecture", f"{spec.architecture!r} is not one, such as x86_64")
    check_capabilities(spec.capabilities, violations)
    machines = [word for word in spec.capabilities if word.startswith(ARCHITECTURE)]
    if machines:
        violations.add("spec.capabilities", f"{machines[0]} is spec.architecture's to say: leave it out")
    for name in ("min_memory_mib", "min_disk_gib"):
        if getattr(spec, name) < 0:
            violations.add(f"spec.{name}", "must not be negative")


def _take_file(
    file: image_pb2.ImageFile,
    field: str,
    formats: tuple[image_pb2.FileFormat.ValueType, ...],
    held: Held,
    violations: Violations,
) -> None:
    """Fill in what was found at the upload; the caller's size and format are not believed."""
    found = held(file.sha256) if file.sha256 else None
    if found is None:
        violations.add(f"{field}.sha256", "no such file was uploaded: upload it first (UploadFile)")
    elif found.format not in formats:
        name = image_pb2.FileFormat.Name(found.format)
        violations.add(f"{field}.format", f"the uploaded file is {name}, which cannot be used here")
    else:
        file.CopyFrom(found)
