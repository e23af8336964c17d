"""Processes are known by number and start time: a reused number is never signalled.

**Edge**: real processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local import process

_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(99)"
)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "99"], env={**os.environ, "CUMULET_TEST_MARK": "a b=c"}) as child:
        # Popen returns a moment before the kernel shows the new program's arguments and environment.
        deadline_s = time.monotonic() + 5
        while not process.command_line(identity(child)) and time.monotonic() < deadline_s:
            time.sleep(0.001)
        yield child
        child.kill()


def identity(child: subprocess.Popen[bytes]) -> process.ProcessId:
    found = process.find_process(child.pid)
    assert found is not None
    return found


@given(st.text(st.characters(codec="latin-1"), max_size=15), st.integers(0, 1 << 62))
def test_stat_is_parsed_whatever_the_command_is_called(command: str, ticks: int) -> None:
    middle = " ".join(["0"] * 18)
    assert process.parse_stat(f"7 ({command}) S {middle} {ticks} 0 0\n") == ("S", ticks)


def test_a_process_is_alive_until_it_ends(sleeper: subprocess.Popen[bytes]) -> None:
    known = identity(sleeper)
    assert process.is_alive(known)
    assert abs(process.started_at_s(known) - time.time()) < 5
    assert "sleep 99" in process.command_line(known)
    sleeper.kill()
    assert process.wait_for_end(known, 5)
    assert not process.is_alive(known)
    assert process.command_line(known) == ""


@pytest.mark.parametrize("change", [{"start_ticks": 1}, {"boot_id": "another boot"}])
def test_another_process_with_the_number_is_left_alone(
    sleeper: subprocess.Popen[bytes], change: dict[str, object]
) -> None:
    former = replace(identity(sleeper), **change)  # type: ignore[arg-type]
    assert not process.is_alive(former)
    assert process.open_pidfd(former) is None
    assert not process.send_signal(former, signal.SIGKILL)
    assert not process.stop(former, 0.1)
    assert process.is_alive(identity(sleeper))


def test_stop_is_polite_first_and_forces_then() -> None:
    with subprocess.Popen(["sleep", "99"]) as polite:
        assert not process.stop(identity(polite), 5)
    with subprocess.Popen([sys.executable, "-c", _STUBBORN], stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        assert process.stop(identity(stubborn), 0.2)


def test_marked_processes_are_found_by_their_environment(sleeper: subprocess.Popen[bytes]) -> None:
    identity(sleeper)
    assert process.find_marked("CUMULET_TEST_MARK", "a b=c") == (identity(sleeper),)
    assert process.find_marked("CUMULET_TEST_MARK", "a b") == ()


def test_a_container_with_the_same_mark_is_not_ours() -> None:
    inside = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "echo 1; exec sleep 99"]
    environment = {**os.environ, "CUMULET_TEST_MARK": "same"}
    with subprocess.Popen(inside, env=environment, stdout=subprocess.PIPE) as container:
        assert container.stdout is not None
        container.stdout.readline()
        # unshare itself is in our namespace, its child is not.
        assert process.find_marked("CUMULET_TEST_MARK", "same") == (identity(container),)
        container.kill()


def test_programs_are_found_by_an_argument(sleeper: subprocess.Popen[bytes]) -> None:
    assert identity(sleeper) in process.find_by_argument(("sleep",), "99")
    assert process.find_by_argument(("no-such-program",), "99") == ()
