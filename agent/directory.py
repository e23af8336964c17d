"""What the leader has told of ports on other nodes, in this session: kept in memory, changed by messages.

**Pure** in effect: no I/O. Nothing of it is needed after a restart: the kernel keeps what is programmed, and
a new session is told everything anew. A bad entry becomes a refusal of that entry and holds up no other.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Generic, TypeVar

from agent.intent import Refusal
from agent.net.driver import IPAddress, RemotePort
from agent.net.summed import SummedSet
from agent.net_intent import check_mac
from agent.planned import check_uid
from cumulet.v1 import agent_pb2 as pb

T = TypeVar("T")
REFUSALS_MAX: Final = 100  # of a directory that is all wrong, the first ones say enough


@dataclass(slots=True)
class _Book(Generic[T]):
    """What each port brings, by port uid, and all of it as one value; several may bring the same.

    What is told costs what it is; `brought`, a copy of all, is made when it is asked for.
    """

    entries: dict[str, tuple[T, ...]] = field(default_factory=dict)
    times: Counter[T] = field(default_factory=Counter)
    whole: SummedSet[T] = field(default_factory=SummedSet)
    lost: set[T] = field(default_factory=set)  # since then, and
    come: set[T] = field(default_factory=set)

    def take(self, *, full: bool, gone: Iterable[str], put: Iterable[tuple[str, tuple[T, ...]]]) -> None:
        if full:
            self.entries, self.times, self.whole = {}, Counter(), SummedSet()
            self.lost, self.come = set(), set()
        left, come = list(gone), dict(put)
        before = [one for uid in (*left, *come) for one in self.entries.pop(uid, ())]
        after = [one for brought in come.values() for one in brought]
        self.entries.update(come)
        self.times.update(after)
        self.times.subtract(before)
        lost = {one for one in before if not self.times[one]}
        for one in lost:
            del self.times[one]
        self.lost.difference_update(after)
        self.lost.update(lost)
        self.come.update(after)
        self.come.difference_update(lost)

    def brought(self) -> SummedSet[T]:
        if self.lost or self.come:
            self.whole = self.whole.changed(self.lost, self.come)
            self.lost, self.come = set(), set()
        return self.whole


class Directory:
    """Remote ports by network, and members by security group, by uid."""

    def __init__(self) -> None:
        self._networks: dict[str, _Book[RemotePort]] = {}
        self._groups: dict[str, _Book[IPAddress]] = {}
        self._vteps: dict[str, dict[IPAddress, IPAddress]] = {}  # by network, where static routes asked
        self.refusals: dict[str, Refusal] = {}  # by port uid

    def find_remotes(self, network_uid: str) -> frozenset[RemotePort] | None:
        """Ports of a network on other nodes; None when nothing was told of it."""
        book = self._networks.get(network_uid)
        return None if book is None else book.brought()

    def find_members(self, group_uid: str) -> frozenset[IPAddress] | None:
        """Addresses of a group's members on all nodes; None when nothing was told of it."""
        book = self._groups.get(group_uid)
        return None if book is None else book.brought()

    def find_vtep(self, network_uid: str, address: IPAddress) -> IPAddress | None:
        """The node of the port of a network that has this address; None when it is on none that was told."""
        known = self._vteps.get(network_uid)
        if known is None:
            remotes = self.find_remotes(network_uid) or frozenset()
            known = {address: remote.vtep for remote in remotes for address in remote.addresses}
            self._vteps[network_uid] = known
        return known.get(address)

    def take(self, change: pb.DirectoryChange) -> None:
        """Apply one message."""
        for network in change.networks:
            self._vteps.pop(network.network_uid, None)
            put = self._parsed(network.put, lambda entry: (entry.uid, (_remote_port(entry),)))
            book = self._networks.setdefault(network.network_uid, _Book())
            book.take(full=network.full, gone=network.gone_port_uids, put=put)
        for group in change.groups:
            members = self._parsed(group.put, lambda entry: (entry.port_uid, _addresses(entry.addresses)))
            group_book = self._groups.setdefault(group.group_uid, _Book())
            group_book.take(full=group.full, gone=group.gone_port_uids, put=members)

    def _parsed(
        self,
        entries: Iterable[pb.PlannedRemotePort | pb.PlannedMember],
        parse: Callable[..., tuple[str, tuple[T, ...]]],
    ) -> list[tuple[str, tuple[T, ...]]]:
        found = []
        for entry in entries:
            uid = entry.uid if isinstance(entry, pb.PlannedRemotePort) else entry.port_uid
            try:
                found.append(parse(entry))
                self.refusals.pop(uid, None)
            except ValueError as err:
                if len(self.refusals) < REFUSALS_MAX:
                    text = f"port {uid!r} of the directory: {err}; correct it at the controller"
                    self.refusals[uid] = Refusal(uid, "BadDirectory", text)
        return found


def _remote_port(entry: pb.PlannedRemotePort) -> RemotePort:
    return RemotePort(
        uid=check_uid("uid", entry.uid),
        mac=check_mac("mac", entry.mac),
        addresses=_addresses(entry.addresses),
        vtep=_vtep(entry.vtep),
        hostname=entry.hostname,
    )


@functools.lru_cache(maxsize=1 << 12)  # nodes: each has many ports
def _vtep(text: str) -> IPAddress:
    return ip_address(text)


def _addresses(texts: Iterable[str]) -> tuple[IPAddress, ...]:
    return tuple(ip_address(text) for text in texts)
