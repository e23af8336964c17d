"""Links, addresses, routes, forwarding entries and neighbours of the namespace that the calling thread is in.

**Edge**: one netlink socket per object, bound to the thread's namespace at the moment of creation. Kernel
refusals are raised as OSError with the kernel's errno.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

from agent.net import (
    netlink_ip,
    netlink_link,
    netlink_neighbour,
    netlink_route,
    netlink_rule,
    netlink_stats,
)
from agent.net import netlink_wire as wire
from agent.net.netlink_ip import Address, Route
from agent.net.netlink_link import BridgePort, Link, Tunnel
from agent.net.netlink_neighbour import AF_INET, AF_INET6, Entry, Neighbour, Proxy
from agent.net.netlink_route import RouterRoute
from agent.net.netlink_rule import PolicyRule
from agent.net.netlink_stats import CountedLink

_NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12
_SOL_NETLINK: Final = 270
_NETLINK_GET_STRICT_CHK: Final = 12  # the kernel filters dumps as asked
_SO_NETNS_COOKIE: Final = 71
_SO_RCVBUFFORCE: Final = 33
_EVENTS_BUFFER_BYTES: Final = 1 << 22  # some 5,000 events between two looks; more are counted anew
_RECEIVE_BYTES: Final = 1 << 16  # the kernel makes a dump's datagrams at most 32 KiB
_ANSWER_TIMEOUT_S: Final = 10.0  # an answer is immediate; the limit turns a lost one into an error

_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000  # QEMU's virtio-net wants offload headers


class EntryChange(NamedTuple):
    """`payload` names a forwarding entry, a neighbour or a route that is to be there, or not."""

    present: bool
    payload: bytes


class Netlink:
    """A netlink conversation. Use as a context manager; not for several threads."""

    def __init__(self) -> None:
        self._socket = open_conversation(_NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def links(self) -> list[Link]:
        return self._links(netlink_link.link_dump())

    def links_of_bridge(self, index: int) -> list[Link]:
        return self._links(netlink_link.links_of_bridge(index))

    def links_of_kind(self, kind: str) -> list[Link]:
        return self._links(netlink_link.links_of_kind(kind))

    def _links(self, request: bytes) -> list[Link]:
        return [netlink_link.parse_link(payload) for payload in self._dump(netlink_link.RTM_GETLINK, request)]

    def counted_links(self) -> list[CountedLink]:
        request = netlink_stats.counted_link_dump()
        return list(map(netlink_stats.parse_counted_link, self._dump(netlink_link.RTM_GETLINK, request)))

    def addresses(self) -> list[Address]:
        return self._addresses(netlink_ip.address_dump())

    def addresses_of(self, link: int) -> list[Address]:
        return [one for one in self._addresses(netlink_ip.address_dump(link)) if one.link == link]

    def _addresses(self, request: bytes) -> list[Address]:
        found = map(netlink_ip.parse_address, self._dump(netlink_ip.RTM_GETADDR, request))
        return [address for address in found if address is not None]

    def routes(self) -> list[Route]:
        """Ours only."""
        found = map(netlink_ip.parse_route, self._dump(netlink_ip.RTM_GETROUTE, netlink_ip.route_dump()))
        return [route for route in found if route is not None]

    def find_link(self, name: str) -> Link | None:
        try:
            answers = list(self._ask(netlink_link.RTM_GETLINK, wire.F_ACK, netlink_link.link_by_name(name)))
        except OSError as err:
            if err.errno == errno.ENODEV:
                return None
            raise
        return netlink_link.parse_link(answers[0])

    def add_bridge(self, name: str, mac: str) -> None:
        self._do(netlink_link.RTM_NEWLINK, wire.F_CREATE | wire.F_EXCL, netlink_link.bridge(name, mac))

    def add_veth(self, name: str, peer: str, peer_mac: str, peer_netns_fd: int) -> None:
        payload = netlink_link.veth(name, peer, peer_mac, peer_netns_fd)
        self._do(netlink_link.RTM_NEWLINK, wire.F_CREATE | wire.F_EXCL, payload)

    def add_vxlan(self, name: str, mac: str, tunnel: Tunnel, netns_fd: int | None = None) -> None:
        payload = netlink_link.vxlan(name, mac, tunnel, netns_fd)
        self._do(netlink_link.RTM_NEWLINK, wire.F_CREATE | wire.F_EXCL, payload)

    def change_link(
        self,
        index: int,
        *,
        up: bool | None = None,
        master: int | None = None,
        alias: str | None = None,
        mtu: int | None = None,
        bridge_port: BridgePort | None = None,
        filters: bool = False,
    ) -> None:
        """What is None stays as it is; `filters` turns a bridge's on."""
        payload = netlink_link.link_change(
            index, up=up, master=master, alias=alias, mtu=mtu, bridge_port=bridge_port, filters=filters
        )
        self._do(netlink_link.RTM_NEWLINK, 0, payload)

    def delete_link(self, index: int) -> None:
        """A link that is gone already is no error."""
        with _tolerating(errno.ENODEV):
            self._do(netlink_link.RTM_DELLINK, 0, netlink_link.link_delete(index))

    def ensure_address(self, address: Address) -> None:
        self._do(netlink_ip.RTM_NEWADDR, wire.F_CREATE | wire.F_REPLACE, netlink_ip.address(address))

    def delete_address(self, address: Address) -> None:
        with _tolerating(errno.EADDRNOTAVAIL):
            self._do(netlink_ip.RTM_DELADDR, 0, netlink_ip.address(address))

    def ensure_route(self, route: Route) -> None:
        self._do(netlink_ip.RTM_NEWROUTE, wire.F_CREATE | wire.F_REPLACE, netlink_ip.route(route))

    def entries(self, families: Iterable[int] = netlink_neighbour.FAMILIES) -> Iterator[Entry]:
        """Of every bridge, tunnel and neighbour table of the namespace."""
        for family in families:
            for payload in self._dump(netlink_neighbour.RTM_GETNEIGH, netlink_neighbour.dump(family)):
                entry = netlink_neighbour.parse_entry(payload)
                if entry is not None:
                    yield entry

    def stations(self, link: int) -> frozenset[str]:
        """MACs that a link takes frames to besides its own, whoever asked it to."""
        dump = self._dump(netlink_neighbour.RTM_GETNEIGH, netlink_neighbour.dump(netlink_neighbour.AF_BRIDGE))
        found = filter(None, map(netlink_neighbour.parse_station, dump))
        return frozenset(mac for index, mac in found if index == link)

    def neighbours(self, link: int) -> frozenset[Neighbour]:
        """Of IPv6, on the link with this index."""
        dump = self._dump(netlink_neighbour.RTM_GETNEIGH, netlink_neighbour.dump(AF_INET6, link))
        found = map(netlink_neighbour.parse_entry, dump)
        return frozenset(one for one in found if isinstance(one, Neighbour) and one.link == link)

    def router_routes(self) -> Iterator[RouterRoute]:
        """Of the main table, but those that the kernel made of addresses."""
        for ip_version in (4, 6):
            dump = netlink_route.routes_dump(ip_version)
            for payload in self._dump(netlink_route.RTM_GETROUTE, dump):
                route = netlink_route.parse_router_route(payload)
                if route is not None:
                    yield route

    def table_routes(self, table: int, ip_version: int = 4) -> frozenset[RouterRoute]:
        """In a table of ours; empty where there is no such table."""
        found: set[RouterRoute | None] = set()
        with _tolerating(errno.ENOENT):
            dump = netlink_route.routes_dump(ip_version, table)
            for payload in self._dump(netlink_route.RTM_GETROUTE, dump):
                found.add(netlink_route.parse_router_route(payload, table))
        return frozenset(route for route in found if route is not None)

    def proxies(self) -> frozenset[Proxy]:
        """Ours only."""
        dumps = map(netlink_neighbour.proxy_dump, (AF_INET, AF_INET6))
        found = (one for dump in dumps for one in self._dump(netlink_neighbour.RTM_GETNEIGH, dump))
        return frozenset(one for one in map(netlink_neighbour.parse_proxy, found) if one is not None)

    def rules(self) -> frozenset[PolicyRule]:
        """Ours only."""
        dumps = map(netlink_rule.rule_dump, (4, 6))
        found = (one for dump in dumps for one in self._dump(netlink_rule.RTM_GETRULE, dump))
        return frozenset(one for one in map(netlink_rule.parse_rule, found) if one is not None)

    def change_rules(self, gone: Iterable[PolicyRule], come: Iterable[PolicyRule]) -> None:
        """What is gone already is no error."""
        for rule in come:
            with _tolerating(errno.EEXIST):
                flags = wire.F_CREATE | wire.F_EXCL
                self._do(netlink_rule.RTM_NEWRULE, flags, netlink_rule.rule(rule))
        for rule in gone:
            with _tolerating(errno.ENOENT):
                self._do(netlink_rule.RTM_DELRULE, 0, netlink_rule.rule(rule))

    def change_entries(self, changes: Sequence[EntryChange]) -> None:
        """Forwarding entries and neighbours; see `_change`."""
        self._change(_OF_ENTRIES, changes)

    def change_routes(self, changes: Sequence[EntryChange]) -> None:
        """Payloads of routes; see `_change`."""
        self._change(_OF_ROUTES, changes)

    def _change(self, kinds: _Kinds, changes: Sequence[EntryChange]) -> None:
        """One conversation: the kernel answers the last message, and every one that it refuses.

        What is gone already is no error. Raises the first refusal when all changes were tried.
        """
        if not changes:
            return
        first = self._sequence + 1
        self._sequence += len(changes)
        last = self._sequence
        self._socket.send(
            b"".join(
                wire.message(*_request(kinds, change, answers=first + at == last), first + at, change.payload)
                for at, change in enumerate(changes)
            )
        )
        refusal = 0
        for sequence, code in self._verdicts(last):
            gone = code == kinds.gone and not changes[sequence - first].present
            refusal = refusal or (0 if gone else code)
        if refusal:
            raise OSError(refusal, os.strerror(refusal))

    def _verdicts(self, last: int) -> Iterator[tuple[int, int]]:
        """(sequence, errno) up to the one of the last message."""
        sequence = 0
        while sequence != last:
            for answer in wire.parse_messages(self._socket.recv(_RECEIVE_BYTES)):
                if answer.kind == wire.NLMSG_ERROR:
                    sequence = answer.sequence
                    yield sequence, wire.parse_error(answer.payload)

    def _do(self, kind: int, flags: int, payload: bytes) -> None:
        for _ in self._ask(kind, flags | wire.F_ACK, payload):
            pass

    def _dump(self, kind: int, payload: bytes) -> Iterator[bytes]:
        return self._ask(kind, wire.F_DUMP, payload)

    def _ask(self, kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
        self._sequence += 1
        return converse(self._socket, self._sequence, kind, flags, payload)


class _Events:
    """What the kernel tells of the namespace since the last look."""

    def __init__(self, groups: int) -> None:
        self._socket = open_conversation(_NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _EVENTS_BUFFER_BYTES)
        self._socket.bind((0, groups))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def _messages(self) -> Iterator[wire.Message]:
        """In order. Raises EventsLostError when there were more than the buffer holds."""
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as err:
                if err.errno != errno.ENOBUFS:
                    raise
                raise EventsLostError from err
            yield from wire.parse_messages(data)


class NeighbourEvents(_Events):
    """Every change of the namespace's forwarding entries and neighbours since the last look."""

    def __init__(self) -> None:
        super().__init__(netlink_neighbour.GROUP_NEIGHBOURS)

    def take(self) -> Iterator[tuple[bool, Entry]]:
        """(is there, entry), in order. Raises EventsLostError."""
        for message in self._messages():
            entry = netlink_neighbour.parse_entry(message.payload)
            if entry is not None:
                yield message.kind == netlink_neighbour.RTM_NEWNEIGH, entry


class RouteEvents(_Events):
    """Every change of the namespace's links, routes, forwarding entries and neighbours."""

    def __init__(self) -> None:
        groups = netlink_route.GROUP_LINKS | netlink_route.GROUP_ROUTES | netlink_neighbour.GROUP_NEIGHBOURS
        super().__init__(groups)

    def take(self) -> Iterator[tuple[bool, Entry | RouterRoute | None]]:
        """(is there, what), in order; None is a link. Raises EventsLostError."""
        for message in self._messages():
            there = message.kind in (netlink_neighbour.RTM_NEWNEIGH, netlink_route.RTM_NEWROUTE)
            found: Entry | RouterRoute | None = None
            if message.kind in (netlink_route.RTM_NEWROUTE, netlink_route.RTM_DELROUTE):
                found = netlink_route.parse_router_route(message.payload)
            elif message.kind in (netlink_neighbour.RTM_NEWNEIGH, netlink_neighbour.RTM_DELNEIGH):
                found = netlink_neighbour.parse_entry(message.payload)
            else:
                yield there, None
            if found is not None:
                yield there, found


class EventsLostError(Exception):
    """Only a listing tells what there is."""


def rules_generation() -> tuple[int, int]:
    """(cookie of this namespace, generation of its nftables rules).

    Any change of any table raises the generation; cookies are never used twice while the kernel runs.
    """
    with contextlib.closing(open_conversation(NETLINK_NETFILTER)) as conversation:
        cookie = int.from_bytes(conversation.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
        request = wire.rules_generation_request()
        answers = list(converse(conversation, 1, wire.NFT_MSG_GETGEN, wire.F_ACK, request))
    return cookie, wire.parse_rules_generation(answers[0])


def create_tap(name: str) -> None:
    """A persistent tap that libvirt (root) opens by name; flags are libvirt's for virtio-net."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _TUNSETIFF, _tap_request(name))
        fcntl.ioctl(device, _TUNSETPERSIST, 1)
    finally:
        os.close(device)


def _tap_request(name: str) -> bytes:
    return struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)


def open_conversation(protocol: int) -> socket.socket:
    conversation = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    conversation.settimeout(_ANSWER_TIMEOUT_S)
    conversation.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
    return conversation


def converse(
    conversation: socket.socket, sequence: int, kind: int, flags: int, payload: bytes
) -> Iterator[bytes]:
    conversation.send(wire.message(kind, flags, sequence, payload))
    while True:
        for answer in wire.parse_messages(conversation.recv(_RECEIVE_BYTES)):
            if answer.sequence != sequence:
                continue
            if answer.kind == wire.NLMSG_DONE:
                return
            if answer.kind == wire.NLMSG_ERROR:
                code = wire.parse_error(answer.payload)
                if code:
                    raise OSError(code, os.strerror(code))
                return
            yield answer.payload


class _Kinds(NamedTuple):
    """Message types, and the errno when what is to go is gone."""

    new: int
    delete: int
    gone: int


_OF_ENTRIES: Final = _Kinds(netlink_neighbour.RTM_NEWNEIGH, netlink_neighbour.RTM_DELNEIGH, errno.ENOENT)
_OF_ROUTES: Final = _Kinds(netlink_route.RTM_NEWROUTE, netlink_route.RTM_DELROUTE, errno.ESRCH)


def _request(kinds: _Kinds, change: EntryChange, *, answers: bool) -> tuple[int, int]:
    """Message type and flags."""
    flags = wire.F_ACK if answers else 0
    if change.present:
        return kinds.new, flags | wire.F_CREATE | wire.F_REPLACE
    return kinds.delete, flags


@contextlib.contextmanager
def _tolerating(code: int) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno != code:
            raise
