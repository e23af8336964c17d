"""A node's status: what its agent said when it came, and says since, and whether it is heard.

**Pure.** Values in, values out; sessions.py commits them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from controller.fleet import READY
from controller.state import State
from controller.store import keys
from cumulet.convert import set_condition
from cumulet.v1 import agent_pb2, meta_pb2, node_pb2

VIRTUALIZATION: Final = "HardwareVirtualization"


def ready_status(state: State, hello: agent_pb2.AgentHello, now: float) -> node_pb2.NodeStatus:
    row = state.find(keys.NODE_STATUS, hello.node)
    status = node_pb2.NodeStatus()
    if row is not None:
        status.CopyFrom(row.message)
    status.capacity.CopyFrom(hello.capacity)
    status.agent_version, status.address = hello.agent_version, hello.address
    status.underlay_address, status.underlay_mtu = hello.underlay_address, hello.underlay_mtu
    status.virt_type, status.boot_id = hello.virt_type, hello.boot_id
    for name in ("capabilities", "numa_cells", "devices", "uplinks"):
        status.ClearField(name)
        getattr(status, name).extend(getattr(hello, name))
    set_condition(
        status.conditions,
        READY,
        meta_pb2.CONDITION_STATUS_TRUE,
        "AgentConnected",
        "its agent has a session",
        now,
    )
    kvm = hello.virt_type == node_pb2.VIRT_TYPE_KVM
    set_condition(
        status.conditions,
        VIRTUALIZATION,
        meta_pb2.CONDITION_STATUS_TRUE if kvm else meta_pb2.CONDITION_STATUS_FALSE,
        "KVM" if kvm else "Emulated",
        "guests run on KVM"
        if kvm
        else "guests are emulated (TCG): slow, and no border between tenants who do not trust each other",
        now,
    )
    return status


def with_conditions(
    status: node_pb2.NodeStatus, told: Collection[meta_pb2.Condition], now: float
) -> node_pb2.NodeStatus | None:
    """With all that the agent says now; None when that is no news. What it says no more is forgotten."""
    held = {one.type: one for one in status.conditions}
    gone = held.keys() - {READY, VIRTUALIZATION} - {one.type for one in told}
    news = [one for one in told if _is_news(held.get(one.type), one)]
    if not gone and not news:
        return None
    made = node_pb2.NodeStatus()
    made.CopyFrom(status)
    del made.conditions[:]
    made.conditions.extend(one for one in status.conditions if one.type not in gone)
    for one in news:
        set_condition(made.conditions, one.type, one.status, one.reason, one.message, now)
    return made


def _is_news(held: meta_pb2.Condition | None, told: meta_pb2.Condition) -> bool:
    """That all is well is none of a node that is well."""
    if held is None:
        return told.status != meta_pb2.CONDITION_STATUS_TRUE
    return (held.status, held.reason, held.message) != (told.status, told.reason, told.message)
