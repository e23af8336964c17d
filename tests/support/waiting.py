"""Waiting for a condition of the real world, with a deadline.

**Edge**: the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# The slowest wait is the silence limit of a node, 30 s (controller/reconcile/sessions.py), and software
# emulation on two busy cores takes five times as long as an idle machine.
CONVERGE_TIMEOUT_S = 90.0
POLL_S = 0.2


def wait_until(missing: Callable[[], Any]) -> None:
    """Until `missing` says nothing; what it said last is in the failure."""
    deadline_s = time.monotonic() + CONVERGE_TIMEOUT_S
    while said := missing():
        assert time.monotonic() < deadline_s, f"after {CONVERGE_TIMEOUT_S} s still: {said}"
        time.sleep(POLL_S)
