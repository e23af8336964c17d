"""The planner's fleet, kept up to date with the State and with what is on its way there.

**Pure** in its answers; it changes in place as changes are noted. Nothing is built anew that has not changed:
a node's own part is kept for as long as its rows are the same, its residents until one comes or goes, and a
placement that lands in the State as it was assumed changes nothing at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from controller.fleet import build_node
from controller.scheduling import build_groups, busy_until_s, others_of, residents_of
from controller.state import Changed, State
from controller.store import keys
from controller.tables import Stored
from cumulet.clock import Clock, SystemClock
from cumulet.convert import resources_from
from cumulet.resources import ZERO, Resources
from scheduler.answer import Plan
from scheduler.fleet import Fleet
from scheduler.model import NodeView, Request, Resident, View
from scheduler.policy import Policy

# Wall time, since hints are told from when instances were placed. It packs, and decides nothing else.
_MACHINE: Final = SystemClock()
_NODE_TABLES: Final = (keys.NODES, keys.NODE_STATUS)


@dataclass(slots=True)
class _Kept:
    """What is remembered of a node. `bare`: the node without instances, made from these two rows."""

    row: Stored
    status_row: Stored | None
    bare: NodeView
    residents: tuple[Resident, ...] | None = None  # None: to be counted anew


@dataclass(slots=True)
class _Assumed:
    """What is on its way to a node, by uid, and its sum by resource."""

    rows: dict[str, Stored] = field(default_factory=dict)
    amounts: Counter[str] = field(default_factory=Counter)

    def count(self, row: Stored, sign: int) -> None:
        """Twice for each placement: plain sums, made a vector when the node is looked at."""
        for name, amount in resources_from(row.message.resources).as_dict().items():
            self.amounts[name] += sign * amount


class FleetView:
    """The fleet, with what is placed and not in the State yet: `assume` it until it is, or `drop` it."""

    def __init__(self, state: State, policy: Policy, clock: Clock = _MACHINE) -> None:
        self._state = state
        self._policy = policy
        self._clock = clock
        self._fleet: Fleet | None = None
        self._touched: set[str] = set()
        self._kept: dict[str, _Kept] = {}
        self._assumed: dict[str, _Assumed] = {}
        self._node_of: dict[str, str] = {}

    # --- following -------------------------------------------------------------------------------

    def note_change(self, changed: Changed) -> None:
        """Called with every applied change."""
        if changed.table is keys.PLACEMENTS:
            self._note_placement(changed)
        elif changed.table in _NODE_TABLES:
            self._touched.add(changed.parts[0])
        elif changed.table is keys.PLACEMENT_GROUPS:
            self._fleet = None

    def _note_placement(self, changed: Changed) -> None:
        node, uid = changed.parts
        assumed, landed = self._find_assumed(node, uid), changed.after if changed.before is None else None
        if assumed is not None and landed is not None and assumed.message == landed.message:
            self._take_off(node, uid)
            return
        self.drop(uid)
        self._touch(node, changed.before, changed.after)

    def assume(self, uid: str, node: str, row: Stored) -> None:
        """It is on its way there."""
        self.drop(uid)
        assumed = self._assumed.setdefault(node, _Assumed())
        assumed.rows[uid] = row
        assumed.count(row, +1)
        self._node_of[uid] = node
        self._touch(node, row)

    def drop(self, uid: str) -> str | None:
        """It is assumed no more; the node, if it was."""
        node = self._node_of.get(uid)
        if node is not None:
            self._touch(node, self._take_off(node, uid))
        return node

    def _find_assumed(self, node: str, uid: str) -> Stored | None:
        return self._assumed[node].rows.get(uid) if self._node_of.get(uid) == node else None

    def _take_off(self, node: str, uid: str) -> Stored:
        """Out of the books of what is assumed."""
        del self._node_of[uid]
        assumed = self._assumed[node]
        row = assumed.rows.pop(uid)
        if assumed.rows:
            assumed.count(row, -1)
        else:
            del self._assumed[node]
        return row

    def _touch(self, node: str, *rows: Stored | None) -> None:
        self._touched.add(node)
        kept = self._kept.get(node)
        if kept is not None and any(next(residents_of((row,)), None) for row in rows if row is not None):
            kept.residents = None

    # --- looking ---------------------------------------------------------------------------------

    def look(self, name: str) -> NodeView | None:
        """One node as it is now."""
        row = self._state.find(keys.NODES, name)
        if row is None:
            self._kept.pop(name, None)
            return None
        kept = self._keep(name, row, self._state.find(keys.NODE_STATUS, name))
        if kept.residents is None:
            kept.residents = tuple(residents_of(self._there(name)))
        allocated = self._state.allocated_on(name)
        assumed = self._assumed.get(name)
        if assumed is not None:
            allocated += Resources.of(assumed.amounts)
        others = others_of(self._there(name)) if self._policy.counts else ()
        until_s = busy_until_s(self._state, self._there(name)) if self._policy.lifetimes else None
        return kept.bare.holding(allocated, kept.residents, others, until_s)

    def _keep(self, name: str, row: Stored, status_row: Stored | None) -> _Kept:
        kept = self._kept.get(name)
        if kept is None or kept.row is not row or kept.status_row is not status_row:
            bare = build_node(row.message, status_row.message if status_row else None, ZERO, ())
            residents = kept.residents if kept else None
            kept = self._kept[name] = _Kept(row, status_row, bare, residents)
        return kept

    def _there(self, node: str) -> Iterator[Stored]:
        """Placements, and what is assumed to be one."""
        assumed = self._assumed.get(node)
        return chain(self._state.placements_on(node).values(), assumed.rows.values() if assumed else ())

    def renew(self) -> None:
        """Make the fleet anew when it is next asked for: it is suspected to be wrong."""
        self._fleet = None
        self._kept.clear()

    def fleet(self) -> Fleet:
        """All nodes as they are now. It changes with the next call."""
        if self._fleet is None:
            names = [parts[0] for parts in self._state.rows(keys.NODES)]
            nodes = tuple(node for name in names if (node := self.look(name)) is not None)
            self._fleet = Fleet.of(View(self._state.revision, nodes, build_groups(self._state)), self._policy)
            self._touched.clear()
        for name in sorted(self._touched):
            node = self.look(name)
            if node is None:
                self._fleet.remove(name)
            else:
                self._fleet.update(node)
        self._touched.clear()
        self._fleet.set_time(int(self._clock.now()))
        return self._fleet

    def witness(self, fleet: Fleet, requests: Sequence[Request], plan: Plan) -> View:
        """What the fleet's checker has to see to judge a plan.

        A refusal is judged by all nodes. A placement is judged by its node and by the members of its groups.
        """
        if plan.rejections:
            return fleet.view(plan.revision)
        names = {placed.node for placed in plan.placements}
        groups = {}
        for name in {name for request in requests for name in request.groups}:
            names.update(self._members(name))
            if (group := fleet.occupancy.find(name)) is not None:
                groups[name] = group
        slots = [slot for name in names if (slot := fleet.slot(name)) is not None]
        return View(plan.revision, tuple(map(fleet.node, slots)), groups)

    def _members(self, group: str) -> Iterator[str]:
        """Nodes with members of a group, or with some on their way."""
        project, _, name = group.partition("/")
        yield from self._state.members_of(project, name)
        for node, assumed in self._assumed.items():
            if any(name in row.message.groups for row in assumed.rows.values()):
                yield node
