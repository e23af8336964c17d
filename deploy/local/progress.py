"""Progress of a set-up: one line per step with the time since the start, on stderr.

**Edge**: writes to a stream, reads the clock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from deploy.local.errors import SetupError


class Progress:
    """Prints steps as they are done; stdout stays free for data."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._started_s = time.monotonic()

    def step(self, text: str) -> None:
        """One finished step, or the start of one that takes long."""
        self._write(f"[{time.monotonic() - self._started_s:6.1f} s] {text}")

    def note(self, text: str) -> None:
        """A line that belongs to the step before."""
        self._write(f"           {text}")

    def block(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._write(f"           | {line}")

    def failure(self, error: SetupError) -> None:
        """What failed, the end of the log that tells why, and the next thing to do."""
        self._write(f"error: {error.what}")
        self.block(error.log)
        self._write(f"  to fix it: {error.fix}")

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()
