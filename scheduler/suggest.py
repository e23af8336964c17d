"""What would make a refused request fit: the smallest change of every kind, the cheapest first.

**Pure.** Runs for a refusal only. `suggest` looks at one request; a gang is helped by nodes enough for all of
it, which the planner itself is asked to confirm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Final

from scheduler.answer import Rejection
from scheduler.apply import add_nodes
from scheduler.change import AddNodes, Change
from scheduler.columns import Columns
from scheduler.model import Request, View
from scheduler.refusal import reject
from scheduler.relief import FlavorOption, request_changes
from scheduler.remedy import migration, more_nodes, node_changes, shapes_that_do
from scheduler.verdict import Verdict, judge

GANG_SHAPES_MAX: Final = 4  # shapes of nodes that are tried for a gang, the cheapest first


def explain_refusal(
    columns: Columns, request: Request, options: Sequence[FlavorOption] = ()
) -> Rejection | None:
    """The rejection with what would help; None if some node takes the request."""
    verdict = judge(columns, request)
    if columns.count and not verdict.total.all():
        return None
    return replace(reject(verdict), changes=suggest(verdict, options))


def suggest(verdict: Verdict, options: Sequence[FlavorOption] = ()) -> tuple[Change, ...]:
    """The smallest change of every kind that makes the verdict's request fit; empty if it fits already.

    `options`: the request with each flavor it could have instead.
    """
    if verdict.columns.count and not verdict.total.all():
        return ()
    return tuple(sorted(_all(verdict, options), key=_price))


def _all(verdict: Verdict, options: Sequence[FlavorOption]) -> Iterator[Change]:
    yield from request_changes(verdict, options)
    yield from node_changes(verdict)
    for one in (migration(verdict), more_nodes(verdict)):
        if one is not None:
            yield one


def _price(change: Change) -> tuple[int, Fraction]:
    """What it costs who asks; of equals, the order in which they were found."""
    return change.step, Fraction(change.size) if change.step < 3 else Fraction(0)


def suggest_for_gang(
    columns: Columns, members: Sequence[Request], places: Callable[[View, Sequence[Request]], bool]
) -> AddNodes | None:
    """The fewest nodes of one shape with which the gang is placed; None if no such number does.

    `places(view, members)`: the planner places all of them. Of shapes with equal numbers the cheapest.
    """
    view, first = columns.view, members[0]
    shapes = shapes_that_do(judge(columns, first))
    best: AddNodes | None = None
    for shape in shapes[:GANG_SHAPES_MAX]:
        like = view.nodes[shape]
        fewer = len(members) if best is None else best.count - 1
        for count in range(1, fewer + 1):
            if places(add_nodes(view, first, like, count), members):
                best = AddNodes(like.name, count)
                break
    return best
