"""What is known of a supervised process, and when it may be started again.

**Pure** but for `load_record` and `save_record`, which read and write RUNTIME/SERVICE.json.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from deploy.local.layout import write_atomically
from deploy.local.process import ProcessId

BACKOFF_FIRST_S: Final = 0.2  # a single crash is made good before a person looks
BACKOFF_MAX_S: Final = 15.0  # a broken set-up costs little, and a mended one comes back within a breath
STEADY_S: Final = 30.0  # who ran that long has no broken set-up: the next failure counts as the first


@dataclass(frozen=True, slots=True)
class Record:
    """One service's present or last process. `failures` counts ends in a row, `restarts` all of them."""

    process: ProcessId
    started_at: float
    restarts: int = 0
    failures: int = 0
    ended_at: float | None = None
    last_exit: str = ""


def backoff_s(failures: int) -> float:
    """Delay before the next start, after so many failures in a row (0: no delay)."""
    if failures == 0:
        return 0.0
    # The exponent is bounded too: 2**1000 is a big number for nothing.
    return min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16), BACKOFF_MAX_S)


def with_end(record: Record, now: float, how: str) -> Record:
    """The record after its process has ended."""
    steady = now - record.started_at >= STEADY_S
    return replace(record, ended_at=now, last_exit=how, failures=1 if steady else record.failures + 1)


def forgiven(record: Record) -> Record:
    """The record without its failures: the next start is due at once."""
    return replace(record, failures=0)


def next_start_at(record: Record | None) -> float:
    """When the service may be started; the past means now. A running one has no such time."""
    if record is None:
        return 0.0
    if record.ended_at is None:
        raise ValueError(f"{record.process} has not ended")
    return record.ended_at + backoff_s(record.failures)


def started(previous: Record | None, process: ProcessId, now: float) -> Record:
    """The record of a new process of the service."""
    if previous is None:
        return Record(process, now)
    return Record(process, now, previous.restarts + 1, previous.failures, None, previous.last_exit)


def render_record(record: Record) -> str:
    return json.dumps(asdict(record))


def parse_record(text: str) -> Record | None:
    """None for what is no record: it is written anew at the next start."""
    try:
        content = json.loads(text)
        return Record(**{**content, "process": ProcessId(**content["process"])})
    except (ValueError, KeyError, TypeError):
        return None


def load_record(path: Path) -> Record | None:
    try:
        return parse_record(path.read_text())
    except FileNotFoundError:
        return None


def save_record(path: Path, record: Record) -> None:
    write_atomically(path, render_record(record))
