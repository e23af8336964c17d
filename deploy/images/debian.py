"""Debian's packages: which versions are current, their files, fetched through this machine's own apt.

**Edge**: runs apt-get, apt-cache and dpkg-deb. apt's configuration says where packages come from and whose
signatures count; nothing here names a mirror.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from .errors import ImageBuildError
from .recipe import Package

# Source: apt-get(8), --print-uris: 'URI' filename size HASH:hex
_PRINTED_URI = re.compile(r"^'(?P<uri>[^']+)' (?P<filename>\S+) \d+ SHA256:(?P<sha256>[0-9a-f]{64})$")
_REAL_KERNEL = re.compile(r"^\s*Depends: (linux-image-\S+)$", re.MULTILINE)

# A mirror that answers nothing for this long is down; a first build takes well under a minute.
_APT_TIMEOUT_S = 300


def resolve_packages(metapackage: str, names: Iterable[str]) -> tuple[str, tuple[Package, ...]]:
    """The current kernel package's name, and all packages with versions and digests.

    Refreshes the package lists once when they are missing. Raises ImageBuildError.
    """
    try:
        return _resolve(metapackage, names)
    except ImageBuildError:
        update_lists()
        return _resolve(metapackage, names)


def update_lists() -> None:
    """Refreshes apt's package lists. Raises ImageBuildError (it needs root)."""
    run_apt(["apt-get", "update", "-q"])


def fetch_packages(packages: Iterable[Package], into: Path) -> dict[str, Path]:
    """Name -> .deb file, downloading what is missing or damaged and checking every digest.

    Raises ImageBuildError, also when a file is not what the signed lists promise.
    """
    wanted = {package.name: package for package in packages}
    missing = [p for p in wanted.values() if not _is_intact(into / p.filename, p)]
    if missing:
        names = [f"{package.name}={package.version}" for package in missing]
        # apt's own sandbox user may not write into our cache.
        run_apt(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *names], cwd=into)
    for package in missing:
        if not _is_intact(into / package.filename, package):
            raise ImageBuildError(
                f"package {package.name} {package.version}: the download is missing or has another digest",
                f"remove {into / package.filename} and build again",
            )
    return {name: into / package.filename for name, package in wanted.items()}


@contextmanager
def open_package(deb: Path) -> Iterator[tarfile.TarFile]:
    """The data archive of a package, as a stream: members in order, each read before the next."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            yield archive
        if process.stdout is not None:
            # dpkg-deb must see its whole output read, or it dies of a broken pipe and looks damaged.
            while process.stdout.read(1 << 20):
                pass
    if process.returncode != 0:
        raise ImageBuildError(f"{deb}: dpkg-deb cannot read it", "remove the file and build again")


def _resolve(metapackage: str, names: Iterable[str]) -> tuple[str, tuple[Package, ...]]:
    kernel = _REAL_KERNEL.search(run_apt(["apt-cache", "depends", metapackage]))
    if kernel is None:
        raise ImageBuildError(f"package {metapackage}: depends on no kernel", "run `apt-get update`")
    wanted = [kernel.group(1), *sorted(names)]
    listing = run_apt(["apt-get", "download", "--print-uris", "-q", *wanted])
    packages = tuple(sorted(parse_uris(listing)))
    lost = set(wanted) - {package.name for package in packages}
    if lost:
        raise ImageBuildError(f"packages {', '.join(sorted(lost))}: not offered", "run `apt-get update`")
    return kernel.group(1), packages


def parse_uris(listing: str) -> Iterator[Package]:
    """The packages in the output of `apt-get download --print-uris`."""
    for line in listing.splitlines():
        found = _PRINTED_URI.match(line)
        if found is not None:
            # apt's file names are NAME_VERSION_ARCH.deb with a quoted colon.
            name, version, _ = found["filename"].split("_")
            yield Package(name, unquote(version), found["filename"], found["sha256"])


def _is_intact(deb: Path, package: Package) -> bool:
    if not deb.is_file():
        return False
    with deb.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == package.sha256


def run_apt(command: list[str], cwd: Path | None = None) -> str:
    """What apt says to a command. Raises ImageBuildError."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=_APT_TIMEOUT_S, check=False
        )
    except FileNotFoundError as err:
        raise ImageBuildError(f"{command[0]}: not found", "build the image on a Debian machine") from err
    except subprocess.TimeoutExpired as err:
        what = f"{' '.join(command[:2])}: no end after {_APT_TIMEOUT_S} s"
        raise ImageBuildError(what, "check the mirror") from err
    if done.returncode != 0:
        raise ImageBuildError(
            f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}",
            "check apt's sources and the network, then build again",
        )
    return done.stdout
