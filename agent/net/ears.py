"""Sockets that hear what is announced by ARP and ND on links to external networks.

**Edge.** Called in the driver's thread, in the host's namespace. Whoever listens closes them, on the event
loop that watches them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from agent.net.announce import (
    ETHERTYPE_ARP,
    HOP_LIMIT,
    NEIGHBOUR_ADVERTISEMENT,
    parse_advertisement,
    parse_announcement,
)
from agent.net.driver import IPAddress
from agent.net.netlink_link import Link
from agent.net.rtnetlink import Netlink

Place = tuple[str, int]  # uplink and IP version
_FRAME_BYTES: Final = 2048
_ANCILLARY_BYTES: Final = 64
_ICMP6_FILTER: Final = 1  # linux/icmpv6.h: a bit for each type that is not heard
_TYPES: Final = 256


@dataclass(frozen=True, slots=True)
class Ear:
    """Of the link with this index and MAC."""

    index: int
    mac: str
    socket: socket.socket
    ip_version: int = 4

    def hear(self) -> tuple[str, IPAddress] | None:
        """(MAC, address) of who announces itself; None for anything else. Raises OSError."""
        if self.ip_version == 4:
            return parse_announcement(self.socket.recv(_FRAME_BYTES))
        message, ancillary, _, _ = self.socket.recvmsg(_FRAME_BYTES, _ANCILLARY_BYTES)
        limits = [data for level, kind, data in ancillary if (level, kind) == _HOP_LIMIT_OF]
        is_near = limits == [struct.pack("=i", HOP_LIMIT)]
        return parse_advertisement(message) if is_near else None


_HOP_LIMIT_OF: Final = (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)


class Ears:
    """By uplink and IP version."""

    def __init__(self, uplinks: Mapping[str, str]) -> None:
        self._uplinks = uplinks
        self._ears: dict[Place, Ear] = {}

    def ensure(self, places: Iterable[Place]) -> dict[Place, Ear]:
        """Of exactly these, as far as their links are there: the same one as long as its link is the same and
        nobody closed it."""
        wanted = list(places)
        with Netlink() as host:
            found = {name: host.find_link(self._uplinks.get(name, "")) for name, _ in wanted}
        kept: dict[Place, Ear] = {}
        for place in wanted:
            link = found[place[0]]
            if link is not None:
                known = self._ears.get(place)
                is_same = known is not None and (known.index, known.mac) == (link.index, link.mac)
                if known is None or not is_same or known.socket.fileno() < 0:
                    known = Ear(link.index, link.mac, _listen(link, place[1]), place[1])
                kept[place] = known
        self._ears = kept
        return dict(kept)


def _listen(link: Link, ip_version: int) -> socket.socket:
    family, protocol = (socket.AF_PACKET, 0) if ip_version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        made.setblocking(False)
        if ip_version == 4:
            made.bind((link.name, ETHERTYPE_ARP))
        else:
            made.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, _all_but(NEIGHBOUR_ADVERTISEMENT))
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.name.encode())
    except OSError:
        made.close()
        raise
    return made


def _all_but(kind: int) -> bytes:
    words = [0xFFFFFFFF] * (_TYPES // 32)
    words[kind // 32] &= ~(1 << kind % 32)
    return struct.pack(f"={len(words)}I", *words)
