"""Placement policies: a named way to score, and weights per resource.

**Pure**: immutable values; an unknown name or an impossible weight is refused when it is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

WEIGHT_MAX: Final = 1_000.0  # weights are relative; beyond it one resource alone decides anyway
WEIGHT_DEFAULT: Final = 1.0
POLICY_NAMES: Final = ("pack",)


class PolicyError(ValueError):
    """A policy that cannot be. The message names the field and what is allowed."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`weights`: (resource, weight); one that is not named has `WEIGHT_DEFAULT`. Raises PolicyError."""

    name: str
    weights: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in POLICY_NAMES:
            raise PolicyError(f"policy {self.name!r} is unknown, there is: {', '.join(POLICY_NAMES)}")
        for resource, weight in self.weights:
            if not (math.isfinite(weight) and 0 <= weight <= WEIGHT_MAX):
                raise PolicyError(
                    f"policy {self.name}: weights.{resource} is {weight}, must be 0 to {WEIGHT_MAX}"
                )
        if len({resource for resource, _ in self.weights}) < len(self.weights):
            raise PolicyError(f"policy {self.name}: weights name a resource twice")

    def weight(self, resource: str) -> float:
        return dict(self.weights).get(resource, WEIGHT_DEFAULT)


# Best fit by the largest remaining share. Disks are seldom what runs out: at full weight the mostly
# free disk would be the largest share everywhere and hide how well vcpu and memory fit.
PACK: Final = Policy("pack", (("disk_gib", 1 / 16),))
_BY_NAME: Final = {PACK.name: PACK}


def policy_named(name: str) -> Policy:
    """The policy of that name with its default weights. Raises PolicyError."""
    return _BY_NAME.get(name) or Policy(name)
