"""Placement policies: a norm to score by, weights per resource, and what comes before the score.

**Pure**: immutable values; an unknown name or an impossible weight is refused when it is made.

The norms are those of the index (`cext.index`): of what stays free on a node, in shares of the fleet's
largest node, `linf` looks at the largest share, `l1` at the sum, `l2` at the sum of squares and `dot` at
how well it points the way of what is asked for; `worst` is linf the other way round. `slots` looks at how
much room for what is typical is lost (`scheduler.packing`). The tier is compared before the score.

With `devices`, on a fleet that has some, what a placement costs them is compared instead of the norm
(`scheduler.gpu_reference`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from scheduler.gpu_reference import Weights

if TYPE_CHECKING:
    from scheduler.model import NodeView

WEIGHT_MAX: Final = 1_000.0  # weights are relative; beyond it one resource alone decides anyway
WEIGHT_DEFAULT: Final = 1.0
WATTS_UNKNOWN: Final = 1_000_000  # a node that does not say what it draws is used last


class PolicyError(ValueError):
    """A policy that cannot be. The message names the field and what is allowed."""


class Norm(StrEnum):
    LINF = "linf"
    L1 = "l1"
    L2 = "l2"
    WORST = "worst"
    DOT = "dot"
    SLOTS = "slots"


class Order(StrEnum):
    """What is compared before the score."""

    NONE = "none"
    ENERGY = "energy"
    COST = "cost"


@dataclass(frozen=True, slots=True)
class Policy:
    """`weights`: (resource, weight); one that is not named has `WEIGHT_DEFAULT`. Raises PolicyError.

    `devices`: how much each loss of devices counts. `lifetimes`: hints of how long instances last count, with
    `slots`.
    """

    name: str
    norm: Norm = Norm.LINF
    weights: tuple[tuple[str, float], ...] = ()
    order: Order = Order.NONE
    summary: str = ""
    devices: Weights | None = None
    lifetimes: bool = False

    def __post_init__(self) -> None:
        for resource, weight in self.weights:
            if not (math.isfinite(weight) and 0 <= weight <= WEIGHT_MAX):
                raise PolicyError(
                    f"policy {self.name}: weights.{resource} is {weight}, must be 0 to {WEIGHT_MAX}"
                )
        if len({resource for resource, _ in self.weights}) < len(self.weights):
            raise PolicyError(f"policy {self.name}: weights name a resource twice")

    @property
    def counts(self) -> bool:
        """Whether it matters what runs on the nodes, not only how much."""
        return self.norm is Norm.SLOTS

    def weight(self, resource: str) -> float:
        return dict(self.weights).get(resource, WEIGHT_DEFAULT)

    def tier(self, node: NodeView, used: bool) -> int:
        """What comes before the score; smaller is preferred. `used`: something runs on the node."""
        if self.order is Order.COST:
            return node.cost_milli
        if self.order is Order.ENERGY:
            return _watts_per_vcpu(node) + (0 if used else WATTS_UNKNOWN)
        return 0


def _watts_per_vcpu(node: NodeView) -> int:
    """Milliwatts that one more busy vcpu costs at most: idle nodes may be switched off, so they come last."""
    if not node.full_watts or not node.capacity.vcpu:
        return WATTS_UNKNOWN
    return min(1000 * max(node.full_watts - node.idle_watts, 0) // node.capacity.vcpu, WATTS_UNKNOWN)


# Disks are seldom what runs out: at full weight the mostly free disk would be the largest share everywhere
# and hide how well vcpu and memory fit.
_DISK: Final = (("disk_gib", 1 / 16),)

# How much is free is compared where costs are equal. What devices have left counts there by itself, so its
# sum, which openb's files carry as a resource, does not count again.
_GPU: Final = (*_DISK, ("gpu_milli", 0.0))
# Tuned on openb's workloads with other seeds than those reported. It hardly matters: with a third of one of
# them or with thrice as much, 0.2 % less of the GPUs is allocated at most.
_GPU_LOSSES: Final = Weights(fragments=1, stranded=3, worth=8)

PACK: Final = Policy("pack", weights=_DISK, summary="fill nodes: the least of the largest free share")
_POLICIES: Final = (
    PACK,
    Policy("pack-l1", Norm.L1, _DISK, summary="fill nodes: the least sum of free shares"),
    Policy("pack-l2", Norm.L2, _DISK, summary="fill nodes: the least sum of squares of free shares"),
    Policy("dot-product", Norm.DOT, _DISK, summary="match the shape of what is free with what is asked for"),
    Policy("slots", Norm.SLOTS, _DISK, summary="keep the room that typical instances need, empty nodes last"),
    Policy(
        "lifetime",
        Norm.SLOTS,
        _DISK,
        summary="as slots, and off nodes that will be empty long before, by the tenants' hints",
        lifetimes=True,
    ),
    Policy("spread", Norm.WORST, _DISK, summary="the emptiest node first"),
    Policy("energy", Norm.LINF, _DISK, Order.ENERGY, "nodes in use first, then those that draw less a vcpu"),
    Policy("cost", Norm.LINF, _DISK, Order.COST, "the cheapest node first"),
    Policy(
        "gpu",
        Norm.LINF,
        _GPU,
        summary="keep free GPUs of use for what is typical, and with the vcpus and memory they need",
        devices=_GPU_LOSSES,
    ),
    Policy(
        "fgd",
        Norm.LINF,
        _GPU,
        summary="fragment GPUs the least (FGD, ATC'23)",
        devices=Weights(fragments=1),
    ),
)
BY_NAME: Final = {policy.name: policy for policy in _POLICIES}


def policy_named(name: str, weights: tuple[tuple[str, float], ...] | None = None) -> Policy:
    """The policy of that name, with other weights if given. Raises PolicyError."""
    found = BY_NAME.get(name)
    if found is None:
        raise PolicyError(f"policy {name!r} is unknown, there is: {', '.join(BY_NAME)}")
    if weights is None:
        return found
    return replace(found, weights=weights)
