"""NUMA cells and devices of a node: what a request wants of them, and which ones it gets.

**Pure**: the choice is a function of what is free. Cells and devices are exact: each chosen by name.

A request over k cells takes 1/k of its vcpus and memory (rounded up) in each of them; its devices are
then on those cells. Instances without cells float over all of them and count on the node as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

CELLS_MAX: Final = 8  # of a request; the combinations stay few (70 of 8 cells)
NODE_CELLS_MAX: Final = 16  # eight sockets with two cells each
DEVICES_MAX: Final = 16  # of a request; the largest machines have 16 accelerators
NODE_DEVICES_MAX: Final = 256
SHARE_WHOLE: Final = 1000  # a device is divided into thousandths
NO_CELL: Final = -1  # a device that belongs to no cell


class TopologyError(ValueError):
    """Cells or devices that cannot be. The message names the field."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A NUMA cell's own vcpus and memory; what floats over cells is not counted here."""

    vcpu: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class Device:
    """`address`: its PCI address, unique on the node. `model`: what a request names (`gpu-a100`)."""

    address: str
    model: str
    cell: int = NO_CELL


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """`count` devices of any of the models (none named: any model), `share_milli` thousandths of each.

    Less than a whole is asked of one device only. Raises TopologyError.
    """

    models: frozenset[str]
    count: int = 1
    share_milli: int = SHARE_WHOLE

    def __post_init__(self) -> None:
        if not 1 <= self.count <= DEVICES_MAX:
            raise TopologyError(f"devices: count is {self.count}, must be 1 to {DEVICES_MAX}")
        if not 1 <= self.share_milli <= SHARE_WHOLE:
            raise TopologyError(f"devices: share_milli is {self.share_milli}, must be 1 to {SHARE_WHOLE}")
        if self.count > 1 and self.share_milli < SHARE_WHOLE:
            raise TopologyError(
                f"devices: {self.count} devices with {self.share_milli}/1000 each;"
                " a share is of one device, ask for count 1"
            )

    def takes(self, device: Device, free_milli: int) -> bool:
        """Whether the device is one of those and has so much left."""
        return (not self.models or device.model in self.models) and free_milli >= self.share_milli

    def __str__(self) -> str:
        models = " or ".join(sorted(self.models)) or "any device"
        amount = f"{self.count} of" if self.share_milli == SHARE_WHOLE else f"{self.share_milli}/1000 of"
        return f"{amount} {models}"


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """So many thousandths of the device at that address."""

    address: str
    share_milli: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What a placement takes by name: cells (indices, rising) and devices (by address)."""

    cells: tuple[int, ...] = ()
    devices: tuple[DeviceShare, ...] = ()


NOTHING: Final = Choice()


def part(amount: int, cells: int) -> int:
    """What one of `cells` cells holds of an amount."""
    return -(-amount // cells)


def choose(
    cells_free: Sequence[Cell],
    devices: Sequence[Device],
    devices_free: Mapping[str, int],
    vcpu: int,
    memory_mib: int,
    cell_count: int,
    wants: Sequence[DeviceRequest],
) -> Choice | None:
    """The cells and devices of a request, None if there are none that do.

    Of the cells that fit, those that keep the least of vcpu, then memory, then the first. Each device is
    taken once; of the devices that fit, the fullest first, then by address.
    """
    if not cell_count:
        shares = _match(devices, devices_free, wants)
        return None if shares is None else Choice((), shares)
    need = Cell(part(vcpu, cell_count), part(memory_mib, cell_count))
    fitting = [
        index
        for index, cell in enumerate(cells_free)
        if cell.vcpu >= need.vcpu and cell.memory_mib >= need.memory_mib
    ]
    fitting.sort(key=lambda index: (cells_free[index].vcpu, cells_free[index].memory_mib, index))
    for chosen in combinations(fitting, cell_count):
        there = [device for device in devices if device.cell in chosen]
        shares = _match(there, devices_free, wants)
        if shares is not None:
            return Choice(tuple(sorted(chosen)), shares)
    return None


def _match(
    devices: Sequence[Device], free: Mapping[str, int], wants: Sequence[DeviceRequest]
) -> tuple[DeviceShare, ...] | None:
    """A device for every unit of every request, each used once: maximum bipartite matching.

    Source: Kuhn, The Hungarian method for the assignment problem, 1955 (augmenting paths).
    """
    units = [want for want in wants for _ in range(want.count)]
    if not units:
        return ()
    ordered = sorted(devices, key=lambda device: (free.get(device.address, 0), device.address))
    owner: dict[int, int] = {}  # device -> unit

    def augment(unit: int, seen: set[int]) -> bool:
        for index, device in enumerate(ordered):
            if index not in seen and units[unit].takes(device, free.get(device.address, 0)):
                seen.add(index)
                if index not in owner or augment(owner[index], seen):
                    owner[index] = unit
                    return True
        return False

    if not all(augment(unit, set()) for unit in range(len(units))):
        return None
    return tuple(
        DeviceShare(ordered[index].address, units[unit].share_milli)
        for index, unit in sorted(owner.items(), key=lambda pair: ordered[pair[0]].address)
    )
