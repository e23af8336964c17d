"""Says to everybody on a link that an address or a station is here now, and understands others (RFC 5227,
section 3; RFC 4861, section 7.2.6).

**Edge**: one packet socket. Without it the outside sends to the node that had the address before, for as long
as it remembers.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from agent.net.driver import IPAddress
from agent.net.netlink_link import Link
from agent.net.netlink_wire import pack_mac

ETHERTYPE_ARP: Final = 0x0806
_ETHERTYPE_IPV6: Final = 0x86DD
_HEADER_BYTES: Final = 14
_EVERYBODY: Final = b"\xff" * 6
_REQUEST: Final = 1
_REPLY: Final = 2  # some hosts believe the one, some the other
_ARP: Final = struct.Struct("!HHBBH6s4s6s4s")  # Source: RFC 826
_REVERSE_REQUEST: Final = 3
_ETHERTYPE_RARP: Final = 0x8035
_ETHERTYPE_VLAN: Final = 0x8100
_PADDING: Final = 18  # to Ethernet's least frame
_ETHERNET: Final = 1
_IPV4: Final = 0x0800
_ALL_NODES: Final = IPv6Address("ff02::1")
_ALL_NODES_MAC: Final = bytes.fromhex("333300000001")  # RFC 2464, section 7
_IPV6: Final = struct.Struct("!IHBB16s16s")  # Source: RFC 8200, section 3
_IPV6_VERSION: Final = 6 << 28
_ICMPV6: Final = 58
NEIGHBOUR_ADVERTISEMENT: Final = 136
HOP_LIMIT: Final = 255  # nobody off the link can send this
# Type, code, checksum, flags, target; then the option of the target's MAC.
# Source: RFC 4861, sections 4.4 and 4.6.1
_ADVERTISEMENT: Final = struct.Struct("!BBHI16sBB6s")
_OVERRIDE: Final = 1 << 29
_TARGET_MAC: Final = 2
_EIGHT_BYTES: Final = 1


def announce(link: Link, addresses: Iterable[IPAddress]) -> None:
    """Of the calling thread's namespace. Raises OSError, as of a link that is down."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with contextlib.closing(opened) as speaker:
        speaker.bind((link.name, 0))
        for address in addresses:
            for frame in _frames(link.mac, address):
                speaker.send(frame)


def _frames(mac: str, address: IPAddress) -> list[bytes]:
    if isinstance(address, IPv6Address):
        return [advertisement(mac, address)]
    return [announcement(mac, address, operation) for operation in (_REQUEST, _REPLY)]


def introduce(
    link: Link, macs: Iterable[str], addresses: Iterable[tuple[str, IPv4Address]], vlan: int = 0
) -> None:
    """Stations, so that switches learn where they are, and whose an address is now. Raises OSError, as of a
    link that is down."""
    sent = [introduction(mac) for mac in macs]
    sent += [frame for mac, address in addresses for frame in _frames(mac, address)]
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with contextlib.closing(opened) as speaker:
        speaker.bind((link.name, 0))
        for frame in sent:
            speaker.send(_tagged(frame, vlan) if vlan else frame)


def introduction(mac: str) -> bytes:
    """What hypervisors send when a guest has come: a question (RFC 903) that nobody answers. **Pure.**"""
    sender = pack_mac(mac)
    body = _ARP.pack(_ETHERNET, _IPV4, 6, 4, _REVERSE_REQUEST, sender, bytes(4), sender, bytes(4))
    return _EVERYBODY + sender + struct.pack("!H", _ETHERTYPE_RARP) + body + bytes(_PADDING)


def _tagged(frame: bytes, vlan: int) -> bytes:
    return frame[:12] + struct.pack("!HH", _ETHERTYPE_VLAN, vlan) + frame[12:]


def announcement(mac: str, address: IPv4Address, operation: int) -> bytes:
    """An Ethernet frame. **Pure.**"""
    sender, packed = pack_mac(mac), address.packed
    target = bytes(6) if operation == _REQUEST else sender
    body = _ARP.pack(_ETHERNET, _IPV4, 6, 4, operation, sender, packed, target, packed)
    return _EVERYBODY + sender + struct.pack("!H", ETHERTYPE_ARP) + body


def advertisement(mac: str, address: IPv6Address) -> bytes:
    """An Ethernet frame: neighbours that know another MAC of the address take this one. **Pure.**"""
    sender, packed = pack_mac(mac), address.packed
    fields = (_OVERRIDE, packed, _TARGET_MAC, _EIGHT_BYTES, sender)
    pseudo = packed + _ALL_NODES.packed + struct.pack("!II", _ADVERTISEMENT.size, _ICMPV6)
    sum_ = _checksum(pseudo + _ADVERTISEMENT.pack(NEIGHBOUR_ADVERTISEMENT, 0, 0, *fields))
    body = _ADVERTISEMENT.pack(NEIGHBOUR_ADVERTISEMENT, 0, sum_, *fields)
    header = _IPV6.pack(_IPV6_VERSION, len(body), _ICMPV6, HOP_LIMIT, packed, _ALL_NODES.packed)
    return _ALL_NODES_MAC + sender + struct.pack("!H", _ETHERTYPE_IPV6) + header + body


def parse_announcement(frame: bytes) -> tuple[str, IPv4Address] | None:
    """(MAC, address) of who announces itself; None for any other frame. **Pure.**"""
    if len(frame) < _HEADER_BYTES + _ARP.size or frame[12:14] != struct.pack("!H", ETHERTYPE_ARP):
        return None
    _, protocol, _, _, _, mac, sender, _, target = _ARP.unpack_from(frame, _HEADER_BYTES)
    if protocol != _IPV4 or sender != target:
        return None
    return mac.hex(":"), IPv4Address(sender)


def parse_advertisement(message: bytes) -> tuple[str, IPv6Address] | None:
    """(MAC, address) of an ICMPv6 message that has a neighbour be at another MAC; None for any other.

    **Pure.**
    """
    if len(message) < _ADVERTISEMENT.size:
        return None
    kind, _, _, flags, target, option, length, mac = _ADVERTISEMENT.unpack_from(message)
    says_mac = (option, length) == (_TARGET_MAC, _EIGHT_BYTES)
    if kind != NEIGHBOUR_ADVERTISEMENT or not says_mac or not flags & _OVERRIDE:
        return None
    return mac.hex(":"), IPv6Address(target)


def _checksum(data: bytes) -> int:
    """Source: RFC 1071. `data` has an even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
