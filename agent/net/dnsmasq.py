"""One network's dnsmasq process: start it in the namespace, find it again, stop it.

**Edge.** The process daemonises and belongs to nobody: it outlives the agent (the unit has
`KillMode=process`) and is found again by its pid file, checked against /proc, or by a search of /proc.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.errors import DriverError
from agent.net import sysctl
from agent.net.dnsmasq_config import ServerFiles

_DNSMASQ: Final = "/usr/sbin/dnsmasq"
_START_TIMEOUT_S: Final = 20.0  # reads its files and binds; more is a hang
_STOP_TIMEOUT_MS: Final = 5000  # then SIGKILL: a server that holds the port would fail its successor


def find_pid(files: ServerFiles, namespace: Path) -> int | None:
    """The server's pid while it lives in this namespace, by its pid file. Cheap.

    A namespace that was replaced under its name leaves the old server running in the old one.
    """
    try:
        pid = int(files.pid.read_text())
        here = namespace.stat().st_ino == Path(f"/proc/{pid}/ns/net").stat().st_ino
    except (OSError, ValueError):
        return None
    return pid if here and _serves(pid, files) else None


def start(files: ServerFiles) -> None:
    """Start in the calling thread's namespace; returns when the server answers or has failed."""
    sysctl.allow_servers()
    try:
        done = subprocess.run(
            _command(files), capture_output=True, text=True, timeout=_START_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise DriverError("DhcpUnavailable", f"starting {_DNSMASQ} failed: {err}; is it installed?") from err
    if done.returncode:
        raise DriverError(
            "DhcpRefused", f"dnsmasq refused {files.config}: {done.stderr.strip()[:500]}; see syslog"
        )


def reload(pid: int) -> None:
    """Read hosts and names again; leases and renewals go on."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGHUP)


def stop(files: ServerFiles) -> None:
    """Stop every server of these files, also one whose pid file was lost; returns when it is gone."""
    for pid in set(_search(files)):
        _terminate(pid)
    files.pid.unlink(missing_ok=True)


def _terminate(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            if not poll.poll(_STOP_TIMEOUT_MS):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                poll.poll(_STOP_TIMEOUT_MS)
    finally:
        os.close(handle)


def _search(files: ServerFiles) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _serves(int(entry.name), files):
            yield int(entry.name)


def _serves(pid: int, files: ServerFiles) -> bool:
    """A pid may have been used again, and a zombie has no command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[:2] == [word.encode() for word in _command(files)]


def _command(files: ServerFiles) -> list[str]:
    return [_DNSMASQ, f"--conf-file={files.config}"]
