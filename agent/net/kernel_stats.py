"""Reads what the kernel counts: links, rules, tracked connections.

**Edge**, reading only. Called in the driver's thread, in the host's namespace. One dump of links for each
namespace, and one of rules for each of the host's tables and each router. Connections are not walked, their
number is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from agent.net import counters, netns, rules_wire, sysctl
from agent.net.elements import TABLE
from agent.net.guest_rules import REFUSED
from agent.net.netlink_qos import BUCKET
from agent.net.netlink_stats import CountedLink
from agent.net.netlink_wire import F_DUMP
from agent.net.queues import Queues
from agent.net.rtnetlink import NETLINK_NETFILTER, Netlink, converse, open_conversation
from agent.net.rules_wire import CountedRule
from agent.net.ruleset import HOST_TABLES
from agent.net.stats import NetStats, RouterStats

# Table by table: of other programs' rules there may be thousands. A router's namespace holds ours alone.
_OF_HOST: Final = tuple(rules_wire.rules_request(*table) for table in HOST_TABLES)
_OF_ROUTER: Final = (rules_wire.all_rules_request(),)


def read_stats(zones: Mapping[str, int], routers: Mapping[str, Path]) -> NetStats:
    """`zones` by network, namespaces by router; one that is not there is left out."""
    rules = _counted_rules(_OF_HOST)
    host = counters.count_host(rules)
    # Nobody was refused anything: no need to ask for whom.
    refused = _refused() if host.dropped.get(counters.ANTI_SPOOFING) else {}
    links = _links()
    ports, networks = counters.count_links(links, _over_rate(links), refused, zones, host.unmarked)
    connections, connections_max = sysctl.connections()
    return NetStats(
        ports=ports,
        networks=networks,
        routers={uid: _router(path) for uid, path in routers.items() if netns.exists(path)},
        rules=host.rules,
        dropped=host.dropped,
        connections=connections,
        connections_max=connections_max,
    )


def _router(namespace: Path) -> RouterStats:
    with netns.inside(namespace):
        return counters.count_router(_links(), _counted_rules(_OF_ROUTER))


def _links() -> list[CountedLink]:
    with Netlink() as netlink:
        return netlink.counted_links()


def _over_rate(links: list[CountedLink]) -> dict[int, int]:
    """Packets that limits of rate dropped, by link. A node without a limit is not asked for its queues."""
    if all(link.queue != BUCKET for link in links):
        return {}
    with Queues() as queues:
        return queues.bucket_drops()


def _counted_rules(requests: Iterable[bytes]) -> Iterable[CountedRule]:
    """Each once: a dump that a change interrupts may tell of a rule twice."""
    found: dict[tuple[str, str, int], CountedRule] = {}
    with contextlib.closing(open_conversation(NETLINK_NETFILTER)) as conversation:
        for sequence, request in enumerate(requests, start=1):
            for payload in converse(conversation, sequence, rules_wire.GETRULE, F_DUMP, request):
                rule = rules_wire.parse_rule(payload)
                if rule is not None:
                    found[rule.family, rule.table, rule.handle] = rule
    return found.values()


def _refused() -> dict[str, int]:
    """Frames that anti-spoofing refused, by tap."""
    request = rules_wire.elements_request("bridge", TABLE, REFUSED)
    with contextlib.closing(open_conversation(NETLINK_NETFILTER)) as conversation:
        return {
            name: packets
            for payload in converse(conversation, 1, rules_wire.GETSETELEM, F_DUMP, request)
            for name, packets in rules_wire.parse_counted_names(payload)
        }
