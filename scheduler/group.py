"""Placement groups: which instances want to be together or apart, and where their members are.

**Pure** but for `Occupancy`, which counts members in place as a plan is made.

A domain is what the scope says: a node, a rack or a zone; racks and zones are the nodes' labels of
that name. A group counts all its members alike, whatever else they ask for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from scheduler.model import NodeView, View

PER_DOMAIN_MAX: Final = 10_000  # instances of a group on one domain; more than a rack can hold


class GroupError(ValueError):
    """A group that cannot be. The message names it and the field."""


class Rule(StrEnum):
    AFFINITY = "affinity"
    ANTI_AFFINITY = "anti-affinity"


class Scope(StrEnum):
    NODE = "node"
    RACK = "rack"
    ZONE = "zone"


@dataclass(frozen=True, slots=True)
class PlacementGroup:
    """`name` is unique in a view (project/name). `hard`: refuse rather than break the rule.

    `max_per_domain`: with anti-affinity how many members one domain may hold (at least 1); with
    affinity the same, where 0 means any number.
    """

    name: str
    rule: Rule
    scope: Scope = Scope.NODE
    hard: bool = True
    max_per_domain: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_per_domain <= PER_DOMAIN_MAX:
            raise GroupError(
                f"placement group {self.name}: max_per_domain is {self.max_per_domain},"
                f" must be 0 to {PER_DOMAIN_MAX}"
            )

    @property
    def limit(self) -> int:
        """Members that one domain may hold."""
        if self.rule is Rule.ANTI_AFFINITY:
            return max(self.max_per_domain, 1)
        return self.max_per_domain or PER_DOMAIN_MAX


def domain_of(node: NodeView, scope: Scope) -> str:
    """The node's domain; empty if it has no such label."""
    return node.name if scope is Scope.NODE else node.labels.get(scope.value, "")


class Occupancy:
    """How many members of each group are in each domain. Changes in place."""

    def __init__(self, groups: Iterable[PlacementGroup]) -> None:
        self._groups = {group.name: group for group in groups}
        self._members: dict[str, Counter[str]] = {}

    @classmethod
    def of(cls, view: View) -> Self:
        """The view's groups with the residents of its nodes."""
        occupancy = cls(view.groups.values())
        for node in view.nodes:
            for resident in node.residents:
                occupancy.enter(resident.request.groups, node)
        return occupancy

    def copy(self) -> Occupancy:
        """The same, to be changed apart."""
        other = Occupancy(self._groups.values())
        other._members = {name: Counter(members) for name, members in self._members.items()}
        return other

    def find(self, name: str) -> PlacementGroup | None:
        return self._groups.get(name)

    def groups(self) -> Mapping[str, PlacementGroup]:
        return dict(self._groups)

    def counter(self, name: str) -> Counter[str]:
        """The very members by domain of a group, for whoever counts them in place."""
        return self._members.setdefault(name, Counter())

    def members(self, name: str) -> Mapping[str, int]:
        """Members by domain, only domains with some."""
        return self._members.get(name, _NONE)

    def enter(self, groups: Iterable[str], node: NodeView) -> None:
        """One more member on the node, in each of its groups that is known."""
        self._count(groups, node, +1)

    def leave(self, groups: Iterable[str], node: NodeView) -> None:
        self._count(groups, node, -1)

    def _count(self, groups: Iterable[str], node: NodeView, by: int) -> None:
        for name in groups:
            group = self._groups.get(name)
            domain = domain_of(node, group.scope) if group else ""
            if domain:
                members = self._members.setdefault(name, Counter())
                members[domain] += by
                if not members[domain]:
                    del members[domain]

    def allows(self, group: PlacementGroup, domain: str) -> bool:
        """Whether the rule, hard or soft, takes one more member in the domain."""
        members = self.members(group.name)
        if not domain or members.get(domain, 0) >= group.limit:
            return False
        if group.rule is Rule.ANTI_AFFINITY or not members:
            return True
        return domain in members


_NONE: Final[Mapping[str, int]] = {}
