"""Frames that guests and strangers make up, for packet tests.

**Pure**: values in, bytes out. Source: RFC 826 (ARP), RFC 4861 (ND), RFC 7348 (VXLAN).
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, IPv6Network

EVERYBODY = "ff:ff:ff:ff:ff:ff"
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_TCP = 6
_UDP, _ICMPV6 = 17, 58
_ROUTER_ADVERT, _SOLICIT, _ADVERT = 134, 135, 136
_LIFETIME_S = 3600
_VLAN = 0x8100
_OVERRIDE = 0x20000000


def ethernet(destination: str, source: str, kind: int, payload: bytes) -> bytes:
    return pack_mac(destination) + pack_mac(source) + struct.pack("!H", kind) + payload


def arp_request(mac: str, asker: IPv4Address, asked: IPv4Address) -> bytes:
    body = struct.pack("!HHBBH", 1, _IPV4, 6, 4, 1) + pack_mac(mac) + asker.packed + bytes(6) + asked.packed
    return ethernet(EVERYBODY, mac, _ARP, body)


def udp(
    destination: str, source: str, sender: IPv4Address, receiver: IPv4Address, port: int, payload: bytes
) -> bytes:
    """IPv4, without UDP's checksum."""
    datagram = struct.pack("!HHHH", port, port, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0x4000, 64, _UDP, 0)
    total = checksum(head + sender.packed + receiver.packed)
    head = head[:10] + struct.pack("!H", total)
    return ethernet(destination, source, _IPV4, head + sender.packed + receiver.packed + datagram)


def udp6(destination: str, source: str, sender: IPv6Address, receiver: IPv6Address, port: int) -> bytes:
    """IPv6: a datagram of a few bytes."""
    datagram = struct.pack("!HHHH", port, port, 12, 0) + b"data"
    pseudo = sender.packed + receiver.packed + struct.pack("!II", len(datagram), _UDP)
    datagram = datagram[:6] + struct.pack("!H", checksum(pseudo + datagram)) + datagram[8:]
    head = struct.pack("!IHBB", 6 << 28, len(datagram), _UDP, 64)
    return ethernet(destination, source, _IPV6, head + sender.packed + receiver.packed + datagram)


def tcp(
    destination: str, source: str, sender: IPv4Address, receiver: IPv4Address, port: int, flags: int
) -> bytes:
    """IPv4: a segment without data, from `port` to itself."""
    body = struct.pack("!HHIIBBHHH", port, port, 1, 1, 5 << 4, flags, 1024, 0, 0)
    pseudo = sender.packed + receiver.packed + struct.pack("!BBH", 0, _TCP, len(body))
    body = body[:16] + struct.pack("!H", checksum(pseudo + body)) + body[18:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, _TCP, 0)
    head = head[:10] + struct.pack("!H", checksum(head + sender.packed + receiver.packed))
    return ethernet(destination, source, _IPV4, head + sender.packed + receiver.packed + body)


def neighbour_solicit(mac: str, asker: IPv6Address, asked: IPv6Address) -> bytes:
    """To the group of all that might have the address; without an asker it claims the address."""
    group = IPv6Address(b"\xff\x02" + bytes(9) + b"\x01\xff" + asked.packed[-3:])
    option = b"" if asker.is_unspecified else b"\x01\x01" + pack_mac(mac)
    body = bytes(4) + asked.packed + option
    return ethernet(_group_mac(group), mac, _IPV6, _icmpv6(asker, group, _SOLICIT, body))


def neighbour_advert(
    mac: str, to_mac: str, sender: IPv6Address, receiver: IPv6Address, target: IPv6Address
) -> bytes:
    """Says that `target` is at `mac`, whatever was thought before."""
    body = struct.pack("!I", _OVERRIDE) + target.packed + b"\x02\x01" + pack_mac(mac)
    return ethernet(to_mac, mac, _IPV6, _icmpv6(sender, receiver, _ADVERT, body))


def router_advert(mac: str, sender: IPv6Address, prefix: IPv6Network, lifetime_s: int = _LIFETIME_S) -> bytes:
    """To all: this is a router for so long, and here hosts make themselves addresses in `prefix`."""
    flags = 0xC0  # on the link, and to make addresses of
    option = struct.pack("!BBBBIII", 3, 4, prefix.prefixlen, flags, _LIFETIME_S, _LIFETIME_S, 0)
    body = struct.pack("!BBHII", 64, 0, lifetime_s, 0, 0) + option + prefix[0].packed
    group = IPv6Address("ff02::1")
    return ethernet(_group_mac(group), mac, _IPV6, _icmpv6(sender, group, _ROUTER_ADVERT, body))


def tagged(frame: bytes, vlan: int) -> bytes:
    """With an 802.1Q tag."""
    return frame[:12] + struct.pack("!HH", _VLAN, vlan) + frame[12:]


def vxlan(vni: int, inner: bytes) -> bytes:
    """A datagram's payload."""
    return struct.pack("!II", 0x08000000, vni << 8) + inner


def _icmpv6(sender: IPv6Address, receiver: IPv6Address, kind: int, body: bytes) -> bytes:
    length = 4 + len(body)
    pseudo = sender.packed + receiver.packed + struct.pack("!II", length, _ICMPV6)
    total = checksum(pseudo + struct.pack("!BBH", kind, 0, 0) + body)
    head = struct.pack("!IHBB", 6 << 28, length, _ICMPV6, 255)
    return head + sender.packed + receiver.packed + struct.pack("!BBH", kind, 0, total) + body


def checksum(data: bytes) -> int:
    even = data + bytes(len(data) % 2)
    total = sum(int.from_bytes(even[at : at + 2], "big") for at in range(0, len(even), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _group_mac(group: IPv6Address) -> str:
    return (b"\x33\x33" + group.packed[-4:]).hex(":")


def pack_mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
