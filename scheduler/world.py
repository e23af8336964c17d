"""The fleet of a what-if: a view with everybody on it, who waits, what can be asked for, what can join.

**Pure**: immutable; every change gives a new world.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from cumulet.resources import ZERO, Resources
from scheduler.answer import Placement
from scheduler.group import Scope, domain_of
from scheduler.model import NodeView, Request, Resident, View
from scheduler.policy import PACK, Policy
from scheduler.resident import resident_of
from scheduler.steps import UnknownNameError
from scheduler.summary import CommonShape, Summary, common_shapes, summarize

_NO_FLAVORS: Final[Mapping[str, Request]] = MappingProxyType({})
_PLAIN: Final = NodeView("new", ZERO)


class IncompleteViewError(ValueError):
    """A node's residents are not all that is allocated on it; a what-if would forget the others."""


@dataclass(frozen=True, slots=True)
class World:
    """`flavors`: a request of each, whose uid and name are replaced. `waiting`: asked for, placed nowhere.

    `fresh`: what a node that joins is like, but for name, capacity and labels. `leaving`: uids of those that
    are on their way out: they hold their room, and nobody places them again. Raises IncompleteViewError.
    """

    view: View
    flavors: Mapping[str, Request] = field(default_factory=lambda: _NO_FLAVORS)
    waiting: tuple[Request, ...] = ()
    policy: Policy = PACK
    fresh: NodeView = _PLAIN
    leaving: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for node in self.view.nodes:
            total = Resources.total(one.request.resources for one in node.residents)
            if total != node.allocated:
                raise IncompleteViewError(
                    f"node {node.name}: its instances take {total}, but {node.allocated} is allocated there"
                )

    def node(self, name: str) -> NodeView:
        """Raises UnknownNameError."""
        for node in self.view.nodes:
            if node.name == name:
                return node
        known = _nearest(name, (one.name for one in self.view.nodes))
        raise UnknownNameError("node", f"there is no node {name}{known}")

    def in_domain(self, scope: Scope, name: str) -> tuple[str, ...]:
        """Names of a rack's or zone's nodes. Raises UnknownNameError if there is none."""
        domains = domains_of(self.view, scope)
        if name not in domains:
            known = _nearest(name, domains)
            raise UnknownNameError(scope.value, f"no node has the label {scope.value}={name}{known}")
        return domains[name]

    def flavor(self, name: str) -> Request:
        """Raises UnknownNameError."""
        if name not in self.flavors:
            raise UnknownNameError("flavor", f"there is no flavor {name}{_nearest(name, self.flavors)}")
        return self.flavors[name]

    def with_nodes(self, changed: Iterable[NodeView], waiting: tuple[Request, ...] | None = None) -> World:
        """Nodes of these names replaced, or added."""
        nodes = {node.name: node for node in self.view.nodes} | {node.name: node for node in changed}
        view = View(self.view.revision, tuple(nodes.values()), self.view.groups, self.view.at_s)
        return replace(self, view=view, waiting=self.waiting if waiting is None else waiting)

    def entered(self, placements: Iterable[Placement], requests: Sequence[Request]) -> World:
        """With the placed requests on their nodes; those that were not placed wait."""
        where = {placement.uid: placement for placement in placements}
        nodes = {node.name: node for node in self.view.nodes}
        for name, arrived in _by_node(requests, where).items():
            nodes[name] = _filled(nodes[name], arrived)
        still = tuple(request for request in requests if request.uid not in where)
        return self.with_nodes(nodes.values(), still)

    def residents(self) -> Iterable[Resident]:
        for node in self.view.nodes:
            yield from node.residents

    def evacuees(self, nodes: Iterable[NodeView]) -> list[Request]:
        """What ran on nodes and is wanted, in the order in which it is placed again: the largest first.

        Large is by the largest share of any of these nodes' amounts. A gang was placed before: its members
        are moved one by one.
        """
        lost = list(nodes)
        room = Resources.total(node.allocatable for node in lost).as_dict()
        wanted = (
            one.request for node in lost for one in node.residents if one.request.uid not in self.leaving
        )

        def share(request: Request) -> float:
            asked = request.resources.as_dict().items()
            return max((want / room[name] for name, want in asked if room.get(name)), default=0.0)

        requests = sorted(wanted, key=lambda request: (-share(request), request.uid))
        return [replace(request, gang=None) if request.gang else request for request in requests]

    def shapes(self) -> tuple[CommonShape, ...]:
        """What instances ask for here; the flavors' if there are none."""
        asked = [one.request.resources for one in self.residents()]
        asked += [request.resources for request in self.waiting]
        return common_shapes(asked or [request.resources for request in self.flavors.values()])

    def summary(self, shapes: Sequence[CommonShape]) -> Summary:
        return summarize(self.view, len(self.waiting), self.flavors, shapes)


def emptied(node: NodeView) -> NodeView:
    """The node with nobody on it."""
    return replace(node, allocated=ZERO, residents=(), others=())


def domains_of(view: View, scope: Scope) -> dict[str, tuple[str, ...]]:
    """Names of the nodes of each domain; nodes without the label are in none."""
    found: dict[str, list[str]] = {}
    for node in view.nodes:
        domain = domain_of(node, scope)
        if domain:
            found.setdefault(domain, []).append(node.name)
    return {name: tuple(nodes) for name, nodes in sorted(found.items())}


def _by_node(
    requests: Sequence[Request], where: Mapping[str, Placement]
) -> dict[str, list[tuple[Request, Placement]]]:
    found: dict[str, list[tuple[Request, Placement]]] = {}
    for request in requests:
        placement = where.get(request.uid)
        if placement is not None:
            found.setdefault(placement.node, []).append((request, placement))
    return found


def _filled(node: NodeView, arrived: Sequence[tuple[Request, Placement]]) -> NodeView:
    if len(arrived) == 1:
        return resident_of(node, *arrived[0])
    return replace(
        node,
        allocated=Resources.total((node.allocated, *(request.resources for request, _ in arrived))),
        residents=(
            *node.residents,
            *(Resident(request, placement.choice) for request, placement in arrived),
        ),
    )


def _nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean x?`, or what there is; empty when there is nothing."""
    from difflib import get_close_matches

    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there is {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else ""
