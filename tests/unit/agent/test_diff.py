"""The diff converges, from any state, after any prefix; and absence is not a delete.

**Pure.** Hypothesis over plans, worlds and memories; the world's model is world.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.actions import (
    Action,
    Decision,
    DropImages,
    EnsureDirectory,
    EnsureGroup,
    EnsureNetwork,
    EnsurePort,
    EnsureRouter,
    EnsureRouterDirectory,
    ForceOff,
    Need,
    RemoveDomain,
    RemoveFiles,
    RemoveNetwork,
    RemovePort,
    RequestShutdown,
    StartDomain,
)
from agent.diff import IMAGE_KEEP_S, diff, diff_directory, find_foreign
from agent.directory import Directory
from agent.hypervisor.driver import ObservedDomain
from agent.intent import NOTHING, PlanIntent, iter_ports, parse_plan
from agent.memory import Memory, remember_action, remember_look
from agent.net.driver import ObservedNet, ObservedNetwork
from agent.observed import Observed, is_active
from agent.power import CRASH_DELAYS_S, CRASH_RESTARTS_MAX, SHUTDOWN_PRESS_EVERY_S
from agent.storage.driver import ObservedStorage
from cumulet.v1 import agent_pb2 as pb

from .build import DISK, KERNEL, instance, plan, uid
from .world import EMPTY, apply_action, apply_decision

T = TypeVar("T", bound=Any)
NUMBERS = (1, 2, 3)
NETWORKS = (1, 2)
STATES = (
    (pb.DOMAIN_STATE_RUNNING, ""),
    (pb.DOMAIN_STATE_PAUSED, ""),
    (pb.DOMAIN_STATE_SHUTTING_DOWN, ""),
    (pb.DOMAIN_STATE_OFF, "GuestPoweredOff"),
    (pb.DOMAIN_STATE_OFF, "ForcedOff"),
    (pb.DOMAIN_STATE_OFF, "HostDown"),
    (pb.DOMAIN_STATE_OFF, "StartFailed"),
    (pb.DOMAIN_STATE_CRASHED, "EmulatorDied"),
)


def subset(rng: random.Random, of: Sequence[T], size_max: int = 9) -> tuple[T, ...]:
    return tuple(sorted(rng.sample(of, rng.randint(0, min(size_max, len(of))))))


def a_plan(rng: random.Random, size: int) -> PlanIntent:
    instances = [
        instance(
            number,
            networks=subset(rng, NETWORKS),
            on=rng.random() < 0.6,
            boots=rng.randint(0, 2),
            epoch=rng.randint(1, 3),
            stop_timeout_s=rng.choice((0, 60)),
        )
        for number in subset(rng, NUMBERS, size)
    ]
    tombstones = {number: rng.randint(1, 3) for number in subset(rng, NUMBERS, size)}
    networks = subset(rng, NETWORKS) if rng.random() < 0.3 else None
    joined: tuple[dict[int, tuple[int, ...]], ...] = ({}, {}, {1: (1,)}, {1: (1, 2)}, {1: (1,), 2: (2,)})
    return parse_plan(plan(*instances, tombstones=tombstones, networks=networks, routers=rng.choice(joined)))


def a_domain(rng: random.Random, number: int) -> ObservedDomain:
    state, reason = rng.choice(STATES)
    return ObservedDomain(uid(1, number), rng.randint(1, 3), rng.randint(0, 2), state, reason, 1)


def a_world(rng: random.Random, size: int) -> Observed:
    domains = {uid(1, number): a_domain(rng, number) for number in subset(rng, NUMBERS, size)}
    kinds = ("disk", "seed", "console_log")
    files = {uid(1, number): frozenset(subset(rng, kinds)) for number in subset(rng, NUMBERS, size)}
    images = frozenset(subset(rng, (DISK.sha256, KERNEL.sha256, "0" * 64)))
    storage = ObservedStorage({key: names for key, names in files.items() if names}, images, 2**40)
    ports = [uid(3, 8 * number + n) for number in NUMBERS for n in NETWORKS]
    routers = {uid(6, n): "" for n in subset(rng, (1, 2))}
    nets = {
        uid(2, n): ObservedNetwork(uid(2, n), rng.random() < 0.5, "", rng.choice(("", *routers)))
        for n in subset(rng, (1, 2, 3))
    }
    taps = {key: rng.random() < 0.5 for key in subset(rng, ports)}
    return Observed(domains, storage, ObservedNet(nets, taps, frozenset(), (), routers=routers))


def a_memory(rng: random.Random, size: int) -> Memory:
    """As an earlier plan and an earlier look left it."""
    return remember_look(Memory(), a_plan(rng, size), a_world(rng, size), 0.0)


# One seed and one size each: drawing every field by itself is fifty times slower on these machines.
SEEDS = st.integers(0, 2**48)
SIZES = st.integers(0, len(NUMBERS))


def from_seed(build: Callable[[random.Random, int], T]) -> st.SearchStrategy[T]:
    return st.builds(lambda seed, size: build(random.Random(seed), size), SEEDS, SIZES)


def plans() -> st.SearchStrategy[PlanIntent]:
    return from_seed(a_plan)


def worlds() -> st.SearchStrategy[Observed]:
    return from_seed(a_world)


def memories() -> st.SearchStrategy[Memory]:
    return from_seed(a_memory)


def settle(plan_: PlanIntent, seen: Observed, memory: Memory, now: float) -> tuple[Observed, Decision]:
    """Rounds until there is nothing to do; the rest waits only for time."""
    for _ in range(4):
        memory = remember_look(memory, plan_, seen, now)
        decision = diff(plan_, seen, memory, now)
        if not decision.works:
            return seen, decision
        for work in decision.works:
            for action in work.actions:
                memory = remember_action(memory, action, now)
        seen = apply_decision(seen, decision)
    raise AssertionError(f"still something to do: {decision.works}")


@settings(max_examples=200)
@given(plans(), worlds(), memories())
def test_every_state_converges(plan_: PlanIntent, seen: Observed, memory: Memory) -> None:
    settle(plan_, seen, memory, 10.0)


@settings(max_examples=200)
@given(plans(), worlds())
def test_one_round_is_enough_when_no_guest_must_shut_down(plan_: PlanIntent, seen: Observed) -> None:
    decision = diff(plan_, seen, remember_look(Memory(), plan_, seen, 0.0), 0.0)
    assume(not any(isinstance(action, RequestShutdown) for action in all_actions(decision)))
    after = apply_decision(seen, decision)
    assert diff(plan_, after, remember_look(Memory(), plan_, after, 0.0), 0.0).works == ()


def a_directory(rng: random.Random, size: int) -> Directory:
    directory = Directory()
    for number in subset(rng, NETWORKS):
        put = [
            pb.PlannedRemotePort(
                uid=uid(6, n),
                mac=f"02:00:00:00:06:{n:02x}",
                addresses=[f"10.{number}.0.{n}"],
                vtep="192.0.2.2",
            )
            for n in range(1, size + 1)
        ]
        piece = pb.NetworkDirectory(network_uid=uid(2, number), full=True, put=put)
        directory.take(pb.DirectoryChange(networks=[piece]))
    return directory


@settings(max_examples=200)
@given(plans(), worlds(), memories(), from_seed(a_directory), st.booleans())
def test_the_directorys_part_alone_is_what_the_whole_says_of_it(
    plan_: PlanIntent, seen: Observed, memory: Memory, directory: Directory, settled: bool
) -> None:
    """Or nothing, while something that it rests on is missing."""
    if settled:
        seen, _ = settle(plan_, seen, memory, 10.0)
    seen = replace(seen, net=replace(seen.net, directories=dict.fromkeys(seen.net.networks, "")))
    whole = diff(plan_, seen, memory, 10.0, directory=directory)
    told = (EnsureDirectory, EnsureGroup, EnsureRouterDirectory, Need)
    makes = any(isinstance(action, EnsureNetwork | EnsureRouter) for action in all_actions(whole))
    parts = tuple(work for work in whole.works if all(isinstance(action, told) for action in work.actions))
    assert diff_directory(plan_, seen, memory, 10.0, directory) == (None if makes else parts)


@settings(max_examples=200)
@given(plans(), worlds(), memories(), st.integers(0, 30))
def test_every_prefix_is_safe_to_stop_at(
    plan_: PlanIntent, seen: Observed, memory: Memory, stop_after: int
) -> None:
    """Stopped anywhere and with all memory lost, the agent ends where it would have ended."""
    whole, _ = settle(plan_, seen, memory, 10.0)
    memory = remember_look(memory, plan_, seen, 10.0)
    stopped = apply_decision(seen, diff(plan_, seen, memory, 10.0), stop_after)
    resumed, _ = settle(plan_, stopped, memory, 10.0)
    assert resumed == whole
    fresh, _ = settle(plan_, stopped, Memory(), 10.0)
    assert (fresh.domains, fresh.storage) == (whole.domains, whole.storage)


@settings(max_examples=200)
@given(plans(), worlds(), memories())
def test_absence_is_not_a_delete(plan_: PlanIntent, seen: Observed, memory: Memory) -> None:
    """I6: what no plan names stays as it is, with its taps and its networks."""
    memory = remember_look(memory, plan_, seen, 10.0)
    foreign = find_foreign(plan_, seen)
    for action in all_actions(diff(plan_, seen, memory, 10.0)):
        match action:
            case ForceOff(target) | RequestShutdown(target) | RemoveDomain(target) | RemoveFiles(target):
                assert target not in foreign
                assert_may_end(plan_, seen, target, action)
            case RemovePort(target):
                dead = {port.uid for key in plan_.tombstones for port in memory.ports.get(key, ())}
                for other in foreign if target not in dead else ():
                    if is_active(seen.domains.get(other)):
                        assert other in memory.ports, "whose tap this is cannot be told"
                        assert target not in {port.uid for port in memory.ports[other]}
                assert target not in {port.uid for port in iter_ports(plan_)}
            case RemoveNetwork(target):
                assert target not in {port.network_uid for port in iter_ports(plan_)}
                for other in foreign:
                    if is_active(seen.domains.get(other)):
                        assert target not in {port.network_uid for port in memory.ports[other]}
            case DropImages():
                assert not foreign


def assert_may_end(plan_: PlanIntent, seen: Observed, target: str, action: Action) -> None:
    """Its tombstone, its newer copy, or its power says so."""
    domain = seen.domains.get(target)
    planned = plan_.instances.get(target)
    doomed = plan_.tombstones.get(target)
    if doomed is not None:
        assert domain is None or domain.epoch <= doomed
        return
    assert planned is not None
    assert domain is not None
    if isinstance(action, RemoveDomain | RemoveFiles):
        assert domain.epoch < planned.epoch
    elif domain.epoch == planned.epoch:
        assert not planned.power_on or domain.boots < planned.boots


@settings(max_examples=200)
@given(worlds(), memories())
def test_an_empty_plan_touches_nothing_that_runs(seen: Observed, memory: Memory) -> None:
    after, _ = settle(NOTHING, seen, memory, 0.0)
    assert (after.domains, after.storage.instances) == (seen.domains, seen.storage.instances)
    if any(is_active(domain) for domain in seen.domains.values()) and not memory.ports:
        assert after.net == seen.net


@settings(max_examples=200)
@given(plans(), worlds(), memories())
def test_without_a_session_only_the_network_of_what_runs_is_repaired(
    plan_: PlanIntent, seen: Observed, memory: Memory
) -> None:
    decision = diff(plan_, seen, memory, 0.0, in_session=False)
    running = {
        port.uid
        for key, planned in plan_.instances.items()
        if is_active(seen.domains.get(key))
        for port in planned.ports
    }
    for action in all_actions(decision):
        assert isinstance(action, EnsureRouter | EnsureNetwork | EnsurePort | Need)
        assert not isinstance(action, EnsurePort) or action.port.uid in running


@settings(max_examples=200)
@given(plans(), worlds(), memories())
def test_the_diff_is_a_function_of_its_arguments(plan_: PlanIntent, seen: Observed, memory: Memory) -> None:
    assert diff(plan_, seen, memory, 1.0) == diff(plan_, seen, memory, 1.0)


def all_actions(decision: Decision) -> list[Action]:
    return [action for work in decision.works for action in work.actions]


def running(number: int, *, boots: int = 1, epoch: int = 1) -> Observed:
    """A world where the instance runs as planned."""
    seen, _ = settle(parse_plan(plan(instance(number, boots=boots, epoch=epoch))), EMPTY, Memory(), 0.0)
    return seen


def with_state(seen: Observed, number: int, state: pb.DomainState.ValueType, reason: str = "") -> Observed:
    domain = replace(seen.domains[uid(1, number)], state=state, reason=reason)
    return replace(seen, domains={**seen.domains, domain.uid: domain})


def test_a_guest_that_powered_itself_off_stays_off_until_the_next_boot() -> None:
    seen = with_state(running(1), 1, pb.DOMAIN_STATE_OFF, "GuestPoweredOff")
    assert diff(parse_plan(plan(instance(1))), seen, Memory(), 0.0).works == ()
    again = diff(parse_plan(plan(instance(1, boots=2))), seen, Memory(), 0.0)
    assert isinstance(all_actions(again)[-1], StartDomain)


def test_a_deaf_guest_is_pressed_again_and_cut_at_its_deadline() -> None:
    stop = parse_plan(plan(instance(1, on=False, stop_timeout_s=12)))
    seen, memory, now, log = running(1), Memory(), 100.0, []
    while seen.domains[uid(1, 1)].state == pb.DOMAIN_STATE_RUNNING:
        memory = remember_look(memory, stop, seen, now)
        decision = diff(stop, seen, memory, now)
        for action in all_actions(decision):
            log.append((now - 100.0, type(action).__name__))
            memory = remember_action(memory, action, now)
            seen = apply_action(seen, action, deaf=True)
        now = decision.wake_at if decision.wake_at is not None else now
    presses = [(SHUTDOWN_PRESS_EVERY_S * n, "RequestShutdown") for n in range(3)]
    assert log == [*presses, (12.0, "ForceOff")]


def test_a_forced_reboot_cuts_and_starts_in_one_round() -> None:
    decision = diff(parse_plan(plan(instance(1, boots=2, stop_timeout_s=0))), running(1), Memory(), 0.0)
    kinds = [type(action).__name__ for action in all_actions(decision)]
    assert kinds == ["ForceOff", "EnsureSeed", "StartDomain"]


def test_a_crash_loop_backs_off_gives_up_and_begins_anew_with_the_next_boot() -> None:
    wanted, seen, memory, now = parse_plan(plan(instance(1))), running(1), Memory(), 0.0
    waits = []
    for _ in range(CRASH_RESTARTS_MAX):
        seen = with_state(seen, 1, pb.DOMAIN_STATE_CRASHED)
        memory = remember_look(memory, wanted, seen, now)
        decision = diff(wanted, seen, memory, now)
        waits.append(0.0 if decision.wake_at is None else decision.wake_at - now)
        now = decision.wake_at or now
        for action in all_actions(diff(wanted, seen, memory, now)):
            memory = remember_action(memory, action, now)
            seen = apply_action(seen, action)
    assert tuple(waits) == CRASH_DELAYS_S
    seen = with_state(seen, 1, pb.DOMAIN_STATE_CRASHED)
    memory = remember_look(memory, wanted, seen, now)
    decision = diff(wanted, seen, memory, now + 1e6)
    assert (decision.works, decision.wake_at) == ((), None)
    assert memory.crashes[uid(1, 1)].gave_up
    assert diff(parse_plan(plan(instance(1, boots=2))), seen, memory, now).works


def test_a_higher_epoch_replaces_the_copy_files_first() -> None:
    decision = diff(parse_plan(plan(instance(1, epoch=2))), running(1), Memory(), 0.0)
    kinds = [type(action).__name__ for action in all_actions(decision)]
    assert kinds == ["ForceOff", "RemoveFiles", "RemoveDomain", "EnsureDisk", "EnsureSeed", "StartDomain"]


def test_a_stale_plan_and_a_tombstone_of_an_older_epoch_touch_nothing() -> None:
    seen = running(1, epoch=5)
    for old in (plan(instance(1, epoch=4, on=False)), plan(tombstones={1: 4})):
        decision = diff(parse_plan(old), seen, Memory(), 0.0)
        assert not any(isinstance(a, ForceOff | RemoveDomain | RemoveFiles) for a in all_actions(decision))
        assert [refusal.reason for refusal in decision.refusals] in (["StaleEpoch"], ["NewerCopy"])


def test_a_lost_disk_is_not_made_anew_behind_the_users_back() -> None:
    seen = with_state(running(1), 1, pb.DOMAIN_STATE_OFF, "HostDown")
    seen = replace(seen, storage=replace(seen.storage, instances={uid(1, 1): frozenset({"seed"})}))
    decision = diff(parse_plan(plan(instance(1))), seen, Memory(), 0.0)
    assert (decision.works, [refusal.reason for refusal in decision.refusals]) == ((), ["DiskLost"])


def test_a_guest_that_could_not_start_again_is_not_stopped_for_a_reboot() -> None:
    """Its disk is unlinked, but the emulator has it open: a reboot would lose the data for good."""
    seen = running(1)
    seen = replace(seen, storage=replace(seen.storage, instances={}))
    decision = diff(parse_plan(plan(instance(1, boots=2, stop_timeout_s=0))), seen, Memory(), 0.0)
    assert (decision.works, [refusal.reason for refusal in decision.refusals]) == ((), ["DiskLost"])


def test_a_plan_that_forgets_a_running_instance_keeps_its_tap_and_its_lease() -> None:
    both = parse_plan(plan(instance(1), instance(2)))
    seen, _ = settle(both, EMPTY, Memory(), 0.0)
    half = parse_plan(plan(instance(1)))
    memory = remember_look(remember_look(Memory(), both, seen, 0.0), half, seen, 1.0)
    assert diff(half, seen, memory, 1.0).works == ()


def test_a_bad_object_holds_up_no_other() -> None:
    bad = instance(1)
    bad.ports[0].mac = "nonsense"
    decision = diff(parse_plan(plan(bad, instance(2))), EMPTY, Memory(), 0.0)
    assert [refusal.uid for refusal in decision.refusals] == [uid(1, 1)]
    assert any(isinstance(action, StartDomain) for action in all_actions(decision))


def test_images_that_nothing_uses_are_dropped_after_a_while() -> None:
    seen = replace(EMPTY, storage=replace(EMPTY.storage, images=frozenset({DISK.sha256})))
    memory = remember_look(Memory(), NOTHING, seen, 0.0)
    assert diff(NOTHING, seen, memory, IMAGE_KEEP_S).works == ()
    dropped = all_actions(diff(NOTHING, seen, memory, IMAGE_KEEP_S + 1))
    assert dropped == [DropImages(frozenset({DISK.sha256}))]
