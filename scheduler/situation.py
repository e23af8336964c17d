"""The fleet as a plan changes it, node by node: the state that the specification plans on.

**Pure** in its results; `enter` and `leave` change the situation in place and say so. Simple rather than
fast: `scheduler.fleet` holds the same in arrays and is tested against this.
"""

from __future__ import annotations

from typing import Self

from scheduler.answer import Placement
from scheduler.filters import reasons_against
from scheduler.group import Occupancy
from scheduler.model import NodeView, Request, Room, View
from scheduler.reasons import Reason
from scheduler.topology import Choice


class Situation:
    """What is left on every node, and where every group's members are."""

    def __init__(self, nodes: tuple[NodeView, ...], occupancy: Occupancy) -> None:
        self.rooms = {node.name: Room(node) for node in nodes}
        self.occupancy = occupancy

    @classmethod
    def of(cls, view: View) -> Self:
        return cls(view.nodes, Occupancy.of(view))

    def reasons(self, node: str, request: Request) -> tuple[Reason, ...]:
        """Everything that speaks against the node now; empty if it takes the request."""
        return reasons_against(self.rooms[node], request, self.occupancy)

    def enter(self, request: Request, node: str) -> Placement:
        """Put the request on a node that takes it, with the cells and devices that it gets there."""
        room = self.rooms[node]
        choice = room.choose(request)
        if choice is None:
            raise AssertionError(f"node {node} has no topology for instance {request.name}")
        room.enter(request, choice)
        self.occupancy.enter(request.groups, room.node)
        return Placement(request.uid, node, choice)

    def leave(self, request: Request, node: str, choice: Choice) -> None:
        """Take it away again."""
        room = self.rooms[node]
        room.leave(request, choice)
        self.occupancy.leave(request.groups, room.node)
