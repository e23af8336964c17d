"""A picture as values: rectangles, lines, areas and texts in pixels, and its SVG.

**Pure**: `render_svg` gives the same text for the same scene. Colours tell apart for people with any colour
vision: a light-to-dark scale for amounts, Okabe and Ito's colours for lines, hatches for states.

Sources: Okabe, Ito: Color Universal Design, 2008; the scale is ColorBrewer's YlGnBu.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NAMESPACE: Final = "http://www.w3.org/2000/svg"
SCALE: Final = (
    "#ffffe5",
    "#edf8b1",
    "#c7e9b4",
    "#7fcdbb",
    "#41b6c4",
    "#1d91c0",
    "#225ea8",
    "#253494",
    "#081d58",
)
LINES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")
INK: Final = "#1f2328"
FAINT: Final = "#59636e"
GRID: Final = "#e1e4e8"
PAPER: Final = "#ffffff"
VOID: Final = "#eceff2"
FONT: Final = "system-ui, 'DejaVu Sans', sans-serif"
GLYPH_WIDTH: Final = 0.56  # of a mean letter, in font sizes; texts are placed by it


@dataclass(frozen=True, slots=True)
class Rect:
    """`hatch`: `/` or `x` drawn over the fill. `tip` is shown when the pointer is on it."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str = "none"
    stroke_width: float = 1.0
    hatch: str = ""
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """`anchor`: start, middle or end; y is the base line."""

    x: float
    y: float
    text: str
    size: float = 12.0
    anchor: str = "start"
    bold: bool = False
    fill: str = INK


@dataclass(frozen=True, slots=True)
class Line:
    points: tuple[tuple[float, float], ...]
    stroke: str
    width: float = 1.5
    dashed: bool = False


Item = Rect | Text | Line


@dataclass(frozen=True, slots=True)
class Scene:
    """`title` and `description` are for people who do not see the picture."""

    width: int
    height: int
    title: str
    description: str
    items: tuple[Item, ...]


def text_width(text: str, size: float) -> float:
    """About how wide a text is."""
    return len(text) * size * GLYPH_WIDTH


def colour_of(share: float) -> str:
    """The scale's colour of a share 0..1, mixed between its steps."""
    at = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(at), len(SCALE) - 2)
    mixed = (
        round(
            int(SCALE[low][i : i + 2], 16) * (low + 1 - at) + int(SCALE[low + 1][i : i + 2], 16) * (at - low)
        )
        for i in (1, 3, 5)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def render_svg(scene: Scene) -> str:
    """A whole SVG document."""
    root = ET.Element(
        "svg",
        {
            "xmlns": NAMESPACE,
            "viewBox": f"0 0 {scene.width} {scene.height}",
            "width": str(scene.width),
            "height": str(scene.height),
            "role": "img",
            "aria-labelledby": "title desc",
            "font-family": FONT,
        },
    )
    ET.SubElement(root, "title", {"id": "title"}).text = scene.title
    ET.SubElement(root, "desc", {"id": "desc"}).text = scene.description
    _define_hatches(root)
    ET.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": PAPER})
    for item in scene.items:
        _draw(root, item)
    ET.indent(root, " ")
    return ET.tostring(root, encoding="unicode") + "\n"


def _define_hatches(root: ET.Element) -> None:
    """Dark strokes with a white rim are seen on every colour of the scale."""
    definitions = ET.SubElement(root, "defs")
    for name, paths in (("cordoned", ("M0 8L8 0",)), ("gone", ("M0 8L8 0", "M0 0L8 8"))):
        made = ET.SubElement(
            definitions,
            "pattern",
            {"id": name, "width": "8", "height": "8", "patternUnits": "userSpaceOnUse"},
        )
        for colour, width in ((PAPER, "2.6"), (INK, "1.1")):
            for path in paths:
                ET.SubElement(made, "path", {"d": path, "stroke": colour, "stroke-width": width})


_HATCH_NAMES: Final = {"/": "url(#cordoned)", "x": "url(#gone)"}


def _draw(root: ET.Element, item: Item) -> None:
    if isinstance(item, Rect):
        _draw_rect(root, item)
    elif isinstance(item, Text):
        attributes = {"x": _n(item.x), "y": _n(item.y), "font-size": _n(item.size), "fill": item.fill}
        if item.anchor != "start":
            attributes["text-anchor"] = item.anchor
        if item.bold:
            attributes["font-weight"] = "600"
        ET.SubElement(root, "text", attributes).text = item.text
    else:
        attributes = {
            "points": " ".join(f"{_n(x)},{_n(y)}" for x, y in item.points),
            "fill": "none",
            "stroke": item.stroke,
            "stroke-width": _n(item.width),
            "stroke-linejoin": "round",
        }
        if item.dashed:
            attributes["stroke-dasharray"] = "6 4"
        ET.SubElement(root, "polyline", attributes)


def _draw_rect(root: ET.Element, item: Rect) -> None:
    place = {
        "x": _n(item.x),
        "y": _n(item.y),
        "width": _n(item.width),
        "height": _n(item.height),
    }
    group = ET.SubElement(root, "g") if item.hatch else root
    shown = ET.SubElement(
        group,
        "rect",
        place | {"fill": item.fill, "stroke": item.stroke, "stroke-width": _n(item.stroke_width)},
    )
    if item.hatch:
        shown = ET.SubElement(group, "rect", place | {"fill": _HATCH_NAMES[item.hatch]})
    if item.tip:
        ET.SubElement(shown, "title").text = item.tip


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def squarify(
    weights: Sequence[float], x: float, y: float, width: float, height: float
) -> list[tuple[float, float, float, float]]:
    """A treemap: x, y, width, height of a tile for each weight, in the weights' order.

    Weights are above 0; falling ones give the squarest tiles.
    Source: Bruls, Huizing, van Wijk: Squarified Treemaps, 2000.
    """
    tiles: list[tuple[float, float, float, float]] = []
    left, total = list(weights), sum(weights)
    while left:
        scale = width * height / total if total else 0.0
        short = min(width, height)
        count = _row_length(left, scale, short)
        row, left = left[:count], left[count:]
        area = sum(row) * scale
        depth = area / short if short else 0.0
        at = 0.0
        for weight in row:
            along = weight * scale / depth if depth else 0.0
            tiles.append((x, y + at, depth, along) if width >= height else (x + at, y, along, depth))
            at += along
        if width >= height:
            x, width = x + depth, width - depth
        else:
            y, height = y + depth, height - depth
        total -= sum(row)
    return tiles


def _row_length(weights: Sequence[float], scale: float, short: float) -> int:
    """How many tiles make the row whose worst tile is squarest."""
    best = float("inf")
    area = smallest = largest = 0.0
    for count, weight in enumerate(weights, 1):
        tile = weight * scale
        area += tile
        smallest = tile if count == 1 else min(smallest, tile)
        largest = max(largest, tile)
        worst = max(short**2 * largest / area**2, area**2 / (short**2 * smallest)) if area and short else 0.0
        if worst > best:
            return count - 1
        best = worst
    return len(weights)
