"""Checks that an image file is what it claims, and nothing that makes QEMU open other files.

**Pure** but for reading the file. The format is fixed at upload; QEMU never probes a tenant's bytes, and what
claims to be raw but looks like another format is refused, because somebody else might probe it one day.
"""

from __future__ import annotations

import os
from typing import Final

from oslo_utils.imageutils import format_inspector

from agent.errors import DriverError
from cumulet.v1 import image_pb2

# What a raw disk's first bytes may look like: nothing known, a partition table, a CD.
_RAW_LOOKS: Final = frozenset(("raw", "gpt", "iso"))
QEMU_FORMATS: Final = {image_pb2.FILE_FORMAT_QCOW2: "qcow2", image_pb2.FILE_FORMAT_RAW: "raw"}


def check_format(path: str, file: image_pb2.ImageFile) -> None:
    """DriverError(ImageFormatMismatch, ImageUnsafe), both permanent."""
    if file.format == image_pb2.FILE_FORMAT_BLOB:
        return
    claimed = QEMU_FORMATS.get(file.format)
    if claimed is None:
        raise _refusal("ImageFormatMismatch", file, "has no format")
    inspector = _inspect(path, file)
    looks = inspector.NAME
    if looks not in (_RAW_LOOKS if claimed == "raw" else {claimed}):
        raise _refusal("ImageFormatMismatch", file, f"claims to be {claimed} and is {looks}")
    try:
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as err:
        raise _refusal("ImageUnsafe", file, f"is refused: {err}") from err
    if file.virtual_size_bytes and file.virtual_size_bytes != _virtual_size(path, inspector):
        raise _refusal("ImageFormatMismatch", file, "has another virtual size than it claims")


def read_virtual_size(path: str, file: image_pb2.ImageFile) -> int:
    """What a guest sees of a checked image, in bytes."""
    return _virtual_size(path, _inspect(path, file))


def _inspect(path: str, file: image_pb2.ImageFile) -> format_inspector.FileInspector:
    try:
        inspector = format_inspector.detect_file_format(path)
    except format_inspector.ImageFormatError as err:  # it looks like several formats at once
        raise _refusal("ImageFormatMismatch", file, f"is ambiguous: {err}") from err
    if inspector is None:
        raise _refusal("ImageFormatMismatch", file, "looks like nothing known")
    return inspector


def _virtual_size(path: str, inspector: format_inspector.FileInspector) -> int:
    if inspector.NAME == "qcow2":
        return int(inspector.virtual_size)
    return os.stat(path).st_size


def _refusal(reason: str, file: image_pb2.ImageFile, what: str) -> DriverError:
    message = f"Image {file.sha256} {what}: import it again, as plain qcow2 or raw, with its real format."
    return DriverError(reason, message, permanent=True)
