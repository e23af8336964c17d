"""The agent of one node: observe, diff (pure), apply, observe again.

**Edge**: composes drivers, journal and clock. Needs no controller to keep what runs: without a session it
repairs the network of running instances from the journaled plan, and starts, stops and removes nothing
until a plan with the present session's nonce arrives (architecture.md §2.6).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog

from agent.actions import Action, Decision, StartDomain
from agent.apply import JITTER, Applier, Failure
from agent.diff import diff, diff_directory
from agent.directory import Directory
from agent.drivers import Drivers, FileSource
from agent.errors import DriverError
from agent.health_board import Board
from agent.intent import NOTHING, External, PlanIntent, Refusal, parse_plan, without_address
from agent.journal import Journal, JournalError, is_newer, order_of
from agent.memory import Memory, remember_action, remember_look
from agent.observed import Observed
from agent.report import (
    HYPERVISOR_READY,
    PLAN_ACCEPTED,
    Look,
    Snapshot,
    build_instances,
    build_unknown,
    condition,
    find_announced,
)
from agent.trials import Trials
from cumulet.clock import Clock
from cumulet.v1 import agent_pb2 as pb
from cumulet.v1 import meta_pb2

# libvirt's events wake the agent at once; this look is for lost events and for what has none (nft, taps).
OBSERVE_EVERY_S: Final = 15.0
# After a look that failed: libvirtd restarts within a second or two.
OBSERVE_AGAIN_S: Final = 2.0
# A burst of events and of finished works becomes one look.
ROUND_GAP_S: Final = 0.02
# A look that takes longer is given up; whatever hangs must not make the agent silent. The drivers' own
# deadlines (libvirt: 30 s) come first, since their errors say more.
OBSERVE_TIMEOUT_S: Final = 45.0

_log = structlog.get_logger("agent")


class PlanRefusedError(Exception):
    """A plan that must not be acted on: of another node, another session, or older than one acted on."""


@dataclass(frozen=True, slots=True)
class _Session:
    """The present session. `is_alive` is asked before every start."""

    nonce: str
    is_alive: Callable[[], bool]
    heard_at: Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Offer:
    plan: pb.NodePlan
    intent: PlanIntent


class Agent:
    """One node's agent. `run` looks after the node; the session methods are called by `session.py`."""

    def __init__(
        self,
        node: str,
        drivers: Drivers,
        journal: Journal,
        source: FileSource,
        clock: Clock,
        rng: random.Random,
        uplinks: Mapping[str, str] | None = None,
    ) -> None:
        """`uplinks`: links to operators' networks by the name that plans use."""
        self.node = node
        self._trials = Trials(uplinks or {}, journal, clock)
        self.drivers = drivers
        self._journal = journal
        self._clock = clock
        self._rng = rng
        self._wake = asyncio.Event()
        self._look_wanted = False  # else what woke the agent needs no look at the whole node
        self._following: set[str] = set()  # keys of works that follow from the directory alone
        self._round_done = asyncio.Condition()
        self._applier = Applier(
            drivers,
            source,
            clock,
            rng,
            may_start=self._may_start,
            on_try=self._note,
            on_done=self._note_done,
        )
        self._session: _Session | None = None
        self._offered: _Offer | None = None  # newest plan that is not in the journal yet
        self._accepted: pb.NodePlan | None = None
        self._intent = NOTHING
        self._memory = Memory()
        self._observed: Observed | None = None  # by the last look, None if that failed
        self._acted_on = pb.PlanVersion()  # in this session
        self._dispatched = pb.PlanVersion()
        self._plan_trouble = ""
        self._directory = Directory()  # of this session
        self.health = Board()
        self.snapshot: Snapshot | None = None
        self.rounds = 0
        self.round_s = 0.0  # time spent in rounds, for metrics

    @property
    def results(self) -> dict[tuple[str, str], int]:
        """How often each kind of action ended how."""
        return dict(self._applier.results)

    def failures(self) -> Mapping[str, Failure]:
        """Objects whose last work failed, and how. A live view."""
        return self._applier.failures

    @property
    def intent(self) -> PlanIntent:
        """The plan that is in force."""
        return self._intent

    @property
    def in_session(self) -> bool:
        """A session is open, and its plan is in force."""
        session, plan = self._session, self._accepted
        return session is not None and plan is not None and plan.session_nonce == session.nonce

    @property
    def announced(self) -> frozenset[External]:
        """(uplink, address) of the outside that the plan in force has this node answer for."""
        routers = self._intent.routers.values()
        return frozenset(one for router in routers for one in router.intent.answered)

    def has_live_session(self) -> bool:
        """The leader answered not long ago, and its plan is in force."""
        return self._session is not None and self.in_session and self._session.is_alive()

    def yield_address(self, external: External) -> None:
        """Answer for an address of the outside no more, until a plan of another session has it."""
        self._intent = without_address(self._intent, external)
        self.wake()

    # For the session

    def accepted_version(self) -> pb.PlanVersion:
        """The newest version that the agent will not go behind."""
        return self._journal.read_acted()

    def begin_session(self, nonce: str, is_alive: Callable[[], bool], heard_at: Callable[[], float]) -> None:
        """The leader has welcomed a session with this nonce.

        `heard_at`: when what it last answered to was sent, by the monotonic clock.
        """
        self._session = _Session(nonce, is_alive, heard_at)
        self._offered = None
        self._acted_on, self._dispatched = pb.PlanVersion(), pb.PlanVersion()
        self._plan_trouble = ""
        self._directory = Directory()
        self.wake()

    def end_session(self) -> None:
        """The session is lost: what runs goes on, nothing is started."""
        self._session = None
        self._offered = None
        self.wake()

    def offer(self, plan: pb.NodePlan) -> None:
        """Take a plan of the present session; the next round acts on it. Raises PlanRefusedError."""
        try:
            self._check_plan(plan)
        except PlanRefusedError as err:
            self._plan_trouble = str(err)
            self.wake()
            raise
        self._offered = _Offer(plan, parse_plan(plan))
        self._plan_trouble = ""
        self.wake()

    def take_directory(self, change: pb.DirectoryChange) -> None:
        """Remember what the leader tells of ports elsewhere, and act on it soon."""
        refused = dict(self._directory.refusals)
        self._directory.take(change)
        self._wake.set()
        if self._directory.refusals != refused:
            self.wake()  # it is to be told

    async def round_after(self, seen: int) -> Snapshot:
        """The snapshot of a round that began after round `seen` ended."""
        async with self._round_done:
            await self._round_done.wait_for(lambda: self.snapshot is not None and self.snapshot.round > seen)
        assert self.snapshot is not None
        return self.snapshot

    async def compare(self) -> tuple[Observed, Decision]:
        """A look of its own, and what a round would do about it now. Changes nothing.

        Raises DriverError, ExceptionGroup.
        """
        observed = await self.drivers.observe()
        return observed, self._diff(observed)

    def _diff(self, observed: Observed) -> Decision:
        return diff(
            self._trials.apply(self._intent, self._heard_at()),
            observed,
            self._memory,
            self._clock.monotonic(),
            directory=self._directory,
            in_session=self.in_session,
        )

    def _heard_at(self) -> float | None:
        session = self._session
        return session.heard_at() if session is not None and self.has_live_session() else None

    def wake(self) -> None:
        """Look soon."""
        self._look_wanted = True
        self._wake.set()

    # The loop

    async def run(self) -> None:
        """Look after the node until cancelled. Guests are not touched by the end."""
        self._adopt_journal()
        self.drivers.hypervisor.on_change(self.wake)
        async with asyncio.TaskGroup() as group:
            look_at = self._clock.monotonic()
            while True:
                self._wake.clear()
                wake_at = None
                if not self._look_wanted and self._clock.monotonic() < look_at:
                    wake_at = await self._follow_directory(group, look_at)
                if wake_at is None:
                    self._look_wanted = False
                    wake_at = look_at = await self._round(group)
                await self._pause(wake_at)

    def _adopt_journal(self) -> None:
        plan = self._journal.read_plan()
        if plan is not None and plan.node in ("", self.node):
            self._accepted = plan
            self._intent = parse_plan(plan)

    async def _pause(self, wake_at: float) -> None:
        await asyncio.sleep(ROUND_GAP_S)
        delay = max(0.0, wake_at - self._clock.monotonic())
        try:
            async with asyncio.timeout(delay):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _round(self, group: asyncio.TaskGroup) -> float:
        """One look and what follows from it; when the next one is due."""
        started = self._clock.monotonic()
        self._take_offer()
        self._acted_on = self._dispatched
        stale = self._applier.busy()
        number = self.rounds + 1
        try:
            async with asyncio.timeout(OBSERVE_TIMEOUT_S):
                observed = await self.drivers.observe()
        except (TimeoutError, ExceptionGroup) as err:
            self._observed = None
            await self._publish_unknown(number, _driver_error(err))
            return self._clock.monotonic() + self._jittered(OBSERVE_AGAIN_S)
        decision = self._decide(observed, stale, group)
        await self._publish(number, self._look(observed, decision.refusals, stale))
        self.round_s += self._clock.monotonic() - started
        return self._next_at(decision)

    async def _follow_directory(self, group: asyncio.TaskGroup, look_at: float) -> float | None:
        """Program what was told of ports elsewhere, after a look at the network only; when to go on, at the
        latest at the next round's time. None if that is not enough.

        Other nodes change all the time, and a look at all that runs here costs as much as runs here.
        """
        busy, before = self._applier.busy(), self._observed
        if before is None or not self.in_session or not busy <= self._following:
            return None
        try:
            async with asyncio.timeout(OBSERVE_TIMEOUT_S):
                net = await self.drivers.net.observe_net()
        except Exception:
            return None  # a round looks again, and says what is the matter
        if self._look_wanted:
            return None  # also when the session has ended meanwhile
        works = diff_directory(
            self._trials.apply(self._intent, self._heard_at()),
            replace(before, net=net),
            self._memory,
            self._clock.monotonic(),
            self._directory,
        )
        if works is None:
            return None
        self._following.update(self._applier.start(works, busy, group))
        # Of other works, failed and not needed any more, a round knows.
        retry_at = self._applier.next_retry_of(works)
        return look_at if retry_at is None else min(look_at, retry_at)

    def _note_done(self, key: str) -> None:
        """A work has ended: what it was for is looked at again."""
        if key in self._following:
            self._following.remove(key)
            self._wake.set()
        else:
            self.wake()

    def _decide(self, observed: Observed, stale: frozenset[str], group: asyncio.TaskGroup) -> Decision:
        """Diff and dispatch: no await, so that nothing changes in between."""
        now = self._clock.monotonic()
        in_session = self.in_session
        self._observed = observed
        self._memory = remember_look(self._memory, self._intent, observed, now)
        self._trials.advance(self._intent, self._heard_at())
        decision = self._diff(observed)
        started = self._applier.dispatch(decision, stale, group)
        if in_session and self._accepted is not None:
            self._dispatched = self._accepted.version
            if not started:
                self._acted_on = self._dispatched
        return decision

    def _next_at(self, decision: Decision) -> float:
        now = self._clock.monotonic()
        due = [now + self._jittered(OBSERVE_EVERY_S)]
        due += self._trials.due()
        due += [at for at in (decision.wake_at, self._applier.next_retry_at()) if at is not None]
        return min(due)

    def _jittered(self, delay_s: float) -> float:
        return delay_s * self._rng.uniform(1 - JITTER, 1 + JITTER)

    # Plans and the fence

    def _check_plan(self, plan: pb.NodePlan) -> None:
        if plan.node != self.node:
            raise PlanRefusedError(f"the plan is for node {plan.node!r}, this is {self.node!r}")
        if self._session is None or plan.session_nonce != self._session.nonce:
            raise PlanRefusedError(f"the plan is for session {plan.session_nonce!r}, not for the present one")
        for known in (self._journal.read_acted(), self._offered.plan.version if self._offered else None):
            if known is not None and is_newer(known, plan.version):
                raise PlanRefusedError(
                    f"the plan {order_of(plan.version)} is older than {order_of(known)}, already acted on; "
                    "if the cloud was set up anew, empty this agent's state directory"
                )

    def _take_offer(self) -> None:
        """Put the newest offered plan in the journal; only then it is in force."""
        offer = self._offered
        if offer is None:
            return
        try:
            self._journal.write_plan(offer.plan)
        except JournalError as err:
            self._plan_trouble = str(err)
            return
        self._offered = None
        self._accepted = offer.plan
        self._intent = offer.intent

    def _may_start(self, start: StartDomain) -> bool:
        """The fence: the newest plan of a live session still asks for exactly this start."""
        if not self.has_live_session():
            return False
        newest = self._intent if self._offered is None else self._offered.intent
        asked = newest.instances.get(start.instance.uid)
        return (
            asked is not None
            and asked.power_on
            and (asked.epoch, asked.boots) == (start.instance.epoch, start.instance.boots)
        )

    def _note(self, action: Action) -> None:
        self._memory = remember_action(self._memory, action, self._clock.monotonic())

    # What is told

    def _look(self, observed: Observed, refusals: tuple[Refusal, ...], stale: frozenset[str]) -> Look:
        busy = stale | self._applier.busy()
        refusals += self._trials.refusals(self._intent)
        return Look(self._intent, observed, self._memory, self._applier.failures, refusals, busy)

    async def _publish(self, number: int, look: Look) -> None:
        conditions = (condition(HYPERVISOR_READY, True, "Ready", ""), *self._own_conditions())
        snapshot = Snapshot(
            number,
            self._acted_on,
            True,
            build_instances(look),
            build_unknown(look),
            conditions,
            self._clock.now(),
            find_announced(look),
        )
        await self._announce(snapshot)

    async def _publish_unknown(self, number: int, err: DriverError) -> None:
        """Nothing is known: what was said of instances before stays said."""
        _log.warning("node not observed", reason=err.reason, message=err.message)
        conditions = (condition(HYPERVISOR_READY, False, err.reason, err.message), *self._own_conditions())
        now = self._clock.now()
        before = self.snapshot or Snapshot(0, pb.PlanVersion(), False, {}, {}, (), now)
        await self._announce(
            replace(before, round=number, known=False, conditions=conditions, observed_at=now)
        )

    def _own_conditions(self) -> tuple[meta_pb2.Condition, ...]:
        """Of the node, besides its hypervisor's."""
        accepted = condition(PLAN_ACCEPTED, True, "Accepted", "")
        if self._plan_trouble:
            accepted = condition(PLAN_ACCEPTED, False, "PlanRefused", self._plan_trouble)
        return (accepted, *self._trials.conditions())

    async def _announce(self, snapshot: Snapshot) -> None:
        self.rounds = snapshot.round
        self.snapshot = snapshot
        async with self._round_done:
            self._round_done.notify_all()


def _driver_error(err: TimeoutError | ExceptionGroup[Exception]) -> DriverError:
    """The first reason why a look failed."""
    if isinstance(err, TimeoutError):
        return DriverError("ObserveTimeout", f"looking at the node took more than {OBSERVE_TIMEOUT_S:.0f} s")
    first = err.exceptions[0]
    if isinstance(first, DriverError):
        return first
    _log.error("a driver broke its contract", exc_info=first)
    return DriverError("Internal", f"looking at the node failed with {first!r}; see the agent's log")
