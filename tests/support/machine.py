"""A bare machine inside this one: own network, processes, /run, libvirt and state; for tests of the set-up.

**Edge**: namespaces and bind mounts, all gone with the machine. A cloud that runs on this host (`make demo`)
and other tests neither see it nor are seen. Only kernel, installed programs and caches are shared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

# Inside, these are the machine's own. True: it begins with a copy of the host's.
_OWN: Final = {
    "/run": False,
    "/var/lib/libvirt": False,
    # For the state of the set-up. Not /var/lib/cumulet: a directory that a cloud on this host removes with
    # itself would take the mount over it away, here too.
    "/srv": False,
    "/var/log/libvirt": False,
    "/etc/libvirt": True,
    # What libvirt has learned of QEMU: finding it out anew takes several seconds.
    "/var/cache/libvirt": True,
}
_STOP_TIMEOUT_S: Final = 20
_KVM: Final = Path("/dev/kvm")

# Process 1 of the machine: arranges the mounts, says so, and reaps orphans until it is killed.
_INIT: Final = """
import os, signal, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
for pair in sys.argv[1:]:
    source, target = pair.split("=")
    subprocess.run(["mount", "--bind", source, target], check=True)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
print("ready", flush=True)
while True:
    signal.sigwait({signal.SIGCHLD})
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""


class Machine:
    """Use `with`. Commands run inside with `run`; paths of the host are the same inside, but for `_OWN`."""

    def __init__(self, base: Path, environment: Mapping[str, str] | None = None) -> None:
        """`base`: an empty directory of the test's, for the machine's files."""
        self._base = base
        self.environment = {**os.environ, **(environment or {})}
        self._init: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        mounts = [self._prepare(target, copied) for target, copied in _OWN.items()]
        if _KVM.exists():
            mounts.append(self._prepare_kvm())
        argv = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._init = subprocess.Popen(
            [*argv, sys.executable, "-c", _INIT, *mounts], stdout=subprocess.PIPE, text=True
        )
        assert self._init.stdout is not None
        if self._init.stdout.readline() != "ready\n":
            raise RuntimeError(
                "the machine did not start: unshare needs root and util-linux (deploy/install)"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends every process inside; the kernel takes links, tables and mounts away with the namespaces."""
        if self._init is not None:
            self._init.kill()
            self._init.communicate(timeout=_STOP_TIMEOUT_S)

    def run(self, *argv: str, timeout_s: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command inside. A failure with `check` fails the test with all that the command said."""
        done = subprocess.run(
            [*self._enter(), *argv],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{argv}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def pids(self) -> dict[int, str]:
        """Command lines of the processes inside by number, without process 1 and this question."""
        listed = self.run("ps", "-eo", "pid=,args=").stdout.splitlines()
        found = {int(line.split()[0]): " ".join(line.split()[1:]) for line in listed}
        return {pid: args for pid, args in found.items() if pid != 1 and not args.startswith("ps -eo")}

    def _enter(self) -> Sequence[str]:
        assert self._init is not None
        # unshare stays as the parent; its one child is process 1 of the machine.
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        return ["nsenter", "--target", children[0], "--net", "--mount", "--pid", "--"]

    def _prepare(self, target: str, copied: bool) -> str:
        source = self._base / target.strip("/").replace("/", "-")
        if copied and Path(target).exists():
            shutil.copytree(target, source, symlinks=True)
        else:
            source.mkdir(mode=0o755)
        Path(target).mkdir(parents=True, exist_ok=True)
        return f"{source}={target}"

    def _prepare_kvm(self) -> str:
        """A node of its own, so that the set-up may change its group as udev does."""
        node = self._base / "kvm"
        os.mknod(node, 0o600 | 0o020000, _KVM.stat().st_rdev)
        return f"{node}={_KVM}"
