"""A private libvirtd for tests: the host's own libvirt, its files and its domains are not touched.

**Edge**: starts processes and makes a folder. `PrivateLibvirt.start()` gives a URI for LibvirtHypervisor.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import libvirt

from agent.hypervisor.libvirt_events import start_event_loop

LAUNCHER: Final = Path(__file__).with_name("libvirt_launcher.py")
START_DEADLINE_S: Final = 60.0  # a cold start probes QEMU: 9 s on an idle machine
POLL_S: Final = 0.02
# What libvirtd found out about QEMU; kept between runs, because finding it out takes seconds.
CACHE: Final = Path("/var/tmp/cumulet-test-libvirt-cache")


class PrivateLibvirt:
    """virtlogd and libvirtd in a mount namespace of their own, below a folder that everybody may pass."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="cumulet-libvirt-", dir="/var/tmp"))
        self.root.chmod(0o711)  # QEMU runs as libvirt-qemu and must reach its disks
        self.run_dir = str(self.root / "run" / "qemu")
        self.socket = self.root / "run" / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        self._launcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        for program in ("libvirtd", "virtlogd", "qemu-system-x86_64"):
            assert shutil.which(program), f"{program} is missing: run deploy/install"
        CACHE.mkdir(exist_ok=True)
        (self.root / "cache").symlink_to(CACHE)
        unshare = ["unshare", "--mount", "--propagation", "private"]
        command = [*unshare, sys.executable, str(LAUNCHER), str(self.root)]
        with (self.root / "launcher.out").open("wb") as log:
            self._launcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        self.wait_until_up()

    def daemon_pid(self) -> int:
        return int((self.root / "libvirtd.pid").read_text())

    def kill_daemon(self) -> None:
        """End libvirtd, wait until it is gone. Domains run on."""
        pid = self.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)

    def signal_daemon(self, number: int) -> None:
        os.kill(self.daemon_pid(), number)

    def start_daemon(self) -> None:
        assert self._launcher
        assert self._launcher.stdin
        self._launcher.stdin.write(b"libvirtd\n")
        self._launcher.stdin.flush()
        self.wait_until_up()

    def forget_running(self, name: str) -> None:
        """What a reboot of the host does to libvirt's run folder. While libvirtd is down."""
        for file in (self.root / "run" / "qemu").glob(f"{name}.*"):
            file.unlink()

    def wait_until_up(self) -> None:
        start_event_loop()
        wait_for(self._answers, f"libvirtd; see {self.root}/libvirtd.out")

    def stop(self) -> None:
        if self._launcher:
            self._launcher.communicate(timeout=START_DEADLINE_S)
        shutil.rmtree(self.root)

    def _answers(self) -> bool:
        try:
            libvirt.open(self.uri).close()
        except libvirt.libvirtError:
            return False
        return True


def wait_for(condition: Callable[[], bool], what: str, deadline_s: float = START_DEADLINE_S) -> None:
    """Poll a condition of the outside world that tells nobody when it changes."""
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until, f"waited {deadline_s} s in vain for {what}"
        time.sleep(POLL_S)


def wait_for_end(pid: int) -> None:
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} to end")
