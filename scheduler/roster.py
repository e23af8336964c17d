"""Which node is in which slot of the index; a slot is used again when its node has gone.

**Pure** in its answers; nodes are set and removed in place.
"""

from __future__ import annotations

from collections.abc import Iterator

from scheduler.axes import rank
from scheduler.model import ModelError, NodeView


class Roster:
    """Nodes by name and by slot, with the rank by which the index orders equal nodes."""

    def __init__(self) -> None:
        self.ranks: list[int] = []  # of the nodes' names, by slot
        self._slots: dict[str, int] = {}
        self._nodes: list[NodeView | None] = []
        self._vacant: list[int] = []

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, name: str) -> int | None:
        """Where the node of that name is; None if there is none."""
        return self._slots.get(name)

    def find(self, slot: int) -> NodeView | None:
        """The node of a slot, None if it has none."""
        return self._nodes[slot]

    def node(self, slot: int) -> NodeView:
        """The node of a slot that is in use."""
        node = self._nodes[slot]
        if node is None:
            raise ModelError(f"slot {slot} has no node")
        return node

    def nodes(self) -> Iterator[NodeView]:
        """All nodes, by slot."""
        return (node for node in self._nodes if node is not None)

    def seated(self) -> Iterator[tuple[int, NodeView]]:
        """All nodes with their slots."""
        return ((slot, node) for slot, node in enumerate(self._nodes) if node is not None)

    def put(self, node: NodeView) -> int:
        """Set a node, new or known; its slot."""
        slot = self._slots.get(node.name)
        if slot is None:
            slot = self._slots[node.name] = self._vacant.pop() if self._vacant else len(self._nodes)
            if slot == len(self._nodes):
                self._nodes.append(None)
                self.ranks.append(0)
            self.ranks[slot] = rank(node.name)
        self._nodes[slot] = node
        return slot

    def remove(self, slot: int) -> None:
        """The node of a slot that is in use is gone."""
        del self._slots[self.node(slot).name]
        self._nodes[slot] = None
        self._vacant.append(slot)
