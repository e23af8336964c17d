"""Check a plan against its view and requests, knowing nothing of how it was made.

**Pure**: returns violations, an empty list for a sound plan. Written apart from the planner on
purpose: it shares the model's fields with it and no computation, not even what is allocatable, so
that one mistake cannot hide in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, localcontext
from enum import StrEnum
from itertools import combinations
from typing import Final

from scheduler.answer import Placement, Plan
from scheduler.group import PlacementGroup
from scheduler.model import NodeView, Request, View
from scheduler.topology import Choice, Device, DeviceRequest

_DIGITS: Final = 60  # 19 of an int64 times 17 of a float, exact with room to spare


class Kind(StrEnum):
    """What can be wrong with a plan."""

    OVERCOMMIT = "overcommit"
    CORDONED = "cordoned"
    NOT_READY = "not-ready"
    UNKNOWN_NODE = "unknown-node"
    EXCLUDED = "excluded"
    SECURITY_LEVEL = "security-level"
    LABELS = "labels"
    UNKNOWN_UID = "unknown-uid"
    UNDECIDED = "undecided"
    DECIDED_TWICE = "decided-twice"
    WRONG_REFUSAL = "wrong-refusal"
    OTHER_REVISION = "other-revision"
    TAINT = "taint"
    DEDICATED = "dedicated"
    CAPABILITY = "capability"
    GROUP = "group"
    CELLS = "cells"
    DEVICES = "devices"
    GANG_BROKEN = "gang-broken"


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault; `uid` and `node` are empty where none is concerned."""

    kind: Kind
    uid: str
    node: str
    detail: str


def check_plan(view: View, requests: Sequence[Request], plan: Plan) -> list[Violation]:
    """Every fault of the plan: replays it in the order of the requests over its own books."""
    if plan.revision != view.revision:
        detail = f"the plan is of revision {plan.revision}, the view of {view.revision}"
        return [Violation(Kind.OTHER_REVISION, "", "", detail)]
    return [*_check_decisions(requests, plan), *_replay(view, requests, plan)]


def _check_decisions(requests: Sequence[Request], plan: Plan) -> Iterator[Violation]:
    """Each request is decided once, and nothing else is."""
    times = Counter(placement.uid for placement in plan.placements)
    times.update(rejection.uid for rejection in plan.rejections)
    wanted = {request.uid for request in requests}
    for uid in sorted(wanted | set(times)):
        if uid not in wanted:
            yield Violation(Kind.UNKNOWN_UID, uid, "", "decided, but nobody asked for it")
        elif times[uid] == 0:
            yield Violation(Kind.UNDECIDED, uid, "", "neither placed nor rejected")
        elif times[uid] > 1:
            yield Violation(Kind.DECIDED_TWICE, uid, "", f"decided {times[uid]} times")


@dataclass(slots=True)
class _Book:
    """One node's ledger: what may be used, what is used so far in the replay, what is left by name."""

    node: NodeView
    limit: dict[str, int]
    used: dict[str, int]
    cells: list[list[int]]  # [vcpu, memory_mib] left of each
    devices: dict[str, int]  # thousandths left by address

    @classmethod
    def open(cls, node: NodeView) -> _Book:
        cells = [[cell.vcpu, cell.memory_mib] for cell in node.cells]
        book = cls(node, _limit(node), node.allocated.as_dict(), cells, dict.fromkeys(_addresses(node), 1000))
        for resident in node.residents:
            book.note_named(resident.request, resident.choice)
        return book

    def overdrawn(self, request: Request) -> list[str]:
        """The resources that the request asks for and would overdraw."""
        wants = request.resources.as_dict().items()
        return [
            f"{name}: {self.used.get(name, 0)} used + {want} > {self.limit.get(name, 0)}"
            for name, want in wants
            if want and self.used.get(name, 0) + want > self.limit.get(name, 0)
        ]

    def enter(self, request: Request, choice: Choice) -> None:
        for name, want in request.resources.as_dict().items():
            self.used[name] = self.used.get(name, 0) + want
        self.note_named(request, choice)

    def note_named(self, request: Request, choice: Choice) -> None:
        """Cells and devices are taken."""
        for index in choice.cells:
            if 0 <= index < len(self.cells):
                vcpu, memory_mib = _in_each_cell(request, len(choice.cells))
                self.cells[index][0] -= vcpu
                self.cells[index][1] -= memory_mib
        for share in choice.devices:
            if share.address in self.devices:
                self.devices[share.address] -= share.share_milli


def _addresses(node: NodeView) -> list[str]:
    return [device.address for device in node.devices]


def _in_each_cell(request: Request, count: int) -> tuple[int, int]:
    """vcpu and memory that each of the cells must hold, rounded up."""
    return (
        (request.resources.vcpu + count - 1) // count,
        (request.resources.memory_mib + count - 1) // count,
    )


class _Books:
    """The ledgers of a view, each opened when it is first needed: most plans touch few nodes."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._nodes = {node.name: node for node in view.nodes}
        self._open: dict[str, _Book] = {}
        self._members: dict[str, Counter[str]] | None = None  # by group, in each domain

    def find(self, name: str) -> _Book | None:
        node = self._nodes.get(name)
        if node is not None and name not in self._open:
            self._open[name] = _Book.open(node)
        return self._open.get(name)

    def every(self) -> Iterator[_Book]:
        """All of them, in the view's order."""
        for name in self._nodes:
            book = self.find(name)
            if book is not None:
                yield book

    def enter(self, book: _Book, request: Request, choice: Choice) -> None:
        members = self.members() if request.groups else {}  # before the book: it counts who was there
        book.enter(request, choice)
        for name in request.groups:
            group = self._view.groups.get(name)
            if group and _domain(book.node, group):
                members.setdefault(name, Counter())[_domain(book.node, group)] += 1

    def members(self) -> dict[str, Counter[str]]:
        """Counted when the first group is asked for."""
        if self._members is None:
            self._members = {}
            for node in self._view.nodes:
                for resident in node.residents:
                    for name in resident.request.groups:
                        group = self._view.groups.get(name)
                        if group and _domain(node, group):
                            self._members.setdefault(name, Counter())[_domain(node, group)] += 1
        return self._members

    def group_faults(self, book: _Book, request: Request) -> Iterator[str]:
        """What the hard groups say against the node."""
        for name in request.groups:
            group = self._view.groups.get(name)
            if group is None:
                yield f"there is no group {name}"
            elif group.hard:
                yield from _group_faults(
                    group, _domain(book.node, group), self.members().get(name, Counter())
                )


def _domain(node: NodeView, group: PlacementGroup) -> str:
    return node.name if group.scope.value == "node" else node.labels.get(group.scope.value, "")


def _group_faults(group: PlacementGroup, domain: str, members: Counter[str]) -> Iterator[str]:
    apart = group.rule.value == "anti-affinity"
    most = group.max_per_domain or (1 if apart else None)
    if not domain:
        yield f"{group.name} goes by {group.scope.value}, the node has none"
    elif most is not None and members[domain] >= most:
        yield f"{group.name}: {members[domain]} of {most} members are in {domain}"
    elif not apart and any(members.values()) and not members[domain]:
        yield f"{group.name} is elsewhere"


def _replay(view: View, requests: Sequence[Request], plan: Plan) -> Iterator[Violation]:
    books = _Books(view)
    rejected = {rejection.uid for rejection in plan.rejections}
    placed: dict[str, list[Placement]] = {}
    for placement in plan.placements:
        placed.setdefault(placement.uid, []).append(placement)
    for turn in _turns(requests):
        for request in turn:
            for placement in placed.get(request.uid, ()):
                yield from _check_placement(books, placement, request)
        if turn[0].gang is not None:
            yield from _check_gang(turn, placed)
        elif turn[0].uid in rejected:
            yield from _check_refusal(books, turn[0])


def _turns(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests as they are decided: one by one, a gang at its first member's turn."""
    turns: dict[object, list[Request]] = {}
    for request in requests:
        key = request.uid if request.gang is None else (request.project, request.gang.name)
        turns.setdefault(key, []).append(request)
    return list(turns.values())


def _check_gang(gang: Sequence[Request], placed: dict[str, list[Placement]]) -> Iterator[Violation]:
    """All or none. That a gang was refused wrongly is not claimed: no order of it might fit."""
    there = [request for request in gang if request.uid in placed]
    size = gang[0].gang.size if gang[0].gang else 0
    if there and len(there) != size:
        detail = (
            f"{len(there)} of {size} members of gang {gang[0].gang.name if gang[0].gang else ''} are placed"
        )
        yield Violation(Kind.GANG_BROKEN, there[0].uid, placed[there[0].uid][0].node, detail)


def _check_placement(books: _Books, placement: Placement, request: Request) -> Iterator[Violation]:
    """The faults of one placement, which is then entered in the book."""
    book = books.find(placement.node)
    if book is None:
        yield Violation(Kind.UNKNOWN_NODE, request.uid, placement.node, "the view has no such node")
        return
    for kind, detail in (*_faults(books, book, request), *_named_faults(book, request, placement.choice)):
        yield Violation(kind, request.uid, placement.node, detail)
    books.enter(book, request, placement.choice)


def _check_refusal(books: _Books, request: Request) -> Iterator[Violation]:
    """A refusal is wrong if one node has no fault at this turn."""
    for book in books.every():
        if next(_faults(books, book, request), None) is None and _can_name(book, request):
            yield Violation(
                Kind.WRONG_REFUSAL, request.uid, book.node.name, "rejected, but this node takes it"
            )
            return


def _faults(books: _Books, book: _Book, request: Request) -> Iterator[tuple[Kind, str]]:
    """Everything that forbids the request on the node at this point of the replay, but cells and devices."""
    node = book.node
    if not node.schedulable:
        yield Kind.CORDONED, "the node is cordoned"
    if not node.ready:
        yield Kind.NOT_READY, node.not_ready_reason
    if node.name in request.excluded_nodes:
        yield Kind.EXCLUDED, "the request excludes the node"
    if request.security_level > node.security_level:
        yield Kind.SECURITY_LEVEL, f"{request.security_level} wanted, {node.security_level} there"
    if not request.node_selector.items() <= node.labels.items():
        yield Kind.LABELS, f"{dict(request.node_selector)} wanted, {dict(node.labels)} there"
    for taint in node.taints:
        tolerated = {
            (one.key, taint.value if one.value is None else one.value) for one in request.tolerations
        }
        if taint.effect.value == "no-schedule" and (taint.key, taint.value) not in tolerated:
            yield Kind.TAINT, f"{taint} is not tolerated"
    if node.dedicated_to and request.project not in node.dedicated_to:
        yield Kind.DEDICATED, f"for {sorted(node.dedicated_to)}, not for {request.project}"
    if not request.capabilities <= node.capabilities:
        yield Kind.CAPABILITY, f"{sorted(request.capabilities - node.capabilities)} wanted"
    for detail in books.group_faults(book, request):
        yield Kind.GROUP, detail
    for detail in book.overdrawn(request):
        yield Kind.OVERCOMMIT, detail


def _named_faults(book: _Book, request: Request, choice: Choice) -> Iterator[tuple[Kind, str]]:
    """What is wrong with the cells and devices that a placement names."""
    if not (request.numa_cells or request.devices or choice.cells or choice.devices):
        return  # most want none and are given none
    if len(choice.cells) != request.numa_cells or len(set(choice.cells)) != len(choice.cells):
        yield Kind.CELLS, f"{request.numa_cells} cells wanted, {list(choice.cells)} chosen"
    for index in choice.cells:
        if not _cell_holds(book, request, index, len(choice.cells)):
            yield Kind.CELLS, f"cell {index} has no room for its part"
    chosen = {share.address: share.share_milli for share in choice.devices}
    if len(chosen) != len(choice.devices):
        yield Kind.DEVICES, "a device is chosen twice"
    for address, share in chosen.items():
        if book.devices.get(address, 0) < share:
            yield Kind.DEVICES, f"{share} of {address} wanted, {book.devices.get(address, 0)} left"
    units = [want for want in request.devices for _ in range(want.count)]
    usable = [
        device
        for device in book.node.devices
        if device.address in chosen and (not request.numa_cells or device.cell in choice.cells)
    ]
    exact = all(share in {unit.share_milli for unit in units} for share in chosen.values())
    if len(chosen) != len(units) or not exact or not _assign(units, usable, chosen):
        yield Kind.DEVICES, f"{sorted(chosen)} are not {', '.join(map(str, request.devices)) or 'wanted'}"


def _cell_holds(book: _Book, request: Request, index: int, count: int) -> bool:
    vcpu, memory_mib = _in_each_cell(request, count)
    if not 0 <= index < len(book.cells):
        return False
    return book.cells[index][0] >= vcpu and book.cells[index][1] >= memory_mib


def _can_name(book: _Book, request: Request) -> bool:
    """Whether some cells and devices of the node would do, by trying all."""
    if not request.numa_cells and not request.devices:
        return True
    units = [want for want in request.devices for _ in range(want.count)]
    count = request.numa_cells
    holding = [
        index for index in range(len(book.cells)) if count and _cell_holds(book, request, index, count)
    ]
    for cells in combinations(holding, count):
        there = [device for device in book.node.devices if not count or device.cell in cells]
        if _assign(units, there, book.devices):
            return True
    return False


def _assign(units: Sequence[DeviceRequest], devices: Sequence[Device], left: Mapping[str, int]) -> bool:
    """Whether each unit can have a device of its own."""
    if not units:
        return True
    unit = units[0]
    for device in devices:
        named = not unit.models or device.model in unit.models
        if named and left[device.address] >= unit.share_milli:
            others = [other for other in devices if other.address != device.address]
            if _assign(units[1:], others, left):
                return True
    return False


def _limit(node: NodeView) -> dict[str, int]:
    """floor((capacity - reserved) * ratio), in decimals as the operator wrote the ratio."""
    limit: dict[str, int] = {}
    with localcontext() as context:
        context.prec = _DIGITS
        for name, capacity in node.capacity.as_dict().items():
            left = Decimal(max(capacity - node.reserved.get(name), 0))
            product = left * Decimal(str(node.allocation_ratio.get(name, 1)))
            limit[name] = int(product.to_integral_value(ROUND_FLOOR))
    return limit
