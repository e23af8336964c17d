"""What a node is told of ports elsewhere: where a network's other ports are, and who is in a security group.

**Pure**, over one session's memory of what is due. Adding one port among thousands sends each node that is
concerned one entry: a network is told in full only when a node gets its first port of it, a group when a node
gets its first rule that refers to it. Nothing is kept of what was sent but which networks and groups were.
A port is told of once its instance is placed: before, nobody can send as it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from controller.admit.subnet import addresses_of
from controller.state import Changed, State
from controller.store import keys
from cumulet.v1 import agent_pb2, port_pb2

ENTRIES_MAX: Final = 5_000  # of one message: some 100 bytes each, far below the link's limit of 4 MiB

Name = tuple[str, str]  # project, name
T = TypeVar("T")


@dataclass(slots=True)
class _Due:
    """A port that is to be told again, as it was last, with all groups that it was in since."""

    port: port_pb2.Port
    groups: set[str]


@dataclass(slots=True)
class Directory:
    """One session's directory: what it was told of in full, and which ports are to be told again."""

    networks: dict[Name, str] = field(default_factory=dict)  # uid by name
    groups: dict[Name, str] = field(default_factory=dict)
    _due: dict[str, _Due] = field(default_factory=dict)  # by port uid

    def forget(self) -> None:
        """Everything is to be told anew."""
        self.networks.clear()
        self.groups.clear()
        self._due.clear()

    def note(self, port: port_pb2.Port) -> None:
        """A port's entry may differ."""
        due = self._due.setdefault(port.meta.uid, _Due(port, set()))
        due.port = port
        due.groups.update(port.spec.security_groups)

    def take_due(self) -> list[_Due]:
        """What was noted, once."""
        due, self._due = list(self._due.values()), {}
        return due


class Told(Generic[T]):
    """Sessions by the networks and groups that they were told of."""

    def __init__(self) -> None:
        self._by_network: dict[Name, dict[str, T]] = {}
        self._by_group: dict[Name, dict[str, T]] = {}

    def add(self, nonce: str, directory: Directory, session: T) -> None:
        for index, names in self._indexes(directory):
            for name in names:
                index.setdefault(name, {})[nonce] = session

    def drop(self, nonce: str, directory: Directory) -> None:
        for index, names in self._indexes(directory):
            for name in names:
                sessions = index.get(name, {})
                sessions.pop(nonce, None)
                if not sessions:
                    index.pop(name, None)

    def about(self, port: port_pb2.Port) -> list[T]:
        """Those that know the port's network or one of its groups."""
        project = port.meta.project
        found = dict(self._by_network.get((project, port.spec.network), {}))
        for group in port.spec.security_groups:
            found |= self._by_group.get((project, group), {})
        return list(found.values())

    def _indexes(self, directory: Directory) -> Iterator[tuple[dict[Name, dict[str, T]], Iterable[Name]]]:
        yield self._by_network, directory.networks
        yield self._by_group, directory.groups


def changed_ports(state: State, changed: Changed) -> Iterator[port_pb2.Port]:
    """Ports whose entry may differ after a change, as they were and as they are."""
    table, parts = changed.table, changed.parts
    rows = [row for row in (changed.before, changed.after) if row is not None]
    if table is keys.PORTS:
        yield from (row.message for row in rows if _is_placed(state, row.message))
    elif table is keys.PLACEMENTS:
        record = rows[-1].message
        yield from (row.message for row in state.ports_of(record.project, record.name))
    elif table is keys.SUBNETS:
        yield from (row.message for row in state.ports_in(parts[0], rows[-1].message.spec.network))


def underlay_changed(changed: Changed) -> bool:
    """Whether tunnels to a node end elsewhere now: what was told of all its ports is wrong."""
    if changed.table is not keys.NODE_STATUS:
        return False
    before = changed.before.message.underlay_address if changed.before else ""
    after = changed.after.message.underlay_address if changed.after else ""
    return bool(before != after)


def take_changes(
    state: State, node: str, plan: agent_pb2.NodePlan | None, directory: Directory
) -> Iterator[agent_pb2.DirectoryChange]:
    """What is to be told before this plan, or without one, in messages of bounded size; takes what is due."""
    networks = directory.networks if plan is None else _networks_of(state, plan)
    groups = directory.groups if plan is None else _groups_of(state, plan)
    due = directory.take_due()
    told_networks = {name: uid for name, uid in directory.networks.items() if networks.get(name) == uid}
    told_groups = {name: uid for name, uid in directory.groups.items() if groups.get(name) == uid}
    new_networks, new_groups = networks.keys() - told_networks.keys(), groups.keys() - told_groups.keys()
    pieces = [
        *(_network_in_full(state, node, name, networks[name]) for name in sorted(new_networks)),
        *(_group_in_full(state, name, groups[name]) for name in sorted(new_groups)),
        *(_network_news(state, node, name, uid, due) for name, uid in sorted(told_networks.items())),
        *(_group_news(state, name, uid, due) for name, uid in sorted(told_groups.items())),
    ]
    directory.networks, directory.groups = networks, groups
    yield from _messages(piece for pieces_of_one in pieces for piece in pieces_of_one)


Piece = agent_pb2.NetworkDirectory | agent_pb2.GroupDirectory


def _messages(pieces: Iterable[Piece]) -> Iterator[agent_pb2.DirectoryChange]:
    message, entries = agent_pb2.DirectoryChange(), 0
    for piece in pieces:
        size = 1 + len(piece.put) + len(piece.gone_port_uids)
        if entries and entries + size > ENTRIES_MAX:
            yield message
            message, entries = agent_pb2.DirectoryChange(), 0
        if isinstance(piece, agent_pb2.NetworkDirectory):
            message.networks.append(piece)
        else:
            message.groups.append(piece)
        entries += size
    if entries:
        yield message


def _networks_of(state: State, plan: agent_pb2.NodePlan) -> dict[Name, str]:
    """Networks of the plan and of its routers, uid by name."""
    uids = {network.uid for network in plan.networks}
    uids.update(uid for router in plan.routers for uid in router.network_uids)
    found = [state.find_uid(uid) for uid in uids]
    return {(row[1][0], row[1][1]): row[2].message.meta.uid for row in found if row is not None}


def _groups_of(state: State, plan: agent_pb2.NodePlan) -> dict[Name, str]:
    """Groups that rules of the plan refer to, uid by name."""
    uids = {rule.remote_group_uid for group in plan.security_groups for rule in group.rules} - {""}
    found = [state.find_uid(uid) for uid in uids]
    return {(row[1][0], row[1][1]): row[2].message.meta.uid for row in found if row is not None}


def _network_in_full(state: State, node: str, name: Name, uid: str) -> Iterator[Piece]:
    entries = (_remote_port(state, node, row.message) for row in state.ports_in(*name))
    found = sorted((entry for entry in entries if entry is not None), key=lambda entry: entry.uid)
    for start in range(0, max(len(found), 1), ENTRIES_MAX):
        put = found[start : start + ENTRIES_MAX]
        yield agent_pb2.NetworkDirectory(network_uid=uid, full=start == 0, put=put)


def _network_news(state: State, node: str, name: Name, uid: str, due: list[_Due]) -> Iterator[Piece]:
    piece = agent_pb2.NetworkDirectory(network_uid=uid)
    for port in (one.port for one in due):
        if (port.meta.project, port.spec.network) != name:
            continue
        now = _present(state, port)
        entry = _remote_port(state, node, now) if now is not None else None
        if entry is not None:
            piece.put.append(entry)
        else:
            piece.gone_port_uids.append(port.meta.uid)
    if piece.put or piece.gone_port_uids:
        yield piece


def _remote_port(state: State, node: str, port: port_pb2.Port) -> agent_pb2.PlannedRemotePort | None:
    """The port's entry for a node; None where it is on that node, nowhere, or out of reach."""
    where = state.places.node_of(port)
    underlay = state.underlays.get(where) if where is not None and where != node else None
    if underlay is None:
        return None
    return agent_pb2.PlannedRemotePort(
        uid=port.meta.uid,
        mac=port.spec.mac,
        addresses=addresses_of(state, port),
        vtep=underlay.address,
        hostname=port.spec.instance,
    )


def _group_in_full(state: State, name: Name, uid: str) -> Iterator[Piece]:
    members = (row.message for row in state.ports_with(*name) if _is_placed(state, row.message))
    ports = sorted(members, key=lambda port: port.meta.uid)
    for start in range(0, max(len(ports), 1), ENTRIES_MAX):
        put = [_member(state, port) for port in ports[start : start + ENTRIES_MAX]]
        yield agent_pb2.GroupDirectory(group_uid=uid, full=start == 0, put=put)


def _group_news(state: State, name: Name, uid: str, due: list[_Due]) -> Iterator[Piece]:
    piece = agent_pb2.GroupDirectory(group_uid=uid)
    for one in due:
        if one.port.meta.project != name[0] or name[1] not in one.groups:
            continue
        now = _present(state, one.port)
        if now is not None and name[1] in now.spec.security_groups and _is_placed(state, now):
            piece.put.append(_member(state, now))
        else:
            piece.gone_port_uids.append(one.port.meta.uid)
    if piece.put or piece.gone_port_uids:
        yield piece


def _member(state: State, port: port_pb2.Port) -> agent_pb2.PlannedMember:
    return agent_pb2.PlannedMember(port_uid=port.meta.uid, addresses=addresses_of(state, port))


def _is_placed(state: State, port: port_pb2.Port) -> bool:
    return state.places.node_of(port) is not None


def _present(state: State, port: port_pb2.Port) -> port_pb2.Port | None:
    row = state.find(keys.PORTS, port.meta.project, port.meta.name)
    same = row is not None and row.message.meta.uid == port.meta.uid
    return row.message if row is not None and same else None
