"""NUMA cells and devices of all nodes as arrays: which nodes have the topology that a request wants.

**Pure** in its results; `put` replaces one node's row in place. Equals `scheduler.topology.choose` on every
node (tested), by counting instead of matching: devices for all wants exist exactly if every set of wants
finds as many devices as it wants.
Source of that: P. Hall, On representatives of subsets, 1935.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import comb
from typing import Final

import numpy as np
import numpy.typing as npt

from scheduler.model import NodeView
from scheduler.topology import SHARE_WHOLE, Cell, DeviceRequest, choose, part

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Stock = tuple[list[Cell], list[int]]  # what is left of a node's cells, and of its devices in their order
COUNTINGS_MAX: Final = 256  # cell combinations times sets of wants; beyond it nodes are matched one by one
_NO_STOCK: Final[Stock] = ([], [])


def stock_of(node: NodeView) -> Stock:
    """What residents leave of cells and devices."""
    if not node.cells and not node.devices:
        return _NO_STOCK
    cells, left = list(node.cells), {device.address: SHARE_WHOLE for device in node.devices}
    for resident in node.residents:
        choice, request = resident.choice, resident.request
        for index in choice.cells:
            if index < len(cells):
                cell, count = cells[index], len(choice.cells)
                cells[index] = Cell(
                    cell.vcpu - part(request.resources.vcpu, count),
                    cell.memory_mib - part(request.resources.memory_mib, count),
                )
        for share in choice.devices:
            if share.address in left:
                left[share.address] -= share.share_milli
    return cells, list(left.values())


def full_stock(node: NodeView) -> Stock:
    """Cells and devices of the node if it were empty."""
    return list(node.cells), [SHARE_WHOLE] * len(node.devices)


class Sockets:
    """`vcpu`, `memory_mib` int64[n_node, n_cell], -1 where there is no such cell; devices one after another.

    `device_node`, `device_model`, `device_cell`, `device_left` int64[n_device], in the order of nodes.
    """

    def __init__(self, nodes: Sequence[NodeView], stocks: Sequence[Stock]) -> None:
        self._nodes = list(nodes)
        self.cell_count = np.fromiter((len(cells) for cells, _ in stocks), np.int64, len(stocks))
        widest = int(self.cell_count.max(initial=0))
        self.vcpu: Ints = np.full((len(stocks), widest), -1, np.int64)
        self.memory_mib: Ints = np.full((len(stocks), widest), -1, np.int64)
        counts = np.fromiter((len(left) for _, left in stocks), np.int64, len(stocks))
        self._start = np.concatenate(([0], np.cumsum(counts)))
        self.models: dict[str, int] = {}
        devices = [device for node in nodes for device in node.devices]
        self.device_node: Ints = np.repeat(np.arange(len(stocks)), counts)
        self.device_model: Ints = np.array([self._model(device.model) for device in devices], np.int64)
        self.device_cell: Ints = np.array([device.cell for device in devices], np.int64)
        self.device_left: Ints = np.array([each for _, left in stocks for each in left], np.int64)
        for row in np.flatnonzero(self.cell_count).tolist():
            self._put_cells(row, stocks[row][0])

    def _model(self, model: str) -> int:
        return self.models.setdefault(model, len(self.models))

    def _put_cells(self, row: int, cells: list[Cell]) -> None:
        for column, cell in enumerate(cells):
            self.vcpu[row, column] = cell.vcpu
            self.memory_mib[row, column] = cell.memory_mib

    def put(self, row: int, node: NodeView, stock: Stock) -> bool:
        """Replace a node's row in place; False if it has another number of cells or other devices."""
        old = self._nodes[row]
        if len(node.cells) != len(old.cells) or node.devices != old.devices:
            return False
        self._nodes[row] = node
        self._put_cells(row, stock[0])
        self.device_left[self._start[row] : self._start[row + 1]] = stock[1]
        return True

    def roomy(self, vcpu: int, memory_mib: int) -> Bools:
        """bool[n_node, n_cell]: the cell has room for that part."""
        found: Bools = (self.vcpu >= vcpu) & (self.memory_mib >= memory_mib)
        if vcpu <= 0 or memory_mib <= 0:  # a cell that is not there has no room, even for nothing
            found &= np.arange(self.vcpu.shape[1]) < self.cell_count[:, None]
        return found

    def usable(self, want: DeviceRequest) -> Bools:
        """bool[n_device]: the device is one of those that are wanted, with enough left."""
        enough: Bools = self.device_left >= want.share_milli
        if want.models:
            models = [self.models[model] for model in want.models if model in self.models]
            enough = enough & np.isin(self.device_model, models)
        return enough

    def count_devices(self, usable: Bools) -> Ints:
        """int64[n_node] of the devices that are marked."""
        return np.bincount(self.device_node[usable], minlength=len(self._nodes))

    def takes(self, vcpu: int, memory_mib: int, cells: int, wants: Sequence[DeviceRequest]) -> Bools:
        """bool[n_node]: there are cells and devices for all of it together."""
        everywhere = np.ones(len(self._nodes), np.bool_)
        if not cells and not wants:
            return everywhere
        kinds = 2 ** len({(want.models, want.share_milli) for want in wants})
        if not cells:
            if kinds > COUNTINGS_MAX:
                return self._match_each(everywhere, vcpu, memory_mib, cells, wants)
            return self._devices_for(list(_needs(wants)), everywhere, None)
        roomy = self.roomy(part(vcpu, cells), part(memory_mib, cells))
        enough: Bools = roomy.sum(axis=1) >= cells
        if not wants:
            return enough
        if comb(roomy.shape[1], cells) * kinds > COUNTINGS_MAX:
            return self._match_each(enough, vcpu, memory_mib, cells, wants)
        needs = list(_needs(wants))
        found = np.zeros(len(self._nodes), np.bool_)
        for chosen in combinations(range(roomy.shape[1]), cells):
            there: Bools = np.all(roomy[:, chosen], axis=1)
            if there.any():
                near: Bools = np.isin(self.device_cell, chosen)
                found |= self._devices_for(needs, there, near)
        return found

    def _devices_for(
        self, needs: list[tuple[int, tuple[DeviceRequest, ...]]], among: Bools, near: Bools | None
    ) -> Bools:
        """Of the nodes `among` those where each set of wants finds as many devices, of those `near`."""
        for count, wants in needs:
            usable = self.usable(wants[0])
            for want in wants[1:]:
                usable |= self.usable(want)
            if near is not None:
                usable &= near
            among = among & (self.count_devices(usable) >= count)
        return among

    def _match_each(
        self, among: Bools, vcpu: int, memory_mib: int, cells: int, wants: Sequence[DeviceRequest]
    ) -> Bools:
        """The same by matching, for topologies that would take too many countings."""
        found = among.copy()
        for row in np.flatnonzero(among).tolist():
            here = range(int(self.cell_count[row]))
            free = [Cell(int(self.vcpu[row, i]), int(self.memory_mib[row, i])) for i in here]
            devices = self._nodes[row].devices
            left = self.device_left[self._start[row] : self._start[row + 1]].tolist()
            named = {device.address: each for device, each in zip(devices, left, strict=True)}
            found[row] = choose(free, devices, named, vcpu, memory_mib, cells, wants) is not None
        return found


def _needs(wants: Sequence[DeviceRequest]) -> Iterator[tuple[int, tuple[DeviceRequest, ...]]]:
    """Every set of distinct wants with the number of devices that it wants."""
    counts: dict[tuple[frozenset[str], int], int] = {}
    kinds: dict[tuple[frozenset[str], int], DeviceRequest] = {}
    for want in wants:
        key = (want.models, want.share_milli)
        counts[key] = counts.get(key, 0) + want.count
        kinds[key] = want
    keys = list(kinds)
    for size in range(1, len(keys) + 1):
        for chosen in combinations(keys, size):
            yield sum(counts[key] for key in chosen), tuple(kinds[key] for key in chosen)
