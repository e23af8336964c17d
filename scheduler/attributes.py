"""What nodes are like beyond their amounts, in classes: which of them a request may use, and likes.

**Pure** in its answers; tables of classes and wishes grow in place.

Nodes that no request seen so far could tell apart share an *attribute*: labels and capabilities that
nobody has asked for are left out, so a fleet has few, even where every node has labels of its own. A
*wish* is everything static that a request asks for. For each wish, attributes fall into *levels*: equal
penalty (`scheduler.preference`) and equal tier (what the policy adds: a node's power, its price).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Final

from scheduler.filters import is_eligible
from scheduler.model import NodeView, Request
from scheduler.preference import node_penalty

CLOSED: Final = -1  # the attribute of a node that takes nothing: cordoned or not ready

Tier = Callable[[NodeView, bool], int]  # (node, whether anything runs there): smaller is preferred


@dataclass(frozen=True, slots=True)
class Level:
    """Attributes that are equally good for a wish; `constraint` numbers the set of them."""

    penalty: int
    tier: int
    constraint: int


class Wish:
    """One distinct set of static constraints and preferences. `levels` are the best first."""

    __slots__ = ("by_value", "example", "levels", "seen")

    def __init__(self, example: Request) -> None:
        self.example = example
        self.seen = 0  # attributes that were judged so far
        self.by_value: dict[tuple[int, int], int] = {}
        self.levels: tuple[Level, ...] = ()


class Attributes:
    """The attributes of a fleet's nodes and the wishes of the requests seen so far.

    `allow(constraint, attribute)` is called for every pair that becomes eligible.
    """

    def __init__(self, tier: Tier, allow: Callable[[int, int], None]) -> None:
        self._tier = tier
        self._allow = allow
        self._ids: dict[Hashable, int] = {}
        self._examples: list[tuple[NodeView, bool]] = []
        self._wishes: dict[Hashable, Wish] = {}
        self._constraints = 0
        self._labels: set[str] = set()
        self._capabilities: set[str] = set()
        self._dedicated = False

    def attribute(self, node: NodeView, used: bool) -> int:
        """The node's attribute; `used`: whether anything runs there, where the policy's tier cares."""
        if not (node.schedulable and node.ready):
            return CLOSED
        key = self._key(node, used)
        found = self._ids.get(key)
        if found is None:
            found = self._ids[key] = len(self._examples)
            self._examples.append((node, used))
            if node.dedicated_to and not self._dedicated:
                self._dedicated = True  # from now on it matters whose request it is
                self._wishes.clear()
        return found

    def _key(self, node: NodeView, used: bool) -> Hashable:
        labels = node.labels
        return (
            node.security_level,
            node.taints,
            node.dedicated_to,
            self._tier(node, used),
            tuple((key, labels[key]) for key in sorted(self._labels) if key in labels),
            node.capabilities & self._capabilities,
        )

    def asks_for_more(self, request: Request) -> bool:
        """Note what the request names; true if some of it is new: then the attributes are out of date.

        Whoever holds them makes them anew, from `renewed`.
        """
        labels = {*request.node_selector, *(one.key for one in request.preferences)} - self._labels
        capabilities = request.capabilities - self._capabilities
        if not labels and not capabilities:
            return False
        self._labels |= labels
        self._capabilities |= capabilities
        return True

    def renewed(self, allow: Callable[[int, int], None]) -> Attributes:
        """Empty tables that look at all that has been named."""
        fresh = Attributes(self._tier, allow)
        fresh._labels, fresh._capabilities = self._labels, self._capabilities
        return fresh

    def levels(self, request: Request) -> tuple[Level, ...]:
        """Where the request may go by its static constraints, the most welcome first."""
        key = self.static(request)
        wish = self._wishes.get(key)
        if wish is None:
            wish = self._wishes[key] = Wish(replace(request, excluded_nodes=frozenset()))
        if wish.seen < len(self._examples):
            self._judge(wish)
        return wish.levels

    def _judge(self, wish: Wish) -> None:
        """Sort the attributes that came since into the wish's levels."""
        for attribute in range(wish.seen, len(self._examples)):
            node, used = self._examples[attribute]
            if is_eligible(node, wish.example):
                value = (node_penalty(node, wish.example), self._tier(node, used))
                if value not in wish.by_value:
                    wish.by_value[value] = self._constraints
                    self._constraints += 1
                self._allow(wish.by_value[value], attribute)
        wish.seen = len(self._examples)
        wish.levels = tuple(Level(*value, wish.by_value[value]) for value in sorted(wish.by_value))

    def __len__(self) -> int:
        """Attributes and constraints together: whoever keeps them for long bounds them."""
        return len(self._examples) + self._constraints

    @property
    def count(self) -> int:
        """Attributes so far."""
        return len(self._examples)

    def static(self, request: Request) -> Hashable:
        """What the request asks of a node but for its amounts: equal for requests of one wish."""
        return (
            request.project if self._dedicated else None,
            request.security_level,
            frozenset(request.node_selector.items()) if request.node_selector else None,
            request.tolerations,
            request.capabilities,
            request.preferences,
        )
