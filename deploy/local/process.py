"""Processes by number *and* start time, so that a reused number is never signalled.

**Edge**: reads /proc, forks, signals. Source for the fields: proc(5), /proc/PID/stat.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_START_TICKS_FIELD: Final = 22  # proc(5): starttime, counted from 1
_STATE_FIELD: Final = 3
_DEAD_STATES: Final = frozenset({"Z", "X"})


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for all time: number, start in clock ticks after boot, the boot's id."""

    pid: int
    start_ticks: int
    boot_id: str


def parse_stat(text: str) -> tuple[str, int]:
    """(state, start ticks) of /proc/PID/stat. The command's name may hold blanks and brackets."""
    rest = text[text.rindex(")") + 1 :].split()
    # `rest` starts at the third field.
    return rest[0], int(rest[_START_TICKS_FIELD - _STATE_FIELD])


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def find_process(pid: int) -> ProcessId | None:
    """The process that has the number now; None when there is none (a zombie is none)."""
    try:
        state, ticks = parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except (OSError, ValueError):
        return None
    return None if state in _DEAD_STATES else ProcessId(pid, ticks, boot_id())


def is_alive(process: ProcessId) -> bool:
    return find_process(process.pid) == process


def started_at_s(process: ProcessId) -> float:
    """Wall-clock time of the start."""
    since_boot_s = process.start_ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot_s


def open_pidfd(process: ProcessId) -> int | None:
    """A descriptor that is readable once the process has ended; None if it has. The caller closes it."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return None
    # The number may have been reused before the open: only the identity after it counts.
    if not is_alive(process):
        os.close(descriptor)
        return None
    return descriptor


def send_signal(process: ProcessId, number: signal.Signals) -> bool:
    """Signals this very process, never another that got its number. False when it has ended."""
    descriptor = open_pidfd(process)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_for_end(process: ProcessId, timeout_s: float) -> bool:
    """Waits until the process has ended; False when it has not by then."""
    descriptor = open_pidfd(process)
    if descriptor is None:
        return True
    try:
        ended, _, _ = select.select([descriptor], [], [], timeout_s)
    finally:
        os.close(descriptor)
    reap(process.pid)
    return bool(ended)


def stop(process: ProcessId, grace_s: float) -> bool:
    """Asks the process to end, then forces it. True when it had to be forced."""
    send_signal(process, signal.SIGTERM)
    if wait_for_end(process, grace_s):
        return False
    send_signal(process, signal.SIGKILL)
    wait_for_end(process, grace_s)
    return True


def reap(pid: int) -> None:
    """Takes the exit status of a child of ours; nothing happens for other processes."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def find_marked(name: str, value: str) -> tuple[ProcessId, ...]:
    """Processes with `name=value` in the environment they were started with, but for this one."""
    wanted = os.fsencode(f"{name}={value}")
    return tuple(process for process in _neighbours() if wanted in _environment(process))


def command_line(process: ProcessId) -> str:
    """For messages; empty when it has ended."""
    try:
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(os.fsdecode(word) for word in words if word)


def find_by_argument(programs: tuple[str, ...], text: str) -> tuple[ProcessId, ...]:
    """Processes of these programs (by the first word's file name) with `text` in their arguments."""

    def matches(process: ProcessId) -> bool:
        words = command_line(process).split(" ")
        return Path(words[0]).name.startswith(programs) and any(text in word for word in words[1:])

    return tuple(process for process in _neighbours() if matches(process))


def _neighbours() -> tuple[ProcessId, ...]:
    """All other processes of this machine by number.

    Those of containers on it are visible too, but live in process namespaces of their own: a cloud in one of
    them may well have the same directories, and is not ours.
    """
    here = _process_namespace(os.getpid())
    numbers = sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    local = (pid for pid in numbers if pid != os.getpid() and _process_namespace(pid) == here)
    return tuple(process for process in map(find_process, local) if process is not None)


def _process_namespace(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}/ns/pid").stat().st_ino
    except OSError:
        return 0


def _environment(process: ProcessId) -> list[bytes]:
    try:
        return Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
