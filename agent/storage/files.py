"""Where instances' files lie, and how they get there whole: written aside, synced, renamed.

**Edge**: blocking file I/O; the driver calls it in threads. QEMU runs as an unprivileged user whom libvirt
gives the instance's own files, so every folder can be passed by all and listed by root only (0711).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent.errors import DriverError
from agent.storage.driver import CONSOLE_LOG_READ_MAX, DISK_RESERVE_BYTES, InstanceFiles, ObservedStorage

FOLDER_MODE: Final = 0o711
SECRET_MODE: Final = 0o600  # seeds hold user-data, disks hold everything; libvirt changes their owner
IMAGE_MODE: Final = 0o444  # shared by all guests, changed by nobody
PARTIAL_SUFFIX: Final = ".partial"
TEMPORARY_SUFFIX: Final = ".new"

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_UID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Layout:
    """Paths under the state folder; hostile uids and digests are refused, not cleaned."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.images = state_dir / "images"
        self.instances = state_dir / "instances"

    def image(self, sha256: str) -> Path:
        if not _DIGEST.fullmatch(sha256):
            raise DriverError("InvalidName", f"{sha256!a} is no SHA-256 digest.", permanent=True)
        return self.images / sha256

    def instance(self, uid: str) -> Path:
        if not _UID.fullmatch(uid):
            raise DriverError("InvalidName", f"{uid!a} is no instance uid.", permanent=True)
        return self.instances / uid

    def files(self, uid: str) -> InstanceFiles:
        folder = self.instance(uid)
        return InstanceFiles(
            str(folder / "disk.qcow2"), str(folder / "seed.iso"), str(folder / "console.log")
        )

    def ensure_folders(self) -> None:
        for folder in (self.state_dir, self.images, self.instances):
            ensure_folder(folder)

    def observe(self) -> ObservedStorage:
        instances = {
            uid: frozenset(_present(self.files(uid))) for uid in _names(self.instances) if _UID.fullmatch(uid)
        }
        images = frozenset(name for name in _names(self.images) if _DIGEST.fullmatch(name))
        return ObservedStorage(instances, images, shutil.disk_usage(self.state_dir).free)

    def check_space(self, wanted_bytes: int, what: str) -> None:
        free_bytes = shutil.disk_usage(self.state_dir).free
        if free_bytes - wanted_bytes < DISK_RESERVE_BYTES:
            message = (
                f"{what} needs {wanted_bytes} bytes in {self.state_dir}, {free_bytes} are free and "
                f"{DISK_RESERVE_BYTES} stay reserved: make room or move instances."
            )
            raise DriverError("DiskFull", message)


def ensure_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(FOLDER_MODE)


def put_in_place(temporary: Path, target: Path, mode: int) -> None:
    """Make a finished file durable, then visible under its name, in this order."""
    temporary.chmod(mode)
    _sync(temporary)
    temporary.replace(target)
    _sync(target.parent)


def write_whole(target: Path, data: bytes, mode: int) -> None:
    temporary = target.with_name(target.name + TEMPORARY_SUFFIX)
    temporary.write_bytes(data)
    put_in_place(temporary, target, mode)


def remove_folder(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
        _sync(folder.parent)


def read_tail(log: Path, tail_lines: int) -> bytes:
    """The last lines of a log that virtlogd rotates: the present file and the one before."""
    tail = _read_end(log, CONSOLE_LOG_READ_MAX)
    if len(tail) < CONSOLE_LOG_READ_MAX:
        tail = _read_end(log.with_name(log.name + ".0"), CONSOLE_LOG_READ_MAX - len(tail)) + tail
    return b"".join(tail.splitlines(keepends=True)[-tail_lines:]) if tail_lines > 0 else b""


@contextmanager
def translated(attempt: str, path: Path) -> Iterator[None]:
    """OSError as ours."""
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DriverError("DiskFull", f"{attempt} {path}: no space left; make room.") from err
        message = f"{attempt} {path}: {err.strerror}; see the file system's state and its permissions."
        raise DriverError("StorageFailed", message) from err


def _present(files: InstanceFiles) -> Iterator[str]:
    for name, path in (("disk", files.disk), ("seed", files.seed), ("console_log", files.console_log)):
        if os.path.exists(path):
            yield name


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_end(path: Path, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - most_bytes))
            return log.read(most_bytes)
    except FileNotFoundError:
        return b""
