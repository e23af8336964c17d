"""Planted bugs: for every invariant at least one, which the simulation must find in a few seeds.

**Edge** in that it patches the real code, for the time of a run. The table is data: what is broken, how, and
which invariants may tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import agent.diff
import agent.reconcile
import controller.admit.common
import controller.admit.instance
import controller.admit.network
import controller.admit.node
import controller.admit.project
import controller.api.instance
import controller.api.requests
import controller.api.standard
import controller.reconcile.gate
import controller.reconcile.nodeplan
import controller.reconcile.placer
import controller.reconcile.sessions
import controller.reconcile.statuses
import controller.state
from agent.actions import Need, Work, instance_key
from controller.admit.common import Context
from controller.commit import Committer
from controller.reconcile.fleetview import FleetView
from controller.store import keys
from controller.store.protocol import Compare
from controller.transact import Transactor
from cumulet.v1 import instance_pb2, operation_pb2

# Within which each must be caught. The two about plans need one in transit over a failover: 1 seed in 40.
SEEDS_MAX: Final = 160


class Patcher:
    """Sets attributes and puts them back."""

    def __init__(self) -> None:
        self._kept: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> Any:
        """Replace; what was there."""
        before = getattr(owner, name)
        self._kept.append((owner, name, before))
        setattr(owner, name, value)
        return before

    def undo(self) -> None:
        for owner, name, before in reversed(self._kept):
            setattr(owner, name, before)


@dataclass(frozen=True, slots=True)
class Bug:
    """`told_by`: invariants of which one must be violated."""

    name: str
    told_by: frozenset[str]
    text: str
    plant: Callable[[Patcher], None]


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The real code with this bug; with none for an empty name."""
    patcher = Patcher()
    try:
        if name:
            BUGS[name].plant(patcher)
        yield
    finally:
        patcher.undo()


def _always(key: bytes) -> Compare:
    """A guard that holds whatever happens."""
    return Compare(key, mod_below=2**62)


def _plan_check(patcher: Patcher) -> None:
    patcher.set(agent.reconcile.Agent, "_check_plan", lambda self, plan: None)


def _plan_order(patcher: Patcher) -> None:
    patcher.set(agent.reconcile, "is_newer", lambda a, b: False)


def _epoch_memory(patcher: Patcher) -> None:
    def forget(state: Any, context: Any, node: str, uid: str) -> Any:
        change = real(state, context, node, uid)
        change.writes[keys.INSTANCE_STATUS.key(uid)] = None
        return change

    real = patcher.set(controller.admit.node, "forget_placement", forget)


def _evacuation(patcher: Patcher) -> None:
    async def judge(self: Any) -> None:
        await real(self)
        for (name,) in list(self._state.rows(keys.NODES)):
            if self._silence(name) >= controller.reconcile.sessions.SILENCE_S and name not in self._sessions:
                for uid in list(self._state.placements_on(name)):
                    context = Context(self._clock.now(), self._rng, "bug")
                    forget = controller.reconcile.sessions._forgetting
                    await self._committer.commit(partial(forget, context=context, node=name, uid=uid))

    real = patcher.set(controller.reconcile.sessions.Sessions, "_end_silent_sessions", judge)


def _lost_watch(patcher: Patcher) -> None:
    patcher.set(controller.state.State, "misses", lambda self, revision, changes: False)


def _absence(patcher: Patcher) -> None:
    def compile_plan(state: Any, node: str, nonce: str, strays: Any = ()) -> Any:
        plan = real_plan(state, node, nonce, strays)
        kept = [planned for planned in plan.instances if planned.power == instance_pb2.POWER_STATE_ON]
        del plan.instances[:]
        plan.instances.extend(kept)
        return plan

    def works(self: Any, made: Any) -> Any:
        yield from real_works(self, made)
        if self.in_session:
            for uid in sorted(agent.diff.find_foreign(self.plan, self.observed)):
                actions = self._erase(uid, self.observed.domains.get(uid))
                yield Work(instance_key(uid), tuple(actions))

    real_plan = patcher.set(controller.reconcile.sessions, "compile_plan", compile_plan)
    real_works = patcher.set(agent.diff._Diff, "_instance_works", works)


def _early_answer(patcher: Patcher) -> None:
    async def commit(self: Committer, compute: Any) -> Any:
        if self._purpose != "api":
            return await real(self, compute)
        change = compute(self._state)
        if change is None or not any(key.startswith(keys.REQUESTS.prefix()) for key in change.writes):
            return await real(self, compute)
        waiting = asyncio.ensure_future(real(self, compute))
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        return change.result

    real = patcher.set(Committer, "commit", commit)
    _answer_unread(patcher)


def _unknown_is_done(patcher: Patcher) -> None:
    async def settle(self: Transactor, record: bytes) -> tuple[bool, int]:
        return True, 0

    patcher.set(Transactor, "_settle", settle)
    _answer_unread(patcher)


def _answer_unread(patcher: Patcher) -> None:
    """Operations are made up from what was meant to be written; else reading them back tells."""

    def find(controller: Any, project: str, record: Any) -> Any:
        operation = operation_pb2.Operation()
        operation.meta.name, operation.target.uid = record.operation, record.uid
        return operation

    for module in (controller.api.standard, controller.api.instance):
        patcher.set(module, "find_operation", find)


def _request_record(patcher: Patcher) -> None:
    def recorded(*arguments: Any) -> Any:
        change = real(*arguments)
        prefix = keys.REQUESTS.prefix()
        change.compares = [compare for compare in change.compares if not compare.key.startswith(prefix)]
        return change

    real = patcher.set(controller.api.requests, "_recorded", recorded)


def _second_look(patcher: Patcher) -> None:
    patcher.set(FleetView, "note_change", lambda self, changed: None)
    patcher.set(controller.reconcile.gate, "reasons_against", lambda *_: ())


def _quota_guard(patcher: Patcher) -> None:
    patcher.set(
        controller.admit.project, "range_unchanged_since", lambda prefix, revision: _always(prefix + b"-")
    )


def _address_guard(patcher: Patcher) -> None:
    patcher.set(controller.admit.instance, "absent", _always)
    # The quota's guard also keeps two creates of one project apart.
    _quota_guard(patcher)


def _name_guard(patcher: Patcher) -> None:
    patcher.set(controller.admit.common, "absent", _always)
    _quota_guard(patcher)


def _vni_guard(patcher: Patcher) -> None:
    patcher.set(controller.admit.network, "absent", _always)
    patcher.set(controller.admit.network, "free_vni", lambda state, context: context.rng.randint(1, 3))


def _forgotten_taps(patcher: Patcher) -> None:
    patcher.set(agent.diff._Diff, "_stray_taps", lambda self: [])
    patcher.set(agent.diff, "RemovePort", Need)


def _tombstones(patcher: Patcher) -> None:
    patcher.set(controller.reconcile.nodeplan, "tombstones_on", lambda state, node: [])


def _requeue(patcher: Patcher) -> None:
    patcher.set(controller.reconcile.placer.Placer, "_wake_refused", lambda self: None)


def _deadline(patcher: Patcher) -> None:
    async def sweep(self: Any) -> None:
        await asyncio.Event().wait()

    patcher.set(controller.reconcile.statuses.Statuses, "_sweep", sweep)


def _bug(name: str, told_by: str, text: str, plant: Callable[[Patcher], None]) -> tuple[str, Bug]:
    return name, Bug(name, frozenset(told_by.split()), text, plant)


BUGS: Final[dict[str, Bug]] = dict(
    (
        _bug("plan-check", "I1 I6 I7", "an agent acts on any plan, of whatever session", _plan_check),
        _bug("plan-order", "I1 I6 I7", "an agent acts on plans older than one acted on", _plan_order),
        _bug("evacuation", "I1 I6", "a silent node's instances are placed elsewhere", _evacuation),
        _bug("epoch-memory", "I1", "a new placement does not get a higher epoch", _epoch_memory),
        _bug("lost-watch", "I1 I10 I11", "a lost watch event is not noticed", _lost_watch),
        _bug("absence", "I6", "absence from a plan is taken for a delete", _absence),
        _bug("early-answer", "I8", "the API answers before the commit", _early_answer),
        _bug("unknown-is-done", "I8", "a transaction without an answer is taken for done", _unknown_is_done),
        _bug("request-record", "I9", "a request's record is not compared", _request_record),
        _bug("second-look", "I10", "the gate does not look again at what is free", _second_look),
        _bug("quota-guard", "I11", "the quota's range is not compared", _quota_guard),
        _bug("address-guard", "I12", "addresses and MACs are not compared", _address_guard),
        _bug("name-guard", "I12", "names are not compared", _name_guard),
        _bug("vni-guard", "I12", "VNIs are not compared", _vni_guard),
        _bug("forgotten-taps", "I13 I14", "taps are not removed with their instance", _forgotten_taps),
        _bug("tombstones", "I13 I14", "what a declared-off node left is forgotten", _tombstones),
        _bug("requeue", "I14", "a refused instance is not looked at again", _requeue),
        _bug("deadline", "I14", "passed deadlines of operations are not noticed", _deadline),
    )
)
