"""What happened in a run: the last lines for people, and a hash of all of them for replay.

**Pure**: virtual time is asked through a function.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

TAIL: Final = 80  # lines shown with a violation: some seconds of a busy run


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold, by its number in correctness.md."""

    invariant: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.text}"


class Trace:
    """Notes of one run. `seen` are violations, in order."""

    def __init__(self, seed: int, now: Callable[[], float]) -> None:
        self.seed = seed
        self._now = now
        self.faults: Counter[str] = Counter()
        self.ops: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self._tail: deque[str] = deque(maxlen=TAIL)
        self._hash = hashlib.sha256()

    def note(self, text: str) -> None:
        line = f"{self._now():10.4f} {text}"
        self._tail.append(line)
        self._hash.update(line.encode())

    def digest(self, data: bytes) -> None:
        """Something too long to read that must be the same in a replay."""
        self._hash.update(data)

    def fault(self, kind: str, text: str = "") -> None:
        self.faults[kind] += 1
        self.note(f"FAULT {kind} {text}")

    def violate(self, invariant: str, text: str) -> None:
        self.violations.append(Violation(invariant, text))
        self.note(f"VIOLATION {invariant}: {text}")

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def tail(self) -> str:
        return "\n".join(self._tail)
