"""What the counters of rules and links mean: which rule of a group, which stage of dropping, whose tap.

**Pure.** Stages are chains of the host's static tables, which are replaced as a whole; what comes and goes
with networks and routers is counted for each of those, so that no sum falls when one leaves the node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from agent.net import balancer_rules, names, security
from agent.net.addressing import ROUTER_TUNNEL_LINK, UPLINK_LINK
from agent.net.elements import GUARD_TABLE, TABLE
from agent.net.guest_rules import ZONE_PREFIX
from agent.net.netlink_stats import CountedLink
from agent.net.rules_wire import CountedRule
from agent.net.segment import PATCH
from agent.net.stats import Count, NetworkStats, PortStats, RouterStats

ANTI_SPOOFING: Final = "anti-spoofing"
# Of chains whose name says something else to people. docs/howto/operate.md explains each.
_STAGES: Final = {
    ("bridge", TABLE, "guest"): ANTI_SPOOFING,
    ("bridge", TABLE, "arp"): ANTI_SPOOFING,
    ("bridge", TABLE, "forward"): "unknown-receiver",
    ("bridge", GUARD_TABLE, "speaker"): "neighbour-discovery",
    ("bridge", GUARD_TABLE, "foreign"): "gateway-in-tunnel",
    ("inet", GUARD_TABLE, "input"): "tunnel-sender",
    ("inet", TABLE, "raw"): "no-zone",
    ("inet", TABLE, "honest"): "never-allowed",
    ("inet", TABLE, "foreign"): "from-provider-network",
    ("inet", TABLE, "services"): "connection-limit",
    ("inet", TABLE, "input"): "to-node",
    ("inet", TABLE, "forward"): "through-node",
}


class HostCounts(NamedTuple):
    """Of the host's tables: see NetStats. `unmarked` by chain of a zone."""

    rules: dict[tuple[str, str], int]
    dropped: dict[str, int]
    unmarked: dict[str, int]


def count_host(counted: Iterable[CountedRule]) -> HostCounts:
    rules: Counter[tuple[str, str]] = Counter()
    dropped: Counter[str] = Counter()
    unmarked: Counter[str] = Counter()
    for one in counted:
        if one.chain.startswith(ZONE_PREFIX):
            unmarked[one.chain] += one.packets
        elif one.drops:
            stage = _STAGES.get((one.family, one.table, one.chain), one.chain)
            dropped[stage] += one.packets
        elif one.comment and one.chain.startswith(security.GROUP_PREFIXES):
            _, _, group_uid = one.chain.partition("-")
            rules[group_uid, one.comment] += one.packets
    return HostCounts(dict(rules), dict(dropped), dict(unmarked))


def count_router(links: Iterable[CountedLink], counted: Iterable[CountedRule]) -> RouterStats:
    """Of the links and the rules inside its namespace."""
    traffic = {link.name: link.traffic for link in links}
    dropped = 0
    listeners: dict[str, Count] = {}
    for one in counted:
        if balancer_rules.owner_of_table(one.table) and one.comment:
            before = listeners.get(one.comment, Count())
            listeners[one.comment] = Count(before.packets + one.packets, before.bytes + one.bytes)
        elif one.table == TABLE and one.drops:
            dropped += one.packets
    return RouterStats(traffic.get(UPLINK_LINK), traffic.get(ROUTER_TUNNEL_LINK), dropped, listeners)


def count_links(
    links: Iterable[CountedLink],
    over_rate: Mapping[int, int],
    refused: Mapping[str, int],
    zones: Mapping[str, int],
    unmarked: Mapping[str, int],
) -> tuple[dict[str, PortStats], dict[str, NetworkStats]]:
    """Ports and networks, out of the host's links. `over_rate`: packets that a link's limit dropped;
    `refused`: frames by tap; `zones` by network."""
    ours: dict[str, dict[str, CountedLink]] = {}  # by kind and owner
    for link in links:
        mark = names.parse_alias(link.alias)
        if mark is not None:
            ours.setdefault(mark[0], {})[mark[1]] = link
    kinds = ("bridge", "tunnel", "shaper", PATCH)
    bridges, tunnels, shapers, patches = (ours.get(kind, {}) for kind in kinds)
    networks_by_bridge = {bridge.number: uid for uid, bridge in bridges.items()}
    ports = {
        uid: PortStats(
            networks_by_bridge.get(tap.master, ""),
            tap.traffic.turned(),  # the host's end of the link: what it sends, the guest receives
            refused.get(tap.name, 0),
            _limited(tap, over_rate),
            _limited(shapers.get(uid), over_rate),
        )
        for uid, tap in ours.get("tap", {}).items()
    }
    taps = Counter(port.network_uid for port in ports.values())
    networks = {
        uid: NetworkStats(
            taps[uid],
            tunnels[uid].traffic if uid in tunnels else None,
            unmarked.get(f"{ZONE_PREFIX}{zones.get(uid)}", 0),
            patches[uid].traffic if uid in patches else None,
        )
        for uid in bridges
    }
    return ports, networks


def _limited(link: CountedLink | None, over_rate: Mapping[int, int]) -> int | None:
    return over_rate.get(link.number) if link is not None else None
