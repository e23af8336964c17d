"""The table of processes, and logs that stay bounded.

**Pure** but for the log files in a temporary directory.
"""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from deploy.local.layout import Layout
from deploy.local.logs import rotate, tail
from deploy.local.status import ServiceStatus, observe_status, render_age, render_status


def test_the_table() -> None:
    rows = (
        ServiceStatus("etcd", "running", 71, 1000.0, 2, True, "", "127.0.0.1:7443"),
        ServiceStatus("agent", "stopped", None, None, 0, False, "nobody listens", "127.0.0.1:7442"),
    )
    assert render_status(rows, 1190.0) == (
        "SERVICE  STATE    PID  SINCE  RESTARTS  HEALTHY  ADDRESS\n"
        "etcd     running  71   3m     2         yes      127.0.0.1:7443\n"
        "agent    stopped  -    -      0         no       127.0.0.1:7442\n"
        "agent: nobody listens"
    )


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_ages_are_short(first_s: float, second_s: float) -> None:
    assert len(render_age(first_s)) <= 6
    assert render_age(-first_s) in ("0s", render_age(0.0))
    assert render_age(max(first_s, second_s))


def test_nothing_runs_of_a_cloud_that_is_not_there(tmp_path: Path) -> None:
    rows = {row.name: row for row in observe_status(Layout(tmp_path, tmp_path / "run", "n1"))}
    ours = [rows[name] for name in ("supervisor", "controller", "agent")]
    assert {(row.state, row.pid) for row in ours} == {("stopped", None)}
    assert not rows["controller"].healthy
    assert str(tmp_path) in rows["controller"].message


def test_a_log_is_rotated_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "etcd.log"
    assert not rotate(path, 100)
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * 101)
        assert rotate(path, 100)
        writer.write(b"after\n")
        assert not rotate(path, 100)
    assert path.read_bytes() == b"after\n"
    assert (tmp_path / "etcd.log.1").stat().st_size == 101


def test_the_end_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "etcd.log"
    assert tail(path, 3) == []
    path.write_text("\n".join(f"line {number}" for number in range(100_000)))
    assert tail(path, 2) == ["line 99998", "line 99999"]
