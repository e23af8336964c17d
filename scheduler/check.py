"""Check a plan against its view and requests, knowing nothing of how it was made.

**Pure**: returns violations, an empty list for a sound plan. Written apart from the planner on
purpose: it shares the model's fields with it and no computation, not even what is allocatable, so
that one mistake cannot hide in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, localcontext
from enum import StrEnum
from typing import Final

from scheduler.model import NodeView, Plan, Request, View

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
    """One node's ledger: what may be used, and what is used so far in the replay."""

    node: NodeView
    limit: dict[str, int]
    used: dict[str, int]

    def overdrawn(self, request: Request) -> list[str]:
        """The resources that the request asks for and would overdraw."""
        wants = request.resources.as_dict().items()
        return [
            f"{name}: {self.used.get(name, 0)} used + {want} > {self.limit.get(name, 0)}"
            for name, want in wants
            if want and self.used.get(name, 0) + want > self.limit.get(name, 0)
        ]

    def enter(self, request: Request) -> None:
        for name, want in request.resources.as_dict().items():
            self.used[name] = self.used.get(name, 0) + want


class _Books:
    """The ledgers of a view, each opened when it is first needed: most plans touch few nodes."""

    def __init__(self, view: View) -> None:
        self._nodes = {node.name: node for node in view.nodes}
        self._open: dict[str, _Book] = {}

    def find(self, name: str) -> _Book | None:
        node = self._nodes.get(name)
        if node is not None and name not in self._open:
            self._open[name] = _Book(node, _limit(node), node.allocated.as_dict())
        return self._open.get(name)

    def every(self) -> Iterator[_Book]:
        """All of them, in the view's order."""
        for name in self._nodes:
            book = self.find(name)
            if book is not None:
                yield book


def _replay(view: View, requests: Sequence[Request], plan: Plan) -> Iterator[Violation]:
    books = _Books(view)
    rejected = {rejection.uid for rejection in plan.rejections}
    nodes_of: dict[str, list[str]] = {}
    for placement in plan.placements:
        nodes_of.setdefault(placement.uid, []).append(placement.node)
    for request in requests:
        for name in nodes_of.get(request.uid, ()):
            yield from _check_placement(books.find(name), name, request)
        if request.uid in rejected:
            yield from _check_refusal(books.every(), request)


def _check_placement(book: _Book | None, name: str, request: Request) -> Iterator[Violation]:
    """The faults of one placement, which is then entered in the book."""
    if book is None:
        yield Violation(Kind.UNKNOWN_NODE, request.uid, name, "the view has no such node")
        return
    for kind, detail in _faults(book, request):
        yield Violation(kind, request.uid, name, detail)
    book.enter(request)


def _check_refusal(books: Iterable[_Book], request: Request) -> Iterator[Violation]:
    """A refusal is wrong if one node has no fault at this turn."""
    for book in books:
        if next(_faults(book, request), None) is None:
            yield Violation(
                Kind.WRONG_REFUSAL, request.uid, book.node.name, "rejected, but this node takes it"
            )
            return


def _faults(book: _Book, request: Request) -> Iterator[tuple[Kind, str]]:
    """Everything that forbids the request on the node at this point of the replay."""
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
    for detail in book.overdrawn(request):
        yield Kind.OVERCOMMIT, detail


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
