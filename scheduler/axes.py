"""How amounts become the rows of an index: the scale of each resource, and which of them score.

**Pure.**
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

from cext.index import FleetIndex
from cumulet.resources import Resources
from scheduler.model import Request
from scheduler.packing import LEVEL_LAST, lasts_level
from scheduler.policy import Norm, Policy
from scheduler.reference import Scale, Scoring


@dataclass(frozen=True, slots=True)
class Axes:
    """How the rows of an index are scaled and which of them score."""

    names: tuple[str, ...]
    scales: tuple[Scale, ...]
    scored: tuple[bool, ...]
    norm: str
    largest: tuple[int, ...]
    lifetimes: bool

    @classmethod
    def of(cls, names: Sequence[str], largest: dict[str, int], policy: Policy) -> Self:
        """A share of the fleet's largest node weighs as the policy says, relative to the heaviest."""
        weights = {name: policy.weight(name) for name in names}
        heaviest = max(weights.values()) or 1.0
        scored = tuple(largest[name] > 0 and weights[name] > 0 for name in names)
        scales = tuple(
            Scale.of(largest[name], weights[name] / heaviest) if scores else Scale(1, 0)
            for name, scores in zip(names, scored, strict=True)
        )
        most = tuple(largest[name] for name in names)
        return cls(tuple(names), scales, scored, policy.norm.value, most, policy.lifetimes)

    def row(self, resources: Resources) -> list[int]:
        """Amounts in the order of the rows."""
        amounts = resources.as_dict()
        return [amounts.get(name, 0) for name in self.names]

    def level(self, request: Request) -> int:
        """The level of the time that the request lasts, where that counts."""
        return lasts_level(request.lifetime_s) if self.lifetimes else LEVEL_LAST

    def units(self, amounts: Sequence[int]) -> int:
        """How large amounts in the order of the rows are in all."""
        rows = zip(self.scales, self.scored, amounts, strict=True)
        return sum(scale.unit(amount) for scale, scores, amount in rows if scores)

    @property
    def scoring(self) -> Scoring:
        """The specification of how an index with these rows compares nodes."""
        return Scoring(self.scales, self.scored, self.norm, largest=self.largest)

    def index(self) -> FleetIndex:
        """An empty index with these rows."""
        multipliers = [scale.multiplier for scale in self.scales]
        largest = self.largest if self.norm == Norm.SLOTS else None
        return FleetIndex(
            multipliers,
            [scale.shift for scale in self.scales],
            self.scored,
            self.norm,
            largest=largest,
            lifetimes=self.lifetimes,
        )

    def with_cells(self, whole: FleetIndex) -> FleetIndex:
        """An empty index with two more rows that must fit and do not score: a cell's vcpu and memory.

        `whole` is that of the nodes: what is typical is asked of it, where the norm wants to know.
        """
        multipliers = [*(scale.multiplier for scale in self.scales), 1, 1]
        shifts = [*(scale.shift for scale in self.scales), 0, 0]
        crowd_of = whole if self.norm == Norm.SLOTS else None
        return FleetIndex(multipliers, shifts, (*self.scored, False, False), self.norm, crowd_of=crowd_of)


def rank(name: str) -> int:
    """The canonical order of nodes that are equal: by their name, but not alphabetically."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
