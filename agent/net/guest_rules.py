"""How guests' frames are judged on the node: the static chains, in the host's bridge and inet tables.

**Pure.** The way of a frame:

    bridge prerouting   its sender is who it says (one lookup of link, MAC and address), and marked
    inet  raw           the connection-tracking zone of its network
    inet  egress        an established connection passes at once; else the sender's groups judge
    bridge forward      the mark becomes the receiver's
    inet  ingress       what `egress` found established passes; else the receiver's groups judge

A mark is our tag in the upper byte and a port's number on this node; four numbers are special. It is the
sender's until the bridge knows the receiver (`oifname` is known to the bridge family only, conntrack to inet
only), and zero again when the frame leaves. Default is drop at each step.

A connection that came by the gateway is answered by the gateway: conntrack remembers it (`ct mark`), and the
replies get the gateway's MAC. A member of a load balancer would else answer a client of its own subnet
directly, past the router that knows under which address the client asked (ADR 20).
"""

from __future__ import annotations

from typing import Final

from agent.net import rule_words as words
from agent.net.addressing import METADATA_ADDRESS
from agent.net.rule_words import ACCEPT, COUNTER, DROP, IIFNAME, MARK, PASS, Json
from cumulet.addresses import PART_RANGE, PART_RANGE6

NUMBER_MAX: Final = 0xFFFFFD
_TAG: Final = 0x43000000
_TAG_LENGTH: Final = 8  # bits
_CT_MARK: Final[Json] = {"ct": {"key": "mark"}}
_OURS: Final[Json] = {"prefix": {"addr": _TAG, "len": _TAG_LENGTH}}
OPEN: Final = _TAG  # of a tunnel's link: its frames are judged at the guest's end
GATEWAY: Final = _TAG | 0xFFFFFE  # of a gateway's link: judged there, too
SEGMENT: Final = _TAG | 0xFFFFFD  # of the link to an operator's network, where anybody may send anything
ROUTED: Final = 0x43000001  # of a connection: it came by the gateway
_KNOWN: Final = _TAG | 0xFFFFFF  # of an established connection
# That one guest begins, so that it cannot fill the node's table (262,144 connections on common nodes). Not
# more: at a new connection the kernel walks the list of the guest's, some 0.15 µs for each. What others begin
# towards it is not counted, or they could make that walk long; they are limited where they begin, and of
# unanswered connections the kernel itself drops the oldest when its table is full.
CONNECTIONS_MAX: Final = 16_384
ZONE_PREFIX: Final = "zone-"
_CONNECTIONS: Final = "connections"
REFUSED: Final = "refused"  # taps, each with a count of the frames that it sent as somebody else

_ANTI_SPOOF: Final = -350  # before br_netfilter hands the frame to inet, at 0
_RAW: Final = -300  # before conntrack, at -200
_EGRESS: Final = -150
_RECEIVER: Final = -10  # before br_netfilter hands the frame to inet's forward, at -1

_METADATA: Final = str(METADATA_ADDRESS)
_DHCP: Final = 67
_DHCP_CLIENT: Final = 68
_DHCPV6: Final = 547
_DHCPV6_CLIENT: Final = 546
# ICMPv6 types (RFC 4861, RFC 3810): multicast listeners, and what finds routers and neighbours. Whose address
# a neighbour message may be about is judged in the bridge by guard_rules.py.
_SOLICITS: Final = [131, 132, 133, 135, 136, 143]
_ASKS_WITHOUT_ADDRESS: Final = [133, 135, 143]
_ADVERTISES: Final = [130, 134, 135, 136]
_ROUTER_ADVERT, _REDIRECT = 134, 137


def mark_of(number: int) -> int:
    """The mark of the port with this number."""
    if not 1 <= number < NUMBER_MAX:
        raise ValueError(f"port number {number} is not between 1 and {NUMBER_MAX - 1}")
    return _TAG | number


def forward_rules() -> list[Json]:
    """The first of the node's forward chain: what is established passes after one comparison."""
    return [
        words.rule("inet", "forward", words.match("==", MARK, _KNOWN), words.set_mark(0), PASS),
        words.rule("inet", "forward", _is_ours(), words.goto("ingress")),
    ]


# -- bridge -----------------------------------------------------------------------------------------------


def bridge_rules() -> list[Json]:
    """The bridge family's table."""
    return [
        *words.table("bridge"),
        words.named_set("bridge", "taps", "ifname"),
        words.named_set("bridge", REFUSED, "ifname", counts=True),
        words.named_map("bridge", "receivers", "ifname", "mark"),
        *(words.named_map("bridge", *body) for body in _SENDER_MAPS),
        *(words.named_map("bridge", name, kind, value, ranges=True) for name, kind, value in _PAIR_MAPS),
        words.chain("bridge", "arp"),
        words.rule("bridge", "arp", *_sender("arp", "arp", "saddr ip", "senders4", "saddr ether"), PASS),
        words.rule("bridge", "arp", *_sender("arp", "arp", "saddr ip", "pairs4", "saddr ether"), PASS),
        *(words.rule("bridge", "arp", *statements) for statements in _REFUSE),
        words.chain("bridge", "guest"),
        *(words.rule("bridge", "guest", *statements) for statements in _guest()),
        words.base_chain("bridge", "prerouting", "filter", "prerouting", _ANTI_SPOOF),
        # By tap and not by "a port of our bridge": `meta ibrname` is a module that small kernels lack.
        *(words.rule("bridge", "prerouting", *statements) for statements in _bridge_prerouting()),
        words.base_chain("bridge", "forward", "filter", "forward", _RECEIVER),
        *(words.rule("bridge", "forward", *statements) for statements in _bridge_forward()),
    ]


# The first counts for whom. A tap whose port the intent no longer has is in no set but `taps`.
_REFUSE: Final = ((words.iifname(f"@{REFUSED}"), *DROP), DROP)
_SENDER_MAPS: Final = (
    ("senders4", ["ifname", "ether_addr", "ipv4_addr"], "mark"),
    ("senders6", ["ifname", "ether_addr", "ipv6_addr"], "mark"),
)
_PAIR_MAPS: Final = (
    ("pairs4", ["ifname", "ether_addr", "ipv4_addr"], "mark"),
    ("pairs6", ["ifname", "ether_addr", "ipv6_addr"], "mark"),
)


def _sender(ethertype: str, protocol: str, field: str, map_name: str, mac: str = "") -> tuple[Json, ...]:
    """Matches when this link may send with this MAC and address, and marks the frame with the port.

    The type is read from the frame, not from what the kernel took off it: a VLAN tag is another type.
    """
    hardware = words.payload("arp", mac) if mac else words.payload("ether", "saddr")
    found = words.look_up(map_name, IIFNAME, hardware, words.payload(protocol, field))
    return words.is_field("ether", "type", ethertype), words.set_mark(found)


def _bridge_prerouting() -> list[tuple[Json, ...]]:
    return [
        (*_sender("ip", "ip", "saddr", "senders4"), PASS),  # nearly every frame: one lookup
        (words.iifname("@taps"), words.goto("guest")),
        (words.set_mark(words.look_up("receivers", IIFNAME)), PASS),  # gateways and tunnels
    ]


def _guest() -> list[tuple[Json, ...]]:
    arp = words.jump("arp")
    return [
        (*_sender("ip6", "ip6", "saddr", "senders6"), PASS),
        (*_sender("arp", "arp", "saddr ip", "senders4"), arp),
        (*_sender("arp", "arp", "saddr ip", "pairs4"), arp),
        (*_sender("ip", "ip", "saddr", "pairs4"), PASS),
        (*_sender("ip6", "ip6", "saddr", "pairs6"), PASS),
        *_REFUSE,
    ]


def _bridge_forward() -> list[tuple[Json, ...]]:
    return [
        (words.match("==", MARK, _KNOWN), PASS),
        (words.set_mark(words.look_up("receivers", {"meta": {"key": "oifname"}})), PASS),
        # Ours, towards a link that no port is known for; a foreign bridge's frames fit neither.
        (words.iifname("@taps"), *DROP),
        (words.set_mark(words.look_up("receivers", IIFNAME)), *DROP),
    ]


# -- inet -------------------------------------------------------------------------------------------------


def inet_rules() -> list[Json]:
    """The part of the inet family's table that judges guests' packets."""
    return [
        words.named_map("inet", "zones", "ifname", "verdict"),
        words.named_set("inet", "gateways4", ["ifname", "ipv4_addr"]),
        words.named_set("inet", "gateways6", ["ifname", "ipv6_addr"]),
        words.named_map("inet", "gateway_macs", "ifname", "ether_addr"),
        *(words.named_map("inet", name, "mark", "verdict") for name in ("egress", "ingress")),
        words.named_set("inet", _CONNECTIONS, "mark"),
        words.base_chain("inet", "raw", "filter", "prerouting", _RAW),
        words.rule("inet", "raw", words.vmap("zones", IIFNAME)),
        words.rule("inet", "raw", words.iifname("@bridges"), *DROP),
        words.chain("inet", "honest"),
        *(words.rule("inet", "honest", *statements) for statements in _honest()),
        words.chain("inet", "foreign"),
        *(words.rule("inet", "foreign", *statements) for statements in _foreign()),
        words.chain("inet", "services"),
        *(words.rule("inet", "services", *statements) for statements in _services()),
        words.chain("inet", "routed"),
        *(words.rule("inet", "routed", *statements) for statements in _routed()),
        words.base_chain("inet", "egress", "filter", "prerouting", _EGRESS),
        *(words.rule("inet", "egress", *statements) for statements in _egress()),
        words.chain("inet", "ingress"),
        *(words.rule("inet", "ingress", *statements) for statements in _ingress()),
    ]


def zone_rules(zone: int) -> tuple[str, list[tuple[Json, ...]]]:
    """The chain of a zone: its name, and its rules. A frame without our mark was never looked at."""
    number = {"mangle": {"key": {"ct": {"key": "zone"}}, "value": zone}}
    return f"{ZONE_PREFIX}{zone}", [(_is_not_ours(), *DROP), (number, PASS)]


def _is_not_ours() -> Json:
    return words.match("!=", MARK, _OURS)


def _is_ours() -> Json:
    return words.match("==", MARK, _OURS)


def _egress() -> list[tuple[Json, ...]]:
    return [
        (_is_not_ours(), PASS),
        (words.match("==", _CT_MARK, ROUTED), words.jump("routed")),
        (words.ct_state("established"), words.set_mark(_KNOWN), PASS),
        (words.match("==", MARK, OPEN), PASS),
        (words.match("==", MARK, SEGMENT), words.goto("foreign")),
        (words.match("==", MARK, GATEWAY), words.ct_state("new"), _set_ct_mark(ROUTED), PASS),
        (words.match("==", MARK, GATEWAY), PASS),
        (words.jump("honest"),),
        (words.ct_state("related"), words.set_mark(_KNOWN), PASS),
        (words.jump("services"),),
        (words.vmap("egress", MARK),),
        DROP,
    ]


def _routed() -> list[tuple[Json, ...]]:
    """Of connections that came by the gateway: their replies go back to it.

    Not what comes from there: between two subnets of one network, conntrack sees each packet on its way to
    the gateway and again on its way from it.
    """
    reply = words.match("==", {"ct": {"key": "direction"}}, "reply")
    from_guest = words.match("!=", MARK, GATEWAY)
    receiver = {"key": words.payload("ether", "daddr"), "value": words.look_up("gateway_macs", IIFNAME)}
    return [(reply, from_guest, {"mangle": receiver})]


def _set_ct_mark(value: int) -> Json:
    return {"mangle": {"key": _CT_MARK, "value": value}}


def _honest() -> list[tuple[Json, ...]]:
    """What no guest may send, whatever its groups say: answers that are its node's to give."""
    nothing = words.is_field("ip", "saddr", "0.0.0.0")
    unspecified = words.is_field("ip6", "saddr", "::")
    asks_dhcp = words.is_field("udp", "dport", _DHCP)
    icmpv6 = words.payload("icmpv6", "type")
    of_routers = {"set": ["redirect", "router-advertisement"]}
    return [
        (words.ct_state("invalid"), *DROP),
        *((asks, *DROP) for asks in _from_part()),
        (words.match("==", words.payload("udp", "sport"), {"set": [_DHCP, _DHCPV6]}), *DROP),
        (words.match("==", words.payload("icmp", "type"), of_routers), *DROP),
        (words.match("==", icmpv6, {"set": [_ROUTER_ADVERT, _REDIRECT]}), *DROP),
        (unspecified, words.match("==", icmpv6, {"set": _ASKS_WITHOUT_ADDRESS}), *ACCEPT),
        (unspecified, *DROP),
        (words.match("==", icmpv6, {"set": _SOLICITS}), *ACCEPT),
        (nothing, asks_dhcp, *ACCEPT),
        (nothing, *DROP),
    ]


def _foreign() -> list[tuple[Json, ...]]:
    """What no neighbour on an operator's network may send to guests: answers that are their node's to give.
    Its routers may advertise themselves."""
    servers = words.match("==", words.payload("udp", "sport"), {"set": [_DHCP, _DHCPV6]})
    return [
        (words.ct_state("invalid"), *DROP),
        *((asks, *DROP) for asks in _from_part()),
        (words.is_field("ip", "saddr", _METADATA), *DROP),
        (servers, *DROP),
        (words.is_field("icmp", "type", "redirect"), *DROP),
        (words.is_field("icmpv6", "type", _REDIRECT), *DROP),
        (PASS,),
    ]


def _services() -> list[tuple[Json, ...]]:
    """What a guest may always ask of its own node; and its limit of connections before everything else."""
    gateway4 = words.match("==", {"concat": [IIFNAME, words.payload("ip", "daddr")]}, "@gateways4")
    gateway6 = words.match("==", {"concat": [IIFNAME, words.payload("ip6", "daddr")]}, "@gateways6")
    domain = words.match("==", {"meta": {"key": "l4proto"}}, {"set": ["udp", "tcp"]})
    asks_name = words.match("==", words.payload("th", "dport"), 53)
    metadata = words.is_field("ip", "daddr", _METADATA)
    return [
        too_many(CONNECTIONS_MAX),
        (gateway4, domain, asks_name, *ACCEPT),
        (gateway6, domain, asks_name, *ACCEPT),
        (gateway4, words.is_field("udp", "dport", _DHCP), *ACCEPT),
        (words.is_field("ip", "daddr", "255.255.255.255"), words.is_field("udp", "dport", _DHCP), *ACCEPT),
        (words.is_field("ip6", "daddr", "ff02::1:2"), words.is_field("udp", "dport", _DHCPV6), *ACCEPT),
        (gateway4, words.is_field("icmp", "type", "echo-request"), *ACCEPT),
        (gateway6, words.is_field("icmpv6", "type", "echo-request"), *ACCEPT),
        (metadata, words.is_field("tcp", "dport", 80), *ACCEPT),
    ]


def _ingress() -> list[tuple[Json, ...]]:
    clear = words.set_mark(0)
    icmpv6 = words.payload("icmpv6", "type")
    udp = words.payload("udp", "sport")
    asks_server = words.match("==", words.payload("udp", "dport"), {"set": [_DHCP, _DHCPV6]})
    return [
        (words.match("==", MARK, {"set": [OPEN, GATEWAY]}), clear, PASS),
        (words.match("==", MARK, SEGMENT), asks_server, *DROP),  # its own node answers
        (words.match("==", MARK, SEGMENT), clear, PASS),
        (words.ct_state("established", "related"), clear, PASS),
        (words.ct_state("invalid"), *DROP),
        # No guest's: `honest` drops them at their sender.
        *((asks, clear, *ACCEPT) for asks in _from_part()),
        (words.match("==", udp, _DHCP), words.is_field("udp", "dport", _DHCP_CLIENT), clear, *ACCEPT),
        (words.match("==", udp, _DHCPV6), words.is_field("udp", "dport", _DHCPV6_CLIENT), clear, *ACCEPT),
        (words.match("==", icmpv6, {"set": _ADVERTISES}), clear, *ACCEPT),
        (words.vmap("ingress", MARK),),
        DROP,
    ]


def _from_part() -> tuple[Json, Json]:
    """A router's part asks whether a member of a load balancer lives, by IPv4 and by IPv6."""
    parts, parts6 = (
        {"prefix": {"addr": str(one.network_address), "len": one.prefixlen}}
        for one in (PART_RANGE, PART_RANGE6)
    )
    return words.is_field("ip", "saddr", parts), words.is_field("ip6", "saddr", parts6)


def too_many(most: int) -> tuple[Json, ...]:
    """Drops what begins one connection more than this port may have."""
    limit = {"ct count": {"val": most, "inv": True}}
    counted = {"set": {"op": "add", "elem": MARK, "set": f"@{_CONNECTIONS}", "stmt": [limit]}}
    return (counted, COUNTER, {"drop": None})
