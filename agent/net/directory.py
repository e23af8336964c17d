"""A network's directory: its ports on other nodes, as entries of this node's kernel, and compared by digest.

**Pure.** A remote port is one entry of the network's bridge (frames to its MAC leave by the tunnel), one of
the tunnel (to which node) and a neighbour of the bridge for each address, from which the bridge answers ARP
and ND by itself. The digest is the exclusive or of its entries' hashes: one entry more or less is one step,
and it can be computed from what the kernel holds as well as from what was asked for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from agent.net.driver import IPAddress, RemotePort
from agent.net.netlink_neighbour import Entry, Neighbour, PortEntry, TunnelEntry
from agent.net.summed import hash_over
from cumulet.addresses import link_local_address


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a network is in the kernel: indexes of its bridge and of its tunnel."""

    bridge: int
    tunnel: int


def digest_of_directory(remotes: frozenset[RemotePort]) -> str:
    """Independent of order and of uids, which the kernel does not know."""
    return render_digest(hash_over(remotes, _hash_of_remote))


def render_digest(total: int) -> str:
    return f"{total:016x}"


def entries_of(remotes: Iterable[RemotePort], spot: Spot) -> set[Entry]:
    return {entry for remote in remotes for entry in _entries(remote, spot)}


def hash_of(entries: Iterable[Entry]) -> int:
    total = 0
    for entry in entries:
        total ^= _hash(entry)
    return total


def neighbour_addresses(remote: RemotePort) -> tuple[IPAddress, ...]:
    """Its own, and with IPv6 the one that every guest makes itself."""
    if any(address.version == 6 for address in remote.addresses):
        return (*remote.addresses, link_local_address(remote.mac))
    return remote.addresses


class EntryMirror:
    """What the kernel's listing and its events since then say. Changed in place by `apply`."""

    def __init__(self, listing: Iterable[Entry] = ()) -> None:
        self._ports: dict[int, dict[str, PortEntry]] = {}
        self._tunnels: dict[int, dict[tuple[str, IPAddress | None], TunnelEntry]] = {}
        self._neighbours: dict[int, dict[IPAddress, Neighbour]] = {}
        self._hashes: dict[int, int] = {}
        self._vteps: dict[int, Counter[IPAddress]] = {}
        for entry in listing:
            self.apply(True, entry)

    def apply(self, is_there: bool, entry: Entry) -> None:
        if isinstance(entry, PortEntry):
            self._apply_port(is_there, entry)
        elif isinstance(entry, TunnelEntry):
            self._apply_tunnel(is_there, entry)
        else:
            self._apply_neighbour(is_there, entry)

    def hash_at(self, spot: Spot) -> int:
        return self._hashes.get(spot.tunnel, 0) ^ self._hashes.get(spot.bridge, 0)

    def entries_at(self, spot: Spot) -> set[Entry]:
        ports = (entry for entry in self._ports.get(spot.bridge, {}).values() if entry.link == spot.tunnel)
        tunnels = self._tunnels.get(spot.tunnel, {}).values()
        return {*ports, *tunnels, *self._neighbours.get(spot.bridge, {}).values()}

    def find(self, like: Entry) -> Entry | None:
        """What the kernel holds in the place of this entry."""
        if isinstance(like, PortEntry):
            return self._ports.get(like.bridge, {}).get(like.mac)
        if isinstance(like, TunnelEntry):
            return self._tunnels.get(like.link, {}).get((like.mac, None))
        return self._neighbours.get(like.link, {}).get(like.address)

    def vteps_at(self, spot: Spot) -> Counter[IPAddress]:
        """Where frames go, and how many MACs for each."""
        return self._vteps.get(spot.tunnel, Counter())

    @property
    def ports(self) -> Mapping[int, Mapping[str, PortEntry]]:
        """By index of the bridge and MAC."""
        return self._ports

    def _apply_port(self, is_there: bool, entry: PortEntry) -> None:
        table = self._ports.setdefault(entry.bridge, {})
        before = table.get(entry.mac)
        if before is not None and (is_there or before.link == entry.link):
            self._toggle(before.link, table.pop(entry.mac))
        if is_there:
            table[entry.mac] = entry
            self._toggle(entry.link, entry)

    def _apply_tunnel(self, is_there: bool, entry: TunnelEntry) -> None:
        table = self._tunnels.setdefault(entry.link, {})
        vteps = self._vteps.setdefault(entry.link, Counter())
        key = (entry.mac, entry.vtep if _may_have_several(entry.mac) else None)
        before = table.get(key)
        if before is not None and (is_there or before.vtep == entry.vtep):
            self._toggle(entry.link, table.pop(key))
            vteps[before.vtep] -= 1
            if not vteps[before.vtep]:
                del vteps[before.vtep]
        if is_there:
            table[key] = entry
            vteps[entry.vtep] += 1
            self._toggle(entry.link, entry)

    def _apply_neighbour(self, is_there: bool, entry: Neighbour) -> None:
        table = self._neighbours.setdefault(entry.link, {})
        before = table.pop(entry.address, None)
        if before is not None:
            self._toggle(entry.link, before)
        if is_there and entry.permanent:
            table[entry.address] = entry
            self._toggle(entry.link, entry)

    def _toggle(self, link: int, entry: Entry) -> None:
        self._hashes[link] = self._hashes.get(link, 0) ^ _hash(entry)


def _may_have_several(mac: str) -> bool:
    """A unicast MAC is in one place; frames for a group or for everybody else may go to several."""
    return bool(int(mac[:2], 16) & 1) or not mac.strip("0:")


def _entries(remote: RemotePort, spot: Spot) -> Iterator[Entry]:
    yield PortEntry(spot.bridge, remote.mac, spot.tunnel, True)
    yield TunnelEntry(spot.tunnel, remote.mac, remote.vtep)
    for address in neighbour_addresses(remote):
        yield Neighbour(spot.bridge, address, remote.mac, True)


def _hash_of_remote(remote: RemotePort) -> int:
    return hash_of(_entries(remote, Spot(0, 0)))


def _hash(entry: Entry) -> int:
    """Without the indexes of links, which differ from boot to boot."""
    if isinstance(entry, PortEntry):
        text = f"port {entry.mac} {entry.static}"
    elif isinstance(entry, TunnelEntry):
        text = f"tunnel {entry.mac} {entry.vtep}"
    else:
        text = f"neighbour {entry.address} {entry.mac}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
