"""What the planner writes: placements, and rejections and explanations that people read.

**Pure**: immutable values; nothing here decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from scheduler.reasons import Reason
from scheduler.topology import NOTHING, Choice

if TYPE_CHECKING:
    from scheduler.change import Change


class Placement(NamedTuple):  # made for every decision, at half the price of a frozen dataclass
    """The instance `uid` goes to `node`, on those cells and with those devices."""

    uid: str
    node: str
    choice: Choice = NOTHING


@dataclass(frozen=True, slots=True)
class NearNode:
    """A node that almost fits, and everything that speaks against it."""

    node: str
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        return f"{self.node}: {'; '.join(map(str, self.reasons))}"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why no node takes the instance.

    `by_first` counts each node once, by the first constraint it fails (in the order of
    `scheduler.filters`); `by_any` counts it for every constraint it fails. Both are sorted by falling count.
    `note`: what no node says: that the rest of a gang does not fit, or is not there yet.
    `changes`: what would make it fit, the cheapest first; a plan looks for them for few of its rejections.
    They are no part of why, so rejections that differ in them alone are equal.
    """

    uid: str
    node_count: int
    by_first: tuple[tuple[str, int], ...]
    by_any: tuple[tuple[str, int], ...]
    nearest: tuple[NearNode, ...]
    note: str = ""
    changes: tuple[Change, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        if self.note:
            return self.note
        if not self.node_count:
            return "there are no nodes"
        counts = ", ".join(f"{kind} on {count}" for kind, count in self.by_any)
        return f"none of {self.node_count} nodes fits ({counts}); nearest {self.nearest[0]}"

    def advice(self) -> str:
        """The sentence, and the cheapest change that would help if one is known."""
        return f"{self}; it fits if you {self.changes[0]}" if self.changes else str(self)


@dataclass(frozen=True, slots=True)
class ScoreTerm:
    """One resource's part in a score: what would stay free, and that as a weighted share.

    The share is of the largest allocatable amount of the fleet.
    """

    resource: str
    left: int
    share: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that fits, with its score in shares, and what soft constraints say against it.

    `parts`: what the score adds up, where it is more than the terms.
    """

    node: str
    score: float
    terms: tuple[ScoreTerm, ...]
    penalty: int = 0
    parts: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        terms = ", ".join(f"{term.resource} {term.left} left ({term.share:.3f})" for term in self.terms)
        parts = "".join(f"{name} {value:.3f}, " for name, value in self.parts)
        against = f", penalty {self.penalty}" if self.penalty else ""
        return f"{self.node}: score {self.score:.3f} of {parts}{terms}{against}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why this node: the winner, the next best, and how many nodes fitted of all."""

    uid: str
    policy: str
    winner: Candidate
    runners_up: tuple[Candidate, ...]
    fitting_count: int
    node_count: int

    def __str__(self) -> str:
        return f"{self.fitting_count} of {self.node_count} nodes fit, {self.policy} prefers {self.winner}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Every request of a batch, placed or rejected, in the order of the requests."""

    revision: int
    policy: str
    placements: tuple[Placement, ...]
    rejections: tuple[Rejection, ...]
