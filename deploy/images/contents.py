"""What is inside the image: packages and the guest's own files become two trees, initramfs and root.

**Edge**: reads packages and this folder's `guest/`, and asks the packaged busybox for its applets. The trees
that it returns are values.
"""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from . import modules, recipe
from .debian import open_package
from .errors import ImageBuildError
from .tree import Directory, Entry, File, Symlink, complete_tree

GUEST_FILES = Path(__file__).parent / "guest"

# Directories that must exist for mounts and programs, beyond the parents of files.
_EMPTY_DIRECTORIES = ("dev", "proc", "sys", "run", "mnt", "etc/dropbear", "var/lib/cumulet", "var/www")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel package's parts: `files` maps a module's name to (path below lib/modules/RELEASE, content)."""

    release: str
    vmlinuz: bytes
    built_at_s: int
    files: Mapping[str, tuple[str, bytes]]
    depends: Mapping[str, tuple[str, ...]]
    builtin: frozenset[str]


def read_kernel(deb: Path) -> Kernel:
    """Reads kernel and modules from the kernel's package. Raises ImageBuildError."""
    vmlinuz, built_at_s, listing, release = b"", 0, "", ""
    files: dict[str, tuple[str, bytes]] = {}
    with open_package(deb) as archive:
        for member in archive:
            path = member.name.removeprefix("./")
            if path.startswith("boot/vmlinuz-"):
                vmlinuz, built_at_s = _read(archive, member), int(member.mtime)
                release = path.removeprefix("boot/vmlinuz-")
            elif path.endswith("/modules.builtin"):
                listing = _read(archive, member).decode()
            elif path.endswith(".ko"):
                below = path.partition("lib/modules/")[2].partition("/")[2]
                files[modules.module_name(path)] = (below, _read(archive, member))
    if not (vmlinuz and files):
        raise ImageBuildError(f"{deb.name}: holds no kernel or modules", "check recipe.py")
    depends = {name: modules.parse_depends(data) for name, (_, data) in files.items()}
    return Kernel(release, vmlinuz, built_at_s, files, depends, modules.parse_builtin(listing))


def build_initramfs_tree(kernel: Kernel, busybox: bytes) -> tuple[Entry, ...]:
    """busybox, the modules that the root disk needs, and /init."""
    entries: list[Entry] = [
        File("bin/busybox", busybox, 0o755),
        File("init", (GUEST_FILES / "initramfs/init").read_bytes(), 0o755),
        *_module_files(kernel, recipe.INITRAMFS_MODULES),
    ]
    entries += [Directory(name) for name in ("dev", "proc", "root", "sys")]
    return complete_tree(entries)


def build_root_tree(kernel: Kernel, taken: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The root file system: files from packages, busybox's applets, modules, and the guest's own files."""
    busybox = find_busybox(taken)
    own = _own_files()
    paths = {entry.path for entry in (*taken, *own)}
    applets = [Symlink(path, "/bin/busybox") for path in list_applets(busybox) if path not in paths]
    entries: list[Entry] = [*taken, *own, *applets]
    entries += _module_files(kernel, (*recipe.INITRAMFS_MODULES, *recipe.ROOT_MODULES))
    entries += [Directory(path) for path in _EMPTY_DIRECTORIES]
    entries += [Directory("root", 0o700), Directory("root/.ssh", 0o700), Directory("tmp", 0o1777)]
    entries += [
        File("root/.ssh/authorized_keys", b"", 0o600),
        File("var/lib/cumulet/instance-id", b"none\n"),
        File("var/lib/cumulet/disk-sectors", f"{recipe.DISK_SIZE_MIB * 2048}\n".encode()),
    ]
    return complete_tree(entries)


def take_files(debs: Mapping[str, Path]) -> tuple[Entry, ...]:
    """The files that the recipe takes from the packages. Raises ImageBuildError when a pattern finds none."""
    taken: list[Entry] = []
    for name, patterns in recipe.ROOT_FILES.items():
        found: list[Entry] = []
        with open_package(debs[name]) as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if any(fnmatch(path, pattern) for pattern in patterns):
                    found.append(_entry(archive, member, path))
        for pattern in patterns:
            if not any(fnmatch(entry.path, pattern) for entry in found):
                raise ImageBuildError(f"package {name}: no file {pattern}", "correct ROOT_FILES in recipe.py")
        taken += found
    return tuple(taken)


def find_busybox(taken: tuple[Entry, ...]) -> bytes:
    """The static busybox among the files that were taken from packages."""
    return next(entry.data for entry in taken if isinstance(entry, File) and entry.path == "bin/busybox")


def list_applets(busybox: bytes) -> tuple[str, ...]:
    """The paths that busybox wants to be called by. Runs it: builder and guest have one architecture."""
    with tempfile.TemporaryDirectory(prefix="cumulet-busybox-") as folder:
        program = Path(folder) / "busybox"
        program.write_bytes(busybox)
        program.chmod(0o755)
        listing = subprocess.check_output([program, "--list-full"], text=True, timeout=10)
    return tuple(path for path in listing.split() if path != "bin/busybox")


def _module_files(kernel: Kernel, wanted: Iterable[str]) -> list[Entry]:
    """The modules with all they depend on, and the table by which modprobe finds them."""
    order = modules.order_modules(wanted, kernel.depends, kernel.builtin)
    folder = f"lib/modules/{kernel.release}"
    paths = {name: kernel.files[name][0] for name in order}
    table = modules.render_modules_dep(paths, kernel.depends)
    files: list[Entry] = [File(f"{folder}/{path}", kernel.files[name][1]) for name, path in paths.items()]
    return [*files, File(f"{folder}/modules.dep", table.encode())]


def _own_files() -> list[Entry]:
    base = GUEST_FILES / "root"
    return [
        File(str(path.relative_to(base)), path.read_bytes(), _mode_of(path))
        for path in sorted(base.rglob("*"))
        if path.is_file()
    ]


def _mode_of(path: Path) -> int:
    """Scripts are executable and secrets private whatever the checkout's umask made of them."""
    if path.name == "shadow":
        return 0o600
    return 0o755 if path.read_bytes().startswith(b"#!") else 0o644


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> Entry:
    if member.issym():
        return Symlink(path, member.linkname)
    return File(path, _read(archive, member), member.mode & 0o755)


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    if stream is None:
        raise ImageBuildError(f"{member.name}: not a regular file in its package", "correct recipe.py")
    return stream.read()
