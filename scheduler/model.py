"""What the planner reads and writes: view and requests in, plan out.

**Pure**: immutable values that check themselves; nothing here decides.

A view is the fleet at one store revision. What it counts as allocated is the sum over placements
at that revision, so there is no second book that could disagree.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from cumulet.resources import ZERO, Resources
from scheduler.reasons import Reason

ALLOCATION_RATIO_MAX: Final = 64.0  # beyond it every guest starves; Nova's default for vcpu is 4


class ModelError(ValueError):
    """A view or a batch that contradicts itself. The message names the object and the field."""


class AllocationRatioError(ModelError):
    """A ratio that is not a number above 0 and up to `ALLOCATION_RATIO_MAX`."""


class DuplicateNodeError(ModelError):
    """Two nodes of a view have one name."""


class DuplicateRequestError(ModelError):
    """Two requests of a batch have one uid."""


class PlanMismatchError(ModelError):
    """A plan is explained with another view, batch or policy than it was made from."""


@lru_cache(maxsize=1024)  # a fleet has a handful of ratios
def _exact(ratio: float) -> Fraction:
    """The decimal number that the operator wrote: the float 0.29 is slightly less than 29/100."""
    return Fraction(repr(ratio))


def derive_allocatable(capacity: Resources, reserved: Resources, ratios: Mapping[str, float]) -> Resources:
    """floor((capacity - reserved) · ratio) per resource; what is reserved beyond capacity counts as 0.

    Raises QuantityOverflowError if a product leaves 64 bits.
    """
    amounts: dict[str, int] = {}
    for name, amount in capacity.as_dict().items():
        left = max(amount - reserved.get(name), 0)
        ratio = ratios.get(name, 1.0)
        amounts[name] = left if ratio == 1.0 else math.floor(left * _exact(ratio))
    return Resources.of(amounts)


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node. `allocatable` follows from capacity, reserved and ratios (a missing ratio is 1).

    `schedulable` is false on a cordoned node; `cordon_reason` is the operator's word for it and
    `not_ready_reason` says why `ready` is false.
    Raises AllocationRatioError, QuantityOverflowError.
    """

    name: str
    capacity: Resources
    reserved: Resources = ZERO
    allocation_ratio: Mapping[str, float] = field(default_factory=dict)
    allocated: Resources = ZERO
    schedulable: bool = True
    cordon_reason: str = ""
    ready: bool = True
    not_ready_reason: str = ""
    security_level: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    allocatable: Resources = field(init=False)

    def __post_init__(self) -> None:
        for resource, ratio in self.allocation_ratio.items():
            if not (math.isfinite(ratio) and 0 < ratio <= ALLOCATION_RATIO_MAX):
                raise AllocationRatioError(
                    f"node {self.name}: allocation_ratio.{resource} is {ratio},"
                    f" must be above 0 and at most {ALLOCATION_RATIO_MAX}"
                )
        room = derive_allocatable(self.capacity, self.reserved, self.allocation_ratio)
        object.__setattr__(self, "allocatable", room)
        object.__setattr__(self, "labels", MappingProxyType(dict(self.labels)))
        object.__setattr__(self, "allocation_ratio", MappingProxyType(dict(self.allocation_ratio)))

    def free(self) -> dict[str, int]:
        """Allocatable less allocated per resource, negative where the node is overcommitted."""
        left = self.allocatable.as_dict()
        for name, amount in self.allocated.as_dict().items():
            left[name] = left.get(name, 0) - amount
        return left


@dataclass(frozen=True, slots=True)
class View:
    """The fleet at a revision; nodes are kept in order of name. Raises DuplicateNodeError."""

    revision: int
    nodes: tuple[NodeView, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.nodes, key=lambda node: node.name))
        for before, after in pairwise(ordered):
            if before.name == after.name:
                raise DuplicateNodeError(
                    f"view at revision {self.revision}: node {after.name} is there twice"
                )
        object.__setattr__(self, "nodes", ordered)


@dataclass(frozen=True, slots=True)
class Request:
    """One instance to place. Every pair of `node_selector` must be a label of the node."""

    uid: str
    project: str
    name: str
    resources: Resources
    security_level: int = 0
    node_selector: Mapping[str, str] = field(default_factory=dict)
    excluded_nodes: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "node_selector", MappingProxyType(dict(self.node_selector)))

    def constraints(self) -> Hashable:
        """What filters look at but resources: with equal constraints the same nodes are eligible."""
        return self.security_level, frozenset(self.node_selector.items()), self.excluded_nodes


@dataclass(frozen=True, slots=True)
class Placement:
    """The instance `uid` goes to `node`."""

    uid: str
    node: str


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
    """

    uid: str
    node_count: int
    by_first: tuple[tuple[str, int], ...]
    by_any: tuple[tuple[str, int], ...]
    nearest: tuple[NearNode, ...]

    def __str__(self) -> str:
        if not self.node_count:
            return "there are no nodes"
        counts = ", ".join(f"{kind} on {count}" for kind, count in self.by_any)
        return f"none of {self.node_count} nodes fits ({counts}); nearest {self.nearest[0]}"


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
    """A node that fits, with its score (the largest term; smaller is better)."""

    node: str
    score: float
    terms: tuple[ScoreTerm, ...]

    def __str__(self) -> str:
        terms = ", ".join(f"{term.resource} {term.left} left ({term.share:.3f})" for term in self.terms)
        return f"{self.node}: score {self.score:.3f} of {terms}"


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
    """Every request of a batch, placed or rejected, in the order of the requests.

    `tie_start`: the node (its index in the view) from which equal scores were resolved, drawn from
    the rng; with it `explain_plan` repeats the decisions. `explanations` are there when asked for.
    """

    revision: int
    policy: str
    tie_start: int
    placements: tuple[Placement, ...]
    rejections: tuple[Rejection, ...]
    explanations: tuple[Explanation, ...] = ()
