"""Says to everybody on a link that an address or a station is here now, and understands others (RFC 5227,
section 3).

**Edge**: one packet socket. Without it the outside sends to the node that had the address before, for as long
as it remembers.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Final

from agent.net.netlink_link import Link
from agent.net.netlink_wire import pack_mac

ETHERTYPE_ARP: Final = 0x0806
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


def announce(link: Link, addresses: Iterable[IPv4Address]) -> None:
    """Of the calling thread's namespace. Raises OSError, as of a link that is down."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with contextlib.closing(opened) as speaker:
        speaker.bind((link.name, 0))
        for address in addresses:
            for operation in (_REQUEST, _REPLY):
                speaker.send(announcement(link.mac, address, operation))


def introduce(link: Link, macs: Iterable[str], vlan: int = 0) -> None:
    """Stations: switches learn where they are. Raises OSError, as of a link that is down."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with contextlib.closing(opened) as speaker:
        speaker.bind((link.name, 0))
        for mac in macs:
            speaker.send(introduction(mac, vlan))


def introduction(mac: str, vlan: int) -> bytes:
    """What hypervisors send when a guest has come: a question (RFC 903) that nobody answers. **Pure.**"""
    sender = pack_mac(mac)
    tag = struct.pack("!HH", _ETHERTYPE_VLAN, vlan) if vlan else b""
    body = _ARP.pack(_ETHERNET, _IPV4, 6, 4, _REVERSE_REQUEST, sender, bytes(4), sender, bytes(4))
    return _EVERYBODY + sender + tag + struct.pack("!H", _ETHERTYPE_RARP) + body + bytes(_PADDING)


def announcement(mac: str, address: IPv4Address, operation: int) -> bytes:
    """An Ethernet frame. **Pure.**"""
    sender, packed = pack_mac(mac), address.packed
    target = bytes(6) if operation == _REQUEST else sender
    body = _ARP.pack(_ETHERNET, _IPV4, 6, 4, operation, sender, packed, target, packed)
    return _EVERYBODY + sender + struct.pack("!H", ETHERTYPE_ARP) + body


def parse_announcement(frame: bytes) -> tuple[str, IPv4Address] | None:
    """(MAC, address) of who announces itself; None for any other frame. **Pure.**"""
    if len(frame) < _HEADER_BYTES + _ARP.size or frame[12:14] != struct.pack("!H", ETHERTYPE_ARP):
        return None
    _, protocol, _, _, _, mac, sender, _, target = _ARP.unpack_from(frame, _HEADER_BYTES)
    if protocol != _IPV4 or sender != target:
        return None
    return mac.hex(":"), IPv4Address(sender)
