"""Builds the guest image into a cache, once for each set of inputs.

**Edge**: writes below the cache directory, runs apt, mkfs.ext4, debugfs and qemu-img.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import contents, debian, recipe
from .cache import describe_files, forget_other_debs, locked, point, publish, run_tool, work_folder
from .errors import ImageBuildError
from .tree import Entry, File, render_cpio, render_debugfs

DEFAULT_CACHE = Path("/var/cache/cumulet/images")

VMLINUZ = "vmlinuz"
INITRD = "initrd.img"
DISK = "disk.qcow2"
MANIFEST = "image.json"

# What a small guest creates over its life; the default would zero 16 MiB of inode tables.
_INODES = 16384
# The smallest that ext4 allows with 4 KiB blocks.
_JOURNAL_MIB = 4

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """A complete image: its folder and its image.json, decoded."""

    folder: Path
    manifest: dict[str, object]
    was_cached: bool

    @property
    def vmlinuz(self) -> Path:
        """The kernel, for direct boot."""
        return self.folder / VMLINUZ

    @property
    def initrd(self) -> Path:
        """The initramfs, for direct boot."""
        return self.folder / INITRD

    @property
    def disk(self) -> Path:
        """The root file system as qcow2; use it as a read-only backing file."""
        return self.folder / DISK

    @property
    def cmdline(self) -> str:
        """The kernel's command line."""
        return str(self.manifest["cmdline"])


def build_image(
    cache: Path = DEFAULT_CACHE, *, refresh: bool = False, report: Report = lambda line: None
) -> BuiltImage:
    """Returns the image of this checkout's recipe, building it unless the cache has it.

    `refresh` asks apt for the current packages even when the recipe was built before. Concurrent builds
    wait for each other. Raises ImageBuildError.
    """
    recipe_digest = recipe.digest_recipe(_read_sources())
    pointer = cache / "recipes" / recipe_digest
    found = None if refresh else find_image(pointer)
    if found is not None:
        report(f"guest image {found.manifest['version']}: already there")
        return found
    with locked(cache):
        # Another process may have built it while this one waited.
        found = None if refresh else find_image(pointer)
        return found or _build(cache, recipe_digest, pointer, report)


def find_image(folder: Path) -> BuiltImage | None:
    """The image in a folder, or None when it is not complete."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        for name, facts in manifest["files"].items():
            if (folder / name).stat().st_size != facts["size_bytes"]:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return BuiltImage(folder.resolve(), manifest, was_cached=True)


def _build(cache: Path, recipe_digest: str, pointer: Path, report: Report) -> BuiltImage:
    report("guest image: asking apt for the current packages")
    kernel_name, packages = debian.resolve_packages(recipe.KERNEL_METAPACKAGE, recipe.ROOT_FILES)
    digest = recipe.digest_inputs(recipe_digest, packages)
    target = cache / digest
    found = find_image(target)
    if found is None:
        debs_folder = cache / "debs"
        debs_folder.mkdir(exist_ok=True)
        report(f"guest image: fetching {len(packages)} packages")
        debs = debian.fetch_packages(packages, debs_folder)
        forget_other_debs(debs_folder, set(debs.values()))
        with work_folder(cache) as work:
            report("guest image: unpacking the kernel and writing the root file system")
            kernel_deb = debs.pop(kernel_name)
            _write_image(work, kernel_deb, debs, packages, digest)
            publish(work, target)
        found = find_image(target)
        if found is None:
            raise ImageBuildError(f"{target}: not complete after the build", "remove it and build again")
        report(f"guest image {found.manifest['version']}: built in {target}")
        found = BuiltImage(found.folder, found.manifest, was_cached=False)
    point(pointer, target)
    return found


def _write_image(
    work: Path, kernel_deb: Path, debs: dict[str, Path], packages: Sequence[recipe.Package], digest: str
) -> None:
    kernel = contents.read_kernel(kernel_deb)
    taken = contents.take_files(debs)
    built_at_s = int(os.environ.get("SOURCE_DATE_EPOCH", kernel.built_at_s))
    (work / VMLINUZ).write_bytes(kernel.vmlinuz)
    initramfs = contents.build_initramfs_tree(kernel, contents.find_busybox(taken))
    # Not compressed: QEMU copies it in no time, and under emulation unpacking costs more than reading.
    (work / INITRD).write_bytes(render_cpio(initramfs, built_at_s))
    write_disk(work, contents.build_root_tree(kernel, taken), built_at_s)
    manifest = _build_manifest(work, kernel.release, packages, digest)
    (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def write_disk(work: Path, tree: Sequence[Entry], built_at_s: int) -> None:
    """Writes DISK: an ext4 file system filled by debugfs: owner and times come from us, not the host."""
    raw, staging = work / "disk.raw", work / "staging"
    staging.mkdir()
    sources: dict[str, str] = {}
    for number, entry in enumerate(tree):
        if isinstance(entry, File):
            source = staging / str(number)
            source.write_bytes(entry.data)
            sources[entry.path] = str(source)
    script = work / "debugfs.script"
    script.write_text(render_debugfs(tree, sources))
    _make_filesystem(raw, built_at_s)
    _run_debugfs(raw, script, built_at_s)
    _run(["e2fsck", "-fn", str(raw)], built_at_s)
    convert = ["qemu-img", "convert", "-f", "raw", "-O", recipe.DISK_FORMAT]
    _run([*convert, str(raw), str(work / DISK)], built_at_s)
    raw.unlink()
    script.unlink()
    shutil.rmtree(staging)


def _make_filesystem(raw: Path, built_at_s: int) -> None:
    with raw.open("wb") as stream:
        stream.truncate(recipe.DISK_SIZE_MIB << 20)
    # Nothing is left to lazy initialisation: a guest's kernel would write zeros into its overlay for it.
    extended = f"hash_seed={recipe.FILESYSTEM_UUID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    command = ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-N", str(_INODES)]
    command += ["-J", f"size={_JOURNAL_MIB}"]
    command += ["-U", recipe.FILESYSTEM_UUID, "-L", recipe.FILESYSTEM_LABEL, "-E", extended, str(raw)]
    _run(command, built_at_s)


def _run_debugfs(raw: Path, script: Path, built_at_s: int) -> None:
    done = _run(["debugfs", "-w", "-f", str(script), str(raw)], built_at_s)
    # debugfs exits with 0 whatever its commands did; it complains on stderr, below its own name.
    complaints = [line for line in done.splitlines() if not line.startswith("debugfs ")]
    if complaints:
        raise ImageBuildError(f"debugfs: {complaints[0]}", "check the names in deploy/images/guest")


def _run(command: list[str], built_at_s: int) -> str:
    """Runs a tool with its clock set and returns what it wrote to stderr. Raises ImageBuildError."""
    clock = {"SOURCE_DATE_EPOCH": str(built_at_s), "E2FSPROGS_FAKE_TIME": str(built_at_s)}
    return run_tool(command, clock).stderr


def _build_manifest(
    work: Path, kernel_release: str, packages: Sequence[recipe.Package], digest: str
) -> dict[str, object]:
    return {
        "manifest_version": recipe.MANIFEST_VERSION,
        "name": recipe.NAME,
        "version": f"{kernel_release.split('-cloud')[0]}-{digest[:12]}",
        "arch": recipe.ARCH,
        "format": recipe.DISK_FORMAT,
        "cmdline": recipe.KERNEL_CMDLINE,
        "min_memory_mib": recipe.MIN_MEMORY_MIB,
        "min_disk_gib": recipe.MIN_DISK_GIB,
        "inputs_sha256": digest,
        "files": describe_files(work, (VMLINUZ, INITRD, DISK)),
        "packages": [{"name": p.name, "version": p.version, "sha256": p.sha256} for p in packages],
    }


def _read_sources() -> dict[str, bytes]:
    base = Path(__file__).parent
    files = [*base.glob("*.py"), *(path for path in contents.GUEST_FILES.rglob("*") if path.is_file())]
    return {str(path.relative_to(base)): path.read_bytes() for path in files}
