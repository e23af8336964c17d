"""Named network namespaces: make, remove, and run one thread's code inside.

**Edge**: `unshare` and `setns` act on the calling thread only, so nothing here may run on the event loop's
thread. `pyroute2.netns` is not used: it forks a threaded interpreter for every namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

OWN_NAMESPACE: Final = Path("/proc/thread-self/ns/net")
_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 4096
_MS_REC: Final = 16384
_MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)


def open_namespace(path: Path) -> int:
    """A file descriptor that keeps the namespace alive and can be entered."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def enter(namespace_fd: int) -> None:
    """Move the calling thread."""
    _call("setns", namespace_fd, _CLONE_NEWNET)


@contextlib.contextmanager
def inside(path: Path) -> Iterator[int]:
    """The calling thread is in the namespace for the block; yields its file descriptor."""
    home = open_namespace(OWN_NAMESPACE)
    try:
        target = open_namespace(path)
        try:
            enter(target)
            try:
                yield target
            finally:
                enter(home)
        finally:
            os.close(target)
    finally:
        os.close(home)


def exists(path: Path) -> bool:
    """A namespace is mounted there; a plain file left by a crash is not one."""
    try:
        return path.stat().st_dev == OWN_NAMESPACE.stat().st_dev
    except FileNotFoundError:
        return False


def create(path: Path) -> None:
    """Make a namespace and give it this name."""
    _prepare_directory(path.parent)
    path.touch(mode=0o444)
    home = open_namespace(OWN_NAMESPACE)
    try:
        _call("unshare", _CLONE_NEWNET)
        try:
            _mount(str(OWN_NAMESPACE), path, _MS_BIND)
        finally:
            enter(home)
    finally:
        os.close(home)


def remove(path: Path) -> None:
    """Give the name up; the kernel takes the namespace down when nobody is left in it."""
    while exists(path):
        _call("umount2", os.fsencode(path), _MNT_DETACH)
    path.unlink(missing_ok=True)


def remove_directory(directory: Path) -> None:
    """Undo what the first `create` in this directory did, if it is empty."""
    if directory.is_dir() and not any(directory.iterdir()):
        with contextlib.suppress(OSError):  # EINVAL: not a mount point
            _call("umount2", os.fsencode(directory), _MNT_DETACH)
        directory.rmdir()


def _prepare_directory(directory: Path) -> None:
    """As iproute2 does: a shared mount, so that a removal is seen in every other mount namespace.

    Otherwise a service with private mounts would keep removed namespaces alive.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        _mount("none", directory, _MS_SHARED | _MS_REC)
    except OSError as err:
        if err.errno != errno.EINVAL:  # not a mount point yet (a bind mount cannot be told by its device)
            raise
        _mount(str(directory), directory, _MS_BIND | _MS_REC)
        _mount("none", directory, _MS_SHARED | _MS_REC)


def _mount(source: str, target: Path, flags: int) -> None:
    _call("mount", source.encode(), os.fsencode(target), b"none", ctypes.c_ulong(flags), None)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
