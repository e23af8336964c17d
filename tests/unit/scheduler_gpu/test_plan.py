"""Plans by what devices lose: equal to the specification, sound, explained as they were decided. **Pure.**"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cumulet.resources import Resources
from scheduler.answer import Explanation, Placement, Rejection
from scheduler.axes import Axes, rank
from scheduler.check import check_plan
from scheduler.fleet import Fleet
from scheduler.gpu import DEVICES_USUAL
from scheduler.gpu_models import find_claims, find_scarcity
from scheduler.gpu_reference import (
    ANY_MODEL,
    MODELS_MAX,
    UNIT,
    WHOLE,
    Node,
    Shape,
    Weights,
    Workload,
    after,
    choices,
    loss,
)
from scheduler.gpu_workload import Typical, Usage, build_workload, typical_of
from scheduler.model import NodeView, Request, View
from scheduler.plan import explain, plan
from scheduler.policy import BY_NAME, Policy
from scheduler.preference import group_penalty, node_penalty
from scheduler.reference import UNIT_TOP
from scheduler.resident import resident_of
from scheduler.seats import KeptSeats, ReplannedSeats
from scheduler.situation import Situation
from scheduler.topology import NOTHING, Choice, Device, DeviceRequest, DeviceShare
from tests.unit.scheduler.fleets import node, request, rich_batches, rich_views

GPU, FGD = BY_NAME["gpu"], BY_NAME["fgd"]
MODELS = ("a", "b")
_ANY = DeviceRequest(frozenset())
policies = st.sampled_from([GPU, FGD, replace(FGD, devices=Weights())])


class Specification:
    """The planner, slowly: every node and every choice of devices is judged for every request."""

    def __init__(self, view: View, requests: tuple[Request, ...], policy: Policy) -> None:
        self.situation = Situation.of(view)
        self.weights = policy.devices or Weights()
        fleet = Fleet.of(view, policy)
        fleet.prepare(requests)
        self.names = fleet.names
        self.scoring = Axes.of(self.names, {name: fleet.largest(name) for name in self.names}, policy).scoring
        models = sorted({device.model for one in view.nodes for device in one.devices})
        self.models = {model: bit for bit, model in enumerate(models)}
        self.running = [(each.request, each.choice) for one in view.nodes for each in one.residents]

    def decide(self, wanted: Request) -> Placement | None:
        workload = self.workload()
        found = [
            (self.key(name, wanted, choice, workload), name, choice)
            for name in self.situation.rooms
            if not self.situation.reasons(name, wanted)
            for choice in self.choices(name, wanted)
        ]
        if not found:
            return None
        _, name, choice = min(found, key=lambda one: one[0])
        self.situation.rooms[name].enter(wanted, choice)
        self.situation.occupancy.enter(wanted.groups, self.situation.rooms[name].node)
        self.running.append((wanted, choice))
        return Placement(wanted.uid, name, choice)

    def workload(self) -> Workload:
        """Of all that runs, counted anew."""
        usage = Usage()
        for held, choice in self.running:
            usage.change(held, choice, +1)
        found = build_workload(usage.frequent(), self.row, self.bits)
        total, left = Counter[str](), Counter[str]()
        for room in self.situation.rooms.values():
            for device in room.node.devices:
                total[device.model] += WHOLE
                left[device.model] += max(room.devices[device.address], 0)
        scarcity = find_scarcity(find_claims(usage.frequent(), total), left)
        return replace(found, scarcity=tuple(scarcity.get(model, 0) for model in self.models))

    def row(self, resources: Resources) -> tuple[int, ...]:
        return tuple(resources.get(name) for name in self.names)

    def bits(self, want: DeviceRequest) -> int:
        known = (1 << self.models[model] for model in want.models if model in self.models)
        return sum(known) if want.models else ANY_MODEL

    def node(self, name: str) -> Node:
        room = self.situation.rooms[name]
        devices = [(self.models[each.model], room.devices[each.address]) for each in room.node.devices]
        free = tuple(room.free.get(one, 0) for one in self.names)
        scored = zip(self.scoring.scales, free, self.scoring.scored, strict=True)
        units = sum(scale.unit(have) for scale, have, scores in scored if scores)
        units += UNIT_TOP * sum(max(left, 0) for _, left in devices) // (WHOLE * DEVICES_USUAL)
        return Node(free, tuple(devices), 0, units, rank(name))

    def choices(self, name: str, wanted: Request) -> Iterator[Choice]:
        room = self.situation.rooms[name]
        if wanted.numa_cells or len(wanted.devices) > 1:
            choice = room.choose(wanted)
            assert choice is not None
            yield choice
        elif not wanted.devices:
            yield NOTHING
        else:
            want = wanted.devices[0]
            shape = Shape(self.row(wanted.resources), want.count, want.share_milli, self.bits(want))
            for chosen in choices(self.node(name), shape):
                addresses = sorted(room.node.devices[index].address for index in chosen)
                yield Choice((), tuple(DeviceShare(address, want.share_milli) for address in addresses))

    def key(self, name: str, wanted: Request, choice: Choice, workload: Workload) -> tuple[object, ...]:
        before, room = self.node(name), self.situation.rooms[name]
        places = {device.address: index for index, device in enumerate(room.node.devices)}
        takes = [(places[share.address], share.share_milli) for share in choice.devices]
        later = after(before, self.row(wanted.resources), takes)
        against = node_penalty(room.node, wanted)
        against += group_penalty(room.node, wanted, self.situation.occupancy)
        cost = loss(before, later, workload).cost(self.weights)
        left = [room.devices[share.address] for share in choice.devices]
        return against, cost, before.room, before.rank, left, [index for index, _ in takes]


def has_devices(view: View) -> bool:
    return any(one.devices for one in view.nodes)


@settings(deadline=None, max_examples=300)
@given(rich_views().filter(has_devices), rich_batches(), policies)
def test_rich_plans_equal_the_specification(view: View, batch: tuple[Request, ...], policy: Policy) -> None:
    decided = plan(view, batch, policy, random.Random(0))
    assert check_plan(view, batch, decided) == []
    placed = {one.uid: one for one in decided.placements}
    specification = Specification(view, batch, policy)
    for wanted in batch:
        assert placed.get(wanted.uid) == specification.decide(wanted)


def _contended(chance: random.Random) -> tuple[View, tuple[Request, ...]]:
    """Open nodes with devices of two models, and requests for shares and whole ones, more than fit."""
    shares = (160, 320, 470, 650, 810)

    def wants() -> tuple[DeviceRequest, ...]:
        models = frozenset(chance.choice(((), (), ("a",), ("b",), ("a", "b"))))
        kind = chance.randrange(6)
        if kind == 0:
            return ()
        if kind == 1:
            return (DeviceRequest(models, chance.choice((1, 2, 4))),)
        if kind == 2 and chance.random() < 0.3:
            return (DeviceRequest(frozenset("a")), DeviceRequest(frozenset("b"), 1, 470))
        return (DeviceRequest(models, 1, chance.choice(shares)),)

    nodes = []
    for number in range(chance.randrange(2, 6)):
        devices = tuple(Device(f"{i}", chance.choice(MODELS)) for i in range(chance.choice((0, 1, 2, 4))))
        nodes.append(node(f"n{number}", vcpu=chance.choice((6, 12, 24)), devices=devices))
    batch = tuple(
        request(
            f"u{i}", vcpu=chance.choice((1, 2, 3, 6)), memory_mib=chance.choice((100, 900)), devices=wants()
        )
        for i in range(chance.randrange(8, 24))
    )
    return View(1, tuple(nodes)), batch


@pytest.mark.parametrize("seed", range(120))
def test_contended_plans_equal_the_specification(seed: int) -> None:
    chance = random.Random(seed)
    view, batch = _contended(chance)
    policy = chance.choice((GPU, GPU, FGD))
    decided = plan(view, batch, policy, random.Random(0))
    assert check_plan(view, batch, decided) == []
    if not has_devices(view):
        return
    placed = {one.uid: one for one in decided.placements}
    specification = Specification(view, batch, policy)
    for wanted in batch:
        assert placed.get(wanted.uid) == specification.decide(wanted), wanted


@pytest.mark.parametrize("seed", range(40))
def test_kept_seats_decide_like_a_plan_of_the_view(seed: int) -> None:
    """Instances come and go, nodes close: what was before leaves no trace."""
    chance = random.Random(seed)
    view, batch = _contended(chance)
    policy = chance.choice((GPU, FGD))
    kept, anew = KeptSeats(view, policy, batch), ReplannedSeats(view, policy)
    there: list[tuple[Request, Placement]] = []
    for number in range(60):
        if there and chance.random() < 0.4:
            wanted, placed = there.pop(chance.randrange(len(there)))
            kept.leave(wanted, placed)
            anew.leave(wanted, placed)
        wanted = replace(chance.choice(batch), uid=f"t{number}")
        found = kept.place((wanted,), chance)
        assert found == anew.place((wanted,), chance)
        there.extend((wanted, placed) for placed in found if placed is not None)
        if number % 20 == 10:
            closing = {chance.choice(view.nodes).name}
            kept.close(closing)
            anew.close(closing)
            wanted = replace(chance.choice(batch), uid=f"c{number}")
            found = kept.place((wanted,), chance)
            assert found == anew.place((wanted,), chance)
            there.extend((wanted, placed) for placed in found if placed is not None)
            kept.reopen(closing)
            anew.reopen(closing)


def _gpus(name: str, count: int, vcpu: int = 32, model: str = "a100") -> NodeView:
    return node(name, vcpu, devices=tuple(Device(f"{i}", model) for i in range(count)))


def _share(uid: str, share_milli: int, vcpu: int = 1) -> Request:
    return request(uid, vcpu, devices=(DeviceRequest(frozenset(), 1, share_milli),))


def _holding(held: NodeView, *shares: tuple[str, int]) -> NodeView:
    """The node with instances that hold so many thousandths at those addresses."""
    for number, (address, milli) in enumerate(shares):
        wanted = _share(f"{held.name}-{number}", milli)
        held = resident_of(
            held, wanted, Placement(wanted.uid, held.name, Choice((), (DeviceShare(address, milli),)))
        )
    return held


def test_an_explanation_names_what_devices_lose() -> None:
    """Shares of 470 go in pairs, so the third one beside the second, and not onto the 190 that 810 leaves."""
    view = View(1, (_holding(_gpus("n1", 2), ("0", 810), ("1", 470)), _gpus("n2", 2)))
    told = explain(view, _share("u", 470), GPU)
    assert isinstance(told, Explanation)
    assert (told.winner.node, told.runners_up[0].node) == ("n1", "n2")
    assert told.winner.score < told.runners_up[0].score
    names = {name for name, _ in (*told.winner.parts, *told.runners_up[0].parts)}
    assert names >= {"devices_fragmented", "shares_worth_lost"}
    assert "shares_worth_lost" in str(told)


def test_a_refusal_says_what_devices_are_left() -> None:
    view = View(1, (_holding(_gpus("n1", 1), ("0", 810)),))
    told = explain(view, _share("u", 470), GPU)
    assert isinstance(told, Rejection)
    assert "devices" in str(told)
    assert check_plan(view, (_share("u", 470),), plan(view, (_share("u", 470),), GPU, random.Random(0))) == []


def test_without_devices_the_policies_pack() -> None:
    view = View(1, (node("n1", 8), node("n2", 4), node("n3", 16)))
    batch = tuple(request(f"u{i}", 1 + i % 3) for i in range(9))
    packed = plan(view, batch, BY_NAME["pack"], random.Random(0)).placements
    assert plan(view, batch, GPU, random.Random(0)).placements == packed


def test_vcpus_that_gpus_need_are_left_to_them() -> None:
    """Both nodes have room; on n1 its GPUs would be left with fewer vcpus than what runs takes for each."""
    running = tuple(request(f"r{i}", 8, devices=(DeviceRequest(frozenset()),)) for i in range(2))
    first = plan(View(1, (_gpus("n0", 2, 16),)), running, GPU, random.Random(0))
    busy = _gpus("n0", 2, 16)
    for wanted, placed in zip(running, first.placements, strict=True):
        busy = resident_of(busy, wanted, placed)
    view = View(1, (busy, _gpus("n1", 4, 32), _gpus("n2", 1, 64)))
    (placed,) = plan(view, (request("u", 8),), GPU, random.Random(0)).placements
    assert placed.node == "n2"
    (fgd,) = plan(view, (request("u", 8),), FGD, random.Random(0)).placements
    assert fgd.node == "n1"  # the control: one more would still find its vcpus there


def test_models_that_some_need_are_left_to_them() -> None:
    """What runs names model a; of both models as much is left, so who takes any device gets the other."""
    needs_a = DeviceRequest(frozenset("a"))
    busy = _gpus("n0", 3, model="a")
    for number in range(2):
        held = request(f"r{number}", devices=(needs_a,))
        busy = resident_of(
            busy, held, Placement(held.uid, "n0", Choice((), (DeviceShare(f"{number}", WHOLE),)))
        )
    view = View(1, (busy, _gpus("n1", 1, model="b")))
    batch = (request("u", devices=(DeviceRequest(frozenset()),)), request("v", devices=(needs_a,)))
    nodes = [placed.node for placed in plan(view, batch, GPU, random.Random(0)).placements]
    assert nodes == ["n1", "n0"]
    best_fit = replace(FGD, devices=Weights())
    assert [one.node for one in plan(view, batch, best_fit, random.Random(0)).placements] == [
        "n0"
    ]  # the control


def test_a_model_is_as_scarce_as_it_is_claimed() -> None:
    asked = [(Typical(Resources(1), DeviceRequest(frozenset("ab"))), 1), (Typical(Resources(1), _ANY), 1)]
    claims = find_claims(asked, {"a": 3000, "b": 1000, "c": 4000})
    assert claims == {"a": Fraction(3, 8), "b": Fraction(1, 8)}
    assert find_scarcity(claims, {"a": 3000, "b": 1000, "c": 4000}) == {"a": UNIT, "b": UNIT}
    assert find_scarcity(claims, {"a": 3000, "b": 1000, "c": 0}) == {"a": UNIT // 2, "b": UNIT // 2}
    assert find_scarcity(claims, {"a": 3000, "b": 0, "c": 0}) == {"a": 3 * UNIT // 8, "b": 0}


def test_more_models_than_the_kernel_tells_apart_are_matched_one_by_one() -> None:
    view = View(1, tuple(_gpus(f"n{i:02}", 1, model=f"m{i}") for i in range(MODELS_MAX + 6)))
    batch = (request("u", devices=(DeviceRequest(frozenset({"m3", f"m{MODELS_MAX + 5}"})),)), request("v"))
    for policy in (GPU, BY_NAME["pack"]):
        decided = plan(view, batch, policy, random.Random(0))
        assert check_plan(view, batch, decided) == []
        assert len(decided.placements) == 2


def test_typical_is_the_largest_want_or_what_is_held() -> None:
    both = request("u", devices=(DeviceRequest(frozenset("a"), 1, 300), DeviceRequest(frozenset("b"), 2)))
    found = typical_of(both, NOTHING)
    assert found is not None
    assert found.want == both.devices[1]
    held = typical_of(request("u"), Choice((), (DeviceShare("0", 250),)))
    assert held is not None
    assert held.want == DeviceRequest(frozenset(), 1, 250)
    assert typical_of(request("u"), NOTHING) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_the_workload_changes_only_with_the_version(changes: list[tuple[int, bool]]) -> None:
    usage, running = Usage(), [0] * 4
    for kind, comes in changes:
        if not comes and not running[kind]:
            continue
        before = (usage.version, usage.frequent())
        usage.change(_share("u", 100 + kind), NOTHING, 1 if comes else -1)
        running[kind] += 1 if comes else -1
        assert (usage.version == before[0]) == (usage.frequent() == before[1])
    assert sum(count > 0 for count in running) == len(usage.frequent())
