"""A tree's renderings say what the tree says: cpio decodes to it, ext4 holds it, twice the same bytes.

**Pure**, except for the tests of `write_disk`, which run e2fsprogs and qemu-img.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.images import recipe
from deploy.images.image import DISK, write_disk
from deploy.images.tree import Directory, Entry, File, Symlink, complete_tree, render_cpio, render_debugfs

BUILT_AT_S = 1_700_000_000

names = st.text("abz09._-", min_size=1, max_size=6).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
permissions = st.sampled_from((0o600, 0o644, 0o755))
entries = st.one_of(
    st.builds(Directory, paths, permissions),
    st.builds(File, paths, st.binary(max_size=40), permissions),
    st.builds(Symlink, paths, paths),
)


def trees(candidates: list[Entry]) -> tuple[Entry, ...]:
    """Keeps the entries that do not lie below a file and do not repeat a path."""
    kept: dict[str, Entry] = {}
    for entry in candidates:
        leaves = {path for path, other in kept.items() if not isinstance(other, Directory)}
        inside = any(entry.path.startswith(f"{leaf}/") for leaf in leaves)
        above = not isinstance(entry, Directory) and any(p.startswith(f"{entry.path}/") for p in kept)
        if entry.path not in kept and not inside and not above:
            kept[entry.path] = entry
    return complete_tree(kept.values())


def decode_cpio(archive: bytes) -> list[tuple[str, int, int, bytes]]:
    """(path, mode, mtime, content) of each record, read by the format's description."""
    records: list[tuple[str, int, int, bytes]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        _, mode, _, _, _, mtime_s, size, *_, name_size, _ = fields
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += -(-(110 + name_size) // 4) * 4
        content = archive[at : at + size]
        at += -(-size // 4) * 4
        if name == "TRAILER!!!":
            assert at == len(archive)
            return records
        records.append((name, mode, mtime_s, content))


@given(st.lists(entries, max_size=12).map(trees))
def test_cpio_decodes_to_the_tree(tree: tuple[Entry, ...]) -> None:
    for entry, (path, mode, mtime_s, content) in zip(
        tree, decode_cpio(render_cpio(tree, BUILT_AT_S)), strict=True
    ):
        assert (path, mtime_s) == (entry.path, BUILT_AT_S)
        match entry:
            case Directory():
                assert (mode, content) == (0o040000 | entry.mode, b"")
            case File():
                assert (mode, content) == (0o100000 | entry.mode, entry.data)
            case Symlink():
                assert (mode, content) == (0o120777, entry.target.encode())


@given(st.lists(entries, max_size=12).map(trees))
def test_parents_stand_before_what_is_in_them(tree: tuple[Entry, ...]) -> None:
    seen = {""}
    for entry in tree:
        assert entry.path.rpartition("/")[0] in seen
        seen.add(entry.path)
    assert complete_tree(reversed(tree)) == tree


@pytest.mark.parametrize("path", ["/etc", "a/../b", "a//b", "", "a b", "a\nquit", 'a"b', "a;b"])
def test_paths_that_could_leave_the_tree_or_the_script_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|characters"):
        complete_tree([File(path, b"")])


def test_a_path_that_occurs_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="etc/a: occurs twice"):
        complete_tree([File("etc/a", b"1"), Symlink("etc/a", "b")])


def test_a_link_target_that_would_split_the_script_is_refused() -> None:
    with pytest.raises(ValueError, match="characters"):
        render_debugfs([Symlink("a", "b c")], {})


def read_ext4(raw: Path, request: str) -> str:
    return subprocess.check_output(
        ["/sbin/debugfs", "-R", request, raw], text=True, stderr=subprocess.DEVNULL
    )


@pytest.fixture
def tree() -> tuple[Entry, ...]:
    return complete_tree(
        [
            File("etc/shadow", b"root:*\n", 0o600),
            File("sbin/init", b"x" * 70_000, 0o755),
            Symlink("bin/sh", "/bin/busybox"),
            Symlink("bin/[", "/bin/busybox"),
            Directory("tmp", 0o1777),
        ]
    )


def test_ext4_holds_the_tree_and_belongs_to_root(tree: tuple[Entry, ...], tmp_path: Path) -> None:
    write_disk(tmp_path, tree, BUILT_AT_S)
    raw = tmp_path / "copy.raw"
    command = ["qemu-img", "convert", "-f", recipe.DISK_FORMAT, "-O", "raw", str(tmp_path / DISK), str(raw)]
    subprocess.run(command, check=True)
    assert read_ext4(raw, "cat /etc/shadow") == "root:*\n"
    assert read_ext4(raw, "cat /sbin/init") == "x" * 70_000
    for path, kind, mode in [
        ("/etc/shadow", "regular", "0600"),
        ("/sbin/init", "regular", "0755"),
        ("/tmp", "directory", "01777"),
        ("/bin/[", "symlink", "0777"),
    ]:
        facts = read_ext4(raw, f"stat {path}")
        assert f"Type: {kind}" in facts
        assert f"Mode:  {mode}" in facts
        assert "User:     0   Group:     0" in facts
    assert (tmp_path / DISK).stat().st_size < 8 << 20
    assert {path.name for path in tmp_path.iterdir()} == {DISK, "copy.raw"}


def test_the_same_tree_gives_the_same_disk(tree: tuple[Entry, ...], tmp_path: Path) -> None:
    digests = set()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_disk(tmp_path / name, tree, BUILT_AT_S)
        digests.add(hashlib.sha256((tmp_path / name / DISK).read_bytes()).hexdigest())
    assert len(digests) == 1
