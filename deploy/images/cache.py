"""The image cache on disk: one build at a time, unfinished ones never look done, tools with their errors.

**Edge**: files, locks, processes. A build happens in a folder of its own that is renamed when it is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import ImageBuildError

# Unfinished builds of an earlier process; removed under the lock, when no one can be using them.
_WORK_PREFIX = "building-"
# mkfs, debugfs and qemu-img each take about a second on a slow machine.
_TOOL_TIMEOUT_S = 120


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """One build at a time in a cache; the kernel drops the lock with the process."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        stream = (cache / ".lock").open("w")
    except OSError as err:
        what = f"cache {cache}: {err.strerror}"
        raise ImageBuildError(what, "run as root or choose another with --cache") from err
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        for leftover in cache.glob(f"{_WORK_PREFIX}*"):
            shutil.rmtree(leftover)
        yield


@contextmanager
def work_folder(cache: Path) -> Iterator[Path]:
    """A folder for one build; what is left of it at the end is removed."""
    work = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=cache))
    # mkdtemp's 0700 would shut out a QEMU that runs as its own user.
    work.chmod(0o755)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def publish(work: Path, target: Path) -> None:
    """Gives a complete build its name; an incomplete image of that name makes room."""
    if target.exists():
        shutil.rmtree(target)
    work.rename(target)


def point(pointer: Path, target: Path) -> None:
    """Makes the recipe's link name the image; a rename, so that a reader sees the old one or the new one."""
    pointer.parent.mkdir(exist_ok=True)
    fresh = pointer.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(Path("..") / target.name)
    fresh.rename(pointer)


def forget_other_debs(folder: Path, kept: Collection[Path]) -> None:
    """The cache keeps the packages of the last build only; images stay, for disks may lie on them."""
    for deb in folder.glob("*.deb"):
        if deb not in kept:
            deb.unlink()


def describe_files(work: Path, names: Sequence[str]) -> dict[str, object]:
    """Digest and size of each file, as `image.json` has them."""
    return {name: _facts(work / name) for name in names}


def run_tool(
    command: Sequence[str], environment: dict[str, str], timeout_s: float = _TOOL_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Runs a tool, adding to this process's environment. Raises ImageBuildError."""
    complete = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            env=complete | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as err:
        raise ImageBuildError(f"{command[0]}: not found", "run deploy/install") from err
    except subprocess.TimeoutExpired as err:
        what = f"{command[0]}: no end after {timeout_s} s"
        raise ImageBuildError(what, "check disk and load") from err
    if done.returncode != 0:
        raise ImageBuildError(
            f"{command[0]}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}",
            "check the free space of the cache directory, then build again",
        )
    return done


def _facts(path: Path) -> dict[str, object]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest, "size_bytes": path.stat().st_size}
