"""A topology as an SVG picture: routers above, networks as bars, instances hanging below them.

**Pure.** Built as a tree of elements, never as text. Lengths are in pixels.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cli.topology import Balancer, Joint, Place, Segment

SVG: Final = "http://www.w3.org/2000/svg"
CARD_WIDTH: Final = 190
CARD_HEIGHT: Final = 74
GAP: Final = 24
MARGIN: Final = 28
ROUTER_HEIGHT: Final = 44
DROP: Final = 34  # of the lines between a router, its networks and their instances
BAR_HEIGHT: Final = 30
LINE_HEIGHT: Final = 17
COLOURS: Final = {"router": "#7a3e9d", "network": "#1f6fb2", "card": "#f4f6f8", "edge": "#8a949e"}
# Nodes are told apart by a stripe; more than these repeat, and the name is written beside.
NODE_COLOURS: Final = ("#2a9d8f", "#e76f51", "#e9c46a", "#457b9d", "#9b5de5", "#6a994e")

ET.register_namespace("", SVG)


def render_topology(joints: Sequence[Joint]) -> str:
    """The whole picture."""
    nodes = sorted({place.node for joint in joints for one in joint.segments for place in one.places} - {""})
    colours = {node: NODE_COLOURS[index % len(NODE_COLOURS)] for index, node in enumerate(nodes)}
    root = ET.Element(f"{{{SVG}}}svg")
    y, width = MARGIN, 0
    for joint in joints:
        drawn = _Drawing(root, colours, MARGIN, y)
        drawn.joint(joint)
        y, width = drawn.bottom + 2 * GAP, max(width, drawn.right)
    size = {"width": str(width + MARGIN), "height": str(max(y - GAP, 2 * MARGIN))}
    root.attrib |= size | {"font-family": "sans-serif", "font-size": "12"}
    _describe(root, joints)
    background = ET.Element(f"{{{SVG}}}rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    root.insert(2, background)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _describe(root: ET.Element, joints: Sequence[Joint]) -> None:
    """For those who cannot see it."""
    networks = [segment for joint in joints for segment in joint.segments]
    routers = [joint.name for joint in joints if joint.name]
    instances = sum(len(segment.places) for segment in networks)
    told = f"{len(routers)} routers, {len(networks)} networks, {instances} ports of instances"
    for index, (tag, text) in enumerate((("title", "Topology of a project"), ("desc", told))):
        element = ET.Element(f"{{{SVG}}}{tag}")
        element.text = text
        root.insert(index, element)


class _Drawing:
    """One router with its networks; changed in place: `bottom` and `right` grow."""

    def __init__(self, root: ET.Element, colours: dict[str, str], x: int, y: int) -> None:
        self._root = root
        self._colours = colours
        self._x = x
        self._y = y
        self.bottom = y
        self.right = x

    def joint(self, joint: Joint) -> None:
        widths = [_width(segment) for segment in joint.segments]
        total = sum(widths) + GAP * max(len(widths) - 1, 0)
        top = self._y
        if joint.name:
            total = max(total, CARD_WIDTH)
            self._router(joint, total)
            top += ROUTER_HEIGHT + DROP
        x = self._x
        for segment, width in zip(joint.segments, widths, strict=True):
            if joint.name:
                self._line(x + width // 2, self._y + ROUTER_HEIGHT, x + width // 2, top)
            self._segment(segment, x, top, width, outside="" if joint.name else segment.outside)
            x += width + GAP
        self._grow(self._x + total, top)

    def _router(self, joint: Joint, width: int) -> None:
        self._box(self._x, self._y, width, ROUTER_HEIGHT, COLOURS["router"], radius=ROUTER_HEIGHT // 2)
        outside = ["reaches the outside"] if joint.outbound_nat else []
        words = [f"router {joint.name}", *outside, *joint.routes]
        self._text(self._x + width // 2, self._y + 27, ", ".join(words), fill="#ffffff", anchor="middle")
        self._grow(self._x + width, self._y + ROUTER_HEIGHT)

    def _segment(self, segment: Segment, x: int, y: int, width: int, *, outside: str) -> None:
        self._box(x, y, width, BAR_HEIGHT, COLOURS["network"], radius=6)
        text = " ".join([segment.name, *segment.ranges, *([f"({outside})"] if outside else [])])
        self._text(x + width // 2, y + 20, text, fill="#ffffff", anchor="middle")
        stripes = [COLOURS["router"] for _ in segment.balancers]
        stripes += [self._colours.get(place.node, COLOURS["edge"]) for place in segment.places]
        cards = [*map(_lines_of_balancer, segment.balancers), *map(_lines_of, segment.places)]
        for index, (lines, stripe) in enumerate(zip(cards, stripes, strict=True)):
            left = x + index * (CARD_WIDTH + GAP)
            top = y + BAR_HEIGHT + DROP
            self._line(left + CARD_WIDTH // 2, y + BAR_HEIGHT, left + CARD_WIDTH // 2, top)
            self._card(list(lines), stripe, left, top)
        self._grow(x + width, y + BAR_HEIGHT)

    def _card(self, lines: Sequence[tuple[str, bool]], stripe: str, x: int, y: int) -> None:
        height = max(CARD_HEIGHT, LINE_HEIGHT * len(lines) + 16)
        self._box(x, y, CARD_WIDTH, height, COLOURS["card"], radius=4, stroke=COLOURS["edge"])
        self._box(x, y, 8, height, stripe, radius=4)
        for index, (text, bold) in enumerate(lines):
            weight = "bold" if bold else "normal"
            self._text(x + 18, y + 20 + index * LINE_HEIGHT, text, weight=weight)
        self._grow(x + CARD_WIDTH, y + height)

    def _box(
        self, x: int, y: int, width: int, height: int, fill: str, *, radius: int, stroke: str = "none"
    ) -> None:
        place = {"x": str(x), "y": str(y), "width": str(width), "height": str(height)}
        look = {"rx": str(radius), "fill": fill, "stroke": stroke}
        ET.SubElement(self._root, f"{{{SVG}}}rect", place | look)

    def _line(self, x1: int, y1: int, x2: int, y2: int) -> None:
        ends = {"x1": str(x1), "y1": str(y1), "x2": str(x2), "y2": str(y2)}
        ET.SubElement(self._root, f"{{{SVG}}}line", ends | {"stroke": COLOURS["edge"], "stroke-width": "2"})

    def _text(
        self,
        x: int,
        y: int,
        text: str,
        *,
        fill: str = "#1b1f23",
        anchor: str = "start",
        weight: str = "normal",
    ) -> None:
        look = {"fill": fill, "text-anchor": anchor, "font-weight": weight}
        element = ET.SubElement(self._root, f"{{{SVG}}}text", {"x": str(x), "y": str(y)} | look)
        element.text = text

    def _grow(self, right: int, bottom: int) -> None:
        self.right, self.bottom = max(self.right, right), max(self.bottom, bottom)


def _width(segment: Segment) -> int:
    """Room for its instances and load balancers, and for its name and ranges."""
    cards = (len(segment.places) + len(segment.balancers)) * (CARD_WIDTH + GAP) - GAP
    words = 8 * len(" ".join([segment.name, *segment.ranges, segment.provider])) + 160
    return max(cards, words, CARD_WIDTH)


def _lines_of(place: Place) -> Iterator[tuple[str, bool]]:
    yield place.instance, True
    for address in place.addresses:
        yield address, False
    yield f"on {place.node}" if place.node else "not placed", False
    yield ", ".join(place.groups) or "no security group", False
    for door in place.outside:
        yield f"by {door}", False


def _lines_of_balancer(balancer: Balancer) -> Iterator[tuple[str, bool]]:
    yield balancer.name, True
    yield balancer.address, False
    yield f"load balancer {', '.join(balancer.listeners)}", False
    for door in balancer.outside:
        yield f"by {door}", False
