"""Load balancers in a router's namespace: their tables, their addresses, and connections that end.

**Edge.** Called in the driver's thread, in the host's namespace. A table is there before its address, and the
record is last. A change of one balancer, or of its members' health, replaces its own table only, at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from agent.net import conntrack, kernel_links, netns, nft, sysctl
from agent.net.addressing import METADATA_ADDRESS
from agent.net.balancer import BalancerIntent, MemberIntent, Probed, chosen_members
from agent.net.balancer_rules import (
    FAMILIES,
    balancer_absent,
    balancer_digest,
    balancer_rules,
    family_of,
    owner_of_table,
    table_name,
)
from agent.net.balancer_state import BalancerRecord, BalancerState
from agent.net.conntrack_wire import Connection
from agent.net.driver import IPAddress, RouterIntent
from agent.net.netlink_ip import Address
from agent.net.rtnetlink import Netlink
from agent.net.rules_reader import RulesReader
from cumulet.addresses import part_address, part_address6

_LOOPBACK: Final = "lo"


class KernelBalancers:
    def __init__(self, state: BalancerState, reader: RulesReader, underlay: IPAddress | None) -> None:
        self._state = state
        self._reader = reader
        self._parts: dict[int, IPAddress] = {4: part_address(underlay), 6: part_address6(underlay)}

    def ensure(self, router: RouterIntent, namespace: Path) -> None:
        """Exactly these. What is as it should be is not touched."""
        records = self._state.of_router(router.uid)
        wanted = {balancer.uid: balancer for balancer in router.balancers}
        with netns.inside(namespace):
            for family, uid in _tables_here():
                if uid not in wanted or family != family_of(wanted[uid]):
                    nft.commit(balancer_absent(family, uid))
                    self._reader.forget(_owner(router.uid, uid))
            for uid in records.keys() - wanted.keys():
                self._reader.forget(_owner(router.uid, uid))
                _end(records.pop(uid).intent, lambda _: True)
            for uid, balancer in wanted.items():
                records[uid] = self._ensure_one(router.uid, balancer, records.get(uid))
            _ensure_addresses(self._addresses(router))
        self._state.write(router.uid, records)

    def ensure_absent(self, router_uid: str) -> None:
        """Its namespace goes, and with it everything else."""
        for uid in self._state.of_router(router_uid):
            self._reader.forget(_owner(router_uid, uid))
        self._state.write(router_uid, {})

    def ensure_health(self, router_uid: str, uid: str, down: frozenset[Probed], namespace: Path) -> None:
        """Of a balancer that is there; without effect for another one."""
        records = self._state.of_router(router_uid)
        record = records.get(uid)
        if record is None or record.down == down:
            return
        with netns.inside(namespace):
            rules = record.rules
            if chosen_members(record.intent, record.down) != chosen_members(record.intent, down):
                rules = self._program(router_uid, record.intent, down)
        records[uid] = replace(record, down=down, rules=rules)
        self._state.write(router_uid, records)

    def down(self, router_uid: str) -> dict[str, frozenset[Probed]]:
        """Members that were last said to be unhealthy, by balancer."""
        return {uid: record.down for uid, record in self._state.of_router(router_uid).items()}

    def are_whole(self, router: RouterIntent, namespace: Path) -> bool:
        """Every balancer is programmed as intended, and nothing else is there."""
        records = self._state.of_router(router.uid)
        wanted = {balancer.uid: balancer for balancer in router.balancers}
        if {uid: record.intent for uid, record in records.items()} != wanted:
            return False
        with netns.inside(namespace):
            return all(
                self._is_whole(router.uid, record) for record in records.values()
            ) and _present_addresses() == self._addresses(router)

    def _ensure_one(
        self, router_uid: str, balancer: BalancerIntent, record: BalancerRecord | None
    ) -> BalancerRecord:
        if record is not None and record.intent == balancer and self._is_whole(router_uid, record):
            return record
        down = (record.down if record is not None else frozenset()) & balancer.probed()
        rules = self._program(router_uid, balancer, down)
        if record is not None:
            _end_of_members(record.intent, balancer)
        return BalancerRecord(balancer, down, balancer_digest(balancer), rules)

    def _is_whole(self, router_uid: str, record: BalancerRecord) -> bool:
        """In the namespace."""
        uid = record.intent.uid
        tables = self._reader.read(_owner(router_uid, uid), _tables(record.intent))
        return record.program == balancer_digest(record.intent) and record.rules == tables.fingerprint

    def _program(self, router_uid: str, balancer: BalancerIntent, down: Collection[Probed]) -> str:
        """In the namespace. The fingerprint of what is then there."""
        rules = balancer_rules(balancer, chosen_members(balancer, down))
        owner = _owner(router_uid, balancer.uid)
        return self._reader.replace(owner, _tables(balancer), rules).fingerprint

    def _addresses(self, router: RouterIntent) -> set[IPAddress]:
        own: set[IPAddress] = {balancer.address for balancer in router.balancers}
        return own | {self._parts[address.version] for address in own}


def _owner(router_uid: str, uid: str) -> str:
    return f"{router_uid}/{uid}"


def _tables(balancer: BalancerIntent) -> nft.Tables:
    return ((family_of(balancer), table_name(balancer.uid)),)


def _tables_here() -> set[tuple[str, str]]:
    """(family, uid of the balancer) of tables in the calling thread's namespace."""
    named = ((family, owner_of_table(name)) for family, name in nft.list_names() if family in FAMILIES)
    return {(family, uid) for family, uid in named if uid}


def _present_addresses() -> set[IPAddress]:
    """Of the namespace's loopback, without what others put there."""
    with Netlink() as inner:
        loopback = kernel_links.get_link(inner, _LOOPBACK).index
        found: set[IPAddress] = {one.address for one in inner.addresses() if one.link == loopback}
    return {one for one in found - {METADATA_ADDRESS} if not one.is_loopback}


def _ensure_addresses(wanted: set[IPAddress]) -> None:
    if any(address.version == 6 for address in wanted):
        sysctl.enable_ipv6(_LOOPBACK)
    present = _present_addresses()
    with Netlink() as inner:
        loopback = kernel_links.get_link(inner, _LOOPBACK).index
        for address in present - wanted:
            inner.delete_address(Address(loopback, address, address.max_prefixlen))
        for address in wanted - present:
            inner.ensure_address(Address(loopback, address, address.max_prefixlen))


def _end_of_members(before: BalancerIntent, after: BalancerIntent) -> None:
    """What was removed loses its connections; what drains keeps them."""
    gone = set(_targets(before)) - set(_targets(after))
    if gone:
        _end(before, lambda one: (one.protocol, one.second, one.answerer, one.answer_port) in gone)


def _targets(balancer: BalancerIntent) -> Iterable[tuple[int, int, IPAddress, int]]:
    """(protocol, port of the listener, member, its port)."""
    for listener in balancer.listeners:
        for member in balancer.members:
            yield listener.protocol, listener.port, member.address, _port(member, listener.port)


def _port(member: MemberIntent, listened: int) -> int:
    return member.port or listened


def _end(balancer: BalancerIntent, is_over: conntrack.IsOver) -> None:
    """Of what came to its own address or to one of the outside."""
    asked = {balancer.address, *balancer.outside}

    def chosen(connection: Connection) -> bool:
        return connection.destination in asked and is_over(connection)

    conntrack.end_connections(conntrack.NO_ZONE, chosen)
