"""Small numbers for what has a uid: a port's mark and a network's zone, on this node only.

**Edge**: one file each, appended to, so that the cost of a new port does not grow with the node. A number is
on disk before it is used and stays its owner's until that is gone; the lowest free one is given next.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from agent.errors import DriverError
from agent.net.state import read_text, write_text

_GONE: Final = "-"


class Numbers:
    """Numbers from 1 to `last` by uid. Lines of the file: a number and its owner, or "-" and the owner."""

    def __init__(self, file: Path, last: int) -> None:
        self._file = file
        self._last = last
        self._numbers: dict[str, int] = {}
        self._free: list[int] = []
        self._next = 1
        self._load()

    @property
    def known(self) -> Mapping[str, int]:
        return MappingProxyType(self._numbers)

    def ensure(self, uid: str) -> int:
        """Raises DriverError when all numbers are taken."""
        number = self._numbers.get(uid)
        return self._take(uid) if number is None else number

    def release(self, uid: str) -> None:
        number = self._numbers.pop(uid, None)
        if number is not None:
            self._append(f"{_GONE} {uid}\n")
            heapq.heappush(self._free, number)

    def clear(self) -> None:
        """Nothing of ours is left on the node."""
        self._file.unlink(missing_ok=True)
        self._numbers.clear()
        self._free.clear()
        self._next = 1

    def _take(self, uid: str) -> int:
        if not self._free and self._next > self._last:
            raise DriverError(
                "NumbersExhausted",
                f"{uid}: all {self._last} numbers of {self._file.name} on this node are taken; "
                "move something to another node",
            )
        number = heapq.heappop(self._free) if self._free else self._next
        self._next = max(self._next, number + 1)
        self._append(f"{number} {uid}\n")
        self._numbers[uid] = number
        return number

    def _append(self, line: str) -> None:
        with self._file.open("a") as file:
            file.write(line)

    def _load(self) -> None:
        """And write it anew, without what is gone and without a last line that a crash cut short."""
        for line in read_text(self._file).splitlines(keepends=True):
            number, _, uid = line.rstrip("\n").partition(" ")
            if number == _GONE:
                self._numbers.pop(uid, None)
            elif number.isdecimal() and line.endswith("\n"):
                self._numbers[uid] = int(number)
        taken = set(self._numbers.values())
        self._next = max(taken, default=0) + 1
        self._free = sorted(set(range(1, self._next)) - taken)
        write_text(self._file, "".join(f"{number} {uid}\n" for uid, number in self._numbers.items()))
