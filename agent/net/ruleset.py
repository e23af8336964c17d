"""nftables rules of a node and of one network's namespace, as libnftables-json(5) data.

**Pure**: values in, JSON structures out; `nft.py` commits a batch as one transaction. The host's tables know
interfaces only through sets that name exactly ours (a wildcard would catch a foreign `cbr0`), and every
element's comment names its owner, so that `verify` reads owners from the kernel.

The way of a guest's packet: guest_rules.py (anti-spoofing, groups) -> bridge -> its gateway in the namespace
(DHCP, DNS and ICMP to the gateway; forwarding to up0, source-NATed) -> host table (nothing to the host,
nothing to another network) -> out, source-NATed again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Set
from typing import Final

from agent.net import floating_rules, guard_rules, guest_rules, names, security
from agent.net import rule_words as words
from agent.net.addressing import (
    METADATA_ADDRESS,
    METADATA_PORT,
    ROUTER_TUNNEL_LINK,
    UPLINK_LINK,
    UPLINK_RANGE,
    fixed_mac,
    gateway_addresses,
)
from agent.net.driver import NetworkIntent, PortIntent, RouterIntent
from agent.net.elements import GUARD_TABLE, TABLE, Element, Json, add_elements
from agent.net.fingerprint import fingerprint
from agent.net.group_listing import is_changing
from agent.net.rule_words import ACCEPT, COUNTER, DROP, IIFNAME
from agent.net.senders import sender_keys

HOST_FAMILIES: Final = ("inet", "bridge")
HOST_TABLES: Final = tuple((family, name) for name in (TABLE, GUARD_TABLE) for family in HOST_FAMILIES)
NAMESPACE_TABLES: Final = (("inet", TABLE),)

_BEFORE_FIREWALLS: Final = -10  # ours judges first; a foreign firewall at 0 may still refuse, never allow
_SOURCE_NAT: Final = 100
_GATEWAYS: Final = "gw*"  # in a namespace every link is ours: those of its networks (names.py)


# -- elements ---------------------------------------------------------------------------------------------


def network_elements(network: NetworkIntent, zone: int) -> frozenset[Element]:
    """Its links, its zone, and where its guests reach their node's services."""
    uid = network.uid
    bridge = names.bridge_name(uid)
    gateways = {
        Element("inet", f"gateways{address.version}", (bridge, str(address)), uid)
        for address, _ in gateway_addresses(network)
    }
    marks = {
        names.gateway_link_name(uid): guest_rules.GATEWAY,
        **(
            {names.patch_bridge_name(uid): guest_rules.SEGMENT}
            if network.segment is not None
            else {names.tunnel_name(uid): guest_rules.OPEN}
        ),
    }
    open_links = {
        Element("bridge", "receivers", (link,), uid, data=str(mark)) for link, mark in marks.items()
    }
    uplink = set() if network.router_uid else uplink_elements(uid)
    return frozenset(
        {
            Element("inet", "bridges", (bridge,), uid),
            *uplink,
            Element("inet", "zones", (bridge,), uid, data=f"jump {guest_rules.ZONE_PREFIX}{zone}"),
            *gateways,
            *open_links,
            Element("inet", "gateway_macs", (bridge,), uid, data=fixed_mac("gateway", uid)),
        }
    )


def uplink_elements(domain_uid: str) -> frozenset[Element]:
    """The way out of a routing domain: a router, or a network without one."""
    return frozenset({Element("inet", "uplinks", (names.uplink_name(domain_uid),), domain_uid)})


@functools.lru_cache(maxsize=16_384)  # ports of a node: every look compares all of them
def port_elements(port: PortIntent, number: int) -> frozenset[Element]:
    """The tap as a guest's, what it may send as, and who judges. Program them before it is on a bridge."""
    tap, mark = names.tap_name(port.uid), str(guest_rules.mark_of(number))
    own = port.network_uid, port.uid
    senders = {
        Element("bridge", map_name, (tap, mac, source), *own, data=mark)
        for map_name, mac, source in sender_keys(port)
    }
    receiver = Element("bridge", "receivers", (tap,), *own, data=mark)
    verdicts = {
        Element("inet", map_name, (mark,), *own, data=verdict)
        for map_name, verdict in security.port_verdicts(port).items()
    }
    guest = _guest_element(port.uid, port.network_uid)
    refused = Element("bridge", guest_rules.REFUSED, (tap,), *own)
    return frozenset({guest, refused, receiver, *senders, *verdicts}) | guard_rules.speaker_elements(port)


def guard_elements(
    network: NetworkIntent, tapped: Set[str], numbers: Mapping[str, int]
) -> frozenset[Element]:
    """For the ports in `tapped`: what each may send as; nothing for one that the intent no longer has."""
    found = guards_by_port(network, tapped, numbers)
    return frozenset(element for elements in found.values() for element in elements)


def guards_by_port(
    network: NetworkIntent, tapped: Set[str], numbers: Mapping[str, int]
) -> dict[str, frozenset[Element]]:
    wanted = {port.uid: port for port in network.ports if port.uid in numbers}
    return {
        uid: port_elements(wanted[uid], numbers[uid])
        if uid in wanted
        else frozenset({_guest_element(uid, network.uid)})
        for uid in tapped
    }


def _guest_element(port_uid: str, network_uid: str) -> Element:
    return Element("bridge", "taps", (names.tap_name(port_uid),), network_uid, port_uid)


# -- the host ---------------------------------------------------------------------------------------------


def host_rules(
    elements: Iterable[Element], chains: Iterable[Json] = (), *, guests_only: bool = False
) -> list[Json]:
    """Replaces both host tables by what they are to be, in one transaction.

    `chains`: those that elements lead to, and groups. `guests_only`: the node forwards IPv4 for guests' sake
    only, and nothing else of it; for IPv6 see external.py.
    """
    return [*_host_inet(guests_only), *guest_rules.bridge_rules(), *chains, *add_elements(elements)]


def host_rules_absent() -> list[Json]:
    return [command for family, name in HOST_TABLES for command in words.table_absent(family, name)]


def _host_inet(guests_only: bool) -> list[Json]:
    closing = _closing() if guests_only else []
    return [
        *words.table("inet"),
        words.named_set("inet", "bridges", "ifname"),
        words.named_set("inet", "uplinks", "ifname"),
        words.named_set("inet", "floating", ["ifname", "ipv4_addr"]),
        words.named_set("inet", "routed", ["ifname", "ipv6_addr"]),
        *guest_rules.inet_rules(),
        words.base_chain("inet", "input", "filter", "input", _BEFORE_FIREWALLS),
        words.rule("inet", "input", words.iifname("@bridges"), *DROP),
        words.rule("inet", "input", words.iifname("@uplinks"), *DROP),
        *_chain("outwards", _outwards()),
        *_chain("leaving", _leaving()),
        *_chain("entering", _entering()),
        words.base_chain("inet", "forward", "filter", "forward", _BEFORE_FIREWALLS),
        *guest_rules.forward_rules(),
        *(words.rule("inet", "forward", *statements) for statements in (*_host_forward(), *closing)),
        words.base_chain("inet", "postrouting", "nat", "postrouting", _SOURCE_NAT),
        words.rule("inet", "postrouting", *_host_masquerade()),
    ]


def _chain(name: str, rules: list[list[Json]]) -> list[Json]:
    return [words.chain("inet", name), *(words.rule("inet", name, *statements) for statements in rules)]


def _host_forward() -> list[list[Json]]:
    return [
        [words.iifname("@bridges"), *DROP],  # not bridged: a frame to the bridge's own MAC is no way out
        [words.iifname("@uplinks"), words.goto("leaving")],
        [words.oifname("@uplinks"), words.goto("entering")],
        [words.oifname("@bridges"), *DROP],
    ]


def _leaving() -> list[list[Json]]:
    """What comes from a routing domain, by one of its addresses."""
    return [
        [
            words.match("==", _concat(IIFNAME, words.payload("ip", "saddr")), "@floating"),
            words.goto("outwards"),
        ],
        [words.match("==", words.payload("ip", "saddr"), _UPLINK_PREFIX), words.goto("outwards")],
        [
            words.match("==", _concat(IIFNAME, words.payload("ip6", "saddr")), "@routed"),
            words.goto("outwards"),
        ],
        list(DROP),
    ]


def _outwards() -> list[list[Json]]:
    link_local = {"prefix": {"addr": "169.254.0.0", "len": 16}}
    return [
        [words.ct_state("invalid"), *DROP],  # NAT skips invalid packets
        *_to_addresses(),
        [words.oifname("@uplinks"), *DROP],  # another network
        [words.oifname("@bridges"), *DROP],
        # The node's own cloud answers on link-local addresses, credentials among the answers.
        [words.match("==", words.payload("ip", "daddr"), link_local), *DROP],
        list(ACCEPT),
    ]


def _entering() -> list[list[Json]]:
    """What goes to a routing domain."""
    return [*_to_addresses(), [words.ct_state("established", "related"), *ACCEPT], list(DROP)]


def _to_addresses() -> list[list[Json]]:
    """To those of the outside that are led here."""
    return [
        [words.match("==", _concat(_OIFNAME, words.payload("ip", "daddr")), "@floating"), *ACCEPT],
        [words.match("==", _concat(_OIFNAME, words.payload("ip6", "daddr")), "@routed"), *ACCEPT],
    ]


def _closing() -> list[list[Json]]:
    """Not from bridge to bridge: what an operator's own bridge carries passes here, too."""
    ends = (words.match("!=", {"meta": {"key": key}}, "bridge") for key in ("iifkind", "oifkind"))
    return [[_IS_IPV4, end, *DROP] for end in ends]


def _host_masquerade() -> list[Json]:
    """What does not leave from an address of the outside."""
    inside = words.match("==", words.payload("ip", "saddr"), _UPLINK_PREFIX)
    return [words.iifname("@uplinks"), inside, COUNTER, {"masquerade": None}]


def _concat(*parts: Json) -> Json:
    return {"concat": list(parts)}


# -- the namespace of a routing domain --------------------------------------------------------------------


def namespace_rules(*, outbound_nat: bool, router: RouterIntent | None = None) -> list[Json]:
    """Replaces the namespace's table. A router joins its networks' subnets, on this node and on others.

    A network's own gateway leads to the outside, with `outbound_nat`, and to nothing else: it stays on its
    node, so guests of other subnets would be reached on this node only.
    """
    floating = router.floating if router is not None else ()
    routed = router.routed if router is not None else ()
    forward = [
        *(floating_rules.foreign_rules(router.cidrs) if router is not None and (floating or routed) else []),
        *floating_rules.routed_rules(routed),
        *([] if outbound_nat else floating_rules.closed_rules(floating)),
        [words.ct_state("invalid"), *DROP],
        [words.ct_state("established", "related"), *ACCEPT],
        *(_joined() if router is not None else []),
        *floating_rules.forward_rules(floating, _GATEWAYS),
        *floating_rules.open_rules(routed, _GATEWAYS),
        *([[words.iifname(_GATEWAYS), words.oifname(UPLINK_LINK), *ACCEPT]] if outbound_nat else []),
        list(DROP),
    ]
    masquerade = [words.oifname(UPLINK_LINK), _IS_IPV4, COUNTER, {"masquerade": None}]
    return [
        *words.table("inet"),
        words.base_chain("inet", "input", "filter", "input", 0, policy="drop"),
        *(words.rule("inet", "input", *statements) for statements in _gateway_input()),
        words.base_chain("inet", "forward", "filter", "forward", 0, policy="drop"),
        *(words.rule("inet", "forward", *statements) for statements in forward),
        *(
            floating_rules.return_rules(router.announcers, router.cidrs, _GATEWAYS)
            if router is not None
            else []
        ),
        *floating_rules.destination_rules(floating),
        words.base_chain("inet", "postrouting", "nat", "postrouting", _SOURCE_NAT),
        *(words.rule("inet", "postrouting", *one) for one in floating_rules.source_rules(floating)),
        words.rule("inet", "postrouting", *masquerade),
    ]


def _joined() -> list[list[Json]]:
    """Between networks here, and to and from the router's parts on other nodes; never from part to part."""
    ways = ((_GATEWAYS, _GATEWAYS), (_GATEWAYS, ROUTER_TUNNEL_LINK), (ROUTER_TUNNEL_LINK, _GATEWAYS))
    return [[words.iifname(came), words.oifname(goes), *ACCEPT] for came, goes in ways]


def _gateway_input() -> list[list[Json]]:
    """What a guest may ask of its gateway."""
    echo = words.match("==", words.payload("icmp", "type"), "echo-request")
    asked = ["echo-request", "nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert"]
    return [
        [words.iifname("lo"), *ACCEPT],
        [words.ct_state("established", "related"), *ACCEPT],
        # The namespace's address towards the node is no gateway of the guests.
        [words.iifname(_GATEWAYS), words.match("==", words.payload("ip", "daddr"), _UPLINK_PREFIX), *DROP],
        [words.iifname(_GATEWAYS), words.match("==", words.payload("udp", "dport"), 67), *ACCEPT],
        [words.iifname(_GATEWAYS), words.match("==", words.payload("udp", "dport"), 53), *ACCEPT],
        [words.iifname(_GATEWAYS), words.match("==", words.payload("tcp", "dport"), 53), *ACCEPT],
        [
            words.iifname(_GATEWAYS),
            words.is_field("ip", "daddr", str(METADATA_ADDRESS)),
            words.is_field("tcp", "dport", METADATA_PORT),
            *ACCEPT,
        ],
        [words.iifname(_GATEWAYS), echo, *ACCEPT],
        [words.iifname(_GATEWAYS), _IS_IPV6, words.is_field("udp", "dport", 547), *ACCEPT],
        [
            words.iifname(_GATEWAYS),
            words.match("==", words.payload("icmpv6", "type"), {"set": asked}),
            *ACCEPT,
        ],
        list(DROP),
    ]


# -- comparison -------------------------------------------------------------------------------------------


def rules_fingerprint(listing: Json) -> str:
    """A digest of tables, chains, sets and rules, without what comes and goes with intents (group_listing.py)
    or is compared on its own (elements)."""
    items = listing["nftables"]
    return fingerprint([item for item in items if "metainfo" not in item and not is_changing(item)])


def count_rules(batch_or_listing: Iterable[Json]) -> int:
    """Of our main tables."""
    found = (item.get("add", item).get("rule") for item in batch_or_listing)
    return sum(rule is not None and rule["table"] == TABLE for rule in found)


_OIFNAME: Final[Json] = {"meta": {"key": "oifname"}}
_IS_IPV4: Final[Json] = words.match("==", {"meta": {"key": "nfproto"}}, "ipv4")
_IS_IPV6: Final[Json] = words.match("==", {"meta": {"key": "nfproto"}}, "ipv6")
_UPLINK_PREFIX: Final[Json] = {
    "prefix": {"addr": str(UPLINK_RANGE.network_address), "len": UPLINK_RANGE.prefixlen}
}
