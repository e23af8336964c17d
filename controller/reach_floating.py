"""Whether packets arrive by a floating IP, from the outside or from a port, computed from intent alone.

**Pure.** What leads to the address is not the cloud's; from the node that announces it, everything is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

from controller.admit.subnet import Address
from controller.balancers import resolve_members
from controller.floating import Way, find_target, find_way
from controller.reach import SOMEBODY, enter, find_port, leave, reach_outside, seen_outside
from controller.reach_balancer import listens, say
from controller.reach_steps import (
    BALANCER,
    FLOATING_IP,
    NAT,
    OUTSIDE,
    Path,
    Step,
    Traffic,
    until_stopped,
)
from controller.state import State
from controller.store import keys
from cumulet.protocols import protocol_number
from cumulet.v1 import floatingip_pb2, port_pb2

IPV4: Final = 4


def find_floating(state: State, address: Address) -> floatingip_pb2.FloatingIP | None:
    """Of any project: the outside does not know of projects."""
    rows = state.rows(keys.FLOATING_IPS).values()
    found = (row.message for row in rows if row.message.spec.address == str(address))
    return next(found, None)


def floating_to(state: State, port: port_pb2.Port) -> floatingip_pb2.FloatingIP | None:
    """By which the outside reaches a port as a whole."""
    for row in state.rows(keys.FLOATING_IPS, port.meta.project).values():
        target = find_target(state, port.meta.project, row.message.spec.target)
        if target is not None and target.meta.uid == port.meta.uid:
            found: floatingip_pb2.FloatingIP = row.message
            return found
    return None


def reach_from_outside(
    state: State, source: Address, floating: floatingip_pb2.FloatingIP, traffic: Traffic
) -> Path:
    """From an address that is not the cloud's."""
    begin = Step(OUTSIDE, str(source), "", True, f"{source} is outside: that it sends is not the cloud's")
    steps = (begin, *_enter(state, floating, source, traffic))
    return Path(IPV4, str(source), floating.spec.address, until_stopped(steps))


def reach_floating(
    state: State, source: port_pb2.Port, floating: floatingip_pb2.FloatingIP, traffic: Traffic
) -> Path:
    """From a port: within its router, if that announces the address there, or else by the outside."""
    address, way = ip_address(floating.spec.address), find_way(state, floating)
    node = state.places.node_of(source)
    router = state.router_of(source.meta.project, source.spec.network)
    is_here = router is not None and way.router is not None and way.router.meta.uid == router.message.meta.uid
    if is_here and node and _announcer(state, floating) == node:
        out = leave(state, source, address, traffic)
        remote = ip_address(out.source) if out.source else SOMEBODY
    else:
        out = reach_outside(state, source, address, traffic)
        remote = seen_outside(state, source, out.source)
        if out.reachable:
            out = replace(out, steps=out.steps[:-1])  # what is outside there is known
    if not out.reachable:
        return out
    steps = (*out.steps, *_enter(state, floating, remote, traffic))
    return replace(out, steps=until_stopped(steps))


def _enter(
    state: State, floating: floatingip_pb2.FloatingIP, remote: Address, traffic: Traffic
) -> Iterator[Step]:
    way, name, address = find_way(state, floating), floating.meta.name, floating.spec.address
    announcer = _announcer(state, floating)
    if not way.node:
        yield Step(FLOATING_IP, name, "", False, f"floating IP {name}: {way.text}")
        return
    if announcer != way.node:
        text = f"floating IP {name} is not announced by {way.node} yet"
        yield Step(FLOATING_IP, name, way.node, False, text)
        return
    yield Step(FLOATING_IP, name, announcer, True, f"{announcer} answers for {address} of floating IP {name}")
    if way.balancer:
        yield from _balanced(state, floating, way, remote, traffic)
        return
    if way.fixed_address:
        port = find_target(state, floating.meta.project, floating.spec.target)
        assert port is not None  # the way leads to it
        yield _translated(name, announcer, way.fixed_address)
        yield from enter(state, port, remote, ip_address(way.fixed_address), announcer, traffic).steps
        return
    for forward in way.forwards:
        if (protocol_number(forward.protocol, IPV4), forward.port) == (traffic.protocol, traffic.port):
            yield _translated(name, announcer, f"{forward.address}:{forward.target_port}")
            inner = replace(traffic, port=forward.target_port)
            yield from enter(
                state, forward.target, remote, ip_address(forward.address), announcer, inner
            ).steps
            return
    yield Step(NAT, name, announcer, False, f"floating IP {name} forwards other ports only")


def _balanced(
    state: State, floating: floatingip_pb2.FloatingIP, way: Way, remote: Address, traffic: Traffic
) -> Iterator[Step]:
    found = state.find_uid(way.balancer)
    assert found is not None  # the way leads to it
    balancer, name = found[2].message, found[2].message.meta.name
    if not listens(balancer, traffic):
        yield Step(BALANCER, name, way.node, False, f"load balancer {name} does not listen there")
        return
    ends: dict[str, Path | None] = {}
    for member in resolve_members(state, balancer):
        if member.drain:
            continue
        address = ip_address(member.address)
        port = find_port(state, balancer.meta.project, balancer.spec.network, address)
        inner = replace(traffic, port=member.port or traffic.port)
        told = member.instance or member.address
        ends[told] = enter(state, port, remote, address, way.node, inner) if port is not None else None
    reached = [path for path in ends.values() if path is not None and path.reachable]
    yield Step(BALANCER, name, way.node, bool(reached), say(name, ends))
    yield from reached[0].steps if reached else ()


def _translated(name: str, node: str, to: str) -> Step:
    return Step(NAT, name, node, True, f"floating IP {name} leads to {to}")


def _announcer(state: State, floating: floatingip_pb2.FloatingIP) -> str:
    record = state.find(keys.ANNOUNCEMENTS, floating.meta.uid)
    return str(record.message.node) if record is not None else ""
