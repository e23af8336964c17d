"""The judge of a run: sees every revision of the store and every effect on every fake host as it happens.

**Pure**: keeps its own history, calls nothing. Invariants by their numbers in correctness.md; what does not
hold becomes a Violation of the trace at that very moment.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from controller.store import keys
from controller.store.protocol import Change
from cumulet.v1 import instance_pb2, node_pb2, store_pb2
from tests.sim.trace import Trace

LINGER_S: Final = 120.0  # a frozen replica carries out late what it was asked
REQUEST_LABEL: Final = "sim-request"  # carries a create's request id into the stored object


@dataclass(slots=True)
class Born:
    """An instance that the store has held at some time."""

    parts: tuple[str, ...]
    request: str
    born_at: float
    doomed: bool = False  # its deletion is in the store
    top_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    vcpu: int
    memory_mib: int
    disk_gib: int


@dataclass
class Oracle:
    """`capacity` by node: what may be promised."""

    trace: Trace
    capacity: dict[str, Capacity]
    born: dict[str, Born] = field(default_factory=dict)
    running: dict[tuple[str, str], int] = field(default_factory=dict)  # (node, uid): epoch
    memory_used: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    acked: dict[str, str] = field(default_factory=dict)  # uid: request id
    crashes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _rows: dict[str, dict[tuple[str, ...], Any]] = field(default_factory=lambda: defaultdict(dict))
    _by_request: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _operations: set[str] = field(default_factory=set)
    _forgotten: dict[tuple[str, str], int] = field(default_factory=dict)
    _deletes: dict[tuple[str, ...], float] = field(default_factory=dict)  # last time one was under way
    _deleting: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _stops: set[tuple[str, ...]] = field(default_factory=set)  # names whose power somebody meddled with

    # --- what clients do -------------------------------------------------------------------------

    def delete_begins(self, parts: tuple[str, ...]) -> None:
        """Whatever has this name from now until the call ends may be deleted by it."""
        self._deleting[parts] += 1

    def delete_ends(self, parts: tuple[str, ...], *, answered: bool) -> None:
        """Without an answer it may still be carried out for a while."""
        self._deleting[parts] -= 1
        until = _now() if answered else _now() + LINGER_S
        self._deletes[parts] = max(self._deletes.get(parts, 0.0), until)

    def power_asked(self, parts: tuple[str, ...]) -> None:
        self._stops.add(parts)

    def create_acked(self, request: str, uid: str, operation: str) -> None:
        """The API said that it is written."""
        if uid not in self.born:
            self.trace.violate("I8", f"the create {request} was acknowledged, but {uid} is not in the store")
            return
        self._operation_acked(operation)
        self.acked[uid] = request
        if self.born[uid].request != request:
            self.trace.violate("I9", f"request {request} was answered with {uid} of another request")

    def operation_acked(self, operation: str) -> None:
        self._operation_acked(operation)

    def _operation_acked(self, operation: str) -> None:
        if operation not in self._operations:
            self.trace.violate("I8", f"operation {operation} was acknowledged, but it is not in the store")

    # --- what the store does ---------------------------------------------------------------------

    def on_change(self, revision: int, changes: Sequence[Change]) -> None:
        """One revision, whole."""
        touched = set()
        for change in sorted(changes, key=lambda change: change.key):
            self.trace.digest(change.key + change.value)
            parsed = keys.parse_key(change.key)
            if parsed is None:
                continue
            table, parts = parsed
            touched.add(table.path)
            rows = self._rows[table.path]
            before = rows.get(parts)
            after = None if change.deleted else _parse(table, change.value)
            if after is None:
                rows.pop(parts, None)
            else:
                rows[parts] = after
            self._on_row(table, parts, before, after)
        self.trace.digest(str(revision).encode())
        self._judge(touched)

    def _on_row(self, table: keys.Table, parts: tuple[str, ...], before: Any, after: Any) -> None:
        if table is keys.INSTANCES:
            self._on_instance(parts, before, after)
        elif table is keys.PLACEMENTS:
            self._on_placement(parts, before, after)
        elif table is keys.OPERATIONS and after is not None:
            self._operations.add(after.meta.name)
        elif table is keys.LEADER_KEY:
            self.trace.note(f"leader {after.address if after else 'none'}")

    def _on_instance(
        self,
        parts: tuple[str, ...],
        before: instance_pb2.Instance | None,
        after: instance_pb2.Instance | None,
    ) -> None:
        if before is not None and (after is None or after.meta.uid != before.meta.uid):
            self._on_death(parts, before, replaced=after is not None)
        if after is None:
            return
        uid = after.meta.uid
        known = self.born.get(uid)
        if known is None:
            request = after.meta.labels.get(REQUEST_LABEL, "")
            self.born[uid] = known = Born(parts, request, _now())
            self.trace.note(f"store: {'/'.join(parts)} {uid[:8]} created by {request}")
            self._by_request[request].add(uid)
            if len(self._by_request[request]) > 1:
                self.trace.violate("I9", f"request {request} created {sorted(self._by_request[request])}")
        if after.meta.HasField("deleted_at") and not known.doomed:
            known.doomed = True
            self.trace.note(f"store: {'/'.join(parts)} {uid[:8]} is to be deleted")
            self._check_asked(parts, known)

    def _on_death(self, parts: tuple[str, ...], gone: instance_pb2.Instance, *, replaced: bool) -> None:
        uid = gone.meta.uid
        self.trace.note(f"store: {'/'.join(parts)} {uid[:8]} removed")
        if replaced:
            self.trace.violate("I12", f"{'/'.join(parts)} was overwritten by another instance of that name")
        if not self.born[uid].doomed:
            self.trace.violate("I8", f"{'/'.join(parts)} {uid} vanished without being deleted")
        for (node, here), epoch in self.running.items():
            if here == uid and (node, uid) not in self._forgotten:
                self.trace.violate("I13", f"{uid} was forgotten while epoch {epoch} runs on {node}")

    def _check_asked(self, parts: tuple[str, ...], known: Born) -> None:
        if not self._deleting[parts] and self._deletes.get(parts, -1.0) < known.born_at:
            self.trace.violate("I8", f"{'/'.join(parts)} is being deleted, and nobody asked for it")

    def _on_placement(
        self,
        parts: tuple[str, ...],
        before: store_pb2.PlacementRecord | None,
        after: store_pb2.PlacementRecord | None,
    ) -> None:
        node, uid = parts
        known = self.born.get(uid)
        if after is None:
            assert before is not None
            self.trace.note(f"store: {uid[:8]} epoch {before.epoch} no longer on {node}")
            if known is not None and uid in self._live_uids():
                self._forgotten[node, uid] = before.epoch
                self._check_declared_off(node, uid, known)
            return
        self.trace.note(f"store: {uid[:8]} epoch {after.epoch} placed on {node}")
        if known is None:
            self.trace.violate("I13", f"{uid} is placed on {node}, but was never created")
            return
        if before is None and after.epoch <= known.top_epoch:
            self.trace.violate("I1", f"{uid} is placed on {node} with the old epoch {after.epoch}")
        known.top_epoch = max(known.top_epoch, after.epoch)
        where: node_pb2.Node | None = self._rows[keys.NODES.path].get((node,))
        if before is None and (where is None or where.spec.cordoned or where.meta.HasField("deleted_at")):
            self.trace.violate("I10", f"{uid} is placed on {node}, which takes none")

    def _live_uids(self) -> set[str]:
        return {row.meta.uid for row in self._rows[keys.INSTANCES.path].values()}

    def _check_declared_off(self, node: str, uid: str, known: Born) -> None:
        row: node_pb2.Node | None = self._rows[keys.NODES.path].get((node,))
        declared = row is not None and row.meta.HasField("deleted_at")
        if not declared and not known.doomed:
            self.trace.violate("I6", f"the placement of {uid} on {node} was dropped without a reason")

    def _judge(self, touched: Iterable[str]) -> None:
        touched = set(touched)
        if keys.PLACEMENTS.path in touched:
            self._judge_placements()
        if touched & {keys.INSTANCES.path, keys.PROJECTS.path}:
            self._judge_quota()
        if touched & {keys.PORTS.path, keys.NETWORKS.path}:
            self._judge_names()

    def _judge_placements(self) -> None:
        where: dict[str, str] = {}
        used: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for (node, uid), record in self._rows[keys.PLACEMENTS.path].items():
            if uid in where:
                self.trace.violate("I1", f"{uid} is placed on {where[uid]} and on {node}")
            where[uid] = node
            asked = record.resources
            for index, amount in enumerate((asked.vcpu, asked.memory_mib, asked.disk_gib)):
                used[node][index] += amount
        for node, (vcpu, memory_mib, disk_gib) in used.items():
            room = self.capacity[node]
            if vcpu > room.vcpu or memory_mib > room.memory_mib or disk_gib > room.disk_gib:
                self.trace.violate("I10", f"{node} is promised {vcpu}, {memory_mib}, {disk_gib} of {room}")

    def _judge_quota(self) -> None:
        count: dict[str, int] = defaultdict(int)
        vcpus: dict[str, int] = defaultdict(int)
        for (project, _), row in self._rows[keys.INSTANCES.path].items():
            count[project] += 1
            vcpus[project] += row.spec.resources.vcpu
        for (project,), row in self._rows[keys.PROJECTS.path].items():
            quota = row.spec.quota
            if quota.HasField("instances") and count[project] > quota.instances:
                self.trace.violate("I11", f"{project} has {count[project]} of {quota.instances} instances")
            if quota.resources.vcpu and vcpus[project] > quota.resources.vcpu:
                self.trace.violate("I11", f"{project} has {vcpus[project]} of {quota.resources.vcpu} vcpus")

    def _judge_names(self) -> None:
        seen: dict[tuple[str, ...], str] = {}
        for (project, name), port in self._rows[keys.PORTS.path].items():
            network = port.spec.network
            self._claim(seen, ("mac", project, network, port.spec.mac), name)
            for fixed in port.spec.addresses:
                self._claim(seen, ("address", project, network, fixed.address), name)
        for (project, name), row in self._rows[keys.NETWORKS.path].items():
            self._claim(seen, ("vni", str(row.status.vni)), f"{project}/{name}")

    def _claim(self, seen: dict[tuple[str, ...], str], what: tuple[str, ...], who: str) -> None:
        if what in seen:
            self.trace.violate("I12", f"{' '.join(what)} is held by {seen[what]} and by {who}")
        seen[what] = who

    # --- what hosts do ---------------------------------------------------------------------------

    def on_start(self, node: str, uid: str, epoch: int, memory_mib: int) -> None:
        """An emulator starts."""
        self.trace.note(f"{node}: {uid[:8]} epoch {epoch} starts")
        for (other, here), other_epoch in self.running.items():
            if here == uid:
                self.trace.violate(
                    "I1", f"{uid} epoch {epoch} starts on {node}, epoch {other_epoch} runs on {other}"
                )
        known = self.born.get(uid)
        if known is None:
            self.trace.violate("I1", f"{uid} starts on {node}, but was never created")
        elif epoch < known.top_epoch or (node, uid) not in self._rows[keys.PLACEMENTS.path]:
            current = any(where == uid for _, where in self._rows[keys.PLACEMENTS.path])
            if current or epoch < known.top_epoch or (node, uid) in self._forgotten:
                self.trace.violate("I7", f"{uid} epoch {epoch} starts on {node} by a stale plan")
        self.running[node, uid] = epoch
        self.memory_used[node][uid] = memory_mib
        if sum(self.memory_used[node].values()) > self.capacity[node].memory_mib:
            self.trace.violate("I10", f"more memory runs on {node} than it has: {self.memory_used[node]}")

    def on_end(self, node: str, uid: str, why: str) -> None:
        """An emulator has ended, whatever the reason."""
        if self.running.pop((node, uid), None) is None:
            return
        self.memory_used[node].pop(uid, None)
        self.trace.note(f"{node}: {uid[:8]} ends: {why}")
        known = self.born.get(uid)
        asked = known is None or known.doomed or known.parts in self._stops
        if why == "ForcedOff" and not asked and (node, uid) not in self._forgotten:
            self.trace.violate("I6", f"{uid} was turned off on {node}, and nobody asked for it")

    def on_destroy(self, node: str, uid: str, epoch: int | None, what: str) -> None:
        """A domain is undefined or files are removed. Only what is tombstoned or superseded may go."""
        self.trace.note(f"{node}: {what} of {uid[:8]} removed")
        known = self.born.get(uid)
        if known is None or known.doomed or (node, uid) in self._forgotten:
            return
        if epoch is not None and known.top_epoch > epoch:
            return
        self.trace.violate("I6", f"the {what} of {uid} on {node} was destroyed, and nobody asked for it")


def _parse(table: keys.Table, value: bytes) -> Any:
    return table.message.FromString(value) if table.message else value.decode()


def _now() -> float:
    return asyncio.get_running_loop().time()
