"""Pictures as files: SVG by our own hand, PNG through matplotlib.

**Edge**: writes files; matplotlib is imported for PNG only.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

from scheduler.files import FileError
from scheduler.heatmap import Side, draw_fleets
from scheduler.scene import PAPER, Item, Line, Rect, Scene, render_svg
from scheduler.whatif import Report

SUFFIXES: Final = (".svg", ".png")
DPI: Final = 100  # of layout: a pixel of the scene is a hundredth of an inch
PIXELS_PER_UNIT: Final = 2  # PNGs are looked at on fine screens
POINTS_PER_INCH: Final = 72
_HATCHES: Final = {"": None, "/": "////", "x": "xxxx"}


def write_picture(path: Path, scene: Scene) -> None:
    """SVG or PNG by the file's suffix. Raises FileError."""
    if path.suffix not in SUFFIXES:
        raise FileError(str(path), 0, "", f"pictures are {' or '.join(SUFFIXES)}, by the file's suffix")
    data = render_svg(scene).encode() if path.suffix == ".svg" else render_png(scene)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise FileError(str(path), 0, "", error.strerror or str(error)) from None


def draw_report(report: Report) -> Scene:
    """The fleet before and after a what-if."""
    steps = ", ".join(str(outcome.step) for outcome in report.outcomes)
    title = f"What if: {steps}" if steps else "The fleet"
    before = Side("before", report.start.view, report.before)
    after = Side("after", report.end.view, report.after)
    return draw_fleets(title, (before, after) if report.outcomes else (before,))


def render_png(scene: Scene) -> bytes:
    """The scene as PNG, drawn by matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(scene.width / DPI, scene.height / DPI), dpi=DPI * PIXELS_PER_UNIT, facecolor=PAPER
    )
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, scene.width)
    axes.set_ylim(scene.height, 0)
    for item in scene.items:
        _paint(axes, item)
    sink = io.BytesIO()
    canvas.print_png(sink, metadata={"Title": scene.title, "Description": scene.description})
    return sink.getvalue()


def _paint(axes: Any, item: Item) -> None:
    from matplotlib.patches import Rectangle

    points = POINTS_PER_INCH / DPI
    if isinstance(item, Rect):
        axes.add_patch(
            Rectangle(
                (item.x, item.y),
                item.width,
                item.height,
                facecolor=item.fill,
                edgecolor=item.stroke,
                linewidth=item.stroke_width * points if item.stroke != "none" else 0,
                hatch=_HATCHES[item.hatch],
            )
        )
    elif isinstance(item, Line):
        style = "--" if item.dashed else "-"
        xs, ys = zip(*item.points, strict=True)
        axes.plot(xs, ys, color=item.stroke, linewidth=item.width * points, linestyle=style)
    else:
        axes.text(
            item.x,
            item.y,
            item.text,
            fontsize=item.size * points,
            ha={"start": "left", "middle": "center", "end": "right"}[item.anchor],
            va="baseline",
            color=item.fill,
            fontweight="bold" if item.bold else "normal",
            parse_math=False,
        )
