"""Makes the root file system's directory: debootstrap and apt, from a small archive, without a network.

**Edge**: needs root. Every program of the new system runs in namespaces of its own, whose mounts and
processes end with it, however this process ends.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ..cache import run_tool
from ..errors import ImageBuildError
from . import archive, recipe

OWN_FILES: Final = Path(__file__).parent / "root"
# debootstrap takes half a minute on an idle machine, the packages as long; this is for a very busy one.
_INSTALL_TIMEOUT_S: Final = 1200
_ARCHIVE_DIR: Final = "var/lib/cumulet-archive"
# While packages are configured no service may start; init scripts ask this one (invoke-rc.d(8)).
_POLICY: Final = "usr/sbin/policy-rc.d"
_QUIET: Final = {"DEBIAN_FRONTEND": "noninteractive", "DEBCONF_NONINTERACTIVE_SEEN": "true"}
# What each machine must make for itself, what a build leaves behind, and what names the builder's archive.
_FOREIGN: Final = (
    "etc/ssh/ssh_host_*",
    "var/lib/apt/lists/*",
    "var/cache/apt/*.bin",
    "var/cache/debconf/*-old",
    "var/log/*.log",
    "var/log/apt/*",
    "var/lib/dbus/machine-id",
    "etc/resolv.conf",
    "etc/apt/sources.list",
    "boot/*.old",
    "*.old",
)


def make_archive(folder: Path, records: str, debs: Mapping[str, Path]) -> None:
    """An archive of the packages, for debootstrap and apt. Raises ImageBuildError."""
    pool, dist = folder / "pool", folder / "dists" / recipe.SUITE
    pool.mkdir(parents=True)
    for deb in debs.values():
        (pool / deb.name).hardlink_to(deb)
    try:
        index = archive.render_packages(records, {name: deb.name for name, deb in debs.items()}).encode()
    except ValueError as err:
        raise ImageBuildError(f"apt's records: {err}", "run `apt-get update`, then build again") from err
    (dist / archive.INDEX).parent.mkdir(parents=True)
    (dist / archive.INDEX).write_bytes(index)
    (dist / "Release").write_text(archive.render_release(recipe.SUITE, index))


def make_root(root: Path, packages: Path) -> None:
    """The whole system in a directory, as it is before its first boot. Raises ImageBuildError."""
    _bootstrap(root, packages)
    packages.rename(root / _ARCHIVE_DIR)
    source = f"deb [trusted=yes] file:///{_ARCHIVE_DIR} {recipe.SUITE} {archive.COMPONENT}\n"
    (root / "etc/apt/sources.list").write_text(source)
    policy = root / _POLICY
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    _inside(root, ["apt-get", "-q", "update"])
    install = ["apt-get", "-q", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0", "install"]
    _inside(root, [*install, *recipe.PACKAGES])
    _inside(root, ["apt-get", "clean"])
    policy.unlink()
    _make_general(root)


def _bootstrap(root: Path, packages: Path) -> None:
    """The base system, in two stages: only the second runs programs of the new one."""
    command = ["debootstrap", "--foreign", "--variant=minbase", "--no-check-gpg", "--arch=amd64"]
    run_tool([*command, recipe.SUITE, str(root), f"file://{packages}"], _QUIET, _INSTALL_TIMEOUT_S)
    if (root / "proc").is_symlink():  # debootstrap's way in a container
        (root / "proc").unlink()
        (root / "proc").mkdir()
    _inside(root, ["/debootstrap/debootstrap", "--second-stage"])


def find_one(folder: Path, pattern: str) -> Path:
    """The one file of a pattern. Raises ImageBuildError."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ImageBuildError(f"{folder}: {len(found)} files {pattern}, not one", "check recipe.py")
    return found[0]


def _inside(root: Path, command: Sequence[str]) -> None:
    spaces = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
    run_tool([*spaces, f"--root={root}", "--mount-proc", "--", *command], _QUIET, _INSTALL_TIMEOUT_S)


def _make_general(root: Path) -> None:
    """Takes away what is of this build, so that each instance becomes one of its own."""
    shutil.rmtree(root / _ARCHIVE_DIR)
    for pattern in _FOREIGN:
        for path in filter(_is_entry, root.glob(pattern)):
            path.unlink()
    for path in OWN_FILES.rglob("*"):
        if path.is_file():
            target = root / path.relative_to(OWN_FILES)
            target.write_bytes(path.read_bytes())
            target.chmod(0o644)
    # Empty, not absent: systemd fills it at the first boot and does not ask questions (machine-id(5)).
    (root / "etc/machine-id").write_bytes(b"")


def _is_entry(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()
