"""Masks of placement groups equal the count of their members, however they came about. **Pure.**"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from cext.groups import Group, Scope
from scheduler.group import Occupancy, PlacementGroup, Rule, domain_of
from scheduler.group import Scope as Kind
from tests.unit.scheduler.fleets import node

SLOTS = 90  # more than a word of a mask


class Pair:
    """Groups in the kernel, and the same counted by `Occupancy`."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.scope = Scope()
        self.groups = [
            PlacementGroup(f"g{number}", rule, Kind.RACK, True, most)
            for number, (rule, most) in enumerate(
                ((Rule.ANTI_AFFINITY, 0), (Rule.ANTI_AFFINITY, 3), (Rule.AFFINITY, 0), (Rule.AFFINITY, 2))
            )
        ]
        self.occupancy = Occupancy(self.groups)
        self.kernel = [
            Group(self.scope, group.rule is Rule.AFFINITY, group.hard, group.limit, Counter())
            for group in self.groups
        ]
        self.rack_of: dict[int, str] = {}
        self.there: list[tuple[int, int]] = []  # (group, slot) of every member

    def step(self) -> None:
        """One change: a node moves or goes, a member comes or goes."""
        if self.chance.random() < 0.1:
            slot = self.chance.randrange(SLOTS)
            for member in [member for member in self.there if member[1] == slot]:
                self.change(member, -1)
            self.rack_of[slot] = self.chance.choice(("", "a", "b", "c", f"r{slot}"))
            self.scope.set_domain(slot, self.rack_of[slot])
        elif self.there and self.chance.random() < 0.45:
            self.change(self.chance.choice(self.there), -1)
        elif self.rack_of:
            slot = self.chance.choice(sorted(self.rack_of))
            self.change((self.chance.randrange(len(self.groups)), slot), +1)

    def change(self, member: tuple[int, int], by: int) -> None:
        number, slot = member
        self.kernel[number].count(slot, by)
        change = self.occupancy.enter if by > 0 else self.occupancy.leave
        change((self.groups[number].name,), node("n", labels={"rack": self.rack_of[slot]}))
        (self.there.append if by > 0 else self.there.remove)(member)

    def check(self) -> None:
        for group, kernel in zip(self.groups, self.kernel, strict=True):
            assert kernel.members == self.occupancy.members(group.name)
            for slot, rack in self.rack_of.items():
                assert self.scope.name_at(slot) == rack
                at = domain_of(node("n", labels={"rack": rack}), Kind.RACK)
                assert kernel.is_closed(slot) != self.occupancy.allows(group, at)


@pytest.mark.parametrize("seed", range(60))
def test_masks_equal_the_count_of_members(seed: int) -> None:
    pair = Pair(random.Random(seed))
    for number in range(250):
        pair.step()
        if pair.chance.random() < 0.2:
            pair.check()
        if number % 90 == 89:
            pair.chance.choice(pair.kernel).forget()
    pair.check()


def test_a_node_that_was_never_seen_is_closed() -> None:
    group = Group(Scope(), False, True, 1, Counter())
    assert group.is_closed(5000)
    group.count(5000, 1)
    assert group.members == {}, "and has no domain in which a member could be counted"


def test_what_cannot_be_a_group_is_refused() -> None:
    with pytest.raises(TypeError, match="members must be a Counter"):
        Group(Scope(), False, True, 1, ["a"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slot -1"):
        Scope().set_domain(-1, "a")
