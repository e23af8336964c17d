"""Whether packets from one port to another arrive, computed from intent alone: the State, no node is asked.

**Pure.** It follows a packet through what `nodeplan.py` and `directory.py` plan: the sender's groups, its
network's bridge and tunnel, segment or router, the receiver's groups. Replies need no rule of their own:
security groups are stateful.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network
from typing import Final

from controller.admit.provider import describe_segment, find_provider
from controller.admit.subnet import Address, addresses_of
from controller.floating import sender_floating
from controller.reach_groups import EGRESS, INGRESS, judge
from controller.reach_steps import (
    BRIDGE,
    NAT,
    OUTSIDE,
    PORT,
    ROUTER,
    SEGMENT,
    TUNNEL,
    Path,
    Step,
    Traffic,
)
from controller.routed import choose_goal, choose_source, enter_routed, find_routed, leave_routed
from controller.state import State
from controller.store import keys
from cumulet.v1 import network_pb2, port_pb2, reach_pb2, router_pb2

METADATA: Final = IPv4Address("169.254.169.254")  # of every node, on each network
# What the outside sees of a sender without a floating IP is its node's address there, which nobody told.
SOMEBODY: Final = IPv4Address("0.0.0.0")


def reach_port(
    state: State,
    source: port_pb2.Port,
    target: port_pb2.Port,
    traffic: Traffic,
    address: Address | None = None,
) -> Path:
    """The way between two ports of one project or of two; `address`: to this one of the target's."""
    return _Walk(state, source, target, traffic, address).walk()


def find_near(state: State, source: port_pb2.Port, address: Address) -> port_pb2.Port | None:
    """The port that the source means by an address: of its network, or of one of its router."""
    return find_port(state, source.meta.project, source.spec.network, address)


def find_port(state: State, project: str, network: str, address: Address) -> port_pb2.Port | None:
    """The port of a network, or of one of its router, that has an address."""
    router = state.router_of(project, network)
    names = [network, *(router.message.spec.networks if router is not None else ())]
    for name in dict.fromkeys(names):
        for row in state.ports_in(project, name):
            if str(address) in addresses_of(state, row.message):
                found: port_pb2.Port = row.message
                return found
    return None


def reach_outside(state: State, source: port_pb2.Port, target: Address, traffic: Traffic) -> Path:
    """The way to an address that is none of a port."""
    return _Walk(state, source, target, traffic).walk()


def seen_outside(state: State, source: port_pb2.Port, own: str) -> Address:
    """Whom the outside sees when a port sends from `own`: in a provider network that very address."""
    floating = sender_floating(state, source)
    if floating is not None:
        return ip_address(floating.spec.address)
    is_there = find_provider(state, source.meta.project, source.spec.network) is not None
    return ip_address(own) if own and is_there else SOMEBODY


def leave(state: State, source: port_pb2.Port, target: Address, traffic: Traffic) -> Path:
    """The way out of the source, up to its router."""
    return _Walk(state, source, target, traffic).leave()


def arrive(
    state: State, source: port_pb2.Port, target: port_pb2.Port, traffic: Traffic, address: Address
) -> Path:
    """The way from the source's router to another port of the router's networks."""
    return _Walk(state, source, target, traffic, address).arrive()


def enter(
    state: State, target: port_pb2.Port, remote: Address, address: Address, node: str, traffic: Traffic
) -> Path:
    """The way of what came from elsewhere, from a node's part of the target's router to the target."""
    walk = _Walk(state, target, target, traffic)
    return walk._path(remote, address, walk._arrive(target, remote, address, node))


def come_in(
    state: State, target: port_pb2.Port, remote: IPv6Address, address: IPv6Address, traffic: Traffic
) -> Path:
    """The way from an address outside to a port whose address is there, too."""
    walk = _Walk(state, target, target, traffic)
    begin = Step(OUTSIDE, str(remote), "", True, f"{remote} is outside: that it sends is not the cloud's")
    return walk._path(remote, address, itertools.chain((begin,), walk._come_in(target, remote, address)))


@dataclass(frozen=True, slots=True)
class _Walk:
    """One packet's way, as steps of which each is asked for only when those before it pass."""

    state: State
    source: port_pb2.Port
    target: port_pb2.Port | Address
    traffic: Traffic
    address: Address | None = None

    def walk(self) -> Path:
        """Ends at the first step that does not pass."""
        source, target = self._addresses()
        return self._path(source, target, self._steps(source, target))

    def leave(self) -> Path:
        source, target = self._addresses()
        return self._path(source, target, self._left(source, target))

    def arrive(self) -> Path:
        source, target = self._addresses()
        assert isinstance(self.target, port_pb2.Port)
        assert source is not None  # it left, so it has one
        assert target is not None
        node = self.state.places.node_of(self.source) or ""
        return self._path(source, target, self._arrive(self.target, source, target, node))

    def _path(self, source: Address | None, target: Address | None, way: Iterator[Step]) -> Path:
        steps: list[Step] = []
        for step in way:
            steps.append(step)
            if not step.passes:
                break
        return Path(self.traffic.ip_version, str(source or ""), str(target or ""), tuple(steps))

    def _steps(self, source: Address | None, target: Address | None) -> Iterator[Step]:
        version = self.traffic.ip_version
        node = self.state.places.node_of(self.source)
        yield self._at_port(self.source, source, node, "sends from")
        assert source is not None  # a port without an address of the version does not pass
        if isinstance(self.target, port_pb2.Port) and self.target.meta.uid == self.source.meta.uid:
            text = f"{target} is its own: no packet leaves the instance"
            yield Step(PORT, self.source.meta.name, node or "", True, text)
            return
        if target is None:
            name = _name_of(self.target)
            yield Step(PORT, name, "", False, f"{name} has no IPv{version} address")
            return
        yield judge(self.state, self.source, EGRESS, target, self.traffic, node or "")
        if isinstance(self.target, port_pb2.Port) and self._is_near(source, target):
            text = "both are in one subnet: no router"
            yield Step(BRIDGE, self.source.spec.network, node or "", True, text)
            yield from self._arrive(self.target, source, target, node or "")
            return
        segment = self._segment_of(self.source)
        if segment is not None:
            yield from self._by_segment(segment, source, target, node or "")
        else:
            yield from self._routed(source, target, node or "")

    def _left(self, source: Address | None, target: Address | None) -> Iterator[Step]:
        node = self.state.places.node_of(self.source)
        yield self._at_port(self.source, source, node, "sends from")
        assert target is not None  # whoever asks means an address of the version
        yield judge(self.state, self.source, EGRESS, target, self.traffic, node or "")

    def _at_port(self, port: port_pb2.Port, address: Address | None, node: str | None, does: str) -> Step:
        name = port.meta.name
        if node is None:
            text = f"instance {port.spec.instance} is on no node"
            return Step(PORT, name, "", False, f"{text}: cumulet explain instance/{port.spec.instance}")
        if address is None:
            return Step(PORT, name, node, False, f"port {name} has no IPv{self.traffic.ip_version} address")
        return Step(PORT, name, node, True, f"instance {port.spec.instance} {does} {address}")

    def _is_near(self, source: Address, target: Address) -> bool:
        """The sender finds the address in a subnet of its own, and the port is in its network."""
        assert isinstance(self.target, port_pb2.Port)
        same_network = (self.source.meta.project, self.source.spec.network) == (
            self.target.meta.project,
            self.target.spec.network,
        )
        return same_network and self._subnet_of(source) == self._subnet_of(target)

    def _subnet_of(self, address: Address) -> str | None:
        """CIDR of the subnet of the sender's network that an address is in."""
        rows = self.state.subnets_of(self.source.meta.project, self.source.spec.network)
        cidrs = (row.message.spec.cidr for row in rows)
        return next((cidr for cidr in cidrs if address in ip_network(cidr)), None)

    def _routed(self, source: Address, target: Address, node: str) -> Iterator[Step]:
        router = self.state.router_of(self.source.meta.project, self.source.spec.network)
        if router is None:
            yield from self._unrouted(source, target, node)
            return
        spec: router_pb2.RouterSpec = router.message.spec
        name = router.message.meta.name
        port = self._behind(router.message, target)
        if port is not None:
            yield Step(ROUTER, name, node, True, f"router {name} joins {port.spec.network}")
            yield from self._arrive(port, source, target, node)
            return
        next_hop = _next_hop(spec, target)
        if next_hop is not None:
            yield from self._by_route(router.message, next_hop, target, node)
        elif self._is_inside(router.message, target):
            yield Step(ROUTER, name, node, False, f"router {name}: no port has {target}")
        else:
            nat = spec.outbound_nat
            yield from self._to_outside(ROUTER, f"router {name}", name, nat, source, target, node)

    def _segment_of(self, port: port_pb2.Port | Address) -> network_pb2.ProviderSegment | None:
        """The operator's network that the port's is; None for one of the cloud's own, and for an address."""
        if not isinstance(port, port_pb2.Port):
            return None
        return find_provider(self.state, port.meta.project, port.spec.network)

    def _by_segment(
        self, segment: network_pb2.ProviderSegment, source: Address, target: Address, node: str
    ) -> Iterator[Step]:
        """To what is on the operator's network, or behind its router."""
        name = segment.uplink
        if target == METADATA:
            yield Step(SEGMENT, name, node, False, f"{target} belongs to the node, not to {name}")
            return
        yield _cross(self.state, segment, node, "")
        theirs = self._segment_of(self.target)
        routed = find_routed(self.state, target) if isinstance(target, IPv6Address) else None
        if theirs is not None:
            yield from self._from_outside(theirs, source, target)
        elif routed is not None and isinstance(source, IPv6Address) and isinstance(target, IPv6Address):
            text = f"the operator's router decides whether it goes on to {target}"
            yield Step(OUTSIDE, name, "", True, text)
            yield from self._come_in(routed, source, target)
        elif isinstance(self.target, port_pb2.Port):
            text = (
                f"network {self.target.spec.network} is within the cloud: no route leads there from outside"
            )
            yield Step(OUTSIDE, name, "", False, text)
        else:
            where = f"on {describe_segment(segment)}" if self._subnet_of(target) else "outside"
            yield Step(OUTSIDE, str(target), "", True, f"{target} is {where}: what is there decides")

    def _from_outside(
        self, segment: network_pb2.ProviderSegment, source: Address, target: Address
    ) -> Iterator[Step]:
        """To a port of a provider network from another network, by the operator's router."""
        assert isinstance(self.target, port_pb2.Port)  # whose network is the segment
        text = f"the operator's router decides whether it goes on to {describe_segment(segment)}"
        yield Step(OUTSIDE, segment.uplink, "", True, text)
        yield from self._arrive(self.target, source, target, "")

    def _unrouted(self, source: Address, target: Address, node: str) -> Iterator[Step]:
        """The network's own gateway leads to the outside and to no other subnet."""
        network = self.state.find(keys.NETWORKS, self.source.meta.project, self.source.spec.network)
        name = self.source.spec.network
        within = isinstance(self.target, port_pb2.Port) and self._segment_of(self.target) is None
        if network is None:
            yield Step(BRIDGE, name, node, False, f"network {name} does not exist any more")
        elif self._subnet_of(target) is not None and not within:
            yield Step(BRIDGE, name, node, False, f"no port of network {name} has {target}")
        elif within and isinstance(self.target, port_pb2.Port):
            where = self.target.spec.network
            text = f"network {name} has no router, so it is not joined to {where}"
            if where == name:
                text = f"network {name} has no router, so its subnets are not joined"
            yield Step(ROUTER, name, node, False, text)
        else:
            nat = network.message.spec.outbound_nat
            yield from self._to_outside(BRIDGE, f"network {name}", name, nat, source, target, node)

    def _to_outside(
        self,
        kind: reach_pb2.ReachStepKind.ValueType,
        what: str,
        name: str,
        outbound_nat: bool,
        source: Address,
        target: Address,
        node: str,
    ) -> Iterator[Step]:
        if isinstance(source, IPv6Address) and isinstance(target, IPv6Address):
            yield from self._to_outside6(kind, name, source, target, node)
            return
        floating = sender_floating(self.state, self.source)
        theirs = self._segment_of(self.target)
        if not outbound_nat and floating is None:
            yield Step(kind, name, node, False, f"{what} does not let guests out (outbound NAT is off)")
        elif isinstance(self.target, port_pb2.Port) and theirs is None:
            yield Step(kind, name, node, False, f"{what} leads outside, where no port of the cloud is")
        elif _is_reserved(target):
            yield Step(kind, name, node, False, f"{target} belongs to the node, not to the outside")
        else:
            of = f"the address of {node}"
            if floating is not None:
                of = f"{floating.spec.address} of floating IP {floating.meta.name}"
            yield Step(NAT, name, node, True, f"{what} sends it from {of}")
            if theirs is not None:
                yield from self._from_outside(theirs, seen_outside(self.state, self.source, ""), target)
                return
            yield Step(OUTSIDE, str(target), "", True, f"{target} is outside: what is there decides")

    def _to_outside6(
        self,
        kind: reach_pb2.ReachStepKind.ValueType,
        name: str,
        source: IPv6Address,
        target: IPv6Address,
        node: str,
    ) -> Iterator[Step]:
        """As it is, from an address that is the outside's, too."""
        way = leave_routed(self.state, self.source, source, node)
        yield Step(kind, name, node, way.passes, way.text)
        routed, theirs = find_routed(self.state, target), self._segment_of(self.target)
        if routed is not None:
            yield from self._come_in(routed, source, target)
        elif theirs is not None:
            yield from self._from_outside(theirs, source, target)
        elif isinstance(self.target, port_pb2.Port):
            yield Step(OUTSIDE, str(target), "", False, f"{target} of {self.target.meta.name} is not outside")
        else:
            yield Step(OUTSIDE, str(target), "", True, f"{target} is outside: what is there decides")

    def _come_in(self, port: port_pb2.Port, source: IPv6Address, target: IPv6Address) -> Iterator[Step]:
        """From the outside to a port whose address is there, too."""
        where = self.state.places.node_of(port) or ""
        way = enter_routed(self.state, port, target, where)
        yield Step(ROUTER, way.router, where, way.passes, way.text)
        yield from self._arrive(port, source, target, where)

    def _by_route(
        self, router: router_pb2.Router, next_hop: Address, target: Address, node: str
    ) -> Iterator[Step]:
        """A static route: the port that has the next hop must want packets that are not for itself."""
        name = router.meta.name
        port = self._behind(router, next_hop)
        if port is None:
            yield Step(ROUTER, name, node, False, f"router {name} sends it to {next_hop}, which no port has")
            return
        yield Step(ROUTER, name, node, True, f"router {name} has a route to {target} by {next_hop}")
        yield from self._tunnel(port, node)
        text = f"instance {port.spec.instance} at {next_hop} decides where it goes from here"
        yield Step(OUTSIDE, port.meta.name, self.state.places.node_of(port) or "", True, text)

    def _behind(self, router: router_pb2.Router, target: Address) -> port_pb2.Port | None:
        """The port of the router's networks that has an address."""
        for name in router.spec.networks:
            for row in self.state.ports_in(router.meta.project, name):
                if str(target) in addresses_of(self.state, row.message):
                    port: port_pb2.Port = row.message
                    return port
        return None

    def _is_inside(self, router: router_pb2.Router, target: Address) -> bool:
        rows = (
            row for name in router.spec.networks for row in self.state.subnets_of(router.meta.project, name)
        )
        return any(target in ip_network(row.message.spec.cidr) for row in rows)

    def _arrive(self, port: port_pb2.Port, source: Address, target: Address, node: str) -> Iterator[Step]:
        yield from self._tunnel(port, node)
        where = self.state.places.node_of(port)
        yield judge(self.state, port, INGRESS, source, self.traffic, where or "")
        yield self._at_port(port, target, where, "receives at")

    def _tunnel(self, port: port_pb2.Port, node: str) -> Iterator[Step]:
        """Between nodes, if it is on another one."""
        where = self.state.places.node_of(port)
        if where is None:
            yield self._at_port(port, None, None, "")
            return
        if where == node:
            return
        segment = self._segment_of(port)
        if segment is not None:
            yield _cross(self.state, segment, node, where)
            return
        for end in (node, where):
            if end not in self.state.underlays:
                text = f"node {end} has no underlay address, so no tunnel leads there: --underlay-address"
                yield Step(TUNNEL, "", end, False, text)
                return
        far = self.state.underlays[where].address
        yield Step(TUNNEL, far, node, True, f"tunnel from {node} to {where} ({far})")

    def _addresses(self) -> tuple[Address | None, Address | None]:
        """Source and target: of one subnet, where there is one that both are in."""
        mine = self._of_version(self.source)
        if not isinstance(self.target, port_pb2.Port):
            target = self.target if self.target.version == self.traffic.ip_version else None
            return choose_source(mine, target), target
        theirs = self._of_version(self.target) if self.address is None else [self.address]
        for one in mine:
            for other in theirs:
                if self._is_near(one, other):
                    return one, other
        goal = choose_goal(self.state, self.source, self.target, theirs)
        return choose_source(mine, goal), goal

    def _of_version(self, port: port_pb2.Port) -> list[Address]:
        found = [ip_address(text) for text in addresses_of(self.state, port)]
        return [address for address in found if address.version == self.traffic.ip_version]


def _cross(state: State, segment: network_pb2.ProviderSegment, node: str, to: str) -> Step:
    """From a node to another one; an empty name is what else is on the segment."""
    name = segment.uplink
    for end in filter(None, (node, to)):
        status = state.find(keys.NODE_STATUS, end)
        if status is None or name not in status.message.uplinks:
            text = f"node {end} has no link to {name}: its agent's --uplink {name}=LINK"
            return Step(SEGMENT, name, end, False, text)
    ends = [f"from {node}" if node else "", f"to {to}" if to else ""]
    text = " ".join(filter(None, [f"by {describe_segment(segment)}", *ends]))
    return Step(SEGMENT, name, node or to, True, text)


def _name_of(target: port_pb2.Port | Address) -> str:
    return target.meta.name if isinstance(target, port_pb2.Port) else str(target)


def _next_hop(spec: router_pb2.RouterSpec, target: Address) -> Address | None:
    """Of the most specific static route."""
    routes = [(ip_network(route.cidr), ip_address(route.next_hop)) for route in spec.routes]
    matching = [(cidr.prefixlen, hop) for cidr, hop in routes if target in cidr]
    return max(matching, key=lambda one: one[0])[1] if matching else None


def _is_reserved(address: Address) -> bool:
    ranges = (IPv4Network("169.254.0.0/16"), IPv4Network("100.64.0.0/10"), IPv4Network("127.0.0.0/8"))
    return any(address in one for one in ranges if address.version == 4)
