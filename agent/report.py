"""What the agent tells the leader: what it saw, and what it refuses or fails to do.

**Pure.** An instance is ABSENT only when nothing of it is left and nothing is being done to it, for that
word lets the controller forget it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.actions import image_key, instance_key, network_key, router_key
from agent.apply import Failure
from agent.diff import find_foreign
from agent.hypervisor.driver import ObservedDomain
from agent.intent import InstanceIntent, PlanIntent, Refusal
from agent.memory import Memory
from agent.net.driver import IPAddress
from agent.observed import Observed
from agent.power import CRASH_LOOP
from cumulet.v1 import agent_pb2 as pb
from cumulet.v1 import meta_pb2

# A full report corrects whatever a delta has missed, at a cost of some kB.
FULL_REPORT_EVERY_S: Final = 300.0
NOT_STARTED: Final = "NotStarted"
# Off, and nobody saw it go: its host went down, or it was defined a moment ago and is being started.
OFF_UNSEEN: Final = "HostDown"
HYPERVISOR_READY: Final = "HypervisorReady"
PLAN_ACCEPTED: Final = "PlanAccepted"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one round has to say. `known` false: the host could not be looked at, instances say nothing.

    `announced`: (uplink, address) of the outside; None while it is being changed.
    """

    round: int
    acted_on: pb.PlanVersion
    known: bool
    instances: Mapping[str, pb.ObservedInstance]
    unknown: Mapping[str, pb.ObservedInstance]
    conditions: tuple[meta_pb2.Condition, ...]
    observed_at: float
    announced: frozenset[tuple[str, IPAddress]] | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """All that a report is built from."""

    plan: PlanIntent
    observed: Observed
    memory: Memory
    failures: Mapping[str, Failure]
    refusals: tuple[Refusal, ...]
    busy: frozenset[str]


def build_instances(look: Look) -> dict[str, pb.ObservedInstance]:
    """Every instance that the plan names: kept, refused or tombstoned."""
    refused = {refusal.uid: refusal for refusal in look.refusals}
    told = {uid: _planned(look, intent) for uid, intent in look.plan.instances.items()}
    told |= {uid: _tombstoned(look, uid, epoch) for uid, epoch in look.plan.tombstones.items()}
    told |= {uid: _bare(look, uid) for uid in refused if uid not in told and uid not in look.plan.networks}
    for uid in told.keys() & refused.keys():
        told[uid].reason, told[uid].message = refused[uid].reason, refused[uid].message
    return told


def build_unknown(look: Look) -> dict[str, pb.ObservedInstance]:
    """What carries our mark and is in no plan."""
    foreign = find_foreign(look.plan, look.observed) - look.plan.refused - look.plan.tombstones.keys()
    return {uid: _bare(look, uid) for uid in foreign}


def find_announced(look: Look) -> frozenset[tuple[str, IPAddress]] | None:
    """Addresses of the outside that the node answers for; None while a router is being changed.

    Of IPv4, which the leader hands from node to node: one of IPv6 goes with its port.
    """
    if any(key.startswith(router_key("")) for key in look.busy):
        return None
    return frozenset(one for one in look.observed.net.announced if one[1].version == 4)


class Reporter:
    """A session's reports: full at first and now and then, else only changes. Mutable: what was told."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._told: Snapshot | None = None  # the last one that was known
        self._conditions: tuple[meta_pb2.Condition, ...] | None = None
        self._full_at = 0.0

    def next_report(self, snapshot: Snapshot, now: float) -> pb.AgentReport | None:
        """The report to send, or None if there is nothing new to say."""
        if not snapshot.known:
            report = pb.AgentReport(acted_on=snapshot.acted_on)
        elif self._told is None or now >= self._full_at:
            report = _full_report(snapshot)
            self._full_at = now + FULL_REPORT_EVERY_S * self._rng.uniform(0.8, 1.2)
        else:
            report = _delta_report(self._told, snapshot)
        new = report.full or report.instances or report.unknown or self._conditions != snapshot.conditions
        if not new and (self._told is None or _says_the_same(self._told, snapshot)):
            return None
        self._told = snapshot if snapshot.known else self._told
        self._conditions = snapshot.conditions
        report.node_conditions.extend(snapshot.conditions)
        if snapshot.announced is not None:
            report.announced.SetInParent()
            for uplink, address in sorted(snapshot.announced):
                report.announced.addresses.add(uplink=uplink, address=str(address))
        report.observed_at.FromMilliseconds(int(snapshot.observed_at * 1000))
        return report


def _says_the_same(told: Snapshot, snapshot: Snapshot) -> bool:
    """Of what is neither an instance's nor a condition. That something is being changed is no news."""
    return told.acted_on == snapshot.acted_on and snapshot.announced in (None, told.announced)


def _full_report(snapshot: Snapshot) -> pb.AgentReport:
    return pb.AgentReport(
        acted_on=snapshot.acted_on,
        full=True,
        instances=[seen for _, seen in sorted(snapshot.instances.items())],
        unknown=[seen for _, seen in sorted(snapshot.unknown.items())],
    )


def _delta_report(told: Snapshot, snapshot: Snapshot) -> pb.AgentReport:
    instances = [seen for uid, seen in sorted(snapshot.instances.items()) if told.instances.get(uid) != seen]
    unknown = [seen for uid, seen in sorted(snapshot.unknown.items()) if told.unknown.get(uid) != seen]
    return pb.AgentReport(
        acted_on=snapshot.acted_on, instances=[*instances, *_gone(told, snapshot)], unknown=unknown
    )


def _gone(told: Snapshot, snapshot: Snapshot) -> list[pb.ObservedInstance]:
    """What was told to be here and nothing is left of."""
    before = {**told.instances, **told.unknown}
    listed = {uid for uid, seen in before.items() if seen.state != pb.DOMAIN_STATE_ABSENT}
    gone = listed - snapshot.instances.keys() - snapshot.unknown.keys()
    return [pb.ObservedInstance(uid=uid, state=pb.DOMAIN_STATE_ABSENT) for uid in sorted(gone)]


def _bare(look: Look, uid: str) -> pb.ObservedInstance:
    """Only what was seen of it."""
    domain = look.observed.domains.get(uid)
    if domain is None:
        here = uid in look.observed.storage.instances or instance_key(uid) in look.busy
        state = pb.DOMAIN_STATE_PREPARING if here else pb.DOMAIN_STATE_ABSENT
        return pb.ObservedInstance(uid=uid, state=state)
    seen = pb.ObservedInstance(
        uid=uid,
        epoch=domain.epoch,
        boots=domain.boots,
        state=domain.state,
        reason=domain.reason,
        pid=domain.pid,
    )
    if domain.reason == OFF_UNSEEN and instance_key(uid) in look.busy:
        seen.state, seen.reason = pb.DOMAIN_STATE_PREPARING, ""
    return seen


def _planned(look: Look, intent: InstanceIntent) -> pb.ObservedInstance:
    seen = _bare(look, intent.uid)
    domain = look.observed.domains.get(intent.uid)
    if domain is None:
        seen.epoch = intent.epoch
        if not intent.power_on and "disk" in look.observed.files(intent.uid):
            seen.state, seen.reason = pb.DOMAIN_STATE_OFF, NOT_STARTED
    else:
        _tell_power(look, domain, seen)
    leased = look.observed.net.leased
    seen.address_leased = any(str(address) in leased for port in intent.ports for address in port.addresses)
    failure = _failure_of(look, intent)
    if failure is not None:
        seen.reason, seen.message = failure.reason, failure.message
    return seen


def _tell_power(look: Look, domain: ObservedDomain, seen: pb.ObservedInstance) -> None:
    if seen.state == pb.DOMAIN_STATE_RUNNING and domain.uid in look.memory.presses:
        seen.state = pb.DOMAIN_STATE_SHUTTING_DOWN
    crashes = look.memory.crashes.get(domain.uid)
    if crashes is None or crashes.boots != domain.boots:
        return
    seen.restarts = crashes.total
    if crashes.gave_up and seen.state == pb.DOMAIN_STATE_CRASHED:
        seen.reason = CRASH_LOOP
        seen.message = (
            f"crashed again after {crashes.recent} automatic restarts: look at its console log, "
            "then start it again"
        )


def _failure_of(look: Look, intent: InstanceIntent) -> Failure | None:
    """Its own failure, else one of what it needs and does not have yet."""
    own = look.failures.get(instance_key(intent.uid))
    if own is not None:
        return own
    keys = [image_key(file.sha256) for file in intent.image_files()]
    keys += [network_key(port.network_uid) for port in intent.ports]
    return next((look.failures[key] for key in keys if key in look.failures), None)


def _tombstoned(look: Look, uid: str, epoch: int) -> pb.ObservedInstance:
    seen = _bare(look, uid)
    taps = look.observed.net.taps
    if seen.state == pb.DOMAIN_STATE_ABSENT and any(p.uid in taps for p in look.memory.ports.get(uid, ())):
        seen.state = pb.DOMAIN_STATE_PREPARING
    if uid not in look.observed.domains:
        seen.epoch = epoch
    failure = look.failures.get(instance_key(uid))
    if failure is not None:
        seen.reason, seen.message = failure.reason, failure.message
    return seen


def condition(kind: str, ok: bool, reason: str, message: str) -> meta_pb2.Condition:
    """A condition of the node; the controller notes when it changed."""
    status = meta_pb2.CONDITION_STATUS_TRUE if ok else meta_pb2.CONDITION_STATUS_FALSE
    return meta_pb2.Condition(type=kind, status=status, reason=reason, message=message)
