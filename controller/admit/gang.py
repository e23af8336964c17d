"""Admission of gangs: instances that are placed all or none.

**Pure.** A gang is no object: its members name it and how many they are. Its name is free again when none
is left.
"""

from __future__ import annotations

from controller.admit.common import Violations
from controller.state import State
from controller.store import keys
from cumulet.names import name_error
from cumulet.v1 import instance_pb2
from scheduler.model import GANG_SIZE_MAX


def join_gang(
    state: State,
    project: str,
    given: instance_pb2.InstanceSpec,
    spec: instance_pb2.InstanceSpec,
    violations: Violations,
) -> None:
    """Make a new instance a member of the gang that it names. The quota's guard covers the other members."""
    if not given.HasField("gang"):
        return
    gang = given.gang
    violations.add("spec.gang.name", name_error(gang.name))
    if not 1 <= gang.size <= GANG_SIZE_MAX:
        violations.add("spec.gang.size", f"is {gang.size}, must be 1 to {GANG_SIZE_MAX}")
    others = [
        row.message.spec.gang
        for row in state.rows(keys.INSTANCES, project).values()
        if row.message.spec.gang.name == gang.name
    ]
    if any(other.size != gang.size for other in others):
        text = f"is {gang.size}, but gang {gang.name} has members that say {others[0].size}"
        violations.add("spec.gang.size", text)
    elif len(others) >= gang.size:
        text = f"gang {gang.name} has its {gang.size} member(s) already: choose another name"
        violations.add("spec.gang.name", text)
    spec.gang.CopyFrom(gang)
