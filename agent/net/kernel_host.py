"""The node's own part of the data plane: host tables, their sets, forwarding, resolvers.

**Edge.** Called in the driver's thread, in the host's namespace. There while any network or tap of ours is.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from agent.net import dnsmasq_config, guard_rules, nft, program, ruleset, sysctl
from agent.net.driver import IPAddress
from agent.net.elements import Element
from agent.net.rules_reader import RulesReader, Tables
from agent.net.ruleset import HOST_TABLES
from agent.net.state import HostRecord, State, read_text, write_text

_OWNER: Final = ""
# The second is where systemd-resolved keeps the real servers while the first names its own loopback.
_RESOLVER_FILES: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))

Chosen = Callable[[Element], bool]


class KernelHost:
    """`peers` gives who may send into the node's tunnels now."""

    def __init__(
        self,
        state: State,
        reader: RulesReader,
        underlay: IPAddress | None,
        peers: Callable[[], frozenset[Element]],
    ) -> None:
        self._state = state
        self._reader = reader
        self._peers = peers
        self.underlay = underlay

    def tables(self) -> Tables:
        return self._reader.read(_OWNER, HOST_TABLES)

    def is_sound(self, tables: Tables) -> bool:
        """Rules, forwarding and resolvers are as this code programs them."""
        record = self._state.find_host()
        return (
            record is not None
            and record.program == program.host_digest()
            and record.rules == tables.fingerprint
            and sysctl.forwarding_is_on()
            and read_text(self._state.resolvers) == _resolvers_text()
        )

    def ensure(self) -> None:
        """Rules and forwarding. Sets are refilled from what is recorded, so nobody is unguarded meanwhile."""
        tables = self.tables()
        if self.is_sound(tables):
            return
        record = self._state.find_host()
        was_off = not sysctl.forwarding_is_on() if record is None else record.forwarding_was_off
        elements = self._recorded_elements() | _owned(tables.elements) | self._peers()
        nft.commit_text(guard_rules.GUARD_RULES)  # without elements it only closes
        batch = ruleset.host_rules(elements)
        programmed = self._reader.replace(_OWNER, HOST_TABLES, batch)
        write_text(self._state.resolvers, _resolvers_text())
        self._state.write_host(HostRecord(program.host_digest(), programmed.fingerprint, was_off))
        if not sysctl.forwarding_is_on():
            sysctl.set_forwarding(True)

    def ensure_elements(self, wanted: frozenset[Element], chosen: Chosen) -> None:
        """Of the elements that `chosen` picks, exactly `wanted` are there. One transaction."""
        present = frozenset(filter(chosen, self.tables().elements))
        if present != wanted:
            self._reader.change_elements(_OWNER, HOST_TABLES, present - wanted, wanted - present)

    def leave_if_unused(self) -> None:
        """With the last of ours the tables go, and forwarding if it was us who turned it on."""
        tables, record = self.tables(), self._state.find_host()
        if self._state.network_uids() or _owned(tables.elements):
            return
        if not tables.is_absent:
            nft.commit(ruleset.host_rules_absent())
        if record is not None and record.forwarding_was_off:
            sysctl.set_forwarding(False)
        self._state.forget_host()
        self._reader.forget(_OWNER)

    def _recorded_elements(self) -> frozenset[Element]:
        found: set[Element] = set()
        for uid in self._state.network_uids():
            found |= ruleset.network_elements(uid)
            record = self._state.find_network(uid)
            if record is not None:
                found |= guard_rules.tunnel_elements(record.intent, self.underlay)
                found |= frozenset().union(*map(ruleset.port_elements, record.intent.ports))
        return frozenset(found)


def _owned(elements: frozenset[Element]) -> frozenset[Element]:
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
