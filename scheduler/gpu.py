"""The devices of a fleet's nodes, kept in `cext.gpu`: which nodes take a request, and what it costs them.

**Pure** in its answers; follows the nodes in place.

A request with one kind of devices and no cells, or with neither, is answered by the kernel. Others are
matched node by node, and the kernel says what each match costs. What a cost is: `scheduler.gpu_reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from cext.gpu import DeviceIndex
from cumulet.resources import Resources
from scheduler.gpu_models import Stock, find_claims, find_scarcity
from scheduler.gpu_reference import ANY_MODEL, MODELS_MAX, UNIT, WHOLE, Loss, Weights
from scheduler.gpu_workload import Typical, Usage, build_workload
from scheduler.model import Request, Room
from scheduler.reference import UNIT_TOP
from scheduler.topology import NOTHING, Choice, DeviceRequest, DeviceShare

DEVICES_USUAL: Final = 8  # of a large node; so many free devices weigh in a tie as much as all of its vcpus

Key = tuple[int, int, int]  # cost, how much is free, rank


@dataclass(frozen=True, slots=True)
class Look:
    """A node as it is now: amounts in the order of the fleet's resources, and how large they are in all."""

    free: Sequence[int]
    free_units: int
    room: Room | None
    attribute: int
    rank: int


@dataclass(frozen=True, slots=True)
class Found:
    """A node and what the request gets there by name."""

    slot: int
    choice: Choice


class Devices:
    """`look` says what a slot's node is now, None if it has none; `row` orders a vector's amounts."""

    def __init__(
        self,
        rows: int,
        weights: Weights | None,
        usage: Usage,
        look: Callable[[int], Look | None],
        row: Callable[[Resources], Sequence[int]],
    ) -> None:
        self.weights = weights or Weights()
        self._leads = weights is not None
        self._learns = weights not in (None, Weights())
        self._usage = usage
        self._look, self._row = look, row
        self._kernel = DeviceIndex(rows, self.weights.fragments, self.weights.stranded, self.weights.worth)
        self._rooms: dict[int, Room] = {}  # of the nodes with devices or cells
        self._holders: set[int] = set()  # slots of the nodes with devices
        self._dirty: set[int] = set()
        self._ranks: dict[int, tuple[int, int]] = {}  # how much is free and rank, by slot
        self._models: dict[str, int] = {}
        self._shapes: dict[tuple[Resources, DeviceRequest | None], int] = {}
        self._frequent: tuple[tuple[Typical, int], ...] | None = None
        self._version = -1  # of the usage that the kernel's workload is of
        self._stock = Stock()
        self._claims: dict[str, Fraction] = {}
        self._claims_of: tuple[int, int] | None = None  # the versions of usage and stock
        self._scarcity: tuple[int, ...] = ()

    def touch(self, slot: int) -> None:
        """What is left on the node has changed, or the node itself."""
        self._dirty.add(slot)

    def allow(self, constraint: int, attribute: int) -> None:
        """The pair has become eligible."""
        self._kernel.set_eligible(constraint, attribute, True)

    # ---- what is asked

    def decides(self) -> bool:
        """Whether the policy goes by what a placement costs the devices: it says so, and there are some."""
        if not self._leads:
            return False
        self._follow()
        return bool(self._holders) and self._countable()

    def able(self, request: Request, constraint: int) -> list[int] | None:
        """The slots that take a request with devices; None if each node must be asked for itself."""
        self._follow()
        if not _is_plain(request) or not self._countable():
            return None
        return self._kernel.able(self._shape(request), constraint)

    def find(
        self, request: Request, constraint: int, excluded: Collection[int], among: Collection[int] | None
    ) -> Found | None:
        """Where the request costs the least. It `decides`."""
        if not _is_plain(request):
            matches = self._matches(request, constraint, excluded, among)
            return min(matches, key=lambda found: self.key(request, found), default=None)
        shape = self._shape(request)
        if among is not None:
            allowed = [slot for slot in among if slot not in excluded]
            slot = self._kernel.best_among(shape, constraint, allowed)
        elif excluded:
            slot = self._kernel.best_excluding(shape, constraint, excluded)
        else:
            slot = self._kernel.best(shape, constraint)
        return None if slot < 0 else Found(slot, self._choice(request, shape, slot))

    def at(self, request: Request, slot: int) -> Found | None:
        """The request on that node, None if cells and devices do not do. It `decides`."""
        if not _is_plain(request):
            choice = self._rooms[slot].choose(request) if slot in self._rooms else None
            return None if choice is None else Found(slot, choice)
        shape = self._shape(request)
        if self._kernel.choose(shape, slot) is None:
            return None
        return Found(slot, self._choice(request, shape, slot))

    def loss(self, request: Request, found: Found) -> Loss:
        """What the node loses."""
        room = self._rooms.get(found.slot)
        places = {} if room is None else {each.address: i for i, each in enumerate(room.node.devices)}
        takes = [(places[share.address], share.share_milli) for share in found.choice.devices]
        return Loss(*self._kernel.loss(found.slot, self._row(request.resources), takes))

    def key(self, request: Request, found: Found) -> Key:
        """What nodes are compared by; smaller is better."""
        return self.loss(request, found).cost(self.weights), *self._ranks[found.slot]

    def _matches(
        self, request: Request, constraint: int, excluded: Collection[int], among: Collection[int] | None
    ) -> Iterator[Found]:
        amounts = self._kernel.add_shape(self._row(request.resources))
        for slot in self._kernel.able(amounts, constraint):
            if slot in self._rooms and slot not in excluded and (among is None or slot in among):
                choice = self._rooms[slot].choose(request)
                if choice is not None:
                    yield Found(slot, choice)

    def _choice(self, request: Request, shape: int, slot: int) -> Choice:
        """What the kernel takes of the node's devices."""
        if not request.devices:
            return NOTHING
        chosen = self._kernel.choose(shape, slot)
        if chosen is None:
            raise AssertionError(f"slot {slot} does not take instance {request.name}")
        devices = self._rooms[slot].node.devices
        addresses = sorted(devices[index].address for index in chosen[1])
        share_milli = request.devices[0].share_milli
        return Choice((), tuple(DeviceShare(address, share_milli) for address in addresses))

    # ---- how the kernel follows

    def _follow(self) -> None:
        """Bring the kernel up to what the nodes are and what runs."""
        for slot in self._dirty:
            self._put(slot, self._look(slot))
        self._dirty.clear()
        if self._learns and self._version != self._usage.version:
            self._learn()
        if self.weights.worth:
            self._price_models()

    def _price_models(self) -> None:
        """Devices that some can use and no others are worth more, the scarcer the more."""
        versions = (self._usage.version, self._stock.version)
        if versions != self._claims_of:
            self._claims = find_claims(self._frequent or (), self._stock.total)
            self._claims_of = versions
        found = find_scarcity(self._claims, self._stock.left)
        scarcity = tuple(found.get(model, 0) for model in self._models) if found else ()
        if scarcity != self._scarcity and self._countable():
            self._kernel.set_scarcity(scarcity)
            self._scarcity = scarcity

    def _put(self, slot: int, look: Look | None) -> None:
        self._rooms.pop(slot, None)
        self._holders.discard(slot)
        self._stock.put(slot, look.room if look else None)
        if look is None:
            self._kernel.remove_node(slot)
            return
        devices: list[tuple[int, int]] = []
        if look.room is not None:
            self._rooms[slot] = look.room
            left: Mapping[str, int] = look.room.devices
            devices = [(self._model(each.model), left[each.address]) for each in look.room.node.devices]
        free = look.free_units
        if devices:
            self._holders.add(slot)
            free += UNIT_TOP * sum(max(left, 0) for _, left in devices) // (WHOLE * DEVICES_USUAL)
        self._ranks[slot] = (free, look.rank)
        if self._countable():
            self._kernel.set_node(slot, look.free, devices, look.attribute, free, look.rank)

    def _model(self, name: str) -> int:
        if name not in self._models:
            self._models[name] = len(self._models)
            self._shapes.clear()  # their sets of models may lack this one
            self._frequent, self._version = None, -1
        return self._models[name]

    def _countable(self) -> bool:
        """A fleet of more models than a word has bits is matched node by node, by amounts alone."""
        return len(self._models) <= MODELS_MAX

    def _learn(self) -> None:
        frequent = self._usage.frequent()
        if frequent != self._frequent and self._countable():
            found = build_workload(frequent, self._row, self._bits)
            typical = [
                (shape.amounts, shape.count, shape.milli, shape.models, weight)
                for shape, weight in found.typical
            ]
            self._kernel.set_workload(typical, found.prices, found.rates)
        self._frequent, self._version = frequent, self._usage.version

    def _bits(self, want: DeviceRequest) -> int:
        """The models that do, as a set; those that no node has are left out."""
        if not want.models:
            return ANY_MODEL
        return sum(1 << self._models[model] for model in want.models if model in self._models)

    def _shape(self, request: Request) -> int:
        want = request.devices[0] if request.devices else None
        key = (request.resources, want)
        found = self._shapes.get(key)
        if found is None:
            devices = () if want is None else (want.count, want.share_milli, self._bits(want))
            found = self._kernel.add_shape(self._row(request.resources), *devices)
            self._shapes[key] = found
        return found


def _is_plain(request: Request) -> bool:
    return not request.numa_cells and len(request.devices) <= 1


def in_devices(loss: int) -> float:
    """A loss as so many devices."""
    return loss / (UNIT * WHOLE)
