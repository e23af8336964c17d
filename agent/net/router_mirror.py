"""What a router's namespace holds of routes, neighbours and tunnel entries, without listing it at each look.

**Edge.** Called in the driver's thread. The kernel tells of every change in the namespace. Changes of our own
are expected; anything else, such as a link that went (IPv4 routes leave with it in silence), is a reason to
list once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

from agent.net import netlink_neighbour, netlink_route, netns
from agent.net.addressing import ROUTER_TUNNEL_LINK
from agent.net.driver import IPAddress
from agent.net.netlink_neighbour import Entry, Neighbour, PortEntry, TunnelEntry
from agent.net.netlink_route import OF_DIRECTORY, RouterRoute
from agent.net.router_entries import RouterEntry, hash_of, key_of
from agent.net.rtnetlink import EntryChange, EventsLostError, Netlink, RouteEvents

_CHANGES_MAX: Final = 500  # of one message to the kernel: well within a socket's 208 KiB, events included

_News = set[tuple[bool, Entry | RouterRoute | None]]


class RouterMirror:
    """Of the namespace that is at this path now: open another one when `inode` differs.

    `routes` are the router's own and whatever else is there; `entries`, with their `hash`, are what follows
    from ports elsewhere. `tunnel` is the link's index, 0 while there is none.
    """

    def __init__(self, namespace: Path) -> None:
        self._namespace = namespace
        self.inode = namespace.stat().st_ino
        self.tunnel = 0
        self.routes: set[RouterRoute] = set()
        self.entries: set[RouterEntry] = set()
        self.hash = 0
        self._ways: dict[tuple[IPAddress, int], RouterRoute] = {}
        self._is_unsure = False  # a change was begun, and nobody has heard how it ended
        with netns.inside(namespace):
            self._events = RouteEvents()
        self._list()

    def close(self) -> None:
        self._events.close()

    def follow(self) -> None:
        """Bring it up to date."""
        if self._take() != set() or self._is_unsure:
            self._list()

    def find_way(self, like: RouterRoute) -> RouterRoute | None:
        """The route that follows from ports elsewhere to the same destination."""
        return self._ways.get((like.destination, like.prefix_length))

    def vteps(self) -> frozenset[IPAddress]:
        """Nodes that the tunnel leads to."""
        return frozenset(entry.vtep for entry in self.entries if isinstance(entry, TunnelEntry))

    def change(self, stale: Collection[RouterEntry], missing: Collection[RouterEntry]) -> None:
        """Program a difference. Nothing leads to a node before frames for it have a way, nor after.

        What is replaced by another value of the same key is not removed first: packets go on.
        """
        replaced = {key_of(entry) for entry in missing}
        gone = [entry for entry in stale if key_of(entry) not in replaced]
        steps = [
            *((True, part) for part in _parts(entry for entry in missing if not _is_route(entry))),
            *((True, part) for part in _parts(filter(_is_route, missing))),
            *((False, part) for part in _parts(filter(_is_route, gone))),
            *((False, part) for part in _parts(entry for entry in gone if not _is_route(entry))),
        ]
        news: _News | None = set()
        self._is_unsure = True
        with netns.inside(self._namespace), Netlink() as netlink:
            for present, part in steps:
                _send(netlink, present, part)
                told = self._take()  # while the events of this part still fit
                news = None if news is None or told is None else news | told
        if news == {(present, entry) for present, part in steps for entry in part}:
            self._take_out(stale)
            self._put_in(missing)
            self._is_unsure = False
        else:
            self._list()

    def _take(self) -> _News | None:
        """What concerns us; None when the kernel told more than the buffer holds."""
        try:
            return {item for item in self._events.take() if self._concerns_us(item[1])}
        except EventsLostError:
            return None

    def _concerns_us(self, found: Entry | RouterRoute | None) -> bool:
        """Not what guests' neighbours are found to be, which changes all the time."""
        if isinstance(found, Neighbour):
            return found.link == self.tunnel and not found.address.is_multicast
        return not isinstance(found, PortEntry)

    def _list(self) -> None:
        with netns.inside(self._namespace), Netlink() as netlink:
            tunnel = netlink.find_link(ROUTER_TUNNEL_LINK)
            self.tunnel = tunnel.index if tunnel is not None else 0
            listing: set[RouterEntry] = set(netlink.router_routes())
            for entry in netlink.entries():
                held = isinstance(entry, TunnelEntry) or (isinstance(entry, Neighbour) and entry.permanent)
                if held and self._concerns_us(entry) and not isinstance(entry, PortEntry):
                    listing.add(entry)
        self.routes, self.entries, self.hash = set(), set(), 0
        self._ways.clear()
        self._put_in(listing)
        self._is_unsure = False

    def _put_in(self, entries: Iterable[RouterEntry]) -> None:
        for entry in entries:
            if isinstance(entry, RouterRoute) and entry.protocol != OF_DIRECTORY:
                self.routes.add(entry)
            else:
                self.entries.add(entry)
                if isinstance(entry, RouterRoute):
                    self._ways[entry.destination, entry.prefix_length] = entry
                self.hash ^= hash_of((entry,), self.tunnel)

    def _take_out(self, entries: Iterable[RouterEntry]) -> None:
        for entry in entries:
            if isinstance(entry, RouterRoute) and entry.protocol != OF_DIRECTORY:
                self.routes.discard(entry)
            else:
                self.entries.discard(entry)
                if isinstance(entry, RouterRoute):
                    self._ways.pop((entry.destination, entry.prefix_length), None)
                self.hash ^= hash_of((entry,), self.tunnel)


def _is_route(entry: RouterEntry) -> bool:
    return isinstance(entry, RouterRoute)


def _parts(entries: Iterable[RouterEntry]) -> list[list[RouterEntry]]:
    chosen = list(entries)
    return [chosen[start : start + _CHANGES_MAX] for start in range(0, len(chosen), _CHANGES_MAX)]


def _send(netlink: Netlink, present: bool, part: Sequence[RouterEntry]) -> None:
    """All routes, or none."""
    changes = [EntryChange(present, _payload(entry)) for entry in part]
    if _is_route(part[0]):
        netlink.change_routes(changes)
    else:
        netlink.change_entries(changes)


def _payload(entry: RouterEntry) -> bytes:
    if isinstance(entry, RouterRoute):
        return netlink_route.router_route(entry)
    return netlink_neighbour.payload_of(entry)
