"""Security groups on this node: programmed, removed, and the connections that they no longer allow ended.

**Edge.** Called in the driver's thread, in the host's namespace. Ports lead to groups by chain names, so the
order in which groups and ports arrive does not matter: a group that is not known yet allows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from agent.errors import DriverError
from agent.net import conntrack, nft, security, security_flows
from agent.net.driver import GroupIntent, NetworkIntent, PortIntent
from agent.net.elements import TABLE
from agent.net.group_listing import Chains, group_fingerprint
from agent.net.group_state import GroupRecord, GroupState
from agent.net.kernel_host import KernelHost
from agent.net.rules_reader import Tables
from agent.net.security import NOTHING, ProgrammedGroup
from agent.net.security_flows import Policy

Networks = Callable[[], Iterable[NetworkIntent]]
FindNetwork = Callable[[str], NetworkIntent | None]  # one of them, by its uid
_EDITED: Final = "edited"  # a digest that no intent has


class KernelGroups:
    """`networks` gives those of this node as they were last programmed, with their ports."""

    def __init__(
        self, state: GroupState, host: KernelHost, networks: Networks, find_network: FindNetwork
    ) -> None:
        self._state = state
        self._host = host
        self._networks = networks
        self._find_network = find_network

    def ensure(self, group: GroupIntent) -> None:
        """The record last: whatever stops this, the next look finds another digest."""
        self._host.ensure()
        known = self._host.tables().chains.groups.get(group.uid, NOTHING)
        record = self._state.records.get(group.uid)
        keep_rules = record is not None and record.intent.rules == group.rules and record.rules == known.rules
        members = frozenset(map(str, group.members))
        if not keep_rules or known.members != members:
            self._program(group, known, members, keep_rules=keep_rules)
        rules = known.rules if keep_rules else self._read_rules(group.uid)
        if security_flows.is_narrower(record.intent if record else None, group):
            self._end_connections(group, record.intent if record else None)
        self._state.write(group, rules)

    def _program(
        self, group: GroupIntent, known: ProgrammedGroup, members: frozenset[str], *, keep_rules: bool
    ) -> None:
        commands = security.group_commands(group, known, keep_rules=keep_rules)
        remotes = {rule.remote_group for rule in group.rules if rule.remote_group}
        try:
            self._host.change(commands, lambda tables: _with_group(tables, group.uid, members, remotes))
        except DriverError as err:
            raise DriverError(err.reason, f"security group {group.uid}: {err.message}") from err

    def ensure_absent(self, uid: str) -> None:
        """Chains stay while ports lead there, sets while rules of others mean them; with nothing in them."""
        if uid in self._host.tables().chains.groups:
            self._host.change(
                security.group_closed(uid), lambda tables: _with_group(tables, uid, frozenset())
            )
        record = self._state.records.get(uid)
        self._state.forget(uid)
        if record is not None:
            self._end_connections(replace(record.intent, rules=(), members=frozenset()), record.intent)
        self.sweep()
        self._host.leave_if_unused()

    def sweep(self) -> None:
        """Remove chains and sets of groups that nobody told of and nothing refers to."""
        chains = self._host.tables().chains
        used = security.used_names(self._state.intents(), chains.ports.values())
        unused = chains.groups.keys() - used
        if unused:
            commands = [command for uid in sorted(unused) for command in security.group_absent(uid)]
            self._host.change(commands, lambda tables: _without_groups(tables, unused))

    def digests(self, tables: Tables) -> dict[str, str]:
        """What is programmed; nothing of it counts while something is edited."""
        return {
            uid: record.digest if _is_whole(tables.chains, record) else _EDITED
            for uid, record in self._state.records.items()
        }

    def end_connections(self, network: NetworkIntent) -> None:
        """Those of a network that its ports' groups do not allow."""
        self._end_in(network, self._state.intents())

    def end_connections_of(self, port: PortIntent) -> None:
        """Those of one port that its groups do not allow."""
        network = self._find_network(port.network_uid)
        if network is not None:
            self._end_in(replace(network, ports=(port,)), self._state.intents())

    def _end_connections(self, group: GroupIntent, before: GroupIntent | None) -> None:
        groups = {**self._state.intents(), group.uid: group}
        networks = {network.uid: network for network in self._networks()}
        ports = (port for network in networks.values() for port in network.ports)
        was = {**groups, group.uid: before} if before is not None else groups
        for uid in security_flows.affected_networks(group.uid, ports, was):
            self._end_in(networks[uid], groups)

    def _end_in(self, network: NetworkIntent, groups: Mapping[str, GroupIntent]) -> None:
        zone = self._host.zones.known.get(network.uid)
        if zone is not None:
            gateways = frozenset(subnet.gateway for subnet in network.subnets)
            cidrs = frozenset(subnet.cidr for subnet in network.subnets)
            policy = Policy(network.ports, gateways, groups, cidrs)
            conntrack.end_connections(zone, lambda connection: not policy.allows(connection))

    def _read_rules(self, uid: str) -> str:
        """The fingerprint of a group's chains, which are listed alone: a node has thousands."""
        listing = nft.list_chains("inet", TABLE, [f"{prefix}{uid}" for prefix in security.GROUP_PREFIXES])
        rules = group_fingerprint(uid, listing)
        self._host.learn(lambda tables: _with_rules(tables, uid, rules))
        return rules


def _is_whole(chains: Chains, record: GroupRecord) -> bool:
    programmed = chains.groups.get(record.intent.uid)
    return programmed is not None and programmed == ProgrammedGroup(record.rules, record.members)


def _with_group(tables: Tables, uid: str, members: frozenset[str], remotes: Iterable[str] = ()) -> Tables:
    """`remotes`: groups that its rules mean have sets now, told of or not."""
    rules = tables.chains.groups.get(uid, NOTHING).rules
    known = {**dict.fromkeys(remotes, NOTHING), **tables.chains.groups}
    return _with_groups(tables, {**known, uid: ProgrammedGroup(rules, members)})


def _with_rules(tables: Tables, uid: str, rules: str) -> Tables:
    members = tables.chains.groups.get(uid, NOTHING).members
    return _with_groups(tables, {**tables.chains.groups, uid: ProgrammedGroup(rules, members)})


def _without_groups(tables: Tables, uids: Iterable[str]) -> Tables:
    gone = set(uids)
    kept = {uid: group for uid, group in tables.chains.groups.items() if uid not in gone}
    return _with_groups(tables, kept)


def _with_groups(tables: Tables, groups: Mapping[str, ProgrammedGroup]) -> Tables:
    return replace(tables, chains=replace(tables.chains, groups=groups))
