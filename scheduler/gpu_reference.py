"""What placing a request costs a node's devices, in plain Python: the specification of `cext.gpu`.

**Pure** but for `ReferenceDevices`, which is changed in place as the kernel is.

The cost of a placement is a sum of three losses, each in thousandths of a device times `UNIT`:

- *fragments*: how much more of what is free the next typical request could not use. Source: Weng et al.,
  Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent, ATC 2023.
- *stranded*: how many more of the free devices the node's other amounts could not serve, at the rate at
  which typical requests ask for them.
- *worth*: what the free shares lose in value. A share is worth the whole devices that the typical shares it
  holds would otherwise need, by the dual prices of packing all of them into the fewest devices; and besides
  what others claim of its model (`scheduler.gpu_models`). Source: Gilmore, Gomory, A Linear Programming
  Approach to the Cutting-Stock Problem, 1961.

Equal costs go to the node with the least free (`room`), then by rank; on a node to the fullest device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

WHOLE: Final = 1000  # a device is divided into thousandths
UNIT: Final = 1 << 16
RATE_BITS: Final = 32
MODELS_MAX: Final = 64  # of a fleet; a set of models is a word
ANY_MODEL: Final = (1 << MODELS_MAX) - 1


@dataclass(frozen=True, slots=True)
class Shape:
    """What a request takes: `count` devices with `milli` of each, of models whose bit is set in `models`."""

    amounts: tuple[int, ...]
    count: int = 0
    milli: int = 0
    models: int = ANY_MODEL


@dataclass(frozen=True, slots=True)
class Workload:
    """What is typical. `typical`: shapes with devices and their weights, which sum to `UNIT` at most.

    `prices[g]`: the worth of a share of g thousandths, rising, of a whole device UNIT * WHOLE. `rates[r]`:
    the thousandths of devices that an amount of 1 serves, times 2**RATE_BITS; 0 = not asked for.
    `scarcity[m]`: what a thousandth of a device of model m is worth besides, 0 for models beyond the end.
    """

    typical: tuple[tuple[Shape, int], ...] = ()
    prices: tuple[int, ...] = (0,) * (WHOLE + 1)
    rates: tuple[int, ...] = ()
    scarcity: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each loss counts; all 0: only `room` does."""

    fragments: int = 0
    stranded: int = 0
    worth: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """`devices`: (number of the model, thousandths left) each. `room`: how much is free, for ties."""

    free: tuple[int, ...]
    devices: tuple[tuple[int, int], ...]
    attr: int = 0
    room: int = 0
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Loss:
    """The three losses, unweighted."""

    fragments: int
    stranded: int
    worth: int

    def cost(self, weights: Weights) -> int:
        return (
            weights.fragments * self.fragments + weights.stranded * self.stranded + weights.worth * self.worth
        )


def _takes(device: tuple[int, int], shape: Shape) -> bool:
    model, left = device
    return bool(shape.models >> model & 1) and left >= shape.milli


def usable(node: Node, shape: Shape) -> list[int]:
    """The devices, any of which the shape could use."""
    return [index for index, device in enumerate(node.devices) if _takes(device, shape)]


def fits(node: Node, shape: Shape) -> bool:
    """Amounts that are not asked for do not matter, even where they are overcommitted."""
    amounts = all(not want or want <= have for want, have in zip(shape.amounts, node.free, strict=True))
    return amounts and (not shape.count or len(usable(node, shape)) >= shape.count)


def choices(node: Node, shape: Shape) -> Iterator[tuple[int, ...]]:
    """The sets of devices that are worth a look. The node fits; of a share each distinct device, once."""
    able = usable(node, shape)
    if shape.count != 1:
        yield tuple(able[: shape.count])
        return
    seen: set[tuple[int, int]] = set()
    for index in able:
        if node.devices[index] not in seen:
            seen.add(node.devices[index])
            yield (index,)


def after(node: Node, amounts: Sequence[int], takes: Iterable[tuple[int, int]]) -> Node:
    """The node without the amounts and without (device, thousandths) each."""
    devices = list(node.devices)
    for index, milli in takes:
        devices[index] = (devices[index][0], devices[index][1] - milli)
    free = tuple(have - want for have, want in zip(node.free, amounts, strict=True))
    return replace(node, free=free, devices=tuple(devices))


def fragments(node: Node, workload: Workload) -> int:
    """The expected thousandths that a typical request could not use, times UNIT."""
    total = sum(max(left, 0) for _, left in node.devices)
    lost = 0
    for shape, weight in workload.typical:
        able = usable(node, shape) if fits(node, shape) else []
        lost += weight * (total - sum(node.devices[index][1] for index in able))
    return lost


def stranded(node: Node, workload: Workload) -> int:
    """The free thousandths that the scarcest amount does not serve, times UNIT."""
    total = sum(max(left, 0) for _, left in node.devices)
    served = [
        max(have, 0) * rate >> RATE_BITS
        for have, rate in zip(node.free, workload.rates, strict=False)
        if rate
    ]
    return max(total - min(served, default=total), 0) * UNIT


def worth(node: Node, workload: Workload) -> int:
    """The sum of what the free shares are worth."""
    besides = dict(enumerate(workload.scarcity))
    return sum(
        workload.prices[max(left, 0)] + besides.get(model, 0) * max(left, 0) for model, left in node.devices
    )


def loss(before: Node, later: Node, workload: Workload) -> Loss:
    """What a node has lost that was `before` and is `later`."""
    return Loss(
        fragments(later, workload) - fragments(before, workload),
        stranded(later, workload) - stranded(before, workload),
        worth(before, workload) - worth(later, workload),
    )


@dataclass(slots=True)
class ReferenceDevices:
    """The same questions and changes as `cext.gpu.DeviceIndex`, without its speed."""

    weights: Weights = Weights()
    workload: Workload = Workload()
    nodes: dict[int, Node] = field(default_factory=dict)
    shapes: list[Shape] = field(default_factory=list)
    eligible: set[tuple[int, int]] = field(default_factory=set)

    def add_shape(self, shape: Shape) -> int:
        if shape not in self.shapes:
            self.shapes.append(shape)
        return self.shapes.index(shape)

    def choose(self, shape: int, slot: int) -> tuple[int, tuple[int, ...]] | None:
        """The least cost and the devices that it takes; None if the node does not take the shape."""
        node, wanted = self.nodes[slot], self.shapes[shape]
        if not fits(node, wanted):
            return None
        found = []
        for chosen in choices(node, wanted):
            later = after(node, wanted.amounts, ((index, wanted.milli) for index in chosen))
            left = [node.devices[index][1] for index in chosen]
            found.append((loss(node, later, self.workload).cost(self.weights), left, chosen))
        cost, _, chosen = min(found)
        return cost, chosen

    def key(self, shape: int, slot: int) -> tuple[int, int, int] | None:
        """What nodes are compared by: cost, room, rank."""
        found = self.choose(shape, slot)
        return None if found is None else (found[0], self.nodes[slot].room, self.nodes[slot].rank)

    def able(self, shape: int, cset: int) -> list[int]:
        return [
            slot
            for slot, node in sorted(self.nodes.items())
            if (cset, node.attr) in self.eligible and fits(node, self.shapes[shape])
        ]

    def best(
        self, shape: int, cset: int, excluded: Iterable[int] = (), among: Iterable[int] | None = None
    ) -> int:
        left = set(self.able(shape, cset)) - set(excluded)
        if among is not None:
            left &= set(among)
        keys = {slot: self.key(shape, slot) for slot in left}
        return min(((key, slot) for slot, key in keys.items() if key is not None), default=(None, -1))[1]
