"""The fleet before and after as a treemap: racks as tiles, nodes coloured by how full they are.

**Pure**: two views in, a scene out. A node's area is its size, its colour the largest share of any of its
resources that is allocated. Both sides have the same layout: a node that is there on one side only is an
empty outline on the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scheduler.model import NodeView, View
from scheduler.scene import (
    FAINT,
    INK,
    PAPER,
    VOID,
    Item,
    Rect,
    Scene,
    Text,
    colour_of,
    squarify,
    text_width,
)
from scheduler.summary import Summary

WIDTH: Final = 1200
HEIGHT: Final = 700
MARGIN: Final = 24.0
TOP: Final = 100.0  # of the maps
BOTTOM: Final = 76.0  # below them, for the legend
HEADING: Final = 17.0  # of a rack
NODES_DRAWN_MAX: Final = 20_000  # on each side; above it one tile stands for several nodes of a rack
LABEL_SIZE: Final = 10.0
STEPS: Final = 64  # of the legend's bar
UNNAMED: Final = "no rack"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two maps."""

    heading: str
    view: View
    summary: Summary


@dataclass(frozen=True, slots=True)
class _Tile:
    """Where nodes are drawn; usually one."""

    names: tuple[str, ...]
    x: float
    y: float
    width: float
    height: float


def draw_fleets(title: str, sides: Sequence[Side]) -> Scene:
    """One map, or two next to each other."""
    gap = MARGIN if len(sides) > 1 else 0.0
    width = (WIDTH - 2 * MARGIN - gap) / len(sides)
    items: list[Item] = [Text(MARGIN, 36, title, 20, bold=True)]
    racks = _racks(side.view for side in sides)
    for number, side in enumerate(sides):
        x = MARGIN + number * (width + gap)
        items += [
            Text(x, 66, side.heading, 14, bold=True),
            Text(x, 86, _numbers(side.summary), 12, fill=FAINT),
        ]
        items += _draw_map(side.view, racks, x, TOP, width, HEIGHT - TOP - BOTTOM)
    items += _legend(sides)
    described = "; ".join(f"{side.heading}: {_numbers(side.summary)}" for side in sides)
    return Scene(WIDTH, HEIGHT, title, described, tuple(items))


def _numbers(summary: Summary) -> str:
    shares = [f"{usage.resource} {usage.share:.0%}" for usage in summary.usages if usage.allocated]
    counts = [f"{summary.instances} instances on {summary.nodes} nodes", f"{summary.empty_nodes} empty"]
    waiting = [f"{summary.waiting} waiting"] if summary.waiting else []
    return " · ".join([*shares[:4], *counts, *waiting])


def _racks(views: Iterable[View]) -> dict[str, dict[str, float]]:
    """The weight of every node of every rack, of all views together."""
    nodes: dict[str, NodeView] = {}
    for view in views:
        nodes |= {node.name: node for node in view.nodes}
    largest: dict[str, int] = {}
    for node in nodes.values():
        for name, amount in node.capacity.as_dict().items():
            largest[name] = max(largest.get(name, 1), amount)
    racks: dict[str, dict[str, float]] = {}
    for name in sorted(nodes):
        amounts = nodes[name].capacity.as_dict().items()
        size = max((amount / largest[resource] for resource, amount in amounts), default=0.0)
        racks.setdefault(nodes[name].labels.get("rack", UNNAMED), {})[name] = max(size, 0.05)
    return dict(sorted(racks.items(), key=lambda rack: (-sum(rack[1].values()), rack[0])))


def _draw_map(
    view: View, racks: Mapping[str, Mapping[str, float]], x: float, y: float, width: float, height: float
) -> Iterator[Item]:
    there = {node.name: node for node in view.nodes}
    count = sum(map(len, racks.values()))
    together = -(-count // NODES_DRAWN_MAX) or 1
    for rack, box in zip(
        racks.items(),
        squarify([sum(one.values()) for one in racks.values()], x, y, width, height),
        strict=True,
    ):
        yield from _draw_rack(there, *rack, box, together, len(racks) > 1)


def _draw_rack(
    there: Mapping[str, NodeView],
    rack: str,
    weights: Mapping[str, float],
    box: tuple[float, float, float, float],
    together: int,
    named: bool,
) -> Iterator[Item]:
    x, y, width, height = box
    x, y, width, height = x + 2, y + 2, width - 4, height - 4
    room = HEADING if named and height > 3 * HEADING else 0.0
    yield Rect(x, y, width, height, VOID)
    if room and width > text_width(rack, 11):
        yield Text(x + 4, y + 12.5, rack, 11, bold=True, fill=FAINT)
    for tile in _tiles(weights, x + 2, y + room + 1, width - 4, height - room - 3, together):
        yield from _draw_nodes(there, tile)


def _tiles(
    weights: Mapping[str, float], x: float, y: float, width: float, height: float, together: int
) -> Iterator[_Tile]:
    # Large ones first make square tiles; of equals in order of name.
    names = sorted(weights, key=lambda name: (-weights[name], name))
    groups = [tuple(names[at : at + together]) for at in range(0, len(names), together)]
    sizes = [sum(weights[name] for name in group) for group in groups]
    for group, box in zip(groups, squarify(sizes, x, y, max(width, 1.0), max(height, 1.0)), strict=True):
        yield _Tile(group, *box)


def _draw_nodes(there: Mapping[str, NodeView], tile: _Tile) -> Iterator[Item]:
    gap = 1.0 if min(tile.width, tile.height) > 6 else 0.15
    x, y, width, height = tile.x + gap, tile.y + gap, tile.width - 2 * gap, tile.height - 2 * gap
    nodes = [there[name] for name in tile.names if name in there]
    if not nodes:
        yield Rect(x, y, width, height, PAPER, "#c4cad0", 0.8)
        return
    fullness = sum(map(fullness_of, nodes)) / len(nodes)
    gone = not any(node.ready for node in nodes)
    cordoned = not any(node.schedulable for node in nodes)
    hatch = "x" if gone else "/" if cordoned else ""
    fill = VOID if gone else colour_of(fullness)
    yield Rect(x, y, width, height, fill, "#9aa4ae", 0.6, hatch, _tip(nodes))
    name = tile.names[0]
    if len(tile.names) == 1 and not hatch and width > text_width(name, LABEL_SIZE) + 4 and height > 16:
        dark = fullness > 0.55
        middle = (x + width / 2, y + height / 2)
        yield Text(middle[0], middle[1] + 1, name, LABEL_SIZE, "middle", fill=PAPER if dark else INK)
        if height > 32:
            share = f"{fullness:.0%}"
            yield Text(middle[0], middle[1] + 13, share, LABEL_SIZE, "middle", fill=PAPER if dark else FAINT)


def fullness_of(node: NodeView) -> float:
    """The largest allocated share of any resource."""
    room = node.allocatable.as_dict()
    amounts = node.allocated.as_dict().items()
    return max((amount / room[name] for name, amount in amounts if room.get(name)), default=0.0)


def _tip(nodes: Sequence[NodeView]) -> str:
    if len(nodes) > 1:
        return f"{nodes[0].name} and {len(nodes) - 1} more"
    node = nodes[0]
    room = node.allocatable.as_dict()
    shares = [
        f"{name} {amount} of {room[name]} ({amount / room[name]:.0%})"
        for name, amount in node.allocated.as_dict().items()
        if room.get(name)
    ]
    state = [] if node.ready else [f"not ready: {node.not_ready_reason}"]
    state += [] if node.schedulable else [f"cordoned {node.cordon_reason}".strip()]
    return "; ".join([node.name, *state, *shares, f"{len(node.residents)} instances"])


def _legend(sides: Sequence[Side]) -> Iterator[Item]:
    """The scale, and the hatches that are there."""
    y = HEIGHT - 48.0
    bar = 260.0
    yield Text(MARGIN, y - 6, "fullest resource of the node, allocated of allocatable", 11, fill=FAINT)
    for step in range(STEPS):
        yield Rect(MARGIN + step * bar / STEPS, y, bar / STEPS + 0.4, 14, colour_of((step + 0.5) / STEPS))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        yield Text(
            MARGIN + share * bar, y + 28, f"{share:.0%}", 11, "middle" if share else "start", fill=FAINT
        )
    x = MARGIN + bar + 60
    nodes = [node for side in sides for node in side.view.nodes]
    names = [{node.name for node in side.view.nodes} for side in sides]
    for shown, hatch, text in (
        (any(not node.ready for node in nodes), "x", "not ready or lost"),
        (any(node.ready and not node.schedulable for node in nodes), "/", "cordoned or drained"),
        (any(one != names[0] for one in names), "", "not there on this side"),
    ):
        if shown:
            stroke = "#9aa4ae" if hatch else "#c4cad0"
            yield Rect(
                x, y, 22, 14, VOID if hatch == "x" else colour_of(0.3) if hatch else PAPER, stroke, 0.8, hatch
            )
            yield Text(x + 30, y + 11, text, 11, fill=FAINT)
            x += 30 + text_width(text, 11) + 28
