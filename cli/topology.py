"""`topology`: a project's routers, networks and instances as a tree, or as a picture.

**Edge**: five lists, and the picture's file. What is drawn is decided in `topology_picture.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from cli.output import write_json
from cli.session import Session, connection_options
from cumulet.kinds import NETWORK, PORT, ROUTER, SUBNET


class Place(NamedTuple):
    """A port: the instance behind it."""

    instance: str
    addresses: tuple[str, ...]
    node: str
    groups: tuple[str, ...]


class Segment(NamedTuple):
    """A network with its ranges and what is on it."""

    name: str
    ranges: tuple[str, ...]
    outbound_nat: bool
    places: tuple[Place, ...]


class Joint(NamedTuple):
    """A router (or none: the empty name) and the networks that it joins."""

    name: str
    outbound_nat: bool
    routes: tuple[str, ...]
    segments: tuple[Segment, ...]


@click.command("topology", epilog="Example: cumulet topology --picture topology.svg")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Write an SVG picture here.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Format.")
@connection_options
def topology(session: Session, picture: Path | None, output: str) -> None:
    """Show which networks a project has, what joins them, and who is on them."""
    client = session.client
    kinds = (ROUTER, NETWORK, SUBNET, PORT)
    joints = build_topology(*(client.list(kind) for kind in kinds))
    if picture is not None:
        from cli.topology_picture import render_topology

        try:
            picture.write_text(render_topology(joints), encoding="utf-8")
        except OSError as error:
            raise click.UsageError(f"cannot write {picture}: {error.strerror}") from None
    if output == "json":
        write_json([to_plain(joint) for joint in joints])
    else:
        click.echo("\n".join(render_tree(joints)))


def build_topology(
    routers: Sequence[Any], networks: Sequence[Any], subnets: Sequence[Any], ports: Sequence[Any]
) -> list[Joint]:
    """**Pure.** Routers by name, then networks without one. Everything in order of names."""
    segments = {
        network.meta.name: Segment(
            network.meta.name,
            tuple(sorted(one.spec.cidr for one in subnets if one.spec.network == network.meta.name)),
            network.spec.outbound_nat,
            tuple(sorted(_place(port) for port in ports if port.spec.network == network.meta.name)),
        )
        for network in networks
    }
    joints = []
    for router in sorted(routers, key=lambda one: str(one.meta.name)):
        names = sorted(set(router.spec.networks) & segments.keys())
        routes = tuple(f"{route.cidr} via {route.next_hop}" for route in router.spec.routes)
        joined = tuple(segments.pop(name) for name in names)
        joints.append(Joint(router.meta.name, router.spec.outbound_nat, routes, joined))
    joints += [Joint("", one.outbound_nat, (), (one,)) for _, one in sorted(segments.items())]
    return joints


def _place(port: Any) -> Place:
    return Place(
        port.spec.instance, tuple(port.status.addresses), port.status.node, tuple(port.spec.security_groups)
    )


def to_plain(joint: Joint) -> dict[str, Any]:
    """**Pure.** For programs."""
    segments = [
        one._asdict() | {"places": [place._asdict() for place in one.places]} for one in joint.segments
    ]
    return joint._asdict() | {"segments": segments}


def render_tree(joints: Sequence[Joint]) -> Iterator[str]:
    """**Pure.**"""
    if not joints:
        yield "no networks: cumulet network create NAME"
    for joint in joints:
        if not joint.name:
            yield from _segment_lines(joint.segments[0], "", "")
            continue
        yield f"router {joint.name}{_outside(joint.outbound_nat)}"
        parts: list[tuple[str, Segment | None]] = [(f"route {route}", None) for route in joint.routes]
        parts += [("", segment) for segment in joint.segments]
        for index, (text, segment) in enumerate(parts):
            head, body = _branch(index == len(parts) - 1)
            if segment is None:
                yield f"{head}{text}"
            else:
                yield from _segment_lines(segment, head, body, joined=True)


def _segment_lines(segment: Segment, head: str, body: str, *, joined: bool = False) -> Iterator[str]:
    outside = "" if joined else _outside(segment.outbound_nat)
    yield f"{head}network {segment.name}  {', '.join(segment.ranges) or 'no subnet'}{outside}"
    for index, place in enumerate(segment.places):
        branch, _ = _branch(index == len(segment.places) - 1)
        where = place.node or "not placed"
        groups = ", ".join(place.groups) or "no security group"
        yield f"{body}{branch}{place.instance}  {', '.join(place.addresses)}  on {where}  [{groups}]"


def _branch(last: bool) -> tuple[str, str]:
    return ("└─ ", "   ") if last else ("├─ ", "│  ")


def _outside(outbound_nat: bool) -> str:
    return "  reaches the outside" if outbound_nat else ""
