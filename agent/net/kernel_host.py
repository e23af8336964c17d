"""The node's own part of the data plane: host tables, their sets, forwarding, resolvers.

**Edge.** Called in the driver's thread, in the host's namespace. There while any network or tap of ours is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from agent.errors import DriverError
from agent.net import (
    conntrack,
    dnsmasq_config,
    external,
    guard_rules,
    host_change,
    nft,
    program,
    ruleset,
    security,
    sysctl,
)
from agent.net.driver import IPAddress, PortIntent
from agent.net.elements import Element, Json
from agent.net.group_state import GroupState
from agent.net.guest_rules import NUMBER_MAX
from agent.net.numbers import Numbers
from agent.net.rtnetlink import Netlink
from agent.net.rules_reader import RulesReader, Tables
from agent.net.ruleset import HOST_TABLES
from agent.net.state import HostRecord, NetworkRecord, State, read_text, write_text

_OWNER: Final = ""
# The second is where systemd-resolved keeps the real servers while the first names its own loopback.
_RESOLVER_FILES: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))

Chosen = Callable[[Element], bool]


ZONE_MAX: Final = 65_535  # a conntrack zone has 16 bits, a VNI 24


def _any(_: Element) -> bool:
    return True


class KernelHost:
    """`peers` gives who may send into the node's tunnels now, `routers` what is recorded of routers.

    `numbers` are of ports, `zones` of networks.
    """

    def __init__(
        self,
        state: State,
        reader: RulesReader,
        underlay: IPAddress | None,
        peers: Callable[[], frozenset[Element]],
        groups: GroupState,
        routers: Callable[[], frozenset[Element]],
    ) -> None:
        self._state = state
        self._reader = reader
        self._groups = groups
        self.numbers = Numbers(state.directory / "ports", NUMBER_MAX - 1)
        self.zones = Numbers(state.directory / "zones", ZONE_MAX)
        self._peers = peers
        self._routers = routers
        self.underlay = underlay

    def tables(self) -> Tables:
        return self._reader.read(_OWNER, HOST_TABLES)

    def is_sound(self, tables: Tables) -> bool:
        """Rules, forwarding and resolvers are as this code programs them."""
        record = self._state.find_host()
        return (
            record is not None
            and record.program == program.host_digest(guests_only=record.forwarding_was_off)
            and record.rules == tables.fingerprint
            and not tables.chains.damaged
            and sysctl.forwarding_is_on()
            and sysctl.bridges_are_filtered()
            and (not record.opened_ipv6 or _is_kept_from_routing())
            and read_text(self._state.resolvers) == _resolvers_text()
        )

    def ensure(self) -> None:
        """Rules and forwarding. Sets are refilled from what is recorded, so nobody is unguarded meanwhile."""
        tables = self.tables()
        if self.is_sound(tables):
            return
        if not sysctl.bridges_are_filtered():
            raise DriverError(
                "BridgesNotFiltered",
                "this node's kernel does not filter bridged packets, so no security group would hold: "
                "load its module with `modprobe br_netfilter`, also at every boot",
            )
        record = self._state.find_host()
        was_off = not sysctl.forwarding_is_on() if record is None else record.forwarding_was_off
        known = record or HostRecord("", "", was_off)
        nft.commit_text(guard_rules.GUARD_RULES)  # without elements it only closes
        programmed = self._replace(tables, guests_only=was_off)
        write_text(self._state.resolvers, _resolvers_text())
        digest = program.host_digest(guests_only=was_off)
        self._state.write_host(replace(known, program=digest, rules=programmed.fingerprint))
        if known.opened_ipv6:
            _ensure_ipv6_rules(guests_only=True)
        if not sysctl.forwarding_is_on():
            sysctl.set_forwarding(True)

    def _replace(self, tables: Tables, *, guests_only: bool) -> Tables:
        """With all groups, or where the kernel refuses that, with none: each is then tried by itself."""
        ports = [port for record in self._records() for port in record.intent.ports]
        groups = {**tables.chains.ports, **security.port_groups(ports)}
        found = _by_key(_owned(tables.elements) | self._peers(), self._recorded_elements())
        elements = [one for one in found if host_change.ports_of([one.target]) <= groups.keys()]
        targets = {one.target for one in elements}
        used = {name: groups[name] for name in host_change.ports_of(targets)}
        chains = host_change.chain_commands(host_change.zones_of(targets), used)
        compiled = [
            command
            for group in self._groups.intents().values()
            for command in security.group_commands(group, security.NOTHING, keep_rules=False)
        ]
        try:
            batch = ruleset.host_rules(elements, [*chains, *compiled], guests_only=guests_only)
            return self._reader.replace(_OWNER, HOST_TABLES, batch)
        except DriverError as err:
            if err.reason != nft.REFUSED:
                raise
            batch = ruleset.host_rules(elements, chains, guests_only=guests_only)
            return self._reader.replace(_OWNER, HOST_TABLES, batch)

    def open_ipv6(self) -> None:
        """This node forwards IPv6: of guests only, where it did not do so before."""
        record, is_off = self._state.find_host(), not sysctl.ipv6_forwarding_is_on()
        if record is not None and is_off and not record.opened_ipv6:
            record = replace(record, opened_ipv6=True)
            self._state.write_host(record)
        _ensure_ipv6_rules(guests_only=record is not None and record.opened_ipv6)
        if is_off:
            sysctl.forward_ipv6()

    def close_ipv6(self) -> None:
        """As it was before."""
        record = self._state.find_host()
        if record is not None and record.opened_ipv6:
            sysctl.stop_forwarding_ipv6()
            self._state.write_host(replace(record, opened_ipv6=False))
        _drop_ipv6_rules()

    def ensure_elements(
        self, uid: str, wanted: frozenset[Element], chosen: Chosen = _any, ports: Iterable[PortIntent] = ()
    ) -> bool:
        """Of a port's or a network's elements that `chosen` picks, exactly `wanted` are there.

        With the chains that they lead to, in one transaction. `ports` are those of `wanted`. True when
        somebody is judged otherwise than before.
        """
        tables = self.tables()
        own = {*tables.elements.of_owner(uid), *tables.elements.of_network(uid)}
        present = frozenset(filter(chosen, own))
        stale, missing = present - wanted, wanted - present
        if not stale and not missing:
            return False
        after = tables.elements.changed(stale, missing)
        groups = security.port_groups(ports)
        batch, chains = host_change.build_change(tables.chains, after, stale, missing, groups)
        self.change(batch, lambda before: replace(before, elements=after, chains=chains))
        return any(element.set_name in ("egress", "ingress") for element in (*stale, *missing))

    def ensure_zone(self, network_uid: str) -> int:
        """One that another network had before is empty."""
        is_new = network_uid not in self.zones.known
        zone = self.zones.ensure(network_uid)
        if is_new:
            conntrack.flush_zone(zone)
        return zone

    def change(self, batch: list[Json], after: Callable[[Tables], Tables]) -> None:
        """One transaction."""
        self._reader.change(_OWNER, HOST_TABLES, batch, after)

    def learn(self, after: Callable[[Tables], Tables]) -> None:
        self._reader.learn(_OWNER, HOST_TABLES, after)

    def leave_if_unused(self) -> None:
        """With the last of ours the tables go, and forwarding if it was us who turned it on."""
        tables, record = self.tables(), self._state.find_host()
        if self._state.network_uids() or self._groups.records or _owned(tables.elements):
            return
        if not tables.is_absent:
            nft.commit(ruleset.host_rules_absent())
        if record is not None and record.forwarding_was_off:
            sysctl.set_forwarding(False)
        if record is not None and record.opened_ipv6:
            sysctl.stop_forwarding_ipv6()
            _drop_ipv6_rules()
        self._state.forget_host()
        self.numbers.clear()
        self.zones.clear()
        self._reader.forget(_OWNER)

    def _records(self) -> list[NetworkRecord]:
        found = map(self._state.find_network, self._state.network_uids())
        return [record for record in found if record is not None]

    def _recorded_elements(self) -> frozenset[Element]:
        found: set[Element] = set(self._routers())
        for record in self._records():
            network = record.intent
            found |= ruleset.network_elements(network, self.ensure_zone(network.uid))
            found |= guard_rules.tunnel_elements(network, self.underlay)
            for port in network.ports:
                found |= ruleset.port_elements(port, self.numbers.ensure(port.uid))
        return frozenset(found)


def _ensure_ipv6_rules(*, guests_only: bool) -> None:
    with Netlink() as host:
        host.change_rules((), {external.TO_GUESTS, *([external.NO_ROUTER] if guests_only else [])})


def _drop_ipv6_rules() -> None:
    with Netlink() as host:
        host.change_rules(host.rules() & {external.TO_GUESTS, external.NO_ROUTER}, ())


def _is_kept_from_routing() -> bool:
    with Netlink() as host:
        return external.NO_ROUTER in host.rules()


def _by_key(older: Iterable[Element], newer: Iterable[Element]) -> frozenset[Element]:
    """A map has one value for a key: the newer."""
    keyed = {(one.table, one.family, one.set_name, one.value): one for one in (*older, *newer)}
    return frozenset(keyed.values())


def _owned(elements: Iterable[Element]) -> frozenset[Element]:
    return frozenset(element for element in elements if element.owner)


def _resolvers_text() -> str:
    return dnsmasq_config.render_resolvers(node_resolvers())


def node_resolvers() -> tuple[IPv4Address, ...]:
    """The node's resolvers that a namespace can reach; empty when there is none, see `doctor`."""
    for path in _RESOLVER_FILES:
        found = dnsmasq_config.parse_resolvers(read_text(path))
        if found:
            return found
    return ()
