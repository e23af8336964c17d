"""Frames that a guest must not get through, by class, and honest ones of the same kinds.

**Pure**: values in, bytes out. Every frame carries a marker of its own. Source: RFC 826 (ARP), RFC 4861 (ND),
RFC 2131 and RFC 8415 (DHCP), IEEE 802.1Q.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tests.unit.agent_net.frames import EVERYBODY, checksum, ethernet, pack_mac

IPV4, ARP, VLAN, IPV6, EXPERIMENTAL = 0x0800, 0x0806, 0x8100, 0x86DD, 0x88B5
_UDP, _ICMP, _ICMPV6, _FRAGMENT = 17, 1, 58, 44
_MARKER = struct.Struct("!8sII")  # a ND nonce option holds exactly this with its two bytes of head
_SEED = b"cumulets"
_MORE_FRAGMENTS = 0x2000
_ALL_NODES = IPv6Address("ff02::1")
_ALL_NODES_MAC = "33:33:00:00:00:01"
_ROUTER_ADVERT, _SOLICIT, _ADVERT, _REDIRECT = 134, 135, 136, 137


@dataclass(frozen=True, slots=True)
class Scene:
    """Who sends, towards whom, and whom it could pretend to be."""

    mac: str
    own4: IPv4Address
    own6: IPv6Address
    link_local: IPv6Address
    victim_mac: str
    victim4: IPv4Address
    victim6: IPv6Address
    gateway_mac: str
    gateway4: IPv4Address
    gateway6: IPv6Address
    other4: IPv4Address  # of another tenant


Make = Callable[[Scene, bytes], bytes | tuple[bytes, ...]]


def marker(kind: int, number: int) -> bytes:
    return _MARKER.pack(_SEED, kind, number)


def find_markers(frames: Iterable[bytes]) -> set[tuple[int, int]]:
    """(kind, number) of the frames among those that were heard."""
    found = set()
    for frame in frames:
        at = frame.find(_SEED)
        if at >= 0 and len(frame) >= at + _MARKER.size:
            found.add(_MARKER.unpack_from(frame, at)[1:])
    return found


def _ipv4(
    source: IPv4Address, target: IPv4Address, protocol: int, body: bytes, fragment: int = 0, number: int = 0
) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), number, fragment, 64, protocol, 0)
    total = checksum(head + source.packed + target.packed)
    return head[:10] + struct.pack("!H", total) + source.packed + target.packed + body


def _ipv6(source: IPv6Address, target: IPv6Address, protocol: int, body: bytes, hops: int = 255) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, hops) + source.packed + target.packed + body


def udp4(source: IPv4Address, target: IPv4Address, ports: tuple[int, int], data: bytes) -> bytes:
    return _ipv4(source, target, _UDP, struct.pack("!HHHH", *ports, 8 + len(data), 0) + data)


def _checked6(source: IPv6Address, target: IPv6Address, protocol: int, body: bytes, at: int) -> bytes:
    """`body` with its checksum, which is at `at`."""
    pseudo = source.packed + target.packed + struct.pack("!II", len(body), protocol)
    return body[:at] + struct.pack("!H", checksum(pseudo + body) or 0xFFFF) + body[at + 2 :]


def _udp6(source: IPv6Address, target: IPv6Address, ports: tuple[int, int], data: bytes) -> bytes:
    body = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    return _ipv6(source, target, _UDP, _checked6(source, target, _UDP, body, 6))


def _nd_body(source: IPv6Address, target: IPv6Address, kind: int, fixed: bytes, mark: bytes) -> bytes:
    """With the marker in a nonce option (RFC 3971, section 5.3.2), padded to eights."""
    nonce = struct.pack("!BB", 14, 3) + mark + bytes(24 - 2 - len(mark))
    return _checked6(source, target, _ICMPV6, struct.pack("!BBH", kind, 0, 0) + fixed + nonce, 2)


def _nd(source: IPv6Address, target: IPv6Address, kind: int, fixed: bytes, mark: bytes) -> bytes:
    return _ipv6(source, target, _ICMPV6, _nd_body(source, target, kind, fixed, mark))


def _arp(operation: int, mac: str, sender: IPv4Address, target: IPv4Address, mark: bytes) -> bytes:
    head = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return head + pack_mac(mac) + sender.packed + bytes(6) + target.packed + mark


def _to_victim(scene: Scene, kind: int, payload: bytes, source: str = "") -> bytes:
    return ethernet(scene.victim_mac, source or scene.mac, kind, payload)


def _udp_from(scene: Scene, source: IPv4Address, mark: bytes) -> bytes:
    return _to_victim(scene, IPV4, udp4(source, scene.victim4, (5000, 6000), mark))


def _fragments4(scene: Scene, source: IPv4Address, mark: bytes) -> tuple[bytes, bytes]:
    """A datagram in two fragments; the first holds the marker."""
    number = int.from_bytes(mark[-2:], "big")
    data = mark + bytes(16)
    body = struct.pack("!HHHH", 5000, 6000, 8 + len(data), 0) + data
    first = _ipv4(source, scene.victim4, _UDP, body[:24], _MORE_FRAGMENTS, number)
    last = _ipv4(source, scene.victim4, _UDP, body[24:], 24 // 8, number)
    return _to_victim(scene, IPV4, first), _to_victim(scene, IPV4, last)


def _fragment6(source: IPv6Address, target: IPv6Address, upper: int, body: bytes, mark: bytes) -> bytes:
    """The only fragment of a packet (RFC 6946)."""
    head = struct.pack("!BBHI", upper, 0, 0, int.from_bytes(mark[-4:], "big"))
    return _ipv6(source, target, _FRAGMENT, head + body)


def _hidden_advert(scene: Scene, mark: bytes) -> bytes:
    """A router advertisement behind a fragment header (RFC 6980)."""
    fixed = struct.pack("!BBHII", 64, 0, 1800, 0, 0)
    body = _nd_body(scene.link_local, _ALL_NODES, _ROUTER_ADVERT, fixed, mark)
    packet = _fragment6(scene.link_local, _ALL_NODES, _ICMPV6, body, mark)
    return ethernet(_ALL_NODES_MAC, scene.mac, IPV6, packet)


def _udp_fragment6(scene: Scene, source: IPv6Address, mark: bytes) -> bytes:
    body = struct.pack("!HHHH", 5000, 6000, 8 + len(mark), 0) + mark
    checked = _checked6(source, scene.victim6, _UDP, body, 6)
    return _to_victim(scene, IPV6, _fragment6(source, scene.victim6, _UDP, checked, mark))


def _icmp4(scene: Scene, kind: int, mark: bytes) -> bytes:
    body = struct.pack("!BBH", kind, 1, 0) + scene.own4.packed
    body += udp4(scene.victim4, scene.gateway4, (1, 2), mark)
    body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    return _to_victim(scene, IPV4, _ipv4(scene.own4, scene.victim4, _ICMP, body))


def _link_local(mac: str) -> IPv6Address:
    raw = pack_mac(mac)
    eui64 = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + eui64)


SPOOFS: dict[str, Make] = {
    "forged MAC": lambda s, m: _to_victim(
        s, IPV4, udp4(s.own4, s.victim4, (5000, 6000), m), "52:54:00:99:99:99"
    ),
    "the gateway's MAC": lambda s, m: _to_victim(
        s, IPV4, udp4(s.own4, s.victim4, (5000, 6000), m), s.gateway_mac
    ),
    "forged IPv4": lambda s, m: _udp_from(s, s.own4 + 90, m),
    "the gateway's IPv4": lambda s, m: _udp_from(s, s.gateway4, m),
    "another tenant's address": lambda s, m: _udp_from(s, s.other4, m),
    "multicast source": lambda s, m: _udp_from(s, IPv4Address("224.0.0.5"), m),
    "broadcast source": lambda s, m: _udp_from(s, IPv4Address("255.255.255.255"), m),
    "loopback source": lambda s, m: _udp_from(s, IPv4Address("127.0.0.1"), m),
    "no source, not DHCP": lambda s, m: _udp_from(s, IPv4Address("0.0.0.0"), m),
    "forged IPv6": lambda s, m: _to_victim(s, IPV6, _udp6(s.own6 + 90, s.victim6, (5000, 6000), m)),
    "another's link-local": lambda s, m: _to_victim(
        s, IPV6, _udp6(_link_local(s.victim_mac), s.victim6, (5000, 6000), m)
    ),
    "IPv6 without a source": lambda s, m: _to_victim(
        s, IPV6, _udp6(IPv6Address("::"), s.victim6, (5000, 6000), m)
    ),
    "ARP sender": lambda s, m: ethernet(EVERYBODY, s.mac, ARP, _arp(1, s.mac, s.own4 + 90, s.victim4, m)),
    "ARP sender's MAC": lambda s, m: ethernet(
        EVERYBODY, s.mac, ARP, _arp(1, "52:54:00:99:99:99", s.own4, s.victim4, m)
    ),
    "ARP gateway": lambda s, m: _to_victim(s, ARP, _arp(2, s.mac, s.gateway4, s.victim4, m)),
    "ND advertisement": lambda s, m: _to_victim(
        s, IPV6, _nd(s.own6, s.victim6, _ADVERT, struct.pack("!I", 0x20000000) + s.gateway6.packed, m)
    ),
    "ND solicitation": lambda s, m: _to_victim(
        s, IPV6, _nd(s.own6 + 90, s.victim6, _SOLICIT, bytes(4) + s.victim6.packed, m)
    ),
    "ND claim of another's address": lambda s, m: ethernet(
        _ALL_NODES_MAC,
        s.mac,
        IPV6,
        _nd(IPv6Address("::"), _ALL_NODES, _SOLICIT, bytes(4) + s.victim6.packed, m),
    ),
    "RA": lambda s, m: ethernet(
        _ALL_NODES_MAC,
        s.mac,
        IPV6,
        _nd(s.link_local, _ALL_NODES, _ROUTER_ADVERT, struct.pack("!BBHII", 64, 0, 1800, 0, 0), m),
    ),
    "RA in a fragment": _hidden_advert,
    "redirect": lambda s, m: _to_victim(
        s, IPV6, _nd(s.link_local, s.victim6, _REDIRECT, bytes(4) + s.own6.packed + s.gateway6.packed, m)
    ),
    "ICMP redirect": lambda s, m: _icmp4(s, 5, m),
    "DHCPv4 server": lambda s, m: ethernet(
        EVERYBODY, s.mac, IPV4, udp4(s.own4, IPv4Address("255.255.255.255"), (67, 68), m)
    ),
    "DHCPv6 server": lambda s, m: _to_victim(s, IPV6, _udp6(s.link_local, s.victim6, (547, 546), m)),
    "VLAN-tagged": lambda s, m: _to_victim(
        s, VLAN, struct.pack("!HH", 5, IPV4) + udp4(s.own4, s.victim4, (5000, 6000), m)
    ),
    "doubly VLAN-tagged": lambda s, m: _to_victim(
        s, VLAN, struct.pack("!HHHH", 5, VLAN, 6, IPV4) + udp4(s.own4, s.victim4, (5000, 6000), m)
    ),
    "unknown ethertype": lambda s, m: _to_victim(s, EXPERIMENTAL, m + bytes(30)),
    "fragmented IPv4": lambda s, m: _fragments4(s, s.own4 + 90, m),
    "fragmented IPv6": lambda s, m: _udp_fragment6(s, s.own6 + 90, m),
}


HONEST: dict[str, Make] = {
    "UDP over IPv4": lambda s, m: _udp_from(s, s.own4, m),
    "UDP over IPv6": lambda s, m: _to_victim(s, IPV6, _udp6(s.own6, s.victim6, (5000, 6000), m)),
    "UDP from the link-local address": lambda s, m: _to_victim(
        s, IPV6, _udp6(s.link_local, s.victim6, (5000, 6000), m)
    ),
    "ARP": lambda s, m: ethernet(EVERYBODY, s.mac, ARP, _arp(1, s.mac, s.own4, s.victim4, m)),
    "ARP probe": lambda s, m: ethernet(
        EVERYBODY, s.mac, ARP, _arp(1, s.mac, IPv4Address("0.0.0.0"), s.own4, m)
    ),
    "ND advertisement": lambda s, m: _to_victim(
        s, IPV6, _nd(s.own6, s.victim6, _ADVERT, struct.pack("!I", 0x20000000) + s.own6.packed, m)
    ),
    "ND solicitation": lambda s, m: _to_victim(
        s, IPV6, _nd(s.own6, s.victim6, _SOLICIT, bytes(4) + s.victim6.packed, m)
    ),
    "ND claim of the own address": lambda s, m: ethernet(
        _ALL_NODES_MAC,
        s.mac,
        IPV6,
        _nd(IPv6Address("::"), _ALL_NODES, _SOLICIT, bytes(4) + s.own6.packed, m),
    ),
    "fragments over IPv4": lambda s, m: _fragments4(s, s.own4, m),
    "a fragment over IPv6": lambda s, m: _udp_fragment6(s, s.own6, m),
}
