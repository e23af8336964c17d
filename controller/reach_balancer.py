"""Whether a connection to a load balancer arrives at one of its members, computed from intent alone.

**Pure.** The sender's node translates; a member's groups judge the true sender, but the balancer in place of
the member itself. Health is no intent, but a fact of nodes.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from controller.admit.subnet import Address, range_of
from controller.balancers import Member, networks_near, resolve_members
from controller.reach import arrive, enter, find_near, leave
from controller.reach_steps import BALANCER, OUTSIDE, Path, Step, Traffic
from controller.state import State
from controller.store import keys
from cumulet.addresses import with_port
from cumulet.protocols import WITH_PORTS, protocol_number
from cumulet.v1 import loadbalancer_pb2, port_pb2


def find_balancer(
    state: State, source: port_pb2.Port, address: Address
) -> loadbalancer_pb2.LoadBalancer | None:
    """The load balancer that the source means by an address."""
    project = source.meta.project
    for network in networks_near(state, project, source.spec.network):
        for row in state.balancers_in(project, network):
            if row.message.spec.address == str(address):
                found: loadbalancer_pb2.LoadBalancer = row.message
                return found
    return None


def find_routed_balancer(state: State, address: Address) -> loadbalancer_pb2.LoadBalancer | None:
    """The load balancer, of any project, that has an address of an external network's IPv6 range."""
    for row in state.rows(keys.LOAD_BALANCERS).values():
        balancer: loadbalancer_pb2.LoadBalancer = row.message
        if balancer.spec.address != str(address):
            continue
        subnets = state.subnets_of(balancer.meta.project, balancer.spec.network)
        specs = (subnet.message.spec for subnet in subnets)
        if any(spec.external_network and address in range_of(spec).cidr for spec in specs):
            return balancer
    return None


def unanswered_outside(balancer: loadbalancer_pb2.LoadBalancer) -> Step:
    """No node answers outside for a load balancer's IPv6 address, even where its subnet is the outside's."""
    text = f"load balancer {balancer.meta.name} is reached from its router's networks only"
    return Step(OUTSIDE, balancer.spec.address, "", False, f"{text}: outside, nobody answers for its address")


def reach_balancer(
    state: State, source: port_pb2.Port, balancer: loadbalancer_pb2.LoadBalancer, traffic: Traffic
) -> Path:
    """It is reached when at least one member is; the steps after it are those to the first such one."""
    address = ip_address(balancer.spec.address)
    way = leave(state, source, address, traffic)
    if not way.reachable:
        return way
    node = way.steps[-1].node
    name = balancer.meta.name
    if traffic.protocol not in WITH_PORTS:
        text = f"load balancer {name} answers echo requests itself"
        return replace(way, steps=(*way.steps, Step(BALANCER, name, node, True, text)))
    if not listens(balancer, traffic):
        text = f"load balancer {name} does not listen there: the connection is refused"
        return replace(way, steps=(*way.steps, Step(BALANCER, name, node, False, text)))
    ends = {
        _name_of(member): _to_member(state, source, balancer, member, traffic)
        for member in resolve_members(state, balancer)
        if not member.drain
    }
    reached = [path for path in ends.values() if path is not None and path.reachable]
    step = Step(BALANCER, name, node, bool(reached), say(name, ends))
    return replace(way, steps=(*way.steps, step, *(reached[0].steps if reached else ())))


def _to_member(
    state: State,
    source: port_pb2.Port,
    balancer: loadbalancer_pb2.LoadBalancer,
    member: Member,
    traffic: Traffic,
) -> Path | None:
    """None for an address that no port has."""
    address = ip_address(member.address)
    port = find_near(state, source, address)
    if port is None:
        return None
    asked = replace(traffic, port=member.port or traffic.port)
    if port.meta.uid == source.meta.uid:
        node = state.places.node_of(source) or ""
        return enter(state, port, ip_address(balancer.spec.address), address, node, asked)
    return arrive(state, source, port, asked, address)


def say(name: str, ends: dict[str, Path | None]) -> str:
    """Whom a balancer gives a connection to, and why some are not reached."""
    if not ends:
        return f"load balancer {name} has no member that takes connections: they are refused"
    said = [f"{member} ({_why(path)})" if _why(path) else member for member, path in ends.items()]
    return f"load balancer {name} gives it to one of: {', '.join(said)}"


def _why(path: Path | None) -> str:
    """Why a member is not reached; empty when it is."""
    if path is None:
        return "not reached: no port has this address"
    return "" if path.reachable else f"not reached: {path.steps[-1].message}"


def _name_of(member: Member) -> str:
    if not member.port:
        return member.instance or member.address
    return with_port(member.instance or member.address, member.port)


def listens(balancer: loadbalancer_pb2.LoadBalancer, traffic: Traffic) -> bool:
    """It has a listener for this."""
    return any(
        (protocol_number(one.protocol, 4), one.port) == (traffic.protocol, traffic.port)
        for one in balancer.spec.listeners
    )
