"""Runs a private virtlogd and libvirtd for tests: `libvirt_launcher.py ROOT`, inside `unshare --mount`.

**Edge.** Why it exists: libvirt's state, run and configuration folders are compiled in, so an instance of its
own needs a mount namespace; and QEMU daemonizes, so without systemd somebody must reap it (libvirt waits for
its zombie). It obeys lines on stdin: `libvirtd` starts libvirtd (again). The end of stdin ends everything.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

PR_SET_CHILD_SUBREAPER: Final = 36  # Source: linux/prctl.h
KVM_DEVICE: Final = Path("/dev/kvm")
BOUND: Final = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "run": "/run/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}


def main(root: Path) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    _bind_folders(root)
    _bind_kvm(root)
    _spawn("virtlogd", root)
    _spawn("libvirtd", root)
    for line in sys.stdin:
        if line.strip() == "libvirtd":
            _spawn("libvirtd", root)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _end_children()


def _bind_folders(root: Path) -> None:
    for name, target in BOUND.items():
        source = root / name
        if not source.exists():
            _fill(source, Path(target))
        Path(target).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(source), target], check=True)


def _fill(source: Path, original: Path) -> None:
    if source.name == "etc":
        shutil.copytree(original, source)
    else:
        source.mkdir()


def _bind_kvm(root: Path) -> None:
    """Give /dev/kvm the owner that udev gives it: where libvirtd's probe may open it and QEMU's user may not,
    libvirtd probes QEMU anew at every call, and a start takes half a minute."""
    if not KVM_DEVICE.exists():
        return
    node = root / "kvm"
    if not node.exists():
        os.mknod(node, stat.S_IFCHR | 0o660, KVM_DEVICE.stat().st_rdev)
        shutil.chown(node, "root", "kvm")
        node.chmod(0o660)
    subprocess.run(["mount", "--bind", str(node), str(KVM_DEVICE)], check=True)


def _spawn(daemon: str, root: Path) -> None:
    log = (root / f"{daemon}.out").open("ab")
    command = [daemon, "--pid-file", str(root / f"{daemon}.pid")]
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _reap() -> None:
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def _end_children() -> None:
    """Everything below: libvirtd, virtlogd, and guests that a failed test left."""
    for pid in _children():
        os.kill(pid, signal.SIGKILL)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def _children() -> list[int]:
    listing = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in listing.split()]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
