"""Tables of parsed values and what is derived from them: sums, who is where, what belongs to what.

**Pure** in effect: changed by the State only (`state.py`), read by everyone. Every index is kept with each
change of a row, in any order of changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from controller.places import Places
from controller.store import keys
from controller.store.keys import Table
from cumulet.convert import resources_from
from cumulet.resources import ZERO, Resources
from cumulet.v1 import instance_pb2

# Values that only transactions and readbacks need; keeping them would cost memory for nothing.
NOT_KEPT: Final = frozenset({keys.REQUESTS.path, keys.COMMITS.path, keys.JOURNAL.path})
_WITH_UID: Final = frozenset(
    table.path for table in keys.TABLES if table.message and "meta" in table.message.DESCRIPTOR.fields_by_name
)

UNDERLAY_MTU_DEFAULT: Final = 1500  # Ethernet; an agent of an older version does not say
# What a tunnel adds to a frame: outer IP, UDP, VXLAN and inner Ethernet. Source: RFC 7348, section 5.
TUNNEL_BYTES: Final = {4: 50, 6: 70}

Parts = tuple[str, ...]


class Stored(NamedTuple):
    """A parsed value with its revisions. The message is shared: never change it."""

    message: Any
    create_revision: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Underlay:
    """Where the tunnels to a node end, and the largest packet that a guest may send through them."""

    address: str
    guest_mtu: int


_EMPTY: Final[dict[Any, Any]] = {}


class Tables:
    """Rows by table and key, and the indexes over them."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[Parts, Stored]] = {
            table.path: {} for table in keys.TABLES if table.path not in NOT_KEPT
        }
        self._by_uid: dict[str, tuple[Table, Parts]] = {}
        self._placements_by_node: dict[str, dict[str, Stored]] = {}
        self._node_of: dict[str, str] = {}
        self._allocated: dict[str, Resources] = {}
        self._used: dict[str, Resources] = {}
        self._used_devices: Counter[str] = Counter()
        self._members: dict[Parts, Counter[str]] = {}
        self._labelled: dict[tuple[str, str, str], dict[Parts, Stored]] = {}
        self._scoped: dict[tuple[str, str], dict[Parts, Stored]] = {}
        self._ports_of: dict[tuple[str, str], dict[Parts, Stored]] = {}
        self._ports_in: dict[tuple[str, str], dict[Parts, Stored]] = {}
        self._ports_with: dict[tuple[str, str], dict[Parts, Stored]] = {}
        self._router_of: dict[tuple[str, str], Parts] = {}
        self._subnets_of: dict[tuple[str, str], dict[Parts, Stored]] = {}
        self._addresses: dict[str, dict[str, str]] = {}
        self._operations_of: dict[str, set[Parts]] = {}
        self.places = Places(lambda *name: (row.message for row in self._ports_of.get(name, _EMPTY).values()))
        self._underlays: dict[str, Underlay] = {}
        self._announced_by: dict[str, dict[str, Stored]] = {}
        self._announced_as: dict[tuple[str, str], dict[str, Stored]] = {}
        # By node: (load balancer, address) of members that it gets no answer from. Told by agents to the
        # leader, and nowhere stored: what may change by the second does not belong into etcd.
        self.unhealthy: dict[str, frozenset[tuple[str, str]]] = {}

    def find(self, table: Table, *parts: str) -> Stored | None:
        """The value of a key, or None."""
        return self._tables[table.path].get(parts)

    def rows(self, table: Table, project: str | None = None) -> dict[Parts, Stored]:
        """All rows of a table, or of one project. A live view: do not keep it across an await."""
        if project is None:
            return self._tables[table.path]
        return self._scoped.get((table.path, project), _EMPTY)

    def find_uid(self, uid: str) -> tuple[Table, Parts, Stored] | None:
        """The object with a uid, whatever its kind."""
        where = self._by_uid.get(uid)
        if where is None:
            return None
        table, parts = where
        return table, parts, self._tables[table.path][parts]

    def find_instance(self, uid: str) -> tuple[Parts, Stored] | None:
        where = self._by_uid.get(uid)
        if where is None or where[0] is not keys.INSTANCES:
            return None
        parts = where[1]
        return parts, self._tables[keys.INSTANCES.path][parts]

    def placement_of(self, uid: str) -> Stored | None:
        """The instance's PlacementRecord, or None."""
        node = self._node_of.get(uid)
        return self.placements_on(node).get(uid) if node is not None else None

    def placements_on(self, node: str) -> dict[str, Stored]:
        """PlacementRecords of a node by instance uid."""
        return self._placements_by_node.get(node, _EMPTY)

    def allocated_on(self, node: str) -> Resources:
        """Sum over the node's placements."""
        return self._allocated.get(node, ZERO)

    def used_by(self, project: str) -> Resources:
        """Sum over the project's instances, placed or not."""
        return self._used.get(project, ZERO)

    def devices_used_by(self, project: str) -> int:
        """Thousandths of devices, summed over the project's instances, placed or not."""
        return self._used_devices[project]

    def members_of(self, project: str, group: str) -> Mapping[str, int]:
        """Placed members of a placement group by node; only nodes with some."""
        return self._members.get((project, group), _EMPTY)

    def status_of(self, uid: str) -> instance_pb2.InstanceStatus | None:
        row = self._tables[keys.INSTANCE_STATUS.path].get((uid,))
        return row.message if row else None

    def instances_labelled(self, project: str, key: str, value: str) -> Mapping[Parts, Stored]:
        """Instances with a label, in no order. A live view."""
        found: Mapping[Parts, Stored] = self._labelled.get((project, key, value), _EMPTY)
        return found

    def ports_of(self, project: str, instance: str) -> list[Stored]:
        """Ports of an instance, by port name."""
        rows = self._ports_of.get((project, instance), _EMPTY)
        return [rows[parts] for parts in sorted(rows)]

    def ports_in(self, project: str, network: str) -> list[Stored]:
        """Ports of a network, in no order."""
        return list(self._ports_in.get((project, network), _EMPTY).values())

    def ports_with(self, project: str, security_group: str) -> list[Stored]:
        """Ports in a security group, in no order."""
        return list(self._ports_with.get((project, security_group), _EMPTY).values())

    def router_of(self, project: str, network: str) -> Stored | None:
        """The router that holds a network's gateways, or None."""
        parts = self._router_of.get((project, network))
        return self._tables[keys.ROUTERS.path].get(parts) if parts else None

    @property
    def underlays(self) -> Mapping[str, Underlay]:
        """By node; nodes without one are left out. A live view."""
        return self._underlays

    def subnets_of(self, project: str, network: str) -> list[Stored]:
        """Subnets of a network, by name."""
        rows = self._subnets_of.get((project, network), _EMPTY)
        return [rows[parts] for parts in sorted(rows)]

    def balancers_in(self, project: str, network: str) -> list[Stored]:
        """Load balancers whose address is in a network, by name."""
        rows = self.rows(keys.LOAD_BALANCERS, project)
        return [rows[parts] for parts in sorted(rows) if rows[parts].message.spec.network == network]

    def addresses_in(self, network_uid: str) -> dict[str, str]:
        """Uid of the port or load balancer by address."""
        return self._addresses.get(network_uid, _EMPTY)

    def announced_by(self, node: str) -> Mapping[str, Stored]:
        """AnnouncementRecords of a node by the floating IP's uid. A live view."""
        found: Mapping[str, Stored] = self._announced_by.get(node, _EMPTY)
        return found

    def announced_as(self, external_network_uid: str, address: str) -> Mapping[str, Stored]:
        """AnnouncementRecords of an address by the floating IP's uid. A live view."""
        found: Mapping[str, Stored] = self._announced_as.get((external_network_uid, address), _EMPTY)
        return found

    def operations_of(self, uid: str) -> Iterator[tuple[Parts, Stored]]:
        """Operations on an object, done or not."""
        table = self._tables[keys.OPERATIONS.path]
        for parts in sorted(self._operations_of.get(uid, ())):
            yield parts, table[parts]

    @property
    def epoch(self) -> int:
        """The present leader's epoch, 0 without one."""
        row = self.find(keys.LEADER_KEY)
        return row.create_revision if row else 0

    @property
    def restore_generation(self) -> int:
        row = self.find(keys.CLOUD)
        return row.message.restore_generation if row else 0

    # --- indexes ---------------------------------------------------------------------------------

    def _replace(self, table: Table, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        rows = self._tables[table.path]
        if after is None:
            rows.pop(parts, None)
        else:
            rows[parts] = after
        if table.parts[:1] == ("project",):
            _replace_in(self._scoped, (table.path, parts[0]), parts, after)
        if table.path in _WITH_UID:
            self._index_uid(table, parts, before, after)
        index = _INDEXES.get(table.path)
        if index is not None:
            index(self, parts, before, after)

    def _index_uid(self, table: Table, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        if before is not None:
            self._by_uid.pop(before.message.meta.uid, None)
        if after is not None:
            self._by_uid[after.message.meta.uid] = (table, parts)

    def _index_placement(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        node, uid = parts
        total = self._allocated.get(node, ZERO)
        if before is not None:
            total = total - resources_from(before.message.resources)
            self._count_member(node, before, -1)
            if self._node_of.get(uid) == node:
                del self._node_of[uid]
        if after is not None:
            total = total + resources_from(after.message.resources)
            self._count_member(node, after, +1)
            self._node_of[uid] = node
        self._allocated[node] = total
        _replace_in(self._placements_by_node, node, uid, after)
        self._place(node, before, after)

    def _place(self, node: str, before: Stored | None, after: Stored | None) -> None:
        if after is not None:
            self.places.note_placed(after.message.project, after.message.name, node)
        elif before is not None:
            self.places.note_gone(before.message.project, before.message.name, node)

    def _index_node_status(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        self._underlays.pop(parts[0], None)
        if after is not None and after.message.underlay_address:
            mtu = after.message.underlay_mtu or UNDERLAY_MTU_DEFAULT
            address = after.message.underlay_address
            self._underlays[parts[0]] = Underlay(address, mtu - TUNNEL_BYTES[ip_address(address).version])

    def _count_member(self, node: str, placement: Stored, by: int) -> None:
        project = placement.message.project
        for group in placement.message.groups:
            nodes = self._members.setdefault((project, group), Counter())
            nodes[node] += by
            if not nodes[node]:
                del nodes[node]
            if not nodes:
                del self._members[project, group]

    def _index_instance(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        total = self._used.get(parts[0], ZERO)
        if before is not None:
            total = total - resources_from(before.message.spec.resources)
            self._used_devices[parts[0]] -= devices_milli(before.message.spec)
        if after is not None:
            total = total + resources_from(after.message.spec.resources)
            self._used_devices[parts[0]] += devices_milli(after.message.spec)
        self._used[parts[0]] = total
        for row, value in ((before, None), (after, after)):
            for key, word in row.message.meta.labels.items() if row is not None else ():
                _replace_in(self._labelled, (parts[0], key, word), parts, value)

    def _index_port(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        for row, value in ((before, None), (after, after)):
            if row is not None:
                _replace_in(self._ports_of, (parts[0], row.message.spec.instance), parts, value)
                _replace_in(self._ports_in, (parts[0], row.message.spec.network), parts, value)
                for group in row.message.spec.security_groups:
                    _replace_in(self._ports_with, (parts[0], group), parts, value)
                self.places.note_port(row.message, -1 if value is None else 1)

    def _index_router(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        for network in before.message.spec.networks if before is not None else ():
            if self._router_of.get((parts[0], network)) == parts:
                del self._router_of[parts[0], network]
        for network in after.message.spec.networks if after is not None else ():
            self._router_of[parts[0], network] = parts

    def _index_subnet(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        for row, value in ((before, None), (after, after)):
            if row is not None:
                _replace_in(self._subnets_of, (parts[0], row.message.spec.network), parts, value)

    def _index_address(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        _replace_in(self._addresses, parts[0], parts[1], after.message if after else None)

    def _index_announcement(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        for row, value in ((before, None), (after, after)):
            if row is not None:
                address = row.message.external_network_uid, row.message.address
                _replace_in(self._announced_by, row.message.node, parts[0], value)
                _replace_in(self._announced_as, address, parts[0], value)

    def _index_operation(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        row = after or before
        if row is None:
            return
        owned = self._operations_of.setdefault(row.message.target.uid, set())
        if after is not None:
            owned.add(parts)
        else:
            owned.discard(parts)
            if not owned:
                del self._operations_of[row.message.target.uid]


def devices_milli(spec: instance_pb2.InstanceSpec) -> int:
    """Thousandths of devices that an instance asks for."""
    return sum(want.count * want.share_milli for want in spec.devices)


def _replace_in(index: dict[Any, dict[Any, Any]], key: Any, item: Any, value: Any | None) -> None:
    """Set or remove one item of an index's bucket; an empty bucket goes."""
    if value is not None:
        index.setdefault(key, {})[item] = value
        return
    bucket = index.get(key)
    if bucket is not None:
        bucket.pop(item, None)
        if not bucket:
            del index[key]


_INDEXES: Final[dict[str, Callable[[Tables, Parts, Stored | None, Stored | None], None]]] = {
    keys.PLACEMENTS.path: Tables._index_placement,
    keys.INSTANCES.path: Tables._index_instance,
    keys.NODE_STATUS.path: Tables._index_node_status,
    keys.PORTS.path: Tables._index_port,
    keys.SUBNETS.path: Tables._index_subnet,
    keys.ROUTERS.path: Tables._index_router,
    keys.ADDRESSES.path: Tables._index_address,
    keys.ANNOUNCEMENTS.path: Tables._index_announcement,
    keys.OPERATIONS.path: Tables._index_operation,
}
