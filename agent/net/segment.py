"""How frames cross between a provider network's bridge and the node's link to the operator's network.

**Pure.** The link is not put on a bridge and nothing of it is moved: the node's own addresses, routes and
connections stay where they are. A pair of links, the patch, stands between:

    taps = bridge = [patch, bridge's end] ---- [patch, uplink's end] = = = link = operator's network
                                                                       =
                                                                       node

Towards guests, nftables give the patch frames for guests' MACs and a copy of what is for everybody, whether
they come from the operator's network or from the node itself. From guests, a BPF program on the patch gives
frames to the link, or to the node where they are for its MAC; what is for everybody goes to both. It is BPF
because neither nftables nor every kernel's tc can hand a frame up to the node or put a VLAN's tag on it. What
the program sent bears a mark, so that it does not come back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from agent.net import bpf, guest_rules, names
from agent.net import rule_words as words
from agent.net.driver import NetworkIntent, Segment
from agent.net.elements import Element, Json, add_elements

PATCH: Final = "patch"  # kinds in the aliases of its ends
PATCH_UPLINK: Final = "patch-uplink"
FAMILY: Final = "netdev"
TABLES: Final = ((FAMILY, words.TABLE),)
_PRIORITY: Final = -500  # before whatever filters on the link
_TYPES: Final[Json] = {"set": ["ip", "arp", "ip6"]}  # what guests' rules judge; nothing else comes in
_MANY: Final = "01:00:00:00:00:00"  # the bit of a MAC that stands for more than one
_VLAN_TYPE: Final = 0x8100

# Helpers and numbers of BPF. Source: linux/bpf.h, linux/pkt_cls.h.
_CLONE_REDIRECT, _VLAN_PUSH, _VLAN_POP, _REDIRECT, _LOAD_BYTES = 13, 18, 19, 23, 26
_TO_NODE: Final = 1  # BPF_F_INGRESS: as if it had come in by the link
_PASSES: Final = 0
_DROPS: Final = 2
_MARK_OFFSET: Final = 8  # of `mark` in struct __sk_buff
_MAC_AT: Final = -8  # on the program's stack
_FRAME, _STACK = 6, 10  # registers


@dataclass(frozen=True, slots=True)
class Crossing:
    """A provider network on this node: the host's name of the link, its guests' MACs and addresses."""

    network_uid: str
    link: str
    vlan: int
    macs: frozenset[str]
    addresses: frozenset[tuple[str, IPv4Address]] = frozenset()

    @property
    def patch(self) -> str:
        return names.patch_uplink_name(self.network_uid)


def crossing_of(network: NetworkIntent, segment: Segment, link: str) -> Crossing:
    pairs = (pair.mac for port in network.ports for pair in port.allowed_pairs)
    macs = {port.mac.lower() for port in network.ports} | {mac.lower() for mac in pairs if mac}
    addresses = frozenset(
        (port.mac.lower(), address)
        for port in network.ports
        for address in port.addresses
        if isinstance(address, IPv4Address)
    )
    return Crossing(network.uid, link, segment.vlan, frozenset(macs), addresses)


# -- towards guests ---------------------------------------------------------------------------------------


def crossing_elements(crossings: Iterable[Crossing]) -> frozenset[Element]:
    return frozenset(
        Element(FAMILY, _set_name(one), (mac,), one.network_uid) for one in crossings for mac in one.macs
    )


def crossing_rules(crossings: Iterable[Crossing]) -> list[Json]:
    """Replaces the node's table, in one transaction; without a crossing there is none."""
    every = sorted(crossings, key=lambda one: one.network_uid)
    if not every:
        return words.table_absent(FAMILY, words.TABLE)
    batch = list(words.table(FAMILY))
    for one in every:
        batch.append(words.named_set(FAMILY, _set_name(one), "ether_addr"))
        batch.append(words.chain(FAMILY, _chain_name(one)))
        batch += (words.rule(FAMILY, _chain_name(one), *statements) for statements in _inward(one))
    for link in sorted({one.link for one in every}):
        for hook in ("ingress", "egress"):
            name = f"{hook}-{hashlib.sha256(link.encode()).hexdigest()[:8]}"
            batch.append(words.device_chain(FAMILY, name, hook, link, _PRIORITY))
            sent = words.match("==", words.MARK, guest_rules.SEGMENT)
            batch.append(words.rule(FAMILY, name, sent, words.set_mark(0), words.PASS))
            here = (one for one in every if one.link == link)
            batch += (words.rule(FAMILY, name, *_belongs(one), words.jump(_chain_name(one))) for one in here)
    return [*batch, *add_elements(crossing_elements(every))]


def _belongs(one: Crossing) -> tuple[Json, ...]:
    if not one.vlan:
        return (words.match("==", words.payload("ether", "type"), _TYPES),)
    inner = words.match("==", words.payload("vlan", "type"), _TYPES)
    return (words.is_field("vlan", "id", one.vlan), inner)


def _inward(one: Crossing) -> list[tuple[Json, ...]]:
    destination = words.payload("ether", "daddr")
    many = words.match("!=", {"&": [destination, _MANY]}, "00:00:00:00:00:00")
    return [
        (words.match("==", destination, f"@{_set_name(one)}"), {"fwd": {"dev": one.patch}}),
        (many, {"dup": {"addr": one.patch}}),
    ]


def _set_name(one: Crossing) -> str:
    return f"macs-{one.patch}"


def _chain_name(one: Crossing) -> str:
    return f"to-{one.patch}"


# -- from guests ------------------------------------------------------------------------------------------


def outward_program(link: int, link_mac: str, vlan: int) -> bytes:
    """On what comes to the patch's end at the uplink. `link`: index of the uplink's."""
    mac = bytes.fromhex(link_mac.replace(":", ""))
    drop = bpf.move(0, _DROPS) + bpf.leave()
    to_node = bpf.move(1, link) + bpf.move(2, _TO_NODE) + bpf.call(_REDIRECT) + bpf.leave()
    copy_to_node = bpf.copy(1, _FRAME) + bpf.move(2, link) + bpf.move(3, _TO_NODE) + bpf.call(_CLONE_REDIRECT)
    is_nodes = bpf.load_memory(1, _STACK, _MAC_AT, 4) + bpf.skip_unless(
        1,
        int.from_bytes(mac[:4], "little"),
        bpf.load_memory(1, _STACK, _MAC_AT + 4, 2)
        + bpf.skip_unless(1, int.from_bytes(mac[4:], "little"), to_node),
    )
    return b"".join(
        (
            bpf.copy(_FRAME, 1),
            _push(vlan, drop) if vlan else b"",
            bpf.move(1, guest_rules.SEGMENT),
            bpf.store_word(_FRAME, _MARK_OFFSET, 1),
            bpf.copy(1, _FRAME) + bpf.move(2, 0) + bpf.copy(3, _STACK) + bpf.add(3, _MAC_AT),
            bpf.move(4, len(mac)) + bpf.call(_LOAD_BYTES) + bpf.skip_if(0, 0, drop),
            is_nodes,
            bpf.load_memory(1, _STACK, _MAC_AT, 1) + bpf.mask(1, 1),
            bpf.skip_unless(1, 1, copy_to_node),
            bpf.move(1, link) + bpf.move(2, 0) + bpf.call(_REDIRECT) + bpf.leave(),
        )
    )


def inward_program(vlan: int) -> bytes:
    """On what comes to the patch's end at the bridge: guests see no tags. Empty where there are none."""
    if not vlan:
        return b""
    drop = bpf.move(0, _DROPS) + bpf.leave()
    pop = bpf.call(_VLAN_POP) + bpf.skip_if(0, 0, drop)
    return pop + bpf.move(0, _PASSES) + bpf.leave()


def program_name(program: bytes) -> str:
    """By which a listing shows which bytes are there; empty for none."""
    return f"cum_{hashlib.sha256(program).hexdigest()[:10]}" if program else ""


def _push(vlan: int, drop: bytes) -> bytes:
    wire_type = int.from_bytes(_VLAN_TYPE.to_bytes(2, "big"), "little")
    head = bpf.copy(1, _FRAME) + bpf.move(2, wire_type) + bpf.move(3, vlan)
    return head + bpf.call(_VLAN_PUSH) + bpf.skip_if(0, 0, drop)
