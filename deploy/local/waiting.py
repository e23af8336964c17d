"""Waits for a condition with a deadline, and gives up early on a process that keeps dying.

**Edge**: reads the clock and the records of supervised processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from deploy.local.errors import SetupError
from deploy.local.layout import Layout
from deploy.local.logs import tail
from deploy.local.record import load_record

POLL_S: Final = 0.05  # part of every start that a person waits for; the checks are local and cheap
FAILURES_MAX: Final = 5  # in a row: its set-up is broken, waiting longer helps nobody
LOG_LINES: Final = 15

# Says what is still missing, or None when the condition holds.
Check = Callable[[], str | None]


def wait_for(layout: Layout, service: str, check: Check, timeout_s: float) -> None:
    """Returns when `check` returns None. Raises SetupError with the end of the service's log."""
    since, deadline_s = time.time(), time.monotonic() + timeout_s
    while (missing := check()) is not None:
        gave_up = _keeps_dying(layout, service, since)
        if gave_up or time.monotonic() > deadline_s:
            why = gave_up or f"not after {timeout_s:.0f} s: {missing}"
            raise SetupError(
                f"{service}: {why}",
                f"see {layout.log_path(service)} and run `cumulet doctor`, then run this again",
                tail(layout.log_path(service), LOG_LINES),
            )
        time.sleep(POLL_S)


def _keeps_dying(layout: Layout, service: str, since: float) -> str | None:
    """Looks at ends after `since` only: earlier ones may have been mended meanwhile."""
    record = load_record(layout.record_path(service))
    if record is None or record.failures < FAILURES_MAX or (record.ended_at or 0.0) < since:
        return None
    return f"ended {record.failures} times in a row, last: {record.last_exit}"
