"""Sockets that hear what is announced by ARP on links to external networks.

**Edge.** Called in the driver's thread, in the host's namespace. Whoever listens closes them, on the event
loop that watches them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.net.announce import ETHERTYPE_ARP
from agent.net.rtnetlink import Netlink


@dataclass(frozen=True, slots=True)
class Ear:
    """Of the link with this index and MAC."""

    index: int
    mac: str
    socket: socket.socket


class Ears:
    """By uplink."""

    def __init__(self, uplinks: Mapping[str, str]) -> None:
        self._uplinks = uplinks
        self._ears: dict[str, Ear] = {}

    def ensure(self, names: Iterable[str]) -> dict[str, Ear]:
        """Of exactly these uplinks, as far as their links are there: the same one as long as its link is the
        same and nobody closed it."""
        with Netlink() as host:
            found = {name: host.find_link(self._uplinks.get(name, "")) for name in names}
        kept: dict[str, Ear] = {}
        for name, link in found.items():
            known = self._ears.get(name)
            if link is None:
                continue
            if (
                known is None
                or (known.index, known.mac) != (link.index, link.mac)
                or known.socket.fileno() < 0
            ):
                known = Ear(link.index, link.mac, _listen(link.name))
            kept[name] = known
        self._ears = kept
        return dict(kept)


def _listen(link_name: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        made.setblocking(False)
        made.bind((link_name, ETHERTYPE_ARP))
    except OSError:
        made.close()
        raise
    return made
