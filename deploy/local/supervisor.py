"""Starts the cloud's processes and starts again what dies; may die itself without harm.

**Edge**: forks, waits on process descriptors, writes records and logs. One thread; no state but the records
in the runtime directory: a new supervisor adopts what runs (`python -m deploy.local.supervisor STATE_DIR`).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from deploy.local import process, record
from deploy.local.address import answers
from deploy.local.environment import supervised_environment
from deploy.local.layout import Layout, load_layout
from deploy.local.logs import rotate
from deploy.local.record import Record
from deploy.local.services import ROOM_MIN_BYTES, SUPERVISOR, Service, build_services

# Waiting for a need or for a backoff: short, for it is part of every start. Otherwise only log sizes wait.
PENDING_POLL_S: Final = 0.05
IDLE_POLL_S: Final = 5.0
RETRY_SIGNAL: Final = signal.SIGUSR1  # see Supervisor.forgive
_PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h


class Supervisor:
    """Keeps the services of one cloud running until told to leave; leaving stops nothing."""

    def __init__(self, layout: Layout, services: tuple[Service, ...], environment: Mapping[str, str]) -> None:
        self._layout = layout
        self._services = services
        self._environment = supervised_environment(environment, layout.state_dir)
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._leaving = False
        self._forgiving = False

    def leave(self) -> None:
        """Ends `run` soon; what runs goes on."""
        self._leaving = True

    def forgive(self) -> None:
        """Starts what is down without waiting for its backoff, once: a person has mended something."""
        self._forgiving = True

    def run(self, wakeup: int) -> None:
        """Until `leave`. `wakeup` is a descriptor that becomes readable at a signal."""
        while not self._leaving:
            if self._forgiving:
                self._forget_failures()
            pending = not all([self._step(service) for service in self._services])
            with self._watched() as (descriptors, all_alive):
                timeout_s = IDLE_POLL_S if all_alive and not pending else PENDING_POLL_S
                ready, _, _ = select.select([wakeup, *descriptors], [], [], timeout_s)
            if wakeup in ready:
                os.read(wakeup, 4096)
            self._reap_all()
            for service in self._services:
                rotate(self._layout.log_path(service.name))

    def _step(self, service: Service) -> bool:
        """Brings one service a step further; True when nothing is left to do for it."""
        path = self._layout.record_path(service.name)
        known = record.load_record(path)
        if known is not None and known.ended_at is None:
            if process.is_alive(known.process):
                return True
            known = record.with_end(known, time.time(), self._describe_end(known.process.pid))
            record.save_record(path, known)
            say(f"{service.name} (pid {known.process.pid}) ended: {known.last_exit}")
        if time.time() < record.next_start_at(known) or not all(answers(need) for need in service.needs):
            return False
        if service.shared and answers(service.address):
            return True  # the host's own: asked again in every round, so its end is noticed
        if not has_room(service):
            say(f"{service.name} waits: less than {ROOM_MIN_BYTES >> 20} MiB free in {service.room_in}")
            return True  # asked again in the next idle round
        self._start(service, known)
        return True

    def _forget_failures(self) -> None:
        self._forgiving = False
        for service in self._services:
            path = self._layout.record_path(service.name)
            known = record.load_record(path)
            if known is not None and known.ended_at is not None:
                record.save_record(path, record.forgiven(known))

    def _start(self, service: Service, known: Record | None) -> None:
        path = self._layout.record_path(service.name)
        argv = [str(word) for word in service.argv]

        def write_record() -> None:
            # In the child, before exec: a supervisor killed right after the fork leaves no unknown process.
            myself = process.find_process(os.getpid())
            if myself is not None:
                record.save_record(path, record.started(known, myself, time.time()))

        log_path = self._layout.log_path(service.name)
        try:
            with log_path.open("ab") as log:
                child = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env=self._environment,
                    start_new_session=True,
                    preexec_fn=write_record,
                )
        except OSError as err:
            self._note_failed_start(service, known, f"{argv[0]}: {err.strerror}")
            return
        self._children[child.pid] = child
        say(f"{service.name} started: pid {child.pid}")

    def _note_failed_start(self, service: Service, known: Record | None, how: str) -> None:
        nobody = process.ProcessId(0, 0, "")
        now = time.time()
        failed = record.with_end(record.started(known, nobody, now), now, how)
        record.save_record(self._layout.record_path(service.name), failed)
        say(f"{service.name} could not be started: {how}")

    def _reap_all(self) -> None:
        """Takes the exit codes of all that ended: services and, as their adopted parent, guests."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                child = self._children.get(ended[0])
                if child is not None:
                    child.returncode = os.waitstatus_to_exitcode(ended[1])

    def _describe_end(self, pid: int) -> str:
        self._reap_all()
        child = self._children.pop(pid, None)
        return describe_exit(child.returncode if child is not None else None)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[tuple[list[int], bool]]:
        """Descriptors of all processes of ours, children or adopted; False when one ended just now."""
        known = [record.load_record(self._layout.record_path(service.name)) for service in self._services]
        opened = [process.open_pidfd(entry.process) for entry in known if entry and entry.ended_at is None]
        descriptors = [descriptor for descriptor in opened if descriptor is not None]
        try:
            yield descriptors, len(descriptors) == len(opened)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def has_room(service: Service) -> bool:
    """False when a start could do harm for want of space (reproduced: libvirtd then kills the guests)."""
    if service.room_in is None or not service.room_in.exists():
        return True
    return shutil.disk_usage(service.room_in).free >= ROOM_MIN_BYTES


def describe_exit(code: int | None) -> str:
    """How a process ended, for people. None: it was no child of this supervisor."""
    if code is None:
        return "unknown (started by an earlier supervisor)"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit {code}"


def say(line: str) -> None:
    """One line of the supervisor's own log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {line}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def only_one(layout: Layout) -> Iterator[bool]:
    """Holds the supervisor's lock; yields False when another one has it. It ends with the process."""
    with layout.supervisor_lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _record_myself(layout: Layout) -> None:
    myself = process.find_process(os.getpid())
    if myself is not None:
        path = layout.record_path(SUPERVISOR)
        record.save_record(path, record.started(record.load_record(path), myself, time.time()))


def adopt_orphans() -> None:
    """Makes this process the parent of guests whose starter has ended.

    Otherwise they go to process 1, which on some machines reaps late, and libvirt waits for that: destroying
    a guest took 2.5 s instead of 0.3 s. Source: prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def supervise(state_dir: Path, build: Callable[[Layout], tuple[Service, ...]]) -> int:
    """Supervises the services of the cloud in a state directory until SIGTERM. Returns the exit code."""
    layout = load_layout(state_dir)
    if layout is None:
        say(f"{state_dir}: no cloud here; `cumulet up` makes one")
        return 1
    with only_one(layout) as alone:
        if not alone:
            say("another supervisor is running")
            return 0
        _record_myself(layout)
        adopt_orphans()
        supervisor = Supervisor(layout, build(layout), os.environ)
        supervisor.run(_wakeup_at_signals(supervisor))
        say("leaving; what runs goes on")
    return 0


def _wakeup_at_signals(supervisor: Supervisor) -> int:
    """A descriptor that becomes readable at a request to leave and at the end of a child."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    signal.signal(signal.SIGTERM, lambda *_: supervisor.leave())
    signal.signal(signal.SIGINT, lambda *_: supervisor.leave())
    signal.signal(RETRY_SIGNAL, lambda *_: supervisor.forgive())
    # A handler is what makes Python write to the descriptor.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return readable


def main() -> int:
    """Supervises the cloud whose state directory is the first argument."""
    return supervise(Path(sys.argv[1]), lambda layout: build_services(layout, sys.executable))


if __name__ == "__main__":
    sys.exit(main())
