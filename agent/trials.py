"""What an agent knows of the links to operators' networks that its plan needs.

**Edge**: remembers in the journal which were proven. The rules are in trial.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from agent.intent import PlanIntent, Refusal
from agent.journal import Journal, JournalError
from agent.report import condition
from agent.trial import TAKEN_BACK, Stage, Trial, explain, held_off, next_trials, refusals_on
from cumulet.clock import Clock
from cumulet.v1 import meta_pb2

UPLINKS_JOINED: Final = "UplinksJoined"

_log = structlog.get_logger("agent.trials")


class Trials:
    """`links`: by the name that plans use."""

    def __init__(self, links: Mapping[str, str], journal: Journal, clock: Clock) -> None:
        self._links = links
        self._journal = journal
        self._clock = clock
        self._trials: dict[str, Trial] = {}

    def apply(self, plan: PlanIntent, heard_at: float | None) -> PlanIntent:
        """The plan as it may be acted on now. `heard_at`: see trial.py."""
        return held_off(plan, self._next(plan, heard_at))

    def advance(self, plan: PlanIntent, heard_at: float | None) -> None:
        """Time has passed. What was proven is remembered."""
        before, self._trials = self._trials, self._next(plan, heard_at)
        for name, trial in self._trials.items():
            if name in before and before[name].stage is not trial.stage:
                _log.info("link to an operator's network", uplink=name, stage=trial.stage.value)
        proven = {
            self._key(name): trial.stations
            for name, trial in self._trials.items()
            if trial.stage is Stage.PROVEN
        }
        known = self._journal.read_proven() if proven else {}
        if any(count > known.get(key, -1) for key, count in proven.items()):
            try:
                self._journal.write_proven({**known, **proven})
            except JournalError as err:
                _log.warning("not remembered", reason=str(err))

    def due(self) -> list[float]:
        return [trial.due for trial in self._trials.values() if trial.due is not None]

    def refusals(self, plan: PlanIntent) -> tuple[Refusal, ...]:
        return refusals_on(plan, self._trials)

    def conditions(self) -> tuple[meta_pb2.Condition, ...]:
        """One, when a plan needs such a link."""
        if not self._trials:
            return ()
        trouble = "; ".join(filter(None, (explain(name, trial) for name, trial in self._trials.items())))
        return (condition(UPLINKS_JOINED, not trouble, TAKEN_BACK if trouble else "Joined", trouble),)

    def _next(self, plan: PlanIntent, heard_at: float | None) -> dict[str, Trial]:
        known = self._journal.read_proven() if plan.networks else {}
        proven = {name: known[key] for name in self._links if (key := self._key(name)) in known}
        return next_trials(self._trials, plan, proven, self._clock.monotonic(), heard_at)

    def _key(self, name: str) -> str:
        """Another link by the same name is not proven."""
        return f"{name}={self._links.get(name, '')}"
