"""Plans equal the specification: every request where brute force over filters and scores puts it.

**Pure.**
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.answer import Placement
from scheduler.axes import Axes, rank
from scheduler.check import check_plan
from scheduler.fleet import Fleet
from scheduler.group import PlacementGroup, Rule, Scope
from scheduler.model import Gang, NodeView, Preference, Request, View
from scheduler.packing import (
    build_table,
    end_s,
    has_nodes_to_spare,
    is_idle,
    lasts_level,
    later,
    level_of,
)
from scheduler.plan import plan, plan_on
from scheduler.policy import BY_NAME, PACK, Policy
from scheduler.preference import group_penalty, node_penalty
from scheduler.reference import Crowd
from scheduler.resident import resident_of
from scheduler.situation import Situation
from scheduler.topology import Cell, part
from tests.unit.scheduler.fleets import SOFT, batches, node, request, rich_batches, rich_views, views

policies = st.sampled_from(sorted(BY_NAME.values(), key=lambda policy: policy.name))
# Those that go by devices have a specification of their own in tests/unit/scheduler_gpu.
BY_NORM = [policy for policy in BY_NAME.values() if policy.devices is None]


class Specification:
    """The planner, slowly: all nodes are judged for every request, one after the other."""

    def __init__(self, view: View, requests: tuple[Request, ...], policy: Policy) -> None:
        self.situation = Situation.of(view)
        self.policy = policy
        fleet = Fleet.of(view, policy)
        fleet.prepare(requests)
        self.names = fleet.names
        axes = Axes.of(fleet.names, {name: fleet.largest(name) for name in fleet.names}, policy)
        self.scoring = axes.scoring
        self.until = {each.name: each.busy_until_s for each in view.nodes}
        self.counts: Counter[tuple[int, ...]] = Counter()
        for each in view.nodes:
            for held, count in each.kinds().items():
                self.counts[self._row(held.as_dict())] += count

    def decide(self, wanted: Request) -> Placement | None:
        fitting = [name for name in self.situation.rooms if not self.situation.reasons(name, wanted)]
        if not fitting:
            return None
        crowd = self._crowd()
        best = min(fitting, key=lambda name: self.key(name, wanted, crowd))
        end = end_s(0, lasts_level(wanted.lifetime_s))
        self.until[best] = later(self.until[best], end) if self._used(best) else end
        placed = self.situation.enter(wanted, best)
        self.counts[self._row(wanted.resources.as_dict())] += 1
        return placed

    def _row(self, amounts: dict[str, int]) -> tuple[int, ...]:
        return tuple(amounts.get(one, 0) for one in self.names)

    def _crowd(self) -> Crowd:
        """What runs on nodes that take instances, all of them judged anew."""
        rooms = [room for room in self.situation.rooms.values() if room.node.schedulable and room.node.ready]
        pairs = [(self._row(room.free), self._row(room.node.allocatable.as_dict())) for room in rooms]
        used = [(free, size) for free, size in pairs if free != size]
        patient = self.policy.lifetimes and has_nodes_to_spare(used, [size for _, size in pairs])
        return Crowd(build_table(self.scoring.largest or self._row({}), self.counts), is_idle(used), patient)

    def _used(self, name: str) -> bool:
        room = self.situation.rooms[name]
        return self._row(room.free) != self._row(room.node.allocatable.as_dict())

    def _steps(self, name: str, wanted: Request) -> int:
        """By how many levels of time the request would outlive what runs on the node."""
        if not self._used(name):
            return 0
        return max(lasts_level(wanted.lifetime_s) - level_of(self.until[name]), 0)

    def key(self, name: str, wanted: Request, crowd: Crowd) -> tuple[object, ...]:
        room = self.situation.rooms[name]
        free = [room.free.get(one, 0) for one in self.names]
        demand = [wanted.resources.get(one) for one in self.names]
        penalty = node_penalty(room.node, wanted) + group_penalty(room.node, wanted, self.situation.occupancy)
        used = any(free[i] != room.node.allocatable.get(one) for i, one in enumerate(self.names))
        return (
            penalty,
            self.policy.tier(room.node, used),
            self.scoring.key(free, demand, crowd, not used, self._steps(name, wanted)),
            self.scoring.ordered(free),
            self._fullest_cells(name, wanted),
            rank(name),
        )

    def _fullest_cells(self, name: str, wanted: Request) -> tuple[int, int]:
        """Of the sets of cells that have room, the one with the least left; without devices only."""
        if not wanted.numa_cells or wanted.devices:
            return 0, 0
        vcpu = part(wanted.resources.vcpu, wanted.numa_cells)
        memory_mib = part(wanted.resources.memory_mib, wanted.numa_cells)
        sets = combinations(self.situation.rooms[name].cells, wanted.numa_cells)
        least = [(min(c.vcpu for c in chosen), min(c.memory_mib for c in chosen)) for chosen in sets]
        return min(one for one in least if one[0] >= vcpu and one[1] >= memory_mib)


def check(view: View, batch: tuple[Request, ...], policy: Policy) -> None:
    decided = {one.uid: one for one in plan(view, batch, policy, random.Random(0)).placements}
    specification = Specification(view, batch, policy)
    for wanted in batch:
        assert decided.get(wanted.uid) == specification.decide(wanted)


@settings(deadline=None, max_examples=300)
@given(views(), batches(), st.sampled_from(BY_NORM))
def test_plain_plans_equal_the_specification(view: View, batch: tuple[Request, ...], policy: Policy) -> None:
    check(view, batch, policy)


@settings(deadline=None, max_examples=400)
@given(rich_views(), rich_batches(), st.sampled_from(BY_NORM))
def test_rich_plans_equal_the_specification(view: View, batch: tuple[Request, ...], policy: Policy) -> None:
    check(view, batch, policy)


def contended(chance: random.Random) -> tuple[View, tuple[Request, ...]]:
    """Open nodes with cells and racks, requests that mostly fit and nearly all have groups or cells."""
    groups = {
        f"g{i}": PlacementGroup(
            f"g{i}",
            chance.choice(list(Rule)),
            chance.choice(list(Scope)),
            chance.random() < 0.4,
            chance.choice((0, 0, 2)),
        )
        for i in range(3)
    }
    nodes = tuple(
        node(
            f"n{i}",
            vcpu=chance.choice((8, 8, 6)),
            labels={"rack": chance.choice("ab"), "zone": chance.choice("xy")},
            taints=chance.choice(((), (), SOFT)),
            cells=tuple(Cell(chance.choice((3, 4)), chance.choice((3000, 4096))) for _ in range(2)),
            idle_watts=100,
            full_watts=chance.choice((200, 300)),
            cost_milli=chance.choice((5, 7)),
        )
        for i in range(chance.randrange(3, 7))
    )
    batch = tuple(
        request(
            f"u{i}",
            vcpu=chance.choice((1, 2, 3)),
            groups=tuple(chance.sample(sorted(groups), chance.choice((0, 1, 1, 2)))),
            numa_cells=chance.choice((0, 0, 1, 1, 2)),
            preferences=chance.choice(((), (Preference("rack", "a", 100),))),
        )
        for i in range(chance.randrange(4, 13))
    )
    return View(1, nodes, groups), batch


@pytest.mark.parametrize("seed", range(200))
def test_contended_plans_equal_the_specification(seed: int) -> None:
    chance = random.Random(seed)
    view, batch = contended(chance)
    check(view, batch, chance.choice(BY_NORM))


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(rich_views(4), rich_batches(4)), min_size=1, max_size=4),
    policies,
    st.randoms(use_true_random=False),
)
def test_a_kept_fleet_decides_like_a_new_one(
    history: list[tuple[View, tuple[Request, ...]]], policy: Policy, chance: random.Random
) -> None:
    """Nodes come, go and change, groups change, plans are made; each plan is that of a fleet made anew."""
    fleet = Fleet(policy)
    for view, batch in history:
        keep = tuple(one for one in view.nodes if chance.random() < 0.8)
        now = View(view.revision, keep, view.groups)
        fleet.set_groups(now.groups.values())
        for gone in {one.name for one in fleet.nodes()} - {one.name for one in keep}:
            fleet.remove(gone)
        for one in sorted(keep, key=lambda _: chance.random()):
            fleet.update(one)
        first = plan_on(fleet, batch, random.Random(0), now.revision)
        assert first == plan(now, batch, policy, random.Random(0))
        assert first == plan_on(fleet, batch, random.Random(0), now.revision)
        assert fleet.view(now.revision) == now
        then = _committed(now, batch, first.placements)
        for one in then.nodes:
            fleet.update(one)
        again = tuple(replace(one, uid=f"{one.uid}-again") for one in batch)
        assert plan_on(fleet, again, random.Random(0), 1) == plan(then, again, policy, random.Random(0))


def _committed(view: View, batch: tuple[Request, ...], placements: tuple[Placement, ...]) -> View:
    nodes: dict[str, NodeView] = {one.name: one for one in view.nodes}
    by_uid = {one.uid: one for one in batch}
    for placed in placements:
        nodes[placed.node] = resident_of(nodes[placed.node], by_uid[placed.uid], placed)
    return View(view.revision, tuple(nodes.values()), view.groups)


@settings(deadline=None, max_examples=150)
@given(rich_views(), rich_batches(), policies)
def test_one_batch_equals_one_after_the_other(view: View, batch: tuple[Request, ...], policy: Policy) -> None:
    together = plan(view, batch, policy, random.Random(0)).placements
    alone: tuple[Placement, ...] = ()
    for wanted in batch:
        now = _committed(view, batch, alone)
        alone += plan(now, (wanted,), policy, random.Random(0)).placements
    assert together == alone


def test_a_gang_is_placed_whole_or_not_at_all() -> None:
    view = View(1, (node("n1", vcpu=4), node("n2", vcpu=4)))
    gang = tuple(request(f"u{i}", vcpu=2, gang=Gang("g", 3)) for i in range(3))
    assert len(plan(view, gang, PACK, random.Random(0)).placements) == 3
    large = tuple(replace(one, gang=Gang("g", 5)) for one in gang) + tuple(
        request(f"v{i}", vcpu=2, gang=Gang("g", 5)) for i in range(2)
    )
    single = request("s", vcpu=4)
    decided = plan(view, (*large, single), PACK, random.Random(0))
    assert [one.uid for one in decided.placements] == ["s"], "what a gang gave up is there for others"
    assert {one.note for one in decided.rejections} == {"gang g: its 5 members do not all fit at once, 4 do"}
    waiting = plan(view, large[:2], PACK, random.Random(0))
    assert waiting.placements == ()
    assert "2 of its 5 members are there" in str(waiting.rejections[0])


def test_a_gang_finds_an_order_that_fits() -> None:
    """By size alone 6+4 and 5+5 of 10 would not be found; the largest first is 6, 5, 5, 4."""
    view = View(1, (node("n1", vcpu=10), node("n2", vcpu=10)))
    gang = tuple(request(f"u{i}", vcpu=v, gang=Gang("g", 4)) for i, v in enumerate((5, 6, 4, 5)))
    assert len(plan(view, gang, PACK, random.Random(0)).placements) == 4


def _cut(seed: int) -> tuple[View, tuple[Request, ...]]:
    """Four nodes of 30 by 30, and sixteen members into which they can be cut without a rest."""
    chance = random.Random(seed)

    def pieces() -> list[int]:
        cuts = sorted(chance.sample(range(1, 30), 3))
        return [after - before for before, after in pairwise((0, *cuts, 30))]

    sizes = [size for _ in range(4) for size in zip(pieces(), pieces(), strict=True)]
    nodes = tuple(node(f"n{number}", vcpu=30, memory_mib=30) for number in range(4))
    gang = Gang("g", len(sizes))
    members = (request(f"u{i}", vcpu=v, memory_mib=m, gang=gang) for i, (v, m) in enumerate(sizes))
    return View(1, nodes), tuple(members)


def test_gangs_that_leave_no_rest_are_placed() -> None:
    """The control, the same requests largest first and one by one, leaves some over nearly always."""
    left_over = 0
    for seed in range(50):
        view, gang = _cut(seed)
        decided = plan(view, gang, PACK, random.Random(0))
        assert check_plan(view, gang, decided) == []
        assert len(decided.placements) == len(gang), seed
        largest_first = sorted(gang, key=lambda one: -max(one.resources.vcpu, one.resources.memory_mib))
        alone = tuple(replace(one, gang=None) for one in largest_first)
        left_over += bool(plan(view, alone, PACK, random.Random(0)).rejections)
    assert left_over >= 40


@pytest.mark.parametrize("policy", BY_NAME.values(), ids=lambda policy: policy.name)
def test_too_many_resources_are_refused_by_name(policy: Policy) -> None:
    wanted = request("u")
    extended = tuple((f"x{i}", 1) for i in range(60))
    many = replace(wanted, resources=replace(wanted.resources, extended=extended))
    with pytest.raises(ValueError, match="60 extended resources are named"):
        plan(View(1, (node("n1"),)), (many,), policy, random.Random(0))
