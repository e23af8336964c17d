"""Whether this node may join provider networks by a link of the operator's, or must let go of it.

**Pure.** Nothing of the link is changed but the MACs that it takes frames to; still, a switch may cut off a
port that speaks for more stations than it allows, and with it this node. So a link is on trial when there are
more stations on it than ever before: it is proven when the leader answers to what was sent a while later. If
the leader falls silent first, the networks are taken off the link again. If it is then heard again soon, the
link was the reason, and is left alone for some time or until there are fewer stations; if not, the leader was
away, and another trial begins when it is back. A link that is not proven is not joined without a leader, so
an agent that is killed during a trial takes back, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from agent.intent import PlanIntent, Refusal, iter_ports

TAKEN_BACK: Final = "UplinkTakenBack"  # the reason that instances and operators see
PROVEN_AFTER_S: Final = 10.0  # of the link's use: then the leader has answered to what was sent
TAKEN_BACK_AFTER_S: Final = 20.0  # of silence, as long as a session outlives it (session.py)
BLAMED_WITHIN_S: Final = 60.0  # agents dial for a new session every few seconds
TRIED_AGAIN_AFTER_S: Final = 600.0


class Stage(Enum):
    WAITING = "waiting"  # for a leader
    ON_TRIAL = "on trial"
    TAKEN_BACK = "taken back"
    BLAMED = "blamed"
    PROVEN = "proven"


@dataclass(frozen=True, slots=True)
class Trial:
    """`since`: when the stage began; `heard_at`: when what the leader last answered to was sent. Both of the
    monotonic clock. `stations`: guests' MACs on the link, for which the stage holds."""

    stage: Stage
    since: float
    heard_at: float
    stations: int = 0

    @property
    def joins(self) -> bool:
        return self.stage in (Stage.ON_TRIAL, Stage.PROVEN)

    @property
    def due(self) -> float | None:
        """When something changes without being told."""
        if self.stage is Stage.ON_TRIAL:
            return max(self.since, self.heard_at) + TAKEN_BACK_AFTER_S
        if self.stage is Stage.BLAMED:
            return self.since + TRIED_AGAIN_AFTER_S
        return None


def next_trial(trial: Trial, now: float, heard_at: float | None) -> Trial:
    """`heard_at`: as Trial's, None without a live session."""
    stage, heard = trial.stage, max(trial.heard_at, heard_at or 0.0)
    lasted, silent_for = now - trial.since, now - max(trial.since, heard)
    if stage is Stage.WAITING and heard_at is not None:
        stage = Stage.ON_TRIAL
    elif stage is Stage.ON_TRIAL and heard >= trial.since + PROVEN_AFTER_S:
        stage = Stage.PROVEN
    elif stage is Stage.ON_TRIAL and silent_for >= TAKEN_BACK_AFTER_S:
        stage = Stage.TAKEN_BACK
    elif stage is Stage.TAKEN_BACK and heard >= trial.since:
        stage = Stage.BLAMED if lasted < BLAMED_WITHIN_S else Stage.ON_TRIAL
    elif stage is Stage.BLAMED and lasted >= TRIED_AGAIN_AFTER_S:
        stage = Stage.WAITING
    return Trial(stage, trial.since if stage is trial.stage else now, heard, trial.stations)


def next_trials(
    trials: Mapping[str, Trial],
    plan: PlanIntent,
    proven: Mapping[str, int],
    now: float,
    heard_at: float | None,
) -> dict[str, Trial]:
    """Of the links that the plan's networks need. `proven`: how many stations were on a link when this agent
    or one before it proved it."""
    known = {**{name: Trial(Stage.PROVEN, now, now, count) for name, count in proven.items()}, **trials}
    return {
        name: next_trial(_with_stations(known.get(name), count, now), now, heard_at)
        for name, count in sorted(_stations(plan).items())
    }


def _stations(plan: PlanIntent) -> dict[str, int]:
    uplinks = {one.uid: one.segment.uplink for one in plan.networks.values() if one.segment is not None}
    found = dict.fromkeys(uplinks.values(), 0)
    for port in iter_ports(plan) if uplinks else ():  # each look asks, and most nodes have none
        if port.network_uid in uplinks:
            macs = {port.mac, *(pair.mac for pair in port.allowed_pairs)} - {""}
            found[uplinks[port.network_uid]] += len(macs)
    return found


def _with_stations(trial: Trial | None, count: int, now: float) -> Trial:
    """More of them are a new trial. Fewer are one when the link was blamed, and else prove nothing."""
    if trial is None:
        return Trial(Stage.WAITING, now, now, count)
    is_more = trial.joins and count > trial.stations
    is_less = trial.stage is Stage.BLAMED and count < trial.stations
    if is_more or is_less:
        return Trial(Stage.WAITING, now, trial.heard_at, count)
    return trial if trial.joins else replace(trial, stations=count)


def held_off(plan: PlanIntent, trials: Mapping[str, Trial]) -> PlanIntent:
    """The plan, with its networks on such links not joined to them."""
    networks = {
        uid: replace(one, segment=replace(one.segment, joined=False))
        for uid, one in plan.networks.items()
        if one.segment is not None and not trials[one.segment.uplink].joins
    }
    return replace(plan, networks={**plan.networks, **networks}) if networks else plan


def refusals_on(plan: PlanIntent, trials: Mapping[str, Trial]) -> tuple[Refusal, ...]:
    """Of the instances whose networks were taken off their link."""
    troubles = {
        uid: text
        for uid, one in plan.networks.items()
        if one.segment is not None and (text := explain(one.segment.uplink, trials[one.segment.uplink]))
    }
    cut = ((one.uid, port.network_uid) for one in plan.instances.values() for port in one.ports)
    return tuple(Refusal(uid, TAKEN_BACK, troubles[network]) for uid, network in cut if network in troubles)


def explain(name: str, trial: Trial) -> str:
    """Why the link is left alone; empty when it is not."""
    if trial.stage not in (Stage.TAKEN_BACK, Stage.BLAMED):
        return ""
    return (
        f"with {trial.stations} guest(s) of provider networks on its link to {name} this node lost its "
        "controller, so they were taken off it: how many MACs does the switch allow on that port? Tried "
        f"again after {TRIED_AGAIN_AFTER_S / 60:.0f} minutes, with fewer guests, or when the agent starts"
    )
