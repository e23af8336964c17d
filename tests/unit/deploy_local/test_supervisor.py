"""The supervisor: what dies is started again, what runs is adopted, what the host runs is left alone.

**Edge**: real processes; the supervisor itself is one (supervise.py).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local import process, supervisor
from deploy.local.environment import MARK_VARIABLE, supervised_environment
from deploy.local.layout import Layout, save_layout
from deploy.local.record import Record, load_record
from deploy.local.services import SUPERVISOR, Service

TIMEOUT_S = 15.0
_SCRIPT = Path(__file__).with_name("supervise.py")
_SLEEP: dict[str, object] = {"argv": ["sleep", "600"], "address": "unix:/nowhere"}


class Rig:
    """A state directory, its supervisors, and what they supervise."""

    def __init__(self, base: Path) -> None:
        self.layout = Layout(base / "state", base / "state" / "run", "n1")
        for path in (self.layout.runtime_dir, self.layout.log_dir):
            path.mkdir(parents=True)
        save_layout(self.layout)
        self._services = base / "services.json"

    def start(self, **services: dict[str, object]) -> subprocess.Popen[bytes]:
        described = [{"name": name, **entry} for name, entry in services.items()]
        self._services.write_text(json.dumps(described))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        environment[MARK_VARIABLE] = str(self.layout.state_dir)
        argv = [sys.executable, str(_SCRIPT), str(self.layout.state_dir), str(self._services)]
        return subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL)

    def record(self, name: str) -> Record | None:
        return load_record(self.layout.record_path(name))

    def running(self, name: str) -> process.ProcessId | None:
        record = self.record(name)
        return record.process if record and process.is_alive(record.process) else None

    def wait_running(self, name: str, other_than: process.ProcessId | None = None) -> process.ProcessId:
        wait_until(lambda: self.running(name) not in (None, other_than), f"{name} runs")
        found = self.running(name)
        assert found is not None
        return found


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not after {TIMEOUT_S} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    for entry in process.find_marked(MARK_VARIABLE, str(made.layout.state_dir)):
        process.send_signal(entry, signal.SIGKILL)
        process.wait_for_end(entry, TIMEOUT_S)


def test_what_dies_is_started_again_and_counted(rig: Rig) -> None:
    rig.start(web=_SLEEP)
    first = rig.wait_running("web")
    process.send_signal(first, signal.SIGKILL)
    rig.wait_running("web", other_than=first)
    record = rig.record("web")
    assert record is not None
    assert (record.restarts, record.failures, record.last_exit) == (1, 1, "killed by SIGKILL")


def test_a_killed_supervisor_harms_nothing_and_the_next_adopts(rig: Rig) -> None:
    killed = rig.start(web=_SLEEP)
    first = rig.wait_running("web")
    killed.kill()
    killed.wait()
    assert process.is_alive(first)
    rig.start(web=_SLEEP)
    wait_until(lambda: (found := rig.running(SUPERVISOR)) is not None and found.pid != killed.pid, "adopted")
    assert rig.wait_running("web") == first
    process.send_signal(first, signal.SIGKILL)
    rig.wait_running("web", other_than=first)


def test_leaving_stops_nothing(rig: Rig) -> None:
    child = rig.start(web=_SLEEP)
    first = rig.wait_running("web")
    child.terminate()
    assert child.wait(TIMEOUT_S) == 0
    assert process.is_alive(first)


def test_there_is_only_one_supervisor(rig: Rig) -> None:
    rig.start(web=_SLEEP)
    first = rig.wait_running("web")
    second = rig.start(web=_SLEEP)
    assert second.wait(TIMEOUT_S) == 0
    assert rig.wait_running("web") == first


def test_a_broken_service_backs_off_and_tells_how_it_ended(rig: Rig) -> None:
    rig.start(bad={"argv": ["sh", "-c", "exit 3"], "address": "unix:/nowhere"}, web=_SLEEP)
    rig.wait_running("web")
    wait_until(lambda: (found := rig.record("bad")) is not None and found.failures >= 3, "three failures")
    record = rig.record("bad")
    assert record is not None
    # 0.2 + 0.4 s of pauses lie between three ends; a loop without backoff would have made dozens.
    assert record.restarts <= 4
    assert record.last_exit == "exit 3"


def test_a_person_who_mended_something_need_not_wait_for_the_backoff(rig: Rig, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    script = f"test -e {mended} && exec sleep 600; exit 1"
    child = rig.start(web={"argv": ["sh", "-c", script], "address": "unix:/nowhere"})
    wait_until(lambda: (found := rig.record("web")) is not None and found.failures >= 4, "four failures")
    mended.touch()
    child.send_signal(supervisor.RETRY_SIGNAL)
    rig.wait_running("web")
    record = rig.record("web")
    assert record is not None
    assert record.failures == 0


def test_a_missing_program_is_a_failure_with_its_name(rig: Rig) -> None:
    rig.start(bad={"argv": ["cumulet-no-such-program"], "address": "unix:/nowhere"})
    wait_until(lambda: rig.record("bad") is not None and rig.record("bad").failures >= 2, "two failures")  # type: ignore[union-attr]
    record = rig.record("bad")
    assert record is not None
    assert record.last_exit == "cumulet-no-such-program: No such file or directory"


def test_nothing_starts_before_what_it_needs(rig: Rig, tmp_path: Path) -> None:
    address = tmp_path / "need.sock"
    rig.start(web={**_SLEEP, "needs": [f"unix:{address}"]}, other=_SLEEP)
    rig.wait_running("other")
    assert rig.record("web") is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        rig.wait_running("web")


def test_the_hosts_own_service_is_left_alone_until_it_ends(rig: Rig, tmp_path: Path) -> None:
    address = tmp_path / "libvirt.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        rig.start(hypervisor={**_SLEEP, "address": f"unix:{address}", "shared": True}, web=_SLEEP)
        rig.wait_running("web")
        assert rig.record("hypervisor") is None
    # Its end shows in the next round, which the end of another service brings about at once.
    process.send_signal(rig.wait_running("web"), signal.SIGKILL)
    rig.wait_running("hypervisor")


def test_children_carry_the_mark_and_find_sbin() -> None:
    made = supervised_environment({"PATH": "/bin", "HOME": "/root"}, Path("/state"))
    assert made[MARK_VARIABLE] == "/state"
    assert "/usr/sbin" in made["PATH"].split(":")
    assert made["HOME"] == "/root"


def test_a_full_runtime_directory_keeps_libvirtd_from_restarting(tmp_path: Path) -> None:
    plain = Service("a", ("a",), "unix:/a")
    assert supervisor.has_room(plain)
    full = Service("a", ("a",), "unix:/a", room_in=Path("/proc"))  # a file system with nothing free
    assert not supervisor.has_room(full)
    assert supervisor.has_room(Service("a", ("a",), "unix:/a", room_in=tmp_path / "not made yet"))
