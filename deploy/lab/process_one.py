"""Process 1 of a machine: arranges mounts and links, then supervises the services until it is killed.

**Edge**: mounts, `ip`, signals. Started by deploy/lab/namespaces.py in fresh namespaces as
`python -m deploy.lab.process_one LAB MACHINE [--leashed]`; they talk by lines on stdin and stdout.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from deploy.lab.layout import LabLayout, Machine, Role, load_lab
from deploy.lab.mounts import LOCK_DIR, plan_mounts
from deploy.lab.services import machine_services
from deploy.lab.wiring import plan_links
from deploy.local.supervisor import say, supervise

READY: Final = "ready\n"  # the namespaces are there: lay the cables
GO: Final = "go\n"  # the cables are there
UP: Final = "up\n"  # the links have their addresses, services are about to start
LEASHED: Final = "--leashed"
_IPV6_OFF: Final = tuple(Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6") for name in ("all", "default"))
_BRIDGE_HOOKS: Final = tuple(
    Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}") for name in ("iptables", "ip6tables", "arptables")
)


def arrange(machine: Machine) -> None:
    """Mounts and host name."""
    for mount in plan_mounts(machine):
        _run(mount.argv)
    LOCK_DIR.mkdir(mode=0o755)
    socket.sethostname(machine.name)


def connect(lab: LabLayout, machine: Machine) -> None:
    """Links and addresses."""
    if machine.role is Role.FABRIC:
        for path in _IPV6_OFF:  # a switch says nothing by itself
            path.write_text("1")
    if machine.role in (Role.FABRIC, Role.OUTSIDE):
        for path in filter(Path.exists, _BRIDGE_HOOKS):  # nor does it look into packets
            path.write_text("0")
    for words in plan_links(lab, machine):
        _run(words)


def die_with_owner() -> None:
    """Ends this process, and so the machine, when the other end of stdin is closed."""
    signal.signal(signal.SIGIO, lambda *_: os._exit(0))
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:  # it was closed before
        os._exit(0)


def _run(words: tuple[str, ...]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


def _tell(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


def _release(stream: int) -> None:
    """Nobody is at the other end any more."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, stream)
    os.close(nothing)


def main() -> int:
    """Returns the exit code; the machine ends with this process."""
    lab = load_lab(Path(sys.argv[1]))
    if lab is None:
        say(f"{sys.argv[1]}: no lab here; `make lab` makes one")
        return 1
    machine = lab.machine(sys.argv[2])
    arrange(machine)
    _tell(READY)
    if sys.stdin.readline() != GO:
        return 1
    connect(lab, machine)
    _tell(UP)
    _release(1)
    if LEASHED in sys.argv:
        die_with_owner()
    else:
        _release(0)
    return supervise(machine.state_dir, lambda _: machine_services(lab, machine, sys.executable))


if __name__ == "__main__":
    sys.exit(main())
