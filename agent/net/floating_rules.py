"""What a router's namespace does with addresses of the outside: rules, as libnftables-json(5) data.

**Pure.** A floating IP's packets get the fixed address for it and the other way round; forwards are single
ports; IPv6 passes as it is. What came to a port here by another node's part of the router goes back by that:
its connection bears the number of that node (external.py), and so does each reply, which decides the table of
its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent.net import external, router_entries
from agent.net import rule_words as words
from agent.net.addressing import ROUTER_TUNNEL_LINK, UPLINK_LINK
from agent.net.driver import FloatingIntent, IPAddress, IPNetwork, RoutedIntent
from agent.net.rule_words import ACCEPT, COUNTER, DROP, Json
from cumulet.protocols import TRANSLATED

_DESTINATION_NAT: Final = -100
_MANGLE: Final = -150
_SOURCE: Final = words.payload("ip", "saddr")
_DESTINATION: Final = words.payload("ip", "daddr")
_SOURCE6: Final = words.payload("ip6", "saddr")
_DESTINATION6: Final = words.payload("ip6", "daddr")
_IS_IPV4: Final = words.match("==", {"meta": {"key": "nfproto"}}, "ipv4")


def closed_rules(floating: Sequence[FloatingIntent]) -> list[list[Json]]:
    """The way out is for those with an address of the outside only.

    First of all rules, so that connections of the time before it was closed end too.
    """
    inside = _inside(floating)
    if not inside:
        return [
            [words.oifname(UPLINK_LINK), _IS_IPV4, *DROP],
            [words.iifname(UPLINK_LINK), _IS_IPV4, *DROP],
        ]
    others = {"set": inside}
    return [
        [words.oifname(UPLINK_LINK), words.match("!=", _SOURCE, others), *DROP],
        [words.iifname(UPLINK_LINK), words.match("!=", _DESTINATION, others), *DROP],
    ]


def foreign_rules(cidrs: Sequence[IPNetwork]) -> list[list[Json]]:
    """Nobody outside has an address of the router's networks: rules that mean their guests by it do not mean
    him. First of all rules."""
    return [
        [
            words.iifname(UPLINK_LINK),
            words.match("==", words.payload(family, "saddr"), {"set": inside}),
            *DROP,
        ]
        for family, version in (("ip", 4), ("ip6", 6))
        if (inside := [_prefix(cidr) for cidr in cidrs if cidr.version == version])
    ]


def routed_rules(routed: Sequence[RoutedIntent]) -> list[list[Json]]:
    """Of IPv6, the way out and in is that of these subnets only. Before any rule that lets packets pass;
    without such a subnet the router's uplink has no IPv6."""
    if not routed:
        return []
    subnets = _subnets(routed)
    return [
        [words.oifname(UPLINK_LINK), words.match("!=", _SOURCE6, subnets), *DROP],
        [words.iifname(UPLINK_LINK), words.match("!=", _DESTINATION6, subnets), *DROP],
    ]


def open_rules(routed: Sequence[RoutedIntent], gateways: str) -> list[list[Json]]:
    """Both ends may begin, and the guests' groups decide."""
    if not routed:
        return []
    subnets = _subnets(routed)
    return [
        [
            words.iifname(gateways),
            words.oifname(UPLINK_LINK),
            words.match("==", _SOURCE6, subnets),
            *ACCEPT,
        ],
        [
            words.iifname(UPLINK_LINK),
            words.oifname(gateways),
            words.match("==", _DESTINATION6, subnets),
            *ACCEPT,
        ],
    ]


def forward_rules(floating: Sequence[FloatingIntent], gateways: str) -> list[list[Json]]:
    """What came for an address and was translated goes on; those that have one may begin, too."""
    if not floating:
        return []
    translated = words.match("in", {"ct": {"key": "status"}}, "dnat")
    ways = [
        [words.iifname(UPLINK_LINK), words.oifname(link), translated, *ACCEPT]
        for link in (gateways, ROUTER_TUNNEL_LINK)
    ]
    fixed = [str(one.fixed) for one in floating if one.fixed is not None]
    if fixed:
        begins = words.match("==", _SOURCE, {"set": fixed})
        ways.append([words.iifname(gateways), words.oifname(UPLINK_LINK), begins, *ACCEPT])
    return ways


def source_rules(floating: Sequence[FloatingIntent]) -> list[list[Json]]:
    """Of the chain that translates sources, before what translates all others."""
    pairs = [[str(one.fixed), str(one.address)] for one in floating if one.fixed is not None]
    if not pairs:
        return []
    address = {"map": {"key": _SOURCE, "data": {"set": pairs}}}
    return [[words.oifname(UPLINK_LINK), {"snat": {"family": "ip", "addr": address}}]]


def destination_rules(floating: Sequence[FloatingIntent]) -> list[Json]:
    """The chain that translates destinations, with a rule for each forward."""
    if not floating:
        return []
    pairs = [[str(one.address), str(one.fixed)] for one in floating if one.fixed is not None]
    chain = "prerouting"
    commands = [words.base_chain("inet", chain, "nat", "prerouting", _DESTINATION_NAT)]
    if pairs:
        address = {"map": {"key": _DESTINATION, "data": {"set": pairs}}}
        commands.append(words.rule("inet", chain, {"dnat": {"family": "ip", "addr": address}}))
    for one in floating:
        for forward in one.forwards:
            protocol = TRANSLATED[forward.protocol]
            meant = (
                words.is_field("ip", "daddr", str(one.address)),
                words.is_field(protocol, "dport", forward.port),
            )
            target = {"family": "ip", "addr": str(forward.target), "port": forward.target_port}
            commands.append(words.rule("inet", chain, *meant, COUNTER, {"dnat": target}))
    return commands


def return_rules(announcers: Sequence[IPAddress], cidrs: Sequence[IPNetwork], gateways: str) -> list[Json]:
    """The chain that gives connections from other nodes' uplinks their node's number, and replies too."""
    if not announcers:
        return []
    chain = "returns"
    marks = [[router_entries.peer_mac(one), external.mark_of_node(one)] for one in announcers]
    number = {"map": {"key": words.payload("ether", "saddr"), "data": {"set": marks}}}
    ours = {"set": [_prefix(cidr) for cidr in cidrs if cidr.version == 4]}
    mark = {"ct": {"key": "mark"}}
    return [
        words.base_chain("inet", chain, "filter", "prerouting", _MANGLE),
        words.rule(
            "inet",
            chain,
            words.iifname(ROUTER_TUNNEL_LINK),
            words.ct_state("new"),
            words.match("!=", _SOURCE, ours),
            {"mangle": {"key": mark, "value": number}},
        ),
        words.rule("inet", chain, words.iifname(gateways), words.set_mark(mark)),
    ]


def _inside(floating: Sequence[FloatingIntent]) -> list[str]:
    """Addresses that packets from the outside may reach."""
    fixed = [one.fixed for one in floating if one.fixed is not None]
    forwarded = [way.target for one in floating for way in one.forwards]
    members = [member for one in floating for member in one.members]
    return list(dict.fromkeys(map(str, (*fixed, *forwarded, *members))))


def _subnets(routed: Sequence[RoutedIntent]) -> Json:
    return {"set": [_prefix(one.subnet) for one in routed]}


def _prefix(cidr: IPNetwork) -> Json:
    return {"prefix": {"addr": str(cidr.network_address), "len": cidr.prefixlen}}
