"""Links on the wire: bridges, pairs, tunnels, and what a bridge's port lets through.

**Pure.** Source: linux/if_link.h; RFC 7348 for the tunnels (VXLAN).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from agent.net.driver import IPAddress
from agent.net.netlink_wire import attribute, attributes, pack_mac, pack_text, pack_u32, parse_text, parse_u32

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18

IFF_UP: Final = 0x1
_EXT_MASK_SKIP_STATS: Final = 8
VXLAN_PORT: Final = 4789  # Source: RFC 7348, section 5

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_QDISC: Final = 6
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_IFALIAS: Final = 20
_IFLA_NET_NS_FD: Final = 28
_IFLA_EXT_MASK: Final = 29
_INFO_KIND: Final = 1
_INFO_DATA: Final = 2
_INFO_SLAVE_KIND: Final = 4
_INFO_SLAVE_DATA: Final = 5
_VETH_INFO_PEER: Final = 1
_BR_MCAST_SNOOPING: Final = 23
_BR_NF_CALL_IPTABLES: Final = 36
_BR_NF_CALL_IP6TABLES: Final = 37
_BRPORT_LEARNING: Final = 8
_BRPORT_UNICAST_FLOOD: Final = 9
_BRPORT_MCAST_FLOOD: Final = 27
_BRPORT_BCAST_FLOOD: Final = 30
_BRPORT_NEIGH_SUPPRESS: Final = 32
_BRPORT_ISOLATED: Final = 33
_VXLAN_ID: Final = 1
_VXLAN_LOCAL: Final = 4
_VXLAN_LEARNING: Final = 7
_VXLAN_PORT: Final = 15
_VXLAN_LOCAL6: Final = 17

_LINK: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
_FILTERS: Final = attribute(_BR_NF_CALL_IPTABLES, b"\1") + attribute(_BR_NF_CALL_IP6TABLES, b"\1")


@dataclass(frozen=True, slots=True)
class BridgePort:
    """What a bridge does at one of its ports. The defaults are the kernel's.

    `suppresses`: a question (ARP, ND) for somebody behind this port is answered from the bridge's neighbours
    and does not go out here. `isolated`: no frame passes to or from another isolated port.
    """

    learns: bool = True
    floods_unicast: bool = True
    floods_multicast: bool = True
    floods_broadcast: bool = True
    suppresses: bool = False
    isolated: bool = False


@dataclass(frozen=True, slots=True)
class Tunnel:
    vni: int
    local: IPAddress
    port: int = VXLAN_PORT
    learns: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    kind: str
    alias: str
    master: int  # index of the bridge, 0 for none
    mac: str
    up: bool
    mtu: int = 0
    bridge_port: BridgePort | None = None
    tunnel: Tunnel | None = None
    filters: bool = False  # of a bridge: its frames pass the inet rules
    queue: str = ""  # kind of its queue of what leaves


def link_dump() -> bytes:
    return _LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_EXT_MASK, pack_u32(_EXT_MASK_SKIP_STATS))


def links_of_bridge(index: int) -> bytes:
    """A dump that the kernel filters: a node has thousands of links, a network few."""
    return link_dump() + attribute(_IFLA_MASTER, pack_u32(index))


def links_of_kind(kind: str) -> bytes:
    """A dump that the kernel filters."""
    return link_dump() + attribute(_IFLA_LINKINFO, attribute(_INFO_KIND, pack_text(kind)))


def link_by_name(name: str) -> bytes:
    return link_dump() + attribute(_IFLA_IFNAME, pack_text(name))


def bridge(name: str, mac: str) -> bytes:
    """Without multicast snooping: nobody asks on these bridges, and it would forget who listens.

    Frames pass the inet rules, where groups judge; IPv6 too, which is a switch of its own.
    """
    data = attribute(_BR_MCAST_SNOOPING, b"\0") + _FILTERS
    return (
        _LINK.pack(0, 0, 0, 0, 0)
        + attribute(_IFLA_IFNAME, pack_text(name))
        + attribute(_IFLA_ADDRESS, pack_mac(mac))
        + attribute(_IFLA_LINKINFO, attribute(_INFO_KIND, b"bridge") + attribute(_INFO_DATA, data))
    )


def veth(name: str, peer: str, peer_mac: str, peer_netns_fd: int) -> bytes:
    """A pair whose other end is born inside the namespace: it is never visible outside."""
    other = (
        _LINK.pack(0, 0, 0, 0, 0)
        + attribute(_IFLA_IFNAME, pack_text(peer))
        + attribute(_IFLA_ADDRESS, pack_mac(peer_mac))
        + attribute(_IFLA_NET_NS_FD, pack_u32(peer_netns_fd))
    )
    info = attribute(_INFO_KIND, b"veth") + attribute(_INFO_DATA, attribute(_VETH_INFO_PEER, other))
    return (
        _LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, pack_text(name)) + attribute(_IFLA_LINKINFO, info)
    )


def vxlan(name: str, mac: str, value: Tunnel, netns_fd: int | None = None) -> bytes:
    """A tunnel without a remote end: its forwarding entries say where frames go, and no other frame goes.

    With `netns_fd` it is born inside that namespace; its outer packets still come and go where it was made.
    """
    local = _VXLAN_LOCAL if value.local.version == 4 else _VXLAN_LOCAL6
    data = (
        attribute(_VXLAN_ID, pack_u32(value.vni))
        + attribute(local, value.local.packed)
        + attribute(_VXLAN_LEARNING, bytes([value.learns]))
        + attribute(_VXLAN_PORT, struct.pack("!H", value.port))
    )
    return (
        _LINK.pack(0, 0, 0, 0, 0)
        + attribute(_IFLA_IFNAME, pack_text(name))
        + attribute(_IFLA_ADDRESS, pack_mac(mac))
        + (attribute(_IFLA_NET_NS_FD, pack_u32(netns_fd)) if netns_fd is not None else b"")
        + attribute(_IFLA_LINKINFO, attribute(_INFO_KIND, b"vxlan") + attribute(_INFO_DATA, data))
    )


def link_change(
    index: int,
    *,
    up: bool | None = None,
    master: int | None = None,
    alias: str | None = None,
    mtu: int | None = None,
    bridge_port: BridgePort | None = None,
    filters: bool = False,
) -> bytes:
    """What is None stays as it is; `filters` turns a bridge's on."""
    flags = IFF_UP if up else 0
    payload = _LINK.pack(0, 0, index, flags, 0 if up is None else IFF_UP)
    if master is not None:
        payload += attribute(_IFLA_MASTER, pack_u32(master))
    if alias is not None:
        payload += attribute(_IFLA_IFALIAS, alias.encode())
    if mtu is not None:
        payload += attribute(_IFLA_MTU, pack_u32(mtu))
    if bridge_port is not None:
        payload += attribute(_IFLA_LINKINFO, _bridge_port(bridge_port))
    if filters:
        info = attribute(_INFO_KIND, b"bridge") + attribute(_INFO_DATA, _FILTERS)
        payload += attribute(_IFLA_LINKINFO, info)
    return payload


def link_delete(index: int) -> bytes:
    return _LINK.pack(0, 0, index, 0, 0)


def parse_link(payload: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    found = attributes(payload, _LINK.size)
    info = attributes(found.get(_IFLA_LINKINFO, b""), 0)
    kind = parse_text(info.get(_INFO_KIND, b""))
    return Link(
        index=index,
        name=parse_text(found.get(_IFLA_IFNAME, b"")),
        kind=kind,
        alias=parse_text(found.get(_IFLA_IFALIAS, b"")),
        master=parse_u32(found.get(_IFLA_MASTER)),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & IFF_UP),
        mtu=parse_u32(found.get(_IFLA_MTU)),
        bridge_port=_parse_bridge_port(info) if _INFO_SLAVE_DATA in info else None,
        tunnel=_parse_tunnel(info.get(_INFO_DATA, b"")) if kind == "vxlan" else None,
        queue=parse_text(found.get(_IFLA_QDISC, b"")),
        filters=kind == "bridge" and _parse_filters(info.get(_INFO_DATA, b"")),
    )


def _bridge_port(value: BridgePort) -> bytes:
    data = (
        attribute(_BRPORT_LEARNING, bytes([value.learns]))
        + attribute(_BRPORT_UNICAST_FLOOD, bytes([value.floods_unicast]))
        + attribute(_BRPORT_MCAST_FLOOD, bytes([value.floods_multicast]))
        + attribute(_BRPORT_BCAST_FLOOD, bytes([value.floods_broadcast]))
        + attribute(_BRPORT_NEIGH_SUPPRESS, bytes([value.suppresses]))
        + attribute(_BRPORT_ISOLATED, bytes([value.isolated]))
    )
    return attribute(_INFO_SLAVE_KIND, b"bridge") + attribute(_INFO_SLAVE_DATA, data)


def _parse_bridge_port(info: dict[int, bytes]) -> BridgePort | None:
    if parse_text(info.get(_INFO_SLAVE_KIND, b"")) != "bridge":
        return None
    found = attributes(info[_INFO_SLAVE_DATA], 0)
    on, off = b"\1", b"\0"
    return BridgePort(
        learns=found.get(_BRPORT_LEARNING, off) == on,
        floods_unicast=found.get(_BRPORT_UNICAST_FLOOD, off) == on,
        floods_multicast=found.get(_BRPORT_MCAST_FLOOD, off) == on,
        floods_broadcast=found.get(_BRPORT_BCAST_FLOOD, off) == on,
        suppresses=found.get(_BRPORT_NEIGH_SUPPRESS, off) == on,
        isolated=found.get(_BRPORT_ISOLATED, off) == on,
    )


def _parse_filters(data: bytes) -> bool:
    found = attributes(data, 0)
    return found.get(_BR_NF_CALL_IPTABLES) == found.get(_BR_NF_CALL_IP6TABLES) == b"\1"


def _parse_tunnel(data: bytes) -> Tunnel | None:
    """None for one without an own address."""
    found = attributes(data, 0)
    local = found.get(_VXLAN_LOCAL) or found.get(_VXLAN_LOCAL6)
    if local is None:
        return None
    return Tunnel(
        vni=parse_u32(found.get(_VXLAN_ID)),
        local=IPv4Address(local) if len(local) == 4 else IPv6Address(local),
        port=int.from_bytes(found.get(_VXLAN_PORT, b""), "big"),
        learns=found.get(_VXLAN_LEARNING, b"\0") == b"\1",
    )
