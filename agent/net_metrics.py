"""What the agent's /metrics says of the network: ports, networks, routers, rules, load balancers, drops.

**Pure**: counters and names in, families out. Directions are those of whom a link serves: a port receives
what its guest receives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from agent.intent import PlanIntent
from agent.net.stats import NetStats, Traffic

NetFamily = CounterMetricFamily | GaugeMetricFamily
_Row = tuple[list[str], float]

_PORT: Final = ("port", "instance_name", "project", "network_name")
_NETWORK: Final = ("network", "network_name")
_ROUTER: Final = ("router", "router_name")
_ROUTER_LINK: Final = (*_ROUTER, "link")
_RULE: Final = ("security_group", "security_group_name", "rule")
_LISTENER: Final = ("load_balancer", "load_balancer_name", "listener")
# (metric, what it counts, field of Traffic)
_TRAFFIC: Final = (
    ("receive_bytes", "Bytes received", "received_bytes"),
    ("receive_packets", "Packets received", "received_packets"),
    ("receive_dropped_packets", "Packets to be received that the link dropped", "received_dropped"),
    ("transmit_bytes", "Bytes sent", "sent_bytes"),
    ("transmit_packets", "Packets sent", "sent_packets"),
    ("transmit_dropped_packets", "Packets sent that the link dropped", "sent_dropped"),
)
# (way, words, field of PortStats)
_OVER_RATE: Final = (("receive", "to", "received_over_rate"), ("transmit", "from", "sent_over_rate"))


@dataclass(frozen=True, slots=True)
class NetNames:
    """What people call things, by uid. `ports`: name and project of the instance. Of what no plan names there
    is no name: it is shown by its uid alone."""

    ports: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)


def names_of(plan: PlanIntent) -> NetNames:
    instances = plan.instances.values()
    ports = {port.uid: (one.name, one.project) for one in instances for port in one.ports}
    return NetNames(ports, plan.names)


def render_net(stats: NetStats, names: NetNames) -> Iterator[NetFamily]:
    yield from _render_ports(stats, names)
    yield from _render_networks(stats, names)
    yield from _render_routers(stats, names)
    yield from _render_judged(stats, names)
    yield GaugeMetricFamily(
        "cumulet_net_connections", "Connections tracked on the node now.", value=stats.connections
    )
    yield GaugeMetricFamily(
        "cumulet_net_connections_max", "Connections that the node can track.", value=stats.connections_max
    )


def _render_ports(stats: NetStats, names: NetNames) -> Iterator[NetFamily]:
    labels = {
        uid: [uid, *names.ports.get(uid, ("", "")), names.others.get(port.network_uid, "")]
        for uid, port in stats.ports.items()
    }
    traffic = [(labels[uid], port.traffic) for uid, port in stats.ports.items()]
    yield from _render_traffic("cumulet_port", "by the port's guest", _PORT, traffic)
    yield _counter(
        "cumulet_port_refused_frames",
        "Frames that the port's guest sent as somebody else, which were dropped.",
        _PORT,
        ((labels[uid], port.refused) for uid, port in stats.ports.items()),
    )
    for way, towards, field_name in _OVER_RATE:
        counts = ((labels[uid], getattr(port, field_name)) for uid, port in stats.ports.items())
        yield _counter(
            f"cumulet_port_{way}_over_rate_packets",
            f"Packets {towards} the port's guest that its limit of rate dropped.",
            _PORT,
            ((row, count) for row, count in counts if count is not None),
        )


def _render_networks(stats: NetStats, names: NetNames) -> Iterator[NetFamily]:
    labels = {uid: [uid, names.others.get(uid, "")] for uid in stats.networks}
    ports = GaugeMetricFamily("cumulet_network_ports", "Ports of the network on this node.", labels=_NETWORK)
    for uid, network in stats.networks.items():
        ports.add_metric(labels[uid], network.ports)
    yield ports
    tunnels = [(labels[uid], one.tunnel) for uid, one in stats.networks.items() if one.tunnel is not None]
    yield from _render_traffic(
        "cumulet_network_tunnel", "by this node through the network's tunnel", _NETWORK, tunnels
    )
    uplinks = [(labels[uid], one.uplink) for uid, one in stats.networks.items() if one.uplink is not None]
    yield from _render_traffic(
        "cumulet_network_uplink", "by this node through its link to the operator's network", _NETWORK, uplinks
    )
    yield _counter(
        "cumulet_network_unmarked_packets",
        "Packets on the network's bridge that came from no link of it, and were dropped.",
        _NETWORK,
        ((labels[uid], network.unmarked) for uid, network in stats.networks.items()),
    )


def _render_routers(stats: NetStats, names: NetNames) -> Iterator[NetFamily]:
    labels = {uid: [uid, names.others.get(uid, "")] for uid in stats.routers}
    links = (
        ([*labels[uid], link], traffic)
        for uid, router in stats.routers.items()
        for link, traffic in (("uplink", router.uplink), ("tunnel", router.tunnel))
    )
    present = [(row, traffic) for row, traffic in links if traffic is not None]
    yield from _render_traffic("cumulet_router", "by the router's part on this node", _ROUTER_LINK, present)
    yield _counter(
        "cumulet_router_dropped_packets",
        "Packets that the router's part on this node dropped.",
        _ROUTER,
        ((labels[uid], router.dropped) for uid, router in stats.routers.items()),
    )
    listeners = [
        (_listener(text, names), count)
        for router in stats.routers.values()
        for text, count in sorted(router.listeners.items())
    ]
    yield _counter(
        "cumulet_load_balancer_packets",
        "Connections that a load balancer gave to a member: the first packet of each.",
        _LISTENER,
        ((row, count.packets) for row, count in listeners),
    )
    yield _counter(
        "cumulet_load_balancer_bytes",
        "Bytes of those packets.",
        _LISTENER,
        ((row, count.bytes) for row, count in listeners),
    )


def _listener(text: str, names: NetNames) -> list[str]:
    """BALANCER/PROTOCOL/PORT, as its rules say (balancer_rules.py)."""
    uid, _, listener = text.partition("/")
    return [uid, names.others.get(uid, ""), listener]


def _render_judged(stats: NetStats, names: NetNames) -> Iterator[NetFamily]:
    yield _counter(
        "cumulet_security_rule_packets",
        "First packets of connections that a security group's rule let through.",
        _RULE,
        (
            ([group, names.others.get(group, ""), rule], packets)
            for (group, rule), packets in stats.rules.items()
        ),
    )
    yield _counter(
        "cumulet_net_dropped_packets",
        "Packets that the node's rules dropped, by the stage that did.",
        ("stage",),
        (([stage], packets) for stage, packets in sorted(stats.dropped.items())),
    )


def _render_traffic(
    prefix: str, whose: str, labels: tuple[str, ...], rows: Iterable[tuple[list[str], Traffic]]
) -> Iterator[NetFamily]:
    kept = list(rows)
    for metric, what, name in _TRAFFIC:
        counted = ((row, float(getattr(traffic, name))) for row, traffic in kept)
        yield _counter(f"{prefix}_{metric}", f"{what} {whose}.", labels, counted)


def _counter(name: str, text: str, labels: tuple[str, ...], rows: Iterable[_Row]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for row, value in rows:
        family.add_metric(row, value)
    return family
