"""A file tree as a value, and its two renderings: a cpio archive and a debugfs script.

**Pure**: entries in, bytes or text out. Nothing here reads the host's files, clock, users or directory order,
so the same entries always give the same image, and building one needs no root.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

# debugfs splits its commands at blanks and has its own quoting; such names are refused instead of quoted.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9@%+=:,._/\[-]+")

# Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst, "newc" without checksums.
_CPIO_MAGIC = b"070701"
_CPIO_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory; `path` is relative to the root of the tree."""

    path: str
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class File:
    """A regular file that belongs to root."""

    path: str
    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link; `target` is kept as it is."""

    path: str
    target: str


_TYPE_BITS = {Directory: stat.S_IFDIR, File: stat.S_IFREG, Symlink: stat.S_IFLNK}
Entry = Directory | File | Symlink


def complete_tree(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Adds the parent directories that no entry names and sorts parents before children.

    Raises ValueError on a path that occurs twice, is absolute, climbs out or holds characters that debugfs
    would split.
    """
    tree: dict[str, Entry] = {}
    for entry in entries:
        _check_path(entry.path)
        if entry.path in tree:
            raise ValueError(f"{entry.path}: occurs twice in the tree")
        tree[entry.path] = entry
    for path in list(tree):
        for parent in PurePosixPath(path).parents:
            tree.setdefault(str(parent), Directory(str(parent)))
    tree.pop(".", None)
    return tuple(tree[path] for path in sorted(tree, key=lambda path: PurePosixPath(path).parts))


def render_cpio(tree: Iterable[Entry], mtime_s: int) -> bytes:
    """The tree as an uncompressed initramfs."""
    parts: list[bytes] = []
    # Inode 0 belongs to the trailer.
    for inode, entry in enumerate(tree, start=1):
        parts.append(_cpio_record(entry.path, inode, _mode_of(entry), mtime_s, _content_of(entry)))
    parts.append(_cpio_record(_CPIO_TRAILER, 0, 0, 0, b""))
    return b"".join(parts)


def render_debugfs(tree: Iterable[Entry], sources: Mapping[str, str]) -> str:
    """debugfs commands that fill an empty ext4 file system; `sources`: path -> its data on the host."""
    lines: list[str] = []
    for entry in tree:
        parent, name = _split(entry.path)
        lines.append(f"cd {parent}")
        match entry:
            case Directory():
                lines.append(f"mkdir {name}")
            case File():
                lines.append(f"write {sources[entry.path]} {name}")
            case Symlink(target=target):
                _check_characters(target)
                lines.append(f"symlink {name} {target}")
        if not isinstance(entry, Symlink):
            lines.append(f"set_inode_field {name} mode 0{_mode_of(entry):o}")
    return "\n".join(lines) + "\n"


def _check_path(path: str) -> None:
    _check_characters(path)
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "" in parts:
        raise ValueError(f"{path}: must be a relative path without '..' and empty parts")


def _check_characters(text: str) -> None:
    if not _PLAIN_NAME.fullmatch(text):
        raise ValueError(f"{text!r}: has characters that debugfs would split")


def _split(path: str) -> tuple[str, str]:
    pure = PurePosixPath("/", path)
    return str(pure.parent), pure.name


def _mode_of(entry: Entry) -> int:
    permissions = 0o777 if isinstance(entry, Symlink) else entry.mode
    return _TYPE_BITS[type(entry)] | permissions


def _content_of(entry: Entry) -> bytes:
    match entry:
        case File(data=data):
            return data
        case Symlink(target=target):
            return target.encode()
        case Directory():
            return b""


def _cpio_record(path: str, inode: int, mode: int, mtime_s: int, content: bytes) -> bytes:
    name = path.encode() + b"\0"
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, mode, 0, 0, 1, mtime_s, len(content), 0, 0, 0, 0, len(name), 0)
    header = _CPIO_MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
