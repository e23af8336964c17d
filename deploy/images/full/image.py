"""Builds the full Debian image into a cache, once for each set of inputs.

**Edge**: writes below the cache directory, runs apt, debootstrap, mkfs.ext4 and qemu-img. apt's configuration
of this machine says where packages come from and whose signatures count; none of it gets into the image.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .. import debian
from ..cache import describe_files, forget_other_debs, locked, point, publish, run_tool, work_folder
from ..errors import ImageBuildError
from ..image import DEFAULT_CACHE, DISK, INITRD, MANIFEST, VMLINUZ, BuiltImage, Report, find_image
from ..recipe import DISK_FORMAT, Package, digest_inputs, digest_recipe
from . import archive, recipe, rootfs

# Filling and compressing 2 GiB takes 20 s on an idle machine.
_DISK_TIMEOUT_S: Final = 600


def build_debian(
    cache: Path = DEFAULT_CACHE, *, refresh: bool = False, report: Report = lambda line: None
) -> BuiltImage:
    """Returns the image of this checkout's recipe, building it unless the cache has it.

    It has a part of the cache of its own, so that nobody waits a minute for the small image. `refresh` asks
    apt for the current packages. Raises ImageBuildError.
    """
    place = cache / recipe.NAME
    recipe_digest = digest_recipe(_read_sources())
    pointer = place / "recipes" / recipe_digest
    found = None if refresh else find_image(pointer)
    if found is not None:
        report(f"{recipe.NAME} {found.manifest['version']}: already there")
        return found
    with locked(place):
        found = None if refresh else find_image(pointer)
        return found or _build(place, recipe_digest, pointer, report)


def _build(place: Path, recipe_digest: str, pointer: Path, report: Report) -> BuiltImage:
    if os.geteuid() != 0:
        raise ImageBuildError(f"{recipe.NAME}: debootstrap needs root", "run it as root")
    report(f"{recipe.NAME}: asking apt for the current packages")
    packages = resolve_packages()
    target = place / digest_inputs(recipe_digest, packages)
    found = find_image(target)
    if found is None:
        with work_folder(place) as work:
            _write_image(place, work, packages, target.name, report)
            publish(work, target)
        built = find_image(target)
        if built is None:
            raise ImageBuildError(f"{target}: not complete after the build", "remove it and build again")
        report(f"{recipe.NAME} {built.manifest['version']}: built in {target}")
        found = BuiltImage(built.folder, built.manifest, was_cached=False)
    point(pointer, target)
    return found


def resolve_packages() -> tuple[Package, ...]:
    """All packages of the image, with versions and digests. Raises ImageBuildError."""
    try:
        return _resolve()
    except ImageBuildError:
        debian.update_lists()
        return _resolve()


def _resolve() -> tuple[Package, ...]:
    available = debian.run_apt(["apt-cache", "dumpavail"])
    base = archive.list_required(available.splitlines(), recipe.BASE_PRIORITY)
    with tempfile.NamedTemporaryFile() as nothing:
        # A system on which nothing is installed: what this machine has does not count.
        bare = ["-o", f"Dir::State::status={nothing.name}", "-o", "APT::Install-Recommends=false"]
        wanted = [*base, *recipe.BASE_PACKAGES, *recipe.PACKAGES]
        chosen = archive.parse_simulation(debian.run_apt(["apt-get", "-s", *bare, "install", *wanted]))
        listing = debian.run_apt(["apt-get", "download", "--print-uris", "-q", *bare, *chosen])
    packages = tuple(sorted(debian.parse_uris(listing)))
    if {f"{package.name}={package.version}" for package in packages} != set(chosen):
        raise ImageBuildError("apt offers other packages than it chose", "run `apt-get update`")
    return packages


def _write_image(place: Path, work: Path, packages: Sequence[Package], digest: str, report: Report) -> None:
    debs_folder = place / "debs"
    debs_folder.mkdir(exist_ok=True)
    report(f"{recipe.NAME}: fetching {len(packages)} packages")
    debs = debian.fetch_packages(packages, debs_folder)
    forget_other_debs(debs_folder, set(debs.values()))
    names = [f"{package.name}={package.version}" for package in packages]
    records = debian.run_apt(["apt-cache", "show", *names])
    root = work / "root"
    rootfs.make_archive(work / "archive", records, debs)
    report(f"{recipe.NAME}: installing them (a minute or two)")
    rootfs.make_root(root, work / "archive")
    report(f"{recipe.NAME}: writing the disk")
    kernel = rootfs.find_one(root / "boot", "vmlinuz-*")
    release = kernel.name.removeprefix("vmlinuz-")
    shutil.copyfile(kernel, work / VMLINUZ)
    shutil.copyfile(root / "boot" / f"initrd.img-{release}", work / INITRD)
    _write_disk(work, root)
    (work / MANIFEST).write_text(
        json.dumps(_build_manifest(work, release, packages, digest), indent=2) + "\n"
    )


def _write_disk(work: Path, root: Path) -> None:
    raw = work / "disk.raw"
    with raw.open("wb") as stream:
        stream.truncate(recipe.DISK_SIZE_MIB << 20)
    # Nothing is left to lazy initialisation: a guest's kernel would write zeros into its overlay for it.
    extended = "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    command = ["mkfs.ext4", "-q", "-F", "-m", "1", "-L", recipe.FILESYSTEM_LABEL, "-E", extended]
    run_tool([*command, "-d", str(root), str(raw)], {}, _DISK_TIMEOUT_S)
    shutil.rmtree(root)
    convert = ["qemu-img", "convert", "-f", "raw", "-O", DISK_FORMAT]
    run_tool([*convert, str(raw), str(work / DISK)], {}, _DISK_TIMEOUT_S)
    raw.unlink()


def _build_manifest(
    work: Path, kernel_release: str, packages: Sequence[Package], digest: str
) -> dict[str, object]:
    return {
        "manifest_version": recipe.MANIFEST_VERSION,
        "name": recipe.NAME,
        "version": f"{kernel_release.split('-cloud')[0]}-{digest[:12]}",
        "arch": recipe.ARCH,
        "format": DISK_FORMAT,
        "cmdline": recipe.KERNEL_CMDLINE,
        "min_memory_mib": recipe.MIN_MEMORY_MIB,
        "min_disk_gib": recipe.MIN_DISK_GIB,
        "inputs_sha256": digest,
        "files": describe_files(work, (VMLINUZ, INITRD, DISK)),
        "packages": [{"name": p.name, "version": p.version, "sha256": p.sha256} for p in packages],
    }


def _read_sources() -> dict[str, bytes]:
    base = Path(__file__).parent
    files = [*base.glob("*.py"), *(path for path in rootfs.OWN_FILES.rglob("*") if path.is_file())]
    return {str(path.relative_to(base)): path.read_bytes() for path in files}
