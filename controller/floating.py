"""Where floating IPs lead and which node is to announce them, from the State alone.

**Pure.** One with a target is announced by the node that the target is on; one with forwards by a node of one
of their targets that answers; a load balancer's by a node of its router. Which node does announce it is a
record (`reconcile/announcer.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final, NamedTuple

from controller.admit.provider import find_provider
from controller.balancers import version_of
from controller.fleet import is_ready
from controller.state import State
from controller.store import keys
from controller.tables import Stored
from cumulet.v1 import floatingip_pb2, loadbalancer_pb2, port_pb2, router_pb2

UNUSED: Final = "Unused"
TARGET_MISSING: Final = "TargetMissing"
NO_ROUTER: Final = "NoRouter"
NO_ADDRESS: Final = "NoAddress"
NOT_PLACED: Final = "NotPlaced"
NO_UPLINK: Final = "NoUplink"
HEIRS: Final = 3  # of the nodes without a target: each costs every target's node a rule


class Forward(NamedTuple):
    """Packets to `port` go to `target_port` of `address`, on `node`."""

    protocol: str
    port: int
    target: port_pb2.Port
    address: str
    target_port: int
    node: str


@dataclass(frozen=True, slots=True)
class Way:
    """Where a floating IP is to be announced, and where its packets go; without a node `reason` says why.

    `targets` are the nodes of what is behind it, which may be others; `heirs` those that may announce it, now
    or when that one is gone. `balancer` is a load balancer's uid.
    """

    node: str = ""
    reason: str = ""
    text: str = ""
    router: router_pb2.Router | None = None
    fixed_address: str = ""
    forwards: tuple[Forward, ...] = ()
    balancer: str = ""
    targets: frozenset[str] = frozenset()
    heirs: frozenset[str] = frozenset()


def find_way(state: State, floating: floatingip_pb2.FloatingIP, silent: str = "") -> Way:
    """The way of a floating IP at the State's revision. Where another node can have it, not `silent`."""
    if floating.spec.target:
        balancer = find_balancer(state, floating.meta.project, floating.spec.target)
        if balancer is not None:
            return _way_to_balancer(state, floating, balancer, silent)
        return _way_to_target(state, floating)
    if floating.spec.forwards:
        return _way_of_forwards(state, floating, silent)
    return Way(reason=UNUSED, text="it has neither a target nor forwards")


def find_target(state: State, project: str, word: str) -> port_pb2.Port | None:
    """An instance's first port, or a port, by name."""
    instance = state.find(keys.INSTANCES, project, word)
    if instance is not None and instance.message.spec.networks:
        found = state.find_uid(instance.message.spec.networks[0].port_uid)
        if found is not None:
            port: port_pb2.Port = found[2].message
            return port
    row = state.find(keys.PORTS, project, word)
    return row.message if row is not None else None


def find_balancer(state: State, project: str, word: str) -> loadbalancer_pb2.LoadBalancer | None:
    """Unless an instance or a port has the name."""
    row = state.find(keys.LOAD_BALANCERS, project, word)
    if row is None or find_target(state, project, word) is not None:
        return None
    found: loadbalancer_pb2.LoadBalancer = row.message
    return found


def ipv4_of(port: port_pb2.Port) -> str:
    """The first IPv4 address of a port, empty for none."""
    held = (fixed.address for fixed in port.spec.addresses)
    return next((text for text in held if ip_address(text).version == 4), "")


def floating_on(state: State, node: str) -> Iterator[tuple[str, floatingip_pb2.FloatingIP, Way]]:
    """(uid, floating IP, way) of those that a node may announce, and is to."""
    for uid, record in sorted(state.announced_by(node).items()):
        row = state.find(keys.FLOATING_IPS, record.message.project, record.message.name)
        if row is None or row.message.meta.uid != uid:
            continue
        way = find_way(state, row.message)
        if way.node == node:
            yield uid, row.message, way


def sender_floating(state: State, port: port_pb2.Port) -> floatingip_pb2.FloatingIP | None:
    """The one whose address a port's packets to the outside come from."""
    for row in state.rows(keys.FLOATING_IPS, port.meta.project).values():
        target = find_target(state, port.meta.project, row.message.spec.target)
        if target is None or target.meta.uid != port.meta.uid:
            continue
        way, record = find_way(state, row.message), state.find(keys.ANNOUNCEMENTS, row.message.meta.uid)
        if way.fixed_address and record is not None and record.message.node == way.node:
            found: floatingip_pb2.FloatingIP = row.message
            return found
    return None


def announcers_of(state: State, router: router_pb2.Router, node: str) -> set[str]:
    """Other nodes by which connections to ports of this node may come.

    Those that may take an address over are told before they do: the node may not hear of it then.
    """
    found: set[str] = set()
    for row in state.rows(keys.FLOATING_IPS, router.meta.project).values():
        way = find_way(state, row.message)
        if node in way.targets and way.router is not None and way.router.meta.uid == router.meta.uid:
            found |= way.heirs
    return found - {node}


def _way_to_balancer(
    state: State,
    floating: floatingip_pb2.FloatingIP,
    balancer: loadbalancer_pb2.LoadBalancer,
    silent: str,
) -> Way:
    """Its members may be anywhere; a node of its router announces."""
    router = state.router_of(balancer.meta.project, balancer.spec.network)
    name = balancer.meta.name
    if version_of(balancer) != 4:
        return Way(reason=NO_ADDRESS, text=f"load balancer {name} has an IPv6 address")
    if router is None:
        return _no_router(state, balancer.meta.project, balancer.spec.network, name)
    parts = _nodes_of(state, router.message)
    if not parts:
        return Way(reason=NOT_PLACED, text=f"no instance is on any network of load balancer {name}")
    candidates = _announcers(state, floating, router.message, ())
    way = Way(router=router.message, balancer=balancer.meta.uid, targets=frozenset(parts))
    return _elected(state, floating, way, candidates, frozenset(candidates[:HEIRS]), silent)


def _elected(
    state: State,
    floating: floatingip_pb2.FloatingIP,
    way: Way,
    candidates: Sequence[str],
    heirs: frozenset[str],
    silent: str,
) -> Way:
    """The way by the first candidate that answers."""
    if not candidates:
        return Way(reason=NO_UPLINK, text=_no_uplink(state, floating, "no node of its router has"))
    able = (name for name in candidates if name != silent and is_ready(state, name))
    return replace(way, node=next(able, candidates[0]), heirs=heirs)


def _way_to_target(state: State, floating: floatingip_pb2.FloatingIP) -> Way:
    word = floating.spec.target
    port = find_target(state, floating.meta.project, word)
    if port is None:
        return Way(reason=TARGET_MISSING, text=f"there is no instance and no port {word}")
    router = state.router_of(port.meta.project, port.spec.network)
    if router is None:
        return _no_router(state, port.meta.project, port.spec.network, word)
    fixed = ipv4_of(port)
    if not fixed:
        return Way(reason=NO_ADDRESS, text=f"{word} has no IPv4 address")
    node = state.places.node_of(port)
    if node is None:
        return Way(reason=NOT_PLACED, text=f"{word} is on no node")
    if not _has_uplink(state, floating, node):
        return Way(reason=NO_UPLINK, text=_no_uplink(state, floating, f"node {node} of {word} has"))
    return Way(node=node, router=router.message, fixed_address=fixed)


def _way_of_forwards(state: State, floating: floatingip_pb2.FloatingIP, silent: str) -> Way:
    """What leads nowhere is left out. The first target's node announces, if it answers and can."""
    found, router, problem = [], None, Way()
    for forward in floating.spec.forwards:
        step = _find_forward(state, floating.meta.project, forward)
        if isinstance(step, Way):
            problem = problem if problem.reason else step
            continue
        its_router = state.router_of(floating.meta.project, step.target.spec.network)
        if its_router is not None and router in (None, its_router.message):
            router = its_router.message
            found.append(step)
    if not found or router is None:
        return problem if problem.reason else Way(reason=NO_ROUTER, text="its targets have no router")
    targets = frozenset(forward.node for forward in found)
    candidates = _announcers(state, floating, router, [forward.node for forward in found])
    heirs = targets.intersection(candidates).union(candidates[:HEIRS])
    way = Way(router=router, forwards=tuple(found), targets=targets)
    return _elected(state, floating, way, candidates, heirs, silent)


def _announcers(
    state: State,
    floating: floatingip_pb2.FloatingIP,
    router: router_pb2.Router,
    targets: Sequence[str],
) -> list[str]:
    """Nodes that could: the present one, those of the targets, others that have a part of the router."""
    record = state.find(keys.ANNOUNCEMENTS, floating.meta.uid)
    present = [record.message.node] if record is not None else []
    parts = _nodes_of(state, router)
    nodes = dict.fromkeys([*present, *targets, *sorted(parts)])
    return [node for node in nodes if node in parts and _has_uplink(state, floating, node)]


def _find_forward(state: State, project: str, forward: floatingip_pb2.PortForward) -> Forward | Way:
    word = forward.target
    port = find_target(state, project, word)
    if port is None:
        return Way(reason=TARGET_MISSING, text=f"there is no instance and no port {word}")
    address, node = ipv4_of(port), state.places.node_of(port)
    if not address:
        return Way(reason=NO_ADDRESS, text=f"{word} has no IPv4 address")
    if node is None:
        return Way(reason=NOT_PLACED, text=f"{word} is on no node")
    if state.router_of(project, port.spec.network) is None:
        return _no_router(state, project, port.spec.network, word)
    target_port = forward.target_port or forward.port
    return Forward(forward.protocol, forward.port, port, address, target_port, node)


def _no_router(state: State, project: str, network: str, word: str) -> Way:
    provided = find_provider(state, project, network) is not None
    has = "is a provider network, where no floating IP leads" if provided else "has no router"
    return Way(reason=NO_ROUTER, text=f"network {network} of {word} {has}")


def _nodes_of(state: State, router: router_pb2.Router) -> set[str]:
    """Those that have a part of the router."""
    project = router.meta.project
    return {node for name in router.spec.networks for node in state.places.of_network(project, name)}


def _has_uplink(state: State, floating: floatingip_pb2.FloatingIP, node: str) -> bool:
    network = _external(state, floating)
    status = state.find(keys.NODE_STATUS, node)
    return (
        network is not None and status is not None and network.message.spec.uplink in status.message.uplinks
    )


def _no_uplink(state: State, floating: floatingip_pb2.FloatingIP, who: str) -> str:
    network = _external(state, floating)
    name = network.message.spec.uplink if network is not None else floating.spec.external_network
    return f"{who} no link to {name} (its agent's --uplink {name}=LINK)"


def _external(state: State, floating: floatingip_pb2.FloatingIP) -> Stored | None:
    return state.find(keys.EXTERNAL_NETWORKS, floating.spec.external_network)
