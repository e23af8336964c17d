"""What nodes have in all: the largest amount of each resource, kept while nodes come and go.

**Pure** in its answers; `add` and `remove` count in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class Sizes:
    """Allocatable amounts by resource, with how many nodes have so much."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[int]] = {}
        self._largest: dict[str, int] = {}

    def add(self, amounts: Mapping[str, int]) -> bool:
        """One more node; whether the largest amount of a resource is another now."""
        changed = False
        for name, amount in amounts.items():
            self._counts.setdefault(name, Counter())[amount] += 1
            if amount > self.largest(name):
                self._largest[name] = amount
                changed = True
        return changed

    def remove(self, amounts: Mapping[str, int]) -> bool:
        """One node less, the same way."""
        changed = False
        for name, amount in amounts.items():
            counts = self._counts[name]
            counts[amount] -= 1
            if not counts[amount]:
                del counts[amount]
                if amount == self.largest(name):
                    self._largest[name] = max(counts, default=0)
                    changed = True
        return changed

    def largest(self, name: str) -> int:
        """0 if no node has any."""
        return self._largest.get(name, 0)

    def names(self) -> set[str]:
        """Resources that some node has."""
        return {name for name, counts in self._counts.items() if counts}
