"""Directories of networks in the kernel: programmed by difference, and watched instead of listed.

**Edge.** Called in the driver's thread, in the host's namespace. The kernel tells of every change of a
forwarding entry or a neighbour; a listing (some 4 µs an entry) is needed at the start and when more happened
than the socket holds. So a look costs what changed, not what there is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from agent.errors import DriverError
from agent.net import names
from agent.net import netlink_neighbour as wire
from agent.net.directory import EntryMirror, Spot, entries_of, hash_of
from agent.net.driver import IPAddress, RemotePort
from agent.net.elements import Element
from agent.net.guard_rules import peer_elements
from agent.net.intent_check import check_directory
from agent.net.netlink_neighbour import Entry, Neighbour, PortEntry, TunnelEntry
from agent.net.rtnetlink import EntryChange, EventsLostError, NeighbourEvents, Netlink

_CHANGES_MAX: Final = 500  # of one message to the kernel: well within a socket's 208 KiB, events included


@dataclass(frozen=True, slots=True)
class _Known:
    """The last directory that was programmed, and its hash: while the kernel has that hash, it is there."""

    spot: Spot
    vni: int
    remotes: frozenset[RemotePort]
    hash: int


@dataclass(frozen=True, slots=True)
class Change:
    """From what the kernel holds to a directory, whose nodes and hash at this spot it will have."""

    spot: Spot
    remotes: frozenset[RemotePort]
    stale: set[Entry]
    missing: set[Entry]
    vteps: frozenset[IPAddress]
    hash: int


class KernelDirectory:
    def __init__(self) -> None:
        self._events: NeighbourEvents | None = None
        self._mirror = EntryMirror()
        self._known: dict[str, _Known] = {}

    def follow(self) -> EntryMirror:
        """What the kernel holds now."""
        if self._events is None:
            self._events = NeighbourEvents()
            self._list()
        try:
            for is_there, entry in self._events.take():
                self._mirror.apply(is_there, entry)
        except EventsLostError:
            self._list()
        return self._mirror

    def plan(self, network_uid: str, remotes: frozenset[RemotePort], spot: Spot) -> Change:
        """What is to be done. Raises DriverError for a directory that cannot be."""
        before = self.follow().hash_at(spot)
        stale, missing = self._difference(network_uid, remotes, spot, before)
        vteps = self._mirror.vteps_at(spot) - _vteps(stale) + _vteps(missing)
        return Change(
            spot, remotes, stale, missing, frozenset(vteps), before ^ hash_of(stale) ^ hash_of(missing)
        )

    def program(self, network_uid: str, vni: int, change: Change) -> None:
        """Raises DriverError when the kernel then holds something else."""
        self._program(_changes(change.stale, change.missing))
        if self.follow().hash_at(change.spot) != change.hash:
            self._known.pop(network_uid, None)
            raise DriverError(
                "DirectoryDiffers",
                f"network {network_uid}: forwarding entries are not as they were set; is another program "
                f"editing {names.tunnel_name(network_uid)}?",
            )
        self._known[network_uid] = _Known(change.spot, vni, change.remotes, change.hash)

    def peers(self) -> frozenset[Element]:
        """Who may send into the tunnels that were programmed."""
        return frozenset(
            element
            for uid, known in self._known.items()
            for element in peer_elements(uid, known.vni, self._mirror.vteps_at(known.spot))
        )

    def forget(self, network_uid: str) -> None:
        self._known.pop(network_uid, None)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def _difference(
        self, network_uid: str, remotes: frozenset[RemotePort], spot: Spot, present_hash: int
    ) -> tuple[set[Entry], set[Entry]]:
        """(too many, missing)."""
        known = self._known.get(network_uid)
        if known is not None and (known.spot, known.hash) == (spot, present_hash):
            new = remotes - known.remotes
            check_directory(network_uid, new)
            present, wanted = entries_of(known.remotes - remotes, spot), entries_of(new, spot)
            if any(self._is_taken(entry, spot, present) for entry in wanted):
                check_directory(network_uid, remotes)
        else:
            check_directory(network_uid, remotes)
            present, wanted = self._mirror.entries_at(spot), entries_of(remotes, spot)
        return present - wanted, wanted - present

    def _is_taken(self, entry: Entry, spot: Spot, leaving: set[Entry]) -> bool:
        """Another remote port, which stays, has this MAC or address."""
        holder = self._mirror.find(entry)
        if holder is None or holder in leaving:
            return False
        return not isinstance(holder, PortEntry) or holder.link == spot.tunnel

    def _program(self, changes: Sequence[EntryChange]) -> None:
        with Netlink() as netlink:
            for start in range(0, len(changes), _CHANGES_MAX):
                netlink.change_entries(changes[start : start + _CHANGES_MAX])
                self.follow()  # while the events of this batch still fit

    def _list(self) -> None:
        with Netlink() as netlink:
            self._mirror = EntryMirror(netlink.entries())


def _vteps(entries: set[Entry]) -> Counter[IPAddress]:
    return Counter(entry.vtep for entry in entries if isinstance(entry, TunnelEntry))


def _changes(stale: set[Entry], missing: set[Entry]) -> list[EntryChange]:
    """Nobody is told of a remote port before frames to it have a way, nor after.

    What is replaced by another value of the same key is not removed first: frames go on.
    """
    neighbours = [entry for entry in missing if isinstance(entry, Neighbour)]
    forwarding: set[Entry] = {entry for entry in missing if not isinstance(entry, Neighbour)}
    replaced = set(map(_key, missing))
    gone = [entry for entry in stale if _key(entry) not in replaced]
    gone.sort(key=lambda entry: not isinstance(entry, Neighbour))
    return [
        *(EntryChange(True, payload) for payload in _forwarding_payloads(forwarding)),
        *(EntryChange(True, wire.payload_of(entry)) for entry in neighbours),
        *(EntryChange(False, wire.payload_of(entry)) for entry in gone),
    ]


def _forwarding_payloads(missing: set[Entry]) -> Iterable[bytes]:
    """One message where bridge and tunnel both lack a MAC."""
    tunnels = {entry.mac: entry for entry in missing if isinstance(entry, TunnelEntry)}
    for entry in missing:
        if isinstance(entry, PortEntry) and (both := tunnels.pop(entry.mac, None)) is not None:
            yield wire.remote_entry(both.link, both.mac, both.vtep)
        elif isinstance(entry, PortEntry):
            yield wire.payload_of(entry)
    yield from map(wire.payload_of, tunnels.values())


def _key(entry: Entry) -> tuple[object, ...]:
    """What the kernel holds one of."""
    if isinstance(entry, PortEntry):
        return ("port", entry.mac)
    if isinstance(entry, TunnelEntry):
        return ("tunnel", entry.mac)
    return ("neighbour", entry.address)
