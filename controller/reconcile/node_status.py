"""A node's status: what its agent said when it came, and says since, and whether it is heard.

**Pure.** Values in, values out; sessions.py commits them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from controller.fleet import READY
from controller.state import State
from controller.store import keys
from cumulet.convert import find_condition, timestamp
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
        status, READY, meta_pb2.CONDITION_STATUS_TRUE, "AgentConnected", "its agent has a session", now
    )
    kvm = hello.virt_type == node_pb2.VIRT_TYPE_KVM
    set_condition(
        status,
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
    status: node_pb2.NodeStatus, told: Iterable[meta_pb2.Condition], now: float
) -> node_pb2.NodeStatus | None:
    """With what the agent says; None when that is no news."""
    made = node_pb2.NodeStatus()
    made.CopyFrom(status)
    for one in told:
        is_well = one.status == meta_pb2.CONDITION_STATUS_TRUE
        if not is_well or find_condition(status.conditions, one.type) is not None:
            set_condition(made, one.type, one.status, one.reason, one.message, now)
    return made if made != status else None


def set_condition(
    status: node_pb2.NodeStatus,
    kind: str,
    truth: meta_pb2.ConditionStatus.ValueType,
    reason: str,
    text: str,
    now: float,
) -> None:
    known = find_condition(status.conditions, kind)
    if known is None:
        known = status.conditions.add(type=kind)
    if (known.status, known.reason, known.message) != (truth, reason, text):
        known.status, known.reason, known.message = truth, reason, text
        known.changed_at.CopyFrom(timestamp(now))
