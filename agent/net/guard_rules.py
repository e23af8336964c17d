"""Rules of a node that need no values but those in sets: who may send into tunnels, and who may answer ND.

**Pure.** A constant in nft's own language, because its JSON (1.0.6) has no sets of raw payload: the VNI of a
VXLAN packet (24 bits after UDP's and half of VXLAN's header) and the target of a neighbour discovery message
(128 bits after ICMPv6's header and four reserved bytes). Elements come and go with those of other tables.

Outer packets: judged at the input hook, after fragments were put together; only nodes that have ports of a
VNI may send with it. Frames: what is the gateway's never enters or leaves a tunnel, so that every node has
its own. Guests: no answer for somebody else's address (RFC 4861, section 4.4), no claim on it (section 4.3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from agent.net import addressing, names
from agent.net.driver import IPAddress, NetworkIntent, PortIntent
from agent.net.elements import GUARD_TABLE, Element
from agent.net.senders import ipv6_claims

GUARD_RULES: Final = """
table inet cumulet-guard
delete table inet cumulet-guard
table inet cumulet-guard {
    set ends { typeof ip daddr . @th,96,24; }
    set ends6 { typeof ip6 daddr . @th,96,24; }
    set peers { typeof ip saddr . @th,96,24; }
    set peers6 { typeof ip6 saddr . @th,96,24; }
    chain prerouting {
        type filter hook prerouting priority -300; policy accept;
        udp dport 4789 ip daddr . @th,96,24 @ends notrack
        udp dport 4789 ip6 daddr . @th,96,24 @ends6 notrack
    }
    chain input {
        type filter hook input priority -300; policy accept;
        udp dport 4789 ip daddr . @th,96,24 @ends ip saddr . @th,96,24 != @peers counter drop
        udp dport 4789 ip6 daddr . @th,96,24 @ends6 ip6 saddr . @th,96,24 != @peers6 counter drop
    }
    chain output {
        type filter hook output priority -300; policy accept;
        udp dport 4789 ip saddr . @th,96,24 @ends notrack
        udp dport 4789 ip6 saddr . @th,96,24 @ends6 notrack
    }
}
table bridge cumulet-guard
delete table bridge cumulet-guard
table bridge cumulet-guard {
    set tunnels { type ifname; }
    set gateways { type ether_addr; }
    set speakers { type ifname; }
    set targets { typeof iifname . @th,64,128; }
    chain prerouting {
        type filter hook prerouting priority -340; policy accept;
        meta mark { 0x43000000, 0x43fffffd } iifname @tunnels jump foreign
        meta l4proto ipv6-icmp iifname @speakers jump speaker
    }
    chain speaker {
        icmpv6 type { nd-router-advert, nd-redirect } counter drop
        icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @targets counter drop
        icmpv6 type nd-neighbor-solicit ip6 saddr :: iifname . @th,64,128 != @targets counter drop
    }
    chain foreign {
        ether saddr @gateways counter drop
        ether daddr @gateways counter drop
        arp saddr ip 169.254.169.254 counter drop
    }
}
"""


def tunnel_elements(network: NetworkIntent, underlay: IPAddress | None) -> frozenset[Element]:
    """Of a network that spans: where its tunnel ends here, and what never passes it; or its patch."""
    if network.segment is not None:
        way, ends = names.patch_bridge_name(network.uid), frozenset[Element]()
    elif underlay is not None:
        way, ends = names.tunnel_name(network.uid), tunnel_end(network.uid, network.vni, underlay)
    else:
        return frozenset()
    gateway = addressing.fixed_mac("gateway", network.uid)
    return frozenset(
        {
            *ends,
            Element("bridge", "tunnels", (way,), network.uid, table=GUARD_TABLE),
            Element("bridge", "gateways", (gateway,), network.uid, table=GUARD_TABLE),
        }
    )


def tunnel_end(owner_uid: str, vni: int, underlay: IPAddress | None) -> frozenset[Element]:
    """Of a network or of a router."""
    return frozenset({_vni_element("ends", underlay, vni, owner_uid)} if underlay is not None else ())


def peer_elements(owner_uid: str, vni: int, vteps: Iterable[IPAddress]) -> frozenset[Element]:
    """Who may send with this VNI."""
    return frozenset(_vni_element("peers", vtep, vni, owner_uid) for vtep in vteps)


def peers_fit(elements: Iterable[Element], vni: int, vteps: Collection[IPAddress]) -> bool:
    """Of a network's or a router's elements: exactly these nodes may send. Asked at every look."""
    found = {element.value for element in elements if is_peer(element)}
    return len(found) == len(vteps) and found == {(str(vtep), str(vni)) for vtep in vteps}


def is_peer(element: Element) -> bool:
    return element.set_name in ("peers", "peers6")


def speaker_elements(port: PortIntent) -> frozenset[Element]:
    """What a guest may answer for in neighbour discovery; without IPv6 nothing."""
    tap = names.tap_name(port.uid)
    values = [("speakers", (tap,)), *(("targets", (tap, f"{int(own):#x}")) for own in ipv6_claims(port))]
    return frozenset(
        Element("bridge", set_name, value, port.network_uid, port.uid, GUARD_TABLE)
        for set_name, value in values
    )


def _vni_element(set_name: str, address: IPAddress, vni: int, network_uid: str) -> Element:
    name = set_name if address.version == 4 else f"{set_name}6"
    return Element("inet", name, (str(address), str(vni)), network_uid, table=GUARD_TABLE)
