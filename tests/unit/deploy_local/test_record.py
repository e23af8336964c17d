"""Records of supervised processes: backoff is bounded, and what is written is read back.

**Pure** but for the last test, which writes a file.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.process import ProcessId
from deploy.local.record import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    STEADY_S,
    Record,
    backoff_s,
    load_record,
    next_start_at,
    parse_record,
    render_record,
    save_record,
    started,
    with_end,
)

PROCESS = ProcessId(42, 1000, "boot")
times = st.floats(0, 1e10, allow_nan=False)
records = st.builds(
    Record,
    st.builds(ProcessId, st.integers(1, 1 << 22), st.integers(0, 1 << 60), st.text()),
    times,
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.none() | times,
    st.text(),
)


@given(st.integers(0, 10**9))
def test_backoff_grows_and_is_bounded(failures: int) -> None:
    assert 0 <= backoff_s(failures) <= backoff_s(failures + 1) <= BACKOFF_MAX_S


def test_a_single_crash_is_made_good_at_once() -> None:
    ended = with_end(Record(PROCESS, started_at=100.0), 500.0, "exit 1")
    assert next_start_at(ended) == 500.0 + BACKOFF_FIRST_S


@given(st.integers(1, 1000), st.floats(0, STEADY_S - 1))
def test_quick_ends_in_a_row_count(ends: int, lived_s: float) -> None:
    record, now = Record(PROCESS, 0.0), 0.0
    for _ in range(ends):
        now += lived_s
        record = with_end(record, now, "exit 1")
        record = started(record, PROCESS, now)
    assert record.failures == record.restarts == ends


@given(records)
def test_who_ran_long_has_no_failures_in_a_row(record: Record) -> None:
    ended = with_end(record, record.started_at + STEADY_S + 1, "exit 1")
    assert ended.failures == 1


def test_a_running_process_has_no_next_start() -> None:
    with pytest.raises(ValueError, match="has not ended"):
        next_start_at(Record(PROCESS, 0.0))
    assert next_start_at(None) == 0.0


@given(records)
def test_what_is_rendered_is_parsed(record: Record) -> None:
    assert parse_record(render_record(record)) == record


@given(st.text() | st.sampled_from(["{}", "[]", "null", '{"process": 3}', '{"process": {"pid": 1}}']))
def test_damage_is_no_record(text: str) -> None:
    assert parse_record(text) is None


def test_a_record_survives_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "etcd.json"
    assert load_record(path) is None
    save_record(path, Record(PROCESS, 1.0, 2, 3))
    assert load_record(path) == Record(PROCESS, 1.0, 2, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["etcd.json"]
