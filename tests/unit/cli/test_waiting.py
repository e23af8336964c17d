"""Waiting: when it ends, how it ends, and with which exit code."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.waiting import Goal, judge, parse_duration
from cumulet.errors import CumuletError, ExitCode, RevisionGoneError
from cumulet.kinds import INSTANCE
from cumulet.v1 import instance_pb2 as pb
from cumulet.v1 import meta_pb2
from tests.unit.cli.fake_cloud import FakeCloud, Plan

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.cli.conftest import Run

DEADLINE_S = 20


def status(
    phase: str, message: str = "", placed: bool = True, boots: int = 1, ready: bool = False
) -> pb.InstanceStatus:
    made = pb.InstanceStatus(phase=pb.InstancePhase.Value(f"INSTANCE_PHASE_{phase}"), boots=boots)
    truth = meta_pb2.CONDITION_STATUS_TRUE if placed else meta_pb2.CONDITION_STATUS_FALSE
    made.conditions.add(type="Placed", status=truth, message=message)
    made.node = "n1" if placed else ""
    if ready:
        made.conditions.add(type="AddressReady", status=meta_pb2.CONDITION_STATUS_TRUE)
    made.addresses.append("10.0.0.2")
    return made


PENDING = status("PENDING", "no node fits: n1 lacks memory", placed=False, boots=0)
STARTING, RUNNING = status("STARTING", "n1 prepares it", boots=0), status("RUNNING", "it runs")


def test_a_wait_ends_when_it_runs_and_tells_the_way(run: Run, cloud: FakeCloud) -> None:
    cloud.plans["web"] = Plan([PENDING, STARTING, RUNNING])
    code, out, err = run("launch", "web", "--wait")
    assert code == 0
    assert "Running" in out.splitlines()[1]
    told = [line.partition("] ")[2] for line in err.splitlines()]
    assert told == [
        "web Unknown",
        "web Pending: no node fits: n1 lacks memory",
        "web Starting: n1 prepares it",
        "web Running: it runs",
    ]


def test_wait_alone_does_not_swallow_the_name(run: Run, cloud: FakeCloud) -> None:
    cloud.plans["web"] = Plan([STARTING])
    assert run("launch", "--wait", "web", "--timeout", "1").code == ExitCode.TIMED_OUT
    assert cloud.called("CreateInstance")[0].instance.meta.name == "web"


@pytest.mark.parametrize(
    ("goal", "reached"), [("placed", STARTING), ("running", RUNNING), ("ip", status("RUNNING", ready=True))]
)
def test_each_level_of_readiness_is_enough(
    run: Run, cloud: FakeCloud, goal: str, reached: pb.InstanceStatus
) -> None:
    cloud.plans["web"] = Plan([PENDING, reached])
    assert run("launch", "web", f"--wait={goal}").code == 0


def test_an_instance_that_failed_is_a_failure(run: Run, cloud: FakeCloud) -> None:
    cloud.plans["web"] = Plan([STARTING, status("FAILED", "the disk is full")])
    code, out, err = run("launch", "web", "--wait")
    assert (code, out) == (ExitCode.FAILED, "")
    assert "Error[OPERATION_FAILED]: instance web failed: the disk is full" in err
    assert "try: cumulet explain instance/web" in err


def test_an_instance_that_stopped_instead_is_a_failure(run: Run, cloud: FakeCloud) -> None:
    cloud.plans["web"] = Plan([STARTING, status("STOPPED", "the guest powered itself off")])
    assert run("launch", "web", "--wait").code == ExitCode.FAILED


def test_nothing_fits_until_the_timeout_is_no_capacity(run: Run, cloud: FakeCloud) -> None:
    cloud.plans["web"] = Plan([PENDING])
    code, _, err = run("launch", "web", "--wait", "--timeout", "1s")
    assert code == ExitCode.NO_CAPACITY
    assert "no node fits: n1 lacks memory" in err
    assert "try: cumulet explain instance/web" in err


def test_a_timeout_tells_the_state_and_how_to_go_on(run: Run, cloud: FakeCloud) -> None:
    cloud.plans["web"] = Plan([STARTING])
    code, _, err = run("launch", "web", "--wait", "--timeout", "1s")
    assert code == ExitCode.TIMED_OUT
    assert "after 1 s instance web is not running but Starting: n1 prepares it; it goes on" in err
    assert "try: cumulet operation wait op-web" in err


def test_deleted_meanwhile_is_a_failure_and_gone_is_what_delete_waits_for(run: Run, cloud: FakeCloud) -> None:
    cloud.plans["web"] = Plan([STARTING], deleted=True)
    code, _, err = run("launch", "web", "--wait")
    assert code == ExitCode.FAILED
    assert "deleted meanwhile" in err
    code, out, err = run("instance", "delete", "web", "--wait")
    assert (code, out) == (0, "")
    assert "instance/web is gone." in err


def test_stop_and_start_wait_for_their_own_ends(run: Run, cloud: FakeCloud) -> None:
    cloud.add(INSTANCE, "web", power=pb.POWER_STATE_OFF)
    cloud.plans["web"] = Plan([status("STOPPING"), status("STOPPED")])
    assert run("instance", "stop", "web", "--wait").err.endswith("instance/web is stopped.\n")
    cloud.objects["instance", "default", "web"].spec.power = pb.POWER_STATE_ON
    cloud.plans["web"] = Plan([status("RUNNING", boots=0), RUNNING])
    cloud.objects["instance", "default", "web"].status.CopyFrom(STARTING)
    assert run("instance", "start", "web", "--wait").err.endswith("instance/web is running.\n")


def test_a_watch_whose_history_is_gone_begins_again(run: Run, cloud: FakeCloud) -> None:
    cloud.fail("WatchInstances", RevisionGoneError("compacted"))
    cloud.plans["web"] = Plan([RUNNING])
    assert run("launch", "web", "--wait").code == 0
    assert len(cloud.called("GetInstance")) == 2


def test_wait_and_no_wait_exclude_each_other(run: Run, cloud: FakeCloud) -> None:
    assert run("launch", "web", "--wait", "--no-wait").code == ExitCode.USAGE
    assert run("launch", "web", "--wait=forever").code == ExitCode.USAGE
    assert run("launch", "web", "--timeout", "soon").code == ExitCode.USAGE
    assert cloud.calls == []


@given(
    st.sampled_from(pb.InstancePhase.values()), st.sampled_from(Goal), st.integers(0, 3), st.integers(0, 3)
)
def test_an_instance_in_error_is_never_a_success(phase: int, goal: Goal, boots: int, goal_boots: int) -> None:
    instance = pb.Instance(status=pb.InstanceStatus(phase=phase, boots=boots, node="n1"))  # type: ignore[arg-type]
    verdict = judge(instance, goal, goal_boots)
    if phase == pb.INSTANCE_PHASE_FAILED and goal is not Goal.GONE:
        assert isinstance(verdict, CumuletError)
    if verdict is True and goal is Goal.RUNNING:
        assert (phase, boots >= goal_boots) == (pb.INSTANCE_PHASE_RUNNING, True)
    instance.meta.deleted_at.FromSeconds(1)
    assert judge(instance, goal, goal_boots) is not True


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1.5m", "²"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@contextmanager
def on_terminal(
    endpoint: str, folder: Path, *words: str, **more: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command with a terminal for all three streams; yields the process and the terminal's other end."""
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "CUMULET_ENDPOINTS": endpoint,
        "CUMULET_CONFIG": str(folder / "config.yaml"),
        "PYTHONPATH": ".:proto",
        "TERM": "dumb",
        **more,
    }
    command = [sys.executable, "-m", "cli.main", *words]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, wanted: bytes) -> bytes:
    """What the terminal shows up to a word, or its end. Fails after DEADLINE_S of silence."""
    shown = b""
    while wanted not in shown:
        ready, _, _ = select.select([terminal], [], [], DEADLINE_S)
        assert ready, shown
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # EIO: the last one who had it open has gone
            break
    return shown


def test_ctrl_c_detaches_and_says_how_to_look_again(cloud: FakeCloud, endpoint: str, tmp_path: Path) -> None:
    cloud.plans["web"] = Plan([STARTING])
    with on_terminal(endpoint, tmp_path, "launch", "web") as (process, terminal):
        assert b"n1 prepares it" in read_until(terminal, b"n1 prepares it")  # it waits: this is a terminal
        process.send_signal(signal.SIGINT)
        assert b"Look again: cumulet operation wait op-web" in read_until(terminal, b"op-web\r\n")
        assert process.wait(DEADLINE_S) == ExitCode.DETACHED
    assert cloud.called("DeleteInstance") == []


def test_delete_asks_on_a_terminal(cloud: FakeCloud, endpoint: str, tmp_path: Path) -> None:
    cloud.add(INSTANCE, "web")
    with on_terminal(endpoint, tmp_path, "instance", "delete", "web") as (process, terminal):
        read_until(terminal, b"Delete instance web? [y/N]")
        os.write(terminal, b"n\n")
        assert process.wait(DEADLINE_S) == ExitCode.DETACHED
    assert cloud.called("DeleteInstance") == []


def test_the_console_talks_both_ways_and_leaves_the_terminal_as_it_was(
    cloud: FakeCloud, endpoint: str, tmp_path: Path
) -> None:
    cloud.add(INSTANCE, "web")
    import termios

    with on_terminal(endpoint, tmp_path, "console", "web") as (process, terminal):
        before = termios.tcgetattr(terminal)
        shown = read_until(terminal, b"console of web")
        assert b"type ~. at the beginning of a line" in shown
        os.write(terminal, b"whoami\x03\r")  # Ctrl-C belongs to the guest
        read_until(terminal, b"WHOAMI\x03\r")
        os.write(terminal, b"~.")
        read_until(terminal, b"Left the console")
        assert process.wait(DEADLINE_S) == 0
        assert termios.tcgetattr(terminal) == before


@pytest.mark.parametrize(
    ("more", "coloured"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)]
)
def test_a_terminal_gets_colour_and_whole_words(
    cloud: FakeCloud, endpoint: str, tmp_path: Path, more: dict[str, str], coloured: bool
) -> None:
    cloud.add(INSTANCE, "web").status.CopyFrom(RUNNING)
    uid = cloud.objects["instance", "default", "web"].meta.uid
    with on_terminal(endpoint, tmp_path, "ls", "-o", "wide", **more, COLUMNS="40") as (process, terminal):
        shown = read_until(terminal, b"\n" + b"never")
        assert process.wait(DEADLINE_S) == 0
    assert uid.encode() in shown
    assert (b"\x1b[32mRunning" in shown) is coloured
    assert (b"\x1b" in shown) is coloured
