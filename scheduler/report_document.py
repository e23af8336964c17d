"""What-ifs and simulations as objects of JSON, with everything that they found.

**Pure.**
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from scheduler.model import Request
from scheduler.simulate import Result
from scheduler.whatif import Outcome, Report


def report_document(report: Report, helps: Iterable[tuple[Request, tuple[str, ...]]]) -> dict[str, Any]:
    """`helps`: what would help those that wait in the end."""
    return {
        "before": plain(report.before),
        "steps": [_outcome_document(outcome) for outcome in report.outcomes],
        "after": plain(report.after),
        "would_help": [{"instance": request.name, "changes": list(changes)} for request, changes in helps],
    }


def _outcome_document(outcome: Outcome) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "step": str(outcome.step),
        "placed": [{"uid": one.uid, "node": one.node} for one in outcome.placed],
        "moved": plain(outcome.moved),
        "waiting": [
            {"uid": one.request.uid, "name": one.request.name, "reason": str(one.rejection)}
            for one in outcome.unplaced
        ],
        "after": plain(outcome.after),
    }
    found = outcome.resilience
    if found is not None:
        shown |= {"checked": found.checked, "possible": found.possible}
        shown["failures"] = [
            {
                "lost": list(one.lost),
                "evacuees": one.evacuees,
                "unplaced": [request.uid for request in one.unplaced],
            }
            for one in found.failures
        ]
    return shown


def result_document(result: Result) -> dict[str, Any]:
    """A simulation's result; shares by the resource's name."""
    document: dict[str, Any] = plain(result)
    for name in ("average_utilisation", "average_fragmentation"):
        document[name] = dict(document[name])
    if result.first_failure is not None:
        document["first_failure"]["utilisation"] = dict(result.first_failure.utilisation)
    document["peak_over_bound"] = result.peak_over_bound
    document["average_over_bound"] = result.average_over_bound
    return document


def plain(value: Any) -> Any:
    """Dataclasses as objects of JSON."""
    if is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value
