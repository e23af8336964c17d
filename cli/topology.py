"""`topology`: a project's routers, networks, instances and what leads to them, as a tree or as a picture.

**Edge**: a list of each kind, and the picture's file. What is drawn is decided in `topology_picture.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from cli.output import write_json
from cli.session import Session, connection_options
from cumulet.kinds import FLOATING_IP, INSTANCE, LOAD_BALANCER, NETWORK, PORT, ROUTER, SUBNET


class Place(NamedTuple):
    """A port: the instance behind it. `outside`: floating IPs that lead there, of a forward with its port."""

    instance: str
    addresses: tuple[str, ...]
    node: str
    groups: tuple[str, ...]
    outside: tuple[str, ...] = ()


class Balancer(NamedTuple):
    """A load balancer. `outside` as of a place."""

    name: str
    address: str
    listeners: tuple[str, ...]
    outside: tuple[str, ...]


class Segment(NamedTuple):
    """A network with its ranges and what is on it. `provider`: the operator's network that it is, if one."""

    name: str
    ranges: tuple[str, ...]
    outbound_nat: bool
    places: tuple[Place, ...]
    balancers: tuple[Balancer, ...] = ()
    provider: str = ""

    @property
    def outside(self) -> str:
        """What it reaches by itself, empty for nothing."""
        return self.provider or ("reaches the outside" if self.outbound_nat else "")


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
    kinds = (ROUTER, NETWORK, SUBNET, PORT, INSTANCE, LOAD_BALANCER, FLOATING_IP)
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
    routers: Sequence[Any],
    networks: Sequence[Any],
    subnets: Sequence[Any],
    ports: Sequence[Any],
    instances: Sequence[Any] = (),
    balancers: Sequence[Any] = (),
    floating: Sequence[Any] = (),
) -> list[Joint]:
    """**Pure.** Routers by name, then networks without one. Everything in order of names."""
    first_ports = {one.spec.networks[0].port_uid: one.meta.name for one in instances if one.spec.networks}
    doors = _doors(floating)
    segments = {
        network.meta.name: Segment(
            network.meta.name,
            tuple(sorted(_range(one) for one in subnets if one.spec.network == network.meta.name)),
            network.spec.outbound_nat,
            tuple(
                sorted(
                    _place(port, first_ports, doors)
                    for port in ports
                    if port.spec.network == network.meta.name
                )
            ),
            tuple(
                sorted(_balancer(one, doors) for one in balancers if one.spec.network == network.meta.name)
            ),
            _provider(network.spec),
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


def _provider(spec: Any) -> str:
    if not spec.HasField("provider"):
        return ""
    vlan = f", VLAN {spec.provider.vlan}" if spec.provider.vlan else ""
    return f"provider {spec.provider.uplink}{vlan}"


def _range(subnet: Any) -> str:
    """With the external network that it is of, if any."""
    external = subnet.spec.external_network
    return f"{subnet.spec.cidr} of {external}" if external else str(subnet.spec.cidr)


def _doors(floating: Sequence[Any]) -> dict[str, list[str]]:
    """Floating IPs by the name that they lead to."""
    found: dict[str, list[str]] = {}
    for one in floating:
        if one.spec.target:
            found.setdefault(one.spec.target, []).append(one.spec.address)
        for forward in one.spec.forwards:
            door = f"{one.spec.address} {forward.protocol}:{forward.port}"
            found.setdefault(forward.target, []).append(door)
    return found


def _place(port: Any, first_ports: Mapping[str, str], doors: Mapping[str, list[str]]) -> Place:
    """A floating IP leads to an instance's first port, or to a port by its name."""
    meant = {port.meta.name, first_ports.get(port.meta.uid, "")} - {""}
    return Place(
        port.spec.instance,
        tuple(port.status.addresses),
        port.status.node,
        tuple(port.spec.security_groups),
        tuple(sorted(door for name in meant for door in doors.get(name, ()))),
    )


def _balancer(balancer: Any, doors: Mapping[str, list[str]]) -> Balancer:
    listeners = tuple(f"{one.protocol}:{one.port}" for one in balancer.spec.listeners)
    name = balancer.meta.name
    return Balancer(name, balancer.spec.address, listeners, tuple(sorted(doors.get(name, ()))))


def to_plain(joint: Joint) -> dict[str, Any]:
    """**Pure.** For programs."""
    segments = [
        one._asdict()
        | {"places": [place._asdict() for place in one.places]}
        | {"balancers": [balancer._asdict() for balancer in one.balancers]}
        for one in joint.segments
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
        outside = "  reaches the outside" if joint.outbound_nat else ""
        yield f"router {joint.name}{outside}"
        parts: list[tuple[str, Segment | None]] = [(f"route {route}", None) for route in joint.routes]
        parts += [("", segment) for segment in joint.segments]
        for index, (text, segment) in enumerate(parts):
            head, body = _branch(index == len(parts) - 1)
            if segment is None:
                yield f"{head}{text}"
            else:
                yield from _segment_lines(segment, head, body, joined=True)


def _segment_lines(segment: Segment, head: str, body: str, *, joined: bool = False) -> Iterator[str]:
    outside = f"  {segment.outside}" if segment.outside and not joined else ""
    yield f"{head}network {segment.name}  {', '.join(segment.ranges) or 'no subnet'}{outside}"
    lines = [*map(_balancer_line, segment.balancers), *map(_place_line, segment.places)]
    for index, line in enumerate(lines):
        branch, _ = _branch(index == len(lines) - 1)
        yield f"{body}{branch}{line}"


def _balancer_line(balancer: Balancer) -> str:
    listeners = ", ".join(balancer.listeners)
    return f"load balancer {balancer.name}  {balancer.address}  {listeners}{_by(balancer.outside)}"


def _place_line(place: Place) -> str:
    where = place.node or "not placed"
    groups = ", ".join(place.groups) or "no security group"
    return f"{place.instance}  {', '.join(place.addresses)}  on {where}  [{groups}]{_by(place.outside)}"


def _by(outside: Sequence[str]) -> str:
    return f"  by {', '.join(outside)}" if outside else ""


def _branch(last: bool) -> tuple[str, str]:
    return ("└─ ", "   ") if last else ("├─ ", "│  ")
