"""What must hold once faults have stopped: nothing transient, nothing left, everything that fits runs.

**Pure**: reads the store's State and looks at the fakes directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent.requests import build_inventory
from controller.assemble import instance_phase
from controller.fleet import build_request, node_view
from controller.state import State
from controller.store import keys
from controller.tables import Stored
from controller.verify import compare_inventory
from cumulet import lifecycle
from cumulet.v1 import instance_pb2
from scheduler.filters import reasons_against
from scheduler.group import Occupancy
from scheduler.model import Room
from tests.sim.nodes import SimNode
from tests.sim.oracle import Oracle

CRASHES_FORGIVEN: Final = 4  # beyond it the agent may have given up


async def find_unsettled(state: State, nodes: Sequence[SimNode], oracle: Oracle) -> list[str]:
    """I14: everything that is still on its way, or is not as it was asked for."""
    wrong = [
        f"operation {row.message.verb} of {row.message.target.name} is not done"
        for row in state.rows(keys.OPERATIONS).values()
        if not row.message.done
    ]
    by_name = {node.name: node for node in nodes}
    for name in by_name:
        found = state.find(keys.NODES, name)
        if found is None or found.message.meta.HasField("deleted_at"):
            wrong.append(f"node {name} is not registered")
        elif not node_view(state, found).ready:
            wrong.append(f"node {name} is not ready: {node_view(state, found).not_ready_reason}")
    for parts, row in sorted(state.rows(keys.INSTANCES).items()):
        problem = _problem_of(state, row, by_name, oracle)
        if problem:
            wrong.append(f"{'/'.join(parts)} {row.message.meta.uid[:8]} {problem}")
    wrong += [line for node in nodes for line in await _verify(state, node)]
    return wrong


def _problem_of(state: State, row: Stored, nodes: dict[str, SimNode], oracle: Oracle) -> str:
    instance: instance_pb2.Instance = row.message
    uid = instance.meta.uid
    phase = instance_phase(state, row)
    name = instance_pb2.InstancePhase.Name(phase)
    placement = state.placement_of(uid)
    running = [node.name for node in nodes.values() for here, _ in node.machine.running() if here == uid]
    on = instance.spec.power == instance_pb2.POWER_STATE_ON
    if placement is None:
        if running:
            return f"runs on {running} without a placement"
        return f"fits but is {name}" if _fits(state, row) else ""
    if phase in lifecycle.TRANSIENT:
        return f"is {name}"
    if phase == lifecycle.FAILED:
        return "" if oracle.crashes[uid] > CRASHES_FORGIVEN else f"is {name}"
    if phase == lifecycle.RUNNING:
        where = placement.message.node
        return "" if on and running == [where] else f"is {name}, but runs on {running}"
    if running:
        return f"is {name}, but runs on {running}"
    domain = nodes[placement.message.node].machine.domains.get(uid)
    by_itself = domain is not None and domain.reason == "GuestPoweredOff"
    return "is asked to run, but is off" if on and not by_itself else ""


def _fits(state: State, row: Stored) -> bool:
    request = build_request(row.message)
    views = [node_view(state, node) for node in state.rows(keys.NODES).values()]
    return any(not reasons_against(Room(view), request, Occupancy(())) for view in views)


async def _verify(state: State, node: SimNode) -> list[str]:
    """`cumulet verify`, as the leader does it."""
    inventory = build_inventory(await node.drivers().observe())
    found = compare_inventory(state, node.name, inventory)
    return [
        f"verify: {node.name} {difference.kind} {difference.owner_uid[:8]} {difference.message}"
        for difference in found
    ]


async def find_leftovers(state: State, nodes: Sequence[SimNode]) -> list[str]:
    """I13: after everything was deleted, whatever is still there."""
    tables = (
        keys.INSTANCES,
        keys.INSTANCE_STATUS,
        keys.PLACEMENTS,
        keys.PORTS,
        keys.ADDRESSES,
        keys.MACS,
    )
    left = [
        f"store: {table.path}/{'/'.join(parts)}" for table in tables for parts in sorted(state.rows(table))
    ]
    left += [
        f"store: operation {row.message.verb} is not done"
        for row in state.rows(keys.OPERATIONS).values()
        if not row.message.done
    ]
    for node in nodes:
        left += [f"{node.name}: domain {uid[:8]}" for uid in sorted(node.machine.domains)]
        left += [f"{node.name}: disk {uid[:8]}" for uid in sorted(node.disk.disks)]
        left += [f"{node.name}: seed {uid[:8]}" for uid in sorted(node.disk.seeds)]
        left += [f"{node.name}: tap {uid[:8]}" for uid in sorted(node.kernel._taps)]
        left += [f"{node.name}: network {uid[:8]}" for uid in sorted(node.kernel._networks)]
    return left
