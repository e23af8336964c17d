"""nftables rules of a node and of one network's namespace, as libnftables-json(5) data.

**Pure**: values in, JSON structures out; `nft.py` commits a batch as one transaction. The host's tables know
interfaces only through sets that name exactly ours (a wildcard would catch a foreign `cbr0`), and every
element's comment names its owner, so that `verify` reads owners from the kernel.

The way of a guest's packet: bridge table (anti-spoofing, default deny) -> bridge -> gw0 in the namespace
(DHCP, DNS and ICMP to the gateway; forwarding to up0, source-NATed) -> host table (nothing to the host,
nothing to another network) -> out, source-NATed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Set
from typing import Any, Final

from agent.net import guard_rules, names
from agent.net.addressing import GATEWAY_LINK, UPLINK_LINK, UPLINK_RANGE
from agent.net.driver import NetworkIntent, PortIntent
from agent.net.elements import GUARD_TABLE, TABLE, Element, Json, add_elements

HOST_FAMILIES: Final = ("inet", "bridge")
HOST_TABLES: Final = tuple((family, name) for name in (TABLE, GUARD_TABLE) for family in HOST_FAMILIES)
NAMESPACE_TABLES: Final = (("inet", TABLE),)

_BEFORE_FIREWALLS: Final = -10  # ours judges first; a foreign firewall at 0 may still refuse, never allow
_RAW: Final = -300
_SOURCE_NAT: Final = 100
_ANTI_SPOOF: Final = -350


# -- elements ---------------------------------------------------------------------------------------------


def network_elements(network_uid: str) -> frozenset[Element]:
    bridge, uplink = names.bridge_name(network_uid), names.uplink_name(network_uid)
    return frozenset(
        {
            Element("inet", "bridges", (bridge,), network_uid),
            Element("inet", "uplinks", (uplink,), network_uid),
        }
    )


def port_elements(port: PortIntent) -> frozenset[Element]:
    """The tap as a guest's, and what it may send as. Program them before the tap is on a bridge."""
    tap = names.tap_name(port.uid)
    guest = _guest_element(port.uid, port.network_uid)
    mac = Element("bridge", "macs", (tap, port.mac.lower()), port.network_uid, port.uid)
    own = [("addresses", str(address)) for address in port.addresses if address.version == 4]
    own += [("addresses6", str(address)) for address in guard_rules.ipv6_addresses(port)]
    addresses = {
        Element("bridge", set_name, (tap, address), port.network_uid, port.uid) for set_name, address in own
    }
    return frozenset({guest, mac, *addresses}) | guard_rules.speaker_elements(port)


def guard_elements(network: NetworkIntent, tapped: Set[str]) -> frozenset[Element]:
    """For the ports in `tapped`: what each may send as; nothing for one that the intent no longer has."""
    wanted = {port.uid: port_elements(port) for port in network.ports}
    return frozenset(
        element for uid in tapped for element in wanted.get(uid, {_guest_element(uid, network.uid)})
    )


def _guest_element(port_uid: str, network_uid: str) -> Element:
    return Element("bridge", "taps", (names.tap_name(port_uid),), network_uid, port_uid)


# -- the host ---------------------------------------------------------------------------------------------


def host_rules(elements: Iterable[Element]) -> list[Json]:
    """Replaces both host tables by what they are to be, in one transaction."""
    return [*_host_inet(), *_host_bridge(), *add_elements(elements)]


def host_rules_absent() -> list[Json]:
    return [command for family, name in HOST_TABLES for command in _table_absent(family, name)]


def _host_inet() -> list[Json]:
    return [
        *_table("inet"),
        _set("inet", "bridges", "ifname"),
        _set("inet", "uplinks", "ifname"),
        # With the global bridge-nf-call sysctls on (Docker), bridged frames pass here. They belong to the
        # bridge: no conntrack, in which tenants' overlapping addresses would meet.
        _chain("inet", "raw", "filter", "prerouting", _RAW),
        _rule("inet", "raw", _iifname("@bridges"), {"notrack": None}),
        _chain("inet", "input", "filter", "input", _BEFORE_FIREWALLS),
        _rule("inet", "input", _iifname("@bridges"), *_DROP),
        _rule("inet", "input", _iifname("@uplinks"), *_DROP),
        _chain("inet", "forward", "filter", "forward", _BEFORE_FIREWALLS),
        *(_rule("inet", "forward", *statements) for statements in _host_forward()),
        _chain("inet", "postrouting", "nat", "postrouting", _SOURCE_NAT),
        _rule("inet", "postrouting", *_host_masquerade()),
    ]


def _host_forward() -> list[list[Json]]:
    link_local = {"prefix": {"addr": "169.254.0.0", "len": 16}}
    return [
        [_iifname("@bridges"), _oifname("@bridges"), *_ACCEPT],  # bridged, see raw
        [_iifname("@bridges"), *_DROP],  # a frame to the bridge's own MAC is not a way out
        [_oifname("@bridges"), *_DROP],
        [_iifname("@uplinks"), _oifname("@uplinks"), *_DROP],  # another network
        [_oifname("@uplinks"), _ct_state("established", "related"), *_ACCEPT],
        [_oifname("@uplinks"), *_DROP],
        [_iifname("@uplinks"), _match("==", {"meta": {"key": "nfproto"}}, "ipv6"), *_DROP],
        [_iifname("@uplinks"), _ct_state("invalid"), *_DROP],  # NAT skips invalid packets
        [_iifname("@uplinks"), _match("!=", _payload("ip", "saddr"), _UPLINK_PREFIX), *_DROP],
        # The node's own cloud answers on link-local addresses, credentials among the answers.
        [_iifname("@uplinks"), _match("==", _payload("ip", "daddr"), link_local), *_DROP],
        [_iifname("@uplinks"), *_ACCEPT],
    ]


def _host_masquerade() -> list[Json]:
    return [_iifname("@uplinks"), _oifname("@uplinks", "!="), _COUNTER, {"masquerade": None}]


def _host_bridge() -> list[Json]:
    sender = {"concat": [_IIFNAME, _payload("ether", "saddr")]}
    return [
        *_table("bridge"),
        _set("bridge", "taps", "ifname"),
        _set("bridge", "macs", ["ifname", "ether_addr"]),
        _set("bridge", "addresses", ["ifname", "ipv4_addr"]),
        _set("bridge", "addresses6", ["ifname", "ipv6_addr"]),
        {"add": {"chain": {"family": "bridge", "table": TABLE, "name": "guest"}}},
        _rule("bridge", "guest", _match("!=", sender, "@macs"), *_DROP),
        *(_rule("bridge", "guest", *statements) for statements in _guest_arp()),
        *(_rule("bridge", "guest", *statements) for statements in _guest_ip()),
        *(_rule("bridge", "guest", *statements) for statements in _guest_ip6()),
        _rule("bridge", "guest", *_DROP),
        _chain("bridge", "prerouting", "filter", "prerouting", _ANTI_SPOOF),
        # By tap and not by "a port of our bridge": `meta ibrname` is a module that small kernels lack.
        _rule("bridge", "prerouting", _iifname("@taps"), {"jump": {"target": "guest"}}),
    ]


def _guest_arp() -> list[list[Json]]:
    sender_mac = {"concat": [_IIFNAME, _payload("arp", "saddr ether")]}
    sender_ip = {"concat": [_IIFNAME, _payload("arp", "saddr ip")]}
    is_probe = _match("==", _payload("arp", "saddr ip"), "0.0.0.0")  # RFC 5227, section 2.1.1
    return [
        [_match("!=", sender_mac, "@macs"), *_DROP],
        [_match("==", sender_ip, "@addresses"), *_ACCEPT],
        [is_probe, *_ACCEPT],
    ]


def _guest_ip() -> list[list[Json]]:
    source = {"concat": [_IIFNAME, _payload("ip", "saddr")]}
    unconfigured = _match("==", _payload("ip", "saddr"), "0.0.0.0")
    return [
        [_match("==", _payload("udp", "sport"), 67), *_DROP],  # a guest is no DHCP server
        [_match("==", source, "@addresses"), *_ACCEPT],
        [unconfigured, _match("==", _payload("udp", "dport"), 67), *_ACCEPT],
    ]


def _guest_ip6() -> list[list[Json]]:
    """What it says in neighbour discovery is judged by `guard_rules.py`."""
    source = {"concat": [_IIFNAME, _payload("ip6", "saddr")]}
    unconfigured = _match("==", _payload("ip6", "saddr"), "::")
    # Before it has an address (RFC 4862, section 5.4; RFC 4861, section 4.1; RFC 3810, section 5.2.13).
    questions = ["nd-neighbor-solicit", "nd-router-solicit", "mld2-listener-report"]
    return [
        [_match("==", _payload("udp", "sport"), 547), *_DROP],  # a guest is no DHCPv6 server
        [_match("==", source, "@addresses6"), *_ACCEPT],
        [unconfigured, _match("==", _payload("icmpv6", "type"), {"set": questions}), *_ACCEPT],
    ]


# -- a network's namespace --------------------------------------------------------------------------------


def namespace_rules(*, outbound_nat: bool) -> list[Json]:
    """Replaces the namespace's table. Without `outbound_nat` subnets reach each other and nothing else."""
    outbound = [[_iifname(GATEWAY_LINK), _oifname(UPLINK_LINK), *_ACCEPT]]
    # First, so that connections of the time before the way out was closed end too.
    closed = [[_oifname(UPLINK_LINK), *_DROP], [_iifname(UPLINK_LINK), *_DROP]]
    forward = [
        *([] if outbound_nat else closed),
        [_ct_state("invalid"), *_DROP],
        [_ct_state("established", "related"), *_ACCEPT],
        [_iifname(GATEWAY_LINK), _oifname(GATEWAY_LINK), *_ACCEPT],
        *(outbound if outbound_nat else []),
        list(_DROP),
    ]
    masquerade = [_oifname(UPLINK_LINK), _COUNTER, {"masquerade": None}]
    return [
        *_table("inet"),
        _chain("inet", "input", "filter", "input", 0, policy="drop"),
        *(_rule("inet", "input", *statements) for statements in _gateway_input()),
        _chain("inet", "forward", "filter", "forward", 0, policy="drop"),
        *(_rule("inet", "forward", *statements) for statements in forward),
        _chain("inet", "postrouting", "nat", "postrouting", _SOURCE_NAT),
        _rule("inet", "postrouting", *masquerade),
    ]


def _gateway_input() -> list[list[Json]]:
    """What a guest may ask of its gateway."""
    echo = _match("==", _payload("icmp", "type"), "echo-request")
    asked = ["echo-request", "nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert"]
    return [
        [_iifname("lo"), *_ACCEPT],
        [_ct_state("established", "related"), *_ACCEPT],
        # The namespace's address towards the node is no gateway of the guests.
        [_iifname(GATEWAY_LINK), _match("==", _payload("ip", "daddr"), _UPLINK_PREFIX), *_DROP],
        [_iifname(GATEWAY_LINK), _match("==", _payload("udp", "dport"), 67), *_ACCEPT],
        [_iifname(GATEWAY_LINK), _match("==", _payload("udp", "dport"), 53), *_ACCEPT],
        [_iifname(GATEWAY_LINK), _match("==", _payload("tcp", "dport"), 53), *_ACCEPT],
        [_iifname(GATEWAY_LINK), echo, *_ACCEPT],
        [_iifname(GATEWAY_LINK), _match("==", _payload("udp", "dport"), 547), *_ACCEPT],
        [_iifname(GATEWAY_LINK), _match("==", _payload("icmpv6", "type"), {"set": asked}), *_ACCEPT],
        list(_DROP),
    ]


# -- comparison -------------------------------------------------------------------------------------------


def rules_fingerprint(listing: Json) -> str:
    """A digest of tables, chains, sets and rules, without what changes by itself (handles, counters) or is
    compared on its own (elements)."""
    kept = [_without_volatile(item) for item in listing["nftables"] if "metainfo" not in item]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def count_rules(batch_or_listing: Iterable[Json]) -> int:
    """Of our main tables."""
    found = (item.get("add", item).get("rule") for item in batch_or_listing)
    return sum(rule is not None and rule["table"] == TABLE for rule in found)


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: {} if key == "counter" else _without_volatile(inner)
            for key, inner in value.items()
            if key not in ("handle", "elem")
        }
    if isinstance(value, list):
        return [_without_volatile(inner) for inner in value]
    return value


# -- the words of the language ----------------------------------------------------------------------------

_COUNTER: Final[Json] = {"counter": {"packets": 0, "bytes": 0}}
_ACCEPT: Final[tuple[Json, ...]] = (_COUNTER, {"accept": None})
_DROP: Final[tuple[Json, ...]] = (_COUNTER, {"drop": None})
_UPLINK_PREFIX: Final[Json] = {
    "prefix": {"addr": str(UPLINK_RANGE.network_address), "len": UPLINK_RANGE.prefixlen}
}
_IIFNAME: Final[Json] = {"meta": {"key": "iifname"}}


def _table(family: str) -> list[Json]:
    """An empty table in place of whatever has this name."""
    return [*_table_absent(family, TABLE), {"add": {"table": {"family": family, "name": TABLE}}}]


def _table_absent(family: str, name: str) -> list[Json]:
    table = {"table": {"family": family, "name": name}}
    return [{"add": table}, {"delete": table}]


def _set(family: str, name: str, kind: str | list[str]) -> Json:
    return {"add": {"set": {"family": family, "table": TABLE, "name": name, "type": kind}}}


def _chain(family: str, name: str, kind: str, hook: str, priority: int, policy: str = "accept") -> Json:
    body = {"family": family, "table": TABLE, "name": name, "type": kind, "hook": hook, "prio": priority}
    return {"add": {"chain": {**body, "policy": policy}}}


def _rule(family: str, chain: str, *statements: Json) -> Json:
    return {"add": {"rule": {"family": family, "table": TABLE, "chain": chain, "expr": list(statements)}}}


def _match(operator: str, left: Json, right: object) -> Json:
    return {"match": {"op": operator, "left": left, "right": right}}


def _iifname(name: str, operator: str = "==") -> Json:
    return _match(operator, _IIFNAME, name)


def _oifname(name: str, operator: str = "==") -> Json:
    return _match(operator, {"meta": {"key": "oifname"}}, name)


def _payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _ct_state(*states: str) -> Json:
    return _match("in", {"ct": {"key": "state"}}, list(states))
