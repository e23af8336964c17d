"""Curves of simulations: utilisation, fragmentation, nodes in use against the bound, refusals.

**Pure**: results in, a scene out. One policy is shown resource by resource, several by the resource that is
used most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from scheduler.scene import FAINT, GRID, INK, LINES, Item, Line, Rect, Scene, Text, text_width
from scheduler.simulate import Floats, Result, Series

WIDTH: Final = 1200
HEIGHT: Final = 780
MARGIN: Final = 24.0
LEFT: Final = 62.0  # of a panel, for the numbers of its axis
TICKS: Final = 5
# Seconds, and the word for so many; the largest unit with at least two of them in the span is taken.
UNITS: Final = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))

Run = tuple[Result, Series]


@dataclass(frozen=True, slots=True)
class Curve:
    name: str
    values: Floats
    colour: str
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """`percent`: values are shares, shown from 0 to 100 %."""

    title: str
    curves: tuple[Curve, ...]
    percent: bool = False


def draw_runs(title: str, runs: Sequence[Run]) -> Scene:
    """Four panels of one or more runs over the same trace."""
    panels = (_utilisation(runs), _nodes(runs), _fragmentation(runs), _refusals(runs))
    times = runs[0][1].time_s
    items: list[Item] = [Text(MARGIN, 36, title, 20, bold=True)]
    items += [Text(MARGIN, 58, _told(runs), 12, fill=FAINT)]
    width, height = (WIDTH - 3 * MARGIN) / 2, (HEIGHT - 78 - 2 * MARGIN) / 2
    for number, panel in enumerate(panels):
        x = MARGIN + (number % 2) * (width + MARGIN)
        y = 78 + (number // 2) * (height + MARGIN)
        items += _draw_panel(panel, times, x, y, width, height)
    return Scene(WIDTH, HEIGHT, title, _told(runs), tuple(items))


def _told(runs: Sequence[Run]) -> str:
    first = runs[0][0]
    each = "; ".join(
        f"{one.policy}: peak {one.peak_nodes} nodes, on average {one.average_over_bound:.3f} of the bound,"
        f" {one.rejected} refused"
        for one, _ in runs[:3]
    )
    return f"{first.arrivals:,} instances on {first.nodes} nodes; {each}{' ...' if len(runs) > 3 else ''}"


def _utilisation(runs: Sequence[Run]) -> Panel:
    return Panel(_of_resource("Utilisation", runs), tuple(_curves(runs, "utilisation")), percent=True)


def _fragmentation(runs: Sequence[Run]) -> Panel:
    title = _of_resource("Fragmentation: free, but of no use to the next instance", runs)
    return Panel(title, tuple(_curves(runs, "fragmentation")), percent=True)


def _of_resource(title: str, runs: Sequence[Run]) -> str:
    series = runs[0][1]
    return title if len(runs) == 1 else f"{title} ({series.resources[_busiest(series)]})"


def _curves(runs: Sequence[Run], what: str) -> Iterator[Curve]:
    series = runs[0][1]
    if len(runs) == 1:
        shown = [row for row in range(len(series.resources)) if series.utilisation[row].any()]
        for colour, row in zip(LINES, shown, strict=False):
            yield Curve(series.resources[row], getattr(series, what)[row], colour)
        return
    row = _busiest(series)
    for colour, (result, one) in zip(LINES, runs, strict=False):
        yield Curve(result.policy, getattr(one, what)[row], colour)


def _busiest(series: Series) -> int:
    return int(np.argmax(series.utilisation.mean(axis=1)))


def _nodes(runs: Sequence[Run]) -> Panel:
    curves = [
        Curve(result.policy if len(runs) > 1 else "in use", series.nodes_in_use, colour)
        for colour, (result, series) in zip(LINES, runs, strict=False)
    ]
    return Panel("Nodes in use", (*curves, Curve("lower bound", runs[0][1].bound, INK, dashed=True)))


def _refusals(runs: Sequence[Run]) -> Panel:
    return Panel(
        "Instances refused so far",
        tuple(
            Curve(result.policy if len(runs) > 1 else "refused", series.rejected, colour)
            for colour, (result, series) in zip(LINES, runs, strict=False)
        ),
    )


def _draw_panel(
    panel: Panel, times: Floats, x: float, y: float, width: float, height: float
) -> Iterator[Item]:
    left, top, bottom = x + LEFT, y + 50, y + height - 36
    inner = width - LEFT - 8
    yield Text(x, y + 16, panel.title, 14, bold=True)
    yield from _keys(panel.curves, left, y + 37)
    largest = 1.0 if panel.percent else _ceiling(max(float(curve.values.max()) for curve in panel.curves))
    for tick in range(TICKS + 1):
        at = bottom - tick / TICKS * (bottom - top)
        value = tick / TICKS * largest
        yield Line(((left, at), (left + inner, at)), GRID if tick else FAINT, 1.0)
        label = f"{value:.0%}" if panel.percent else f"{value:,.0f}" if largest >= TICKS else f"{value:g}"
        yield Text(left - 8, at + 4, label, 11, "end", fill=FAINT)
    yield from _time_axis(times, left, bottom, inner)
    start, span = float(times[0]), max(float(times[-1] - times[0]), 1e-9)
    for curve in panel.curves:
        points = zip((times - start) / span * inner + left, curve.values / largest, strict=True)
        line = tuple((float(at), bottom - min(float(share), 1.05) * (bottom - top)) for at, share in points)
        yield Line(line, curve.colour, 1.8, curve.dashed)


def _keys(curves: Sequence[Curve], x: float, y: float) -> Iterator[Item]:
    for curve in curves:
        if curve.dashed:
            yield Line(((x, y - 4), (x + 22, y - 4)), curve.colour, 2.0, True)
        else:
            yield Rect(x, y - 6, 22, 4, curve.colour)
        yield Text(x + 28, y, curve.name, 12, fill=FAINT)
        x += 28 + text_width(curve.name, 12) + 18


def _time_axis(times: Floats, x: float, y: float, width: float) -> Iterator[Item]:
    span_s = max(float(times[-1] - times[0]), 1e-9)
    unit_s, word = next((one for one in UNITS if span_s >= 2 * one[0]), UNITS[-1])
    step = _nice(span_s / unit_s / 6)
    at = 0.0
    while at * unit_s <= span_s * 1.0001:
        where = x + at * unit_s / span_s * width
        yield Line(((where, y), (where, y + 4)), FAINT, 1.0)
        yield Text(where, y + 18, f"{at:g}", 11, "middle", fill=FAINT)
        at = round(at + step, 9)
    yield Text(x + width, y + 32, f"{word} since the start", 11, "end", fill=FAINT)


def _nice(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not less."""
    power = 10.0 ** math.floor(math.log10(max(least, 1e-9)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.9999)


def _ceiling(largest: float) -> float:
    """A round number for the top of an axis; ticks are whole where values are."""
    return _nice(max(largest, TICKS) / TICKS) * TICKS
