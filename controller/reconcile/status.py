"""What there is to write of an instance: status transitions, ends of operations, its removal.

**Pure.** Facts come from the node's last report; what nobody has seen is not written. `Statuses`
(statuses.py) queues names and commits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from controller.admit import common
from controller.admit.common import Context
from controller.commit import Change
from controller.state import Changed, State
from controller.store import keys
from controller.store.protocol import unchanged
from controller.tables import Parts, Stored
from cumulet import lifecycle
from cumulet.convert import find_condition, set_condition, timestamp
from cumulet.v1 import agent_pb2, event_pb2, instance_pb2, meta_pb2, operation_pb2

OPERATIONS_AT_ONCE: Final = 32  # ended in one change, which must fit one transaction (128 compares)
PENDING_TEXT_S: Final = 60.0  # how often the text of a lasting refusal is written anew

NO_CAPACITY: Final = "NoCapacity"
PLANNER_FAULT: Final = "PlannerFault"
_REFUSED: Final = (NO_CAPACITY, PLANNER_FAULT)
MORE: Final = "more"  # a change's result: look again at once
PLACED: Final = "Placed"
RUNNING: Final = "Running"
ADDRESS: Final = "AddressReady"


class Refusal(NamedTuple):
    """Why an instance has no node: the condition's reason and its text."""

    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the node of an instance last said of it.

    `acted_revision`: revision of the plan, by this leader, that the node had acted on before it looked; 0
    if it has not yet. `observed` is None when it did not mention the instance.
    """

    node_alive: bool
    acted_revision: int
    observed: agent_pb2.ObservedInstance | None


SILENT: Final = Facts(node_alive=False, acted_revision=0, observed=None)


def build_status(
    state: State, instance: instance_pb2.Instance, facts: Facts, refusal: Refusal | None, now: float
) -> instance_pb2.InstanceStatus:
    """The status that the facts support, on top of the last one."""
    before = state.status_of(instance.meta.uid)
    placement = state.placement_of(instance.meta.uid)
    status = instance_pb2.InstanceStatus()
    if before is not None:
        status.CopyFrom(before)
    if placement is None:
        _build_pending(status, instance, refusal, now)
        return status
    record = placement.message
    status.node, status.epoch = record.node, record.epoch
    set_condition(
        status.conditions,
        PLACED,
        meta_pb2.CONDITION_STATUS_TRUE,
        "Scheduled",
        f"placed on {record.node}",
        now,
    )
    observed = facts.observed
    if observed is not None and observed.epoch not in (0, record.epoch):
        observed = None  # a copy of another placement says nothing of this one
    if observed is None and (facts.node_alive or before is None):
        return status  # nothing new was seen: what was last said still stands
    _build_placed(status, instance, facts, observed, now)
    return status


def _build_pending(
    status: instance_pb2.InstanceStatus, instance: instance_pb2.Instance, refusal: Refusal | None, now: float
) -> None:
    status.node = ""
    if instance.meta.HasField("deleted_at"):
        status.phase = lifecycle.DELETING
        return
    status.phase = (
        lifecycle.PENDING if instance.spec.power == instance_pb2.POWER_STATE_ON else lifecycle.STOPPED
    )
    if refusal is not None:
        known = find_condition(status.conditions, PLACED)
        lasting = known is not None and known.reason == refusal.reason
        if known is not None and lasting and now - known.changed_at.seconds < PENDING_TEXT_S:
            return
        set_condition(
            status.conditions, PLACED, meta_pb2.CONDITION_STATUS_FALSE, refusal.reason, refusal.text, now
        )


def _build_placed(
    status: instance_pb2.InstanceStatus,
    instance: instance_pb2.Instance,
    facts: Facts,
    observed: agent_pb2.ObservedInstance | None,
    now: float,
) -> None:
    spec = instance.spec
    status.phase = lifecycle.derive_phase(
        deleted=instance.meta.HasField("deleted_at"),
        placed=True,
        node_known=facts.node_alive,
        power=spec.power,
        boots_asked=spec.boots,
        state=_state_of(observed),
        boots_done=observed.boots if observed else status.boots,
        failed=observed is not None and observed.reason in GIVEN_UP,
    )
    if not facts.node_alive:
        text = f"node {status.node} is silent; the instance may run or not"
        set_condition(status.conditions, RUNNING, meta_pb2.CONDITION_STATUS_UNKNOWN, "NodeSilent", text, now)
        return
    status.observed_generation = instance.meta.generation
    if observed is None:
        return
    status.boots, status.restarts = observed.boots, observed.restarts
    running = status.phase == lifecycle.RUNNING
    word = observed.reason or _WORDS.get(status.phase, "Preparing")
    sentence = _SENTENCES.get(word)
    told = sentence.format(node=status.node) if sentence else f"{word} on {status.node}"
    text = observed.message or told
    truth = meta_pb2.CONDITION_STATUS_TRUE if running else meta_pb2.CONDITION_STATUS_FALSE
    set_condition(status.conditions, RUNNING, truth, word, text, now)
    if observed.address_leased and running:
        address = instance.spec.networks[0].address
        text = f"the guest took {address} by DHCP" if address else "the guest made itself an IPv6 address"
        set_condition(status.conditions, ADDRESS, meta_pb2.CONDITION_STATUS_TRUE, "Leased", text, now)
    elif not running and find_condition(status.conditions, ADDRESS) is not None:
        set_condition(
            status.conditions,
            ADDRESS,
            meta_pb2.CONDITION_STATUS_FALSE,
            "NotRunning",
            "the guest does not run",
            now,
        )


def _state_of(observed: agent_pb2.ObservedInstance | None) -> agent_pb2.DomainState.ValueType:
    """What the node saw; a paused domain that is only about to start does not run yet."""
    if observed is None:
        return agent_pb2.DOMAIN_STATE_PREPARING
    if observed.state == agent_pb2.DOMAIN_STATE_PAUSED and observed.reason == "Starting":
        return agent_pb2.DOMAIN_STATE_PREPARING
    return observed.state


# The node has tried and will not try again until somebody asks for another boot.
GIVEN_UP: Final = frozenset(
    {
        "BadPlan",
        "CrashLoop",
        "DiskLost",
        "ImageDigestMismatch",
        "ImageFormatMismatch",
        "ImageNotFound",
        "ImageUnsafe",
        "InvalidDomainSpec",
    }
)
_WORDS: Final = {
    lifecycle.STARTING: "Starting",
    lifecycle.RUNNING: "Running",
    lifecycle.STOPPING: "Stopping",
    lifecycle.STOPPED: "Stopped",
    lifecycle.FAILED: "Failed",
}
_SENTENCES: Final = {
    "Preparing": "node {node} prepares disk, seed and network",
    "Starting": "node {node} starts the guest",
    "Running": "the guest runs on {node}",
    "Stopping": "the guest was asked to shut down",
    "Stopped": "the guest is off",
    "Failed": "node {node} gave up on the guest",
    "NotStarted": "prepared on {node}, never started",
    "GuestPoweredOff": "the guest shut down",
    "ForcedOff": "the guest was cut off",
    "HostDown": "node {node} restarted and the guest with it",
    "EmulatorDied": "the guest's emulator died on {node}",
    "CrashLoop": "the guest kept crashing on {node}; start it again when the cause is mended",
}


def is_gone(instance_row: Stored, placement: Stored | None, facts: Facts) -> bool:
    """A deleted instance has left nothing: it never had a node, or its node has looked and found nothing."""
    if placement is None:
        return True
    if not facts.node_alive or facts.acted_revision < instance_row.mod_revision:
        return False
    observed = facts.observed
    return observed is None or observed.state == agent_pb2.DOMAIN_STATE_ABSENT


def end_of_operation(
    operation: operation_pb2.Operation,
    instance: instance_pb2.Instance,
    status: instance_pb2.InstanceStatus,
    now: float,
) -> operation_pb2.OperationError | bool | None:
    """False: it goes on. None: it ended well. An error: it ended badly."""
    if now > operation.deadline_at.seconds:
        pending = find_condition(status.conditions, PLACED)
        if status.phase == lifecycle.PENDING and pending is not None:
            return operation_pb2.OperationError(reason="NO_CAPACITY", message=pending.message)
        return operation_pb2.OperationError(
            reason="TIMED_OUT",
            message=f"{operation.verb} has not ended in its time; the instance goes on trying",
        )
    if operation.verb == "instance.delete":
        return False
    if instance.meta.HasField("deleted_at"):
        return operation_pb2.OperationError(reason="CONFLICT", message="the instance is being deleted")
    if operation.verb == "instance.stop":
        return _end_of_stop(instance, status)
    return _end_of_boot(operation, instance, status)


def _end_of_stop(
    instance: instance_pb2.Instance, status: instance_pb2.InstanceStatus
) -> operation_pb2.OperationError | bool | None:
    if instance.spec.power != instance_pb2.POWER_STATE_OFF:
        return operation_pb2.OperationError(reason="CONFLICT", message="a later start overtook this stop")
    stopped = status.phase == lifecycle.STOPPED and status.observed_generation >= instance.meta.generation
    return None if stopped or not status.node else False


def _end_of_boot(
    operation: operation_pb2.Operation,
    instance: instance_pb2.Instance,
    status: instance_pb2.InstanceStatus,
) -> operation_pb2.OperationError | bool | None:
    if operation.verb == "instance.create" and not operation.goal_boots:
        return None if status.node else False
    booted = status.boots >= operation.goal_boots and status.phase in (lifecycle.RUNNING, lifecycle.STOPPED)
    if booted:
        return None
    if instance.spec.power == instance_pb2.POWER_STATE_OFF:
        return operation_pb2.OperationError(reason="CONFLICT", message="a later stop overtook this operation")
    if status.phase == lifecycle.FAILED:
        running = find_condition(status.conditions, RUNNING)
        text = running.message if running else "the node gave up on the instance"
        return operation_pb2.OperationError(reason="OPERATION_FAILED", message=text)
    return False


def build_change(
    state: State, context: Context, uid: str, facts: Facts, refusal: Refusal | None
) -> Change | None:
    """Everything that there is to write of an instance now, or None."""
    found = state.find_instance(uid)
    if found is None:
        return None
    parts, row = found
    placement = state.placement_of(uid)
    gone = row.message.meta.HasField("deleted_at") and is_gone(row, placement, facts)
    if gone and len(_open_operations(state, uid)) <= OPERATIONS_AT_ONCE:
        return _removal(state, context, parts, row, placement)
    before = state.find(keys.INSTANCE_STATUS, uid)
    status = build_status(state, row.message, facts, refusal, context.now)
    change = Change(result=MORE if gone else None)
    if _differs(before, status):
        key = keys.INSTANCE_STATUS.key(uid)
        change.compares.append(unchanged(key, before.mod_revision if before else 0))
        change.writes[key] = common.encode(status)
        change.events += _transitions(context, row.message, before, status)
    _end_operations(change, state, context, row.message, status)
    return change if change.writes else None


def concerns_status(changed: Changed) -> bool:
    """Whether a change of an instance may leave something to write; of a new one nothing is known yet."""
    row = changed.after
    return row is not None and (changed.before is not None or row.message.meta.HasField("deleted_at"))


def _differs(before: Stored | None, status: instance_pb2.InstanceStatus) -> bool:
    """Only what somebody sees: a first status that says no more than the placement is not written."""
    if before is None:  # that it is pending needs no writing either, unless there is a reason to tell
        return bool(status.phase) and bool(status.node or status.conditions)
    return bool(before.message != status)


def _transitions(
    context: Context,
    instance: instance_pb2.Instance,
    before: Stored | None,
    status: instance_pb2.InstanceStatus,
) -> Iterator[event_pb2.Event]:
    old = before.message.phase if before else lifecycle.PENDING
    if old == lifecycle.PENDING and status.node:
        old = lifecycle.STARTING  # that it was placed is shown, but not written (assemble.py)
    if status.phase != old:
        lifecycle.check_transition(old, status.phase)
    running = find_condition(status.conditions, RUNNING)
    known = find_condition(before.message.conditions, RUNNING) if before else None
    if running is not None and (known is None or known.reason != running.reason):
        warning = status.phase in (lifecycle.FAILED, lifecycle.UNKNOWN) or running.reason == "EmulatorDied"
        yield common.event(
            context, "instance", instance.meta, running.reason, running.message, warning=warning
        )
    placed = find_condition(status.conditions, PLACED)
    told = find_condition(before.message.conditions, PLACED) if before else None
    if placed is not None and placed.reason in _REFUSED and (told is None or told.reason != placed.reason):
        yield common.event(context, "instance", instance.meta, placed.reason, placed.message, warning=True)


def _end_operations(
    change: Change,
    state: State,
    context: Context,
    instance: instance_pb2.Instance,
    status: instance_pb2.InstanceStatus,
) -> None:
    """End what has ended, a number at once; the change's result tells whether there is more."""
    ended = 0
    for parts, row in _open_operations(state, instance.meta.uid):
        end = end_of_operation(row.message, instance, status, context.now)
        if isinstance(end, bool):
            continue
        if ended == OPERATIONS_AT_ONCE:
            change.result = MORE
            return
        _end(change, context, parts, row, end)
        ended += 1


def _open_operations(state: State, uid: str) -> list[tuple[Parts, Stored]]:
    return [(parts, row) for parts, row in state.operations_of(uid) if not row.message.done]


def _end(
    change: Change, context: Context, parts: Parts, row: Stored, error: operation_pb2.OperationError | None
) -> None:
    ended = operation_pb2.Operation()
    ended.CopyFrom(row.message)
    ended.done = True
    ended.done_at.CopyFrom(timestamp(context.now))
    if error is not None:
        ended.error.CopyFrom(error)
    key = keys.OPERATIONS.key(*parts)
    change.compares.append(unchanged(key, row.mod_revision))
    change.writes[key] = common.encode(ended)


def _removal(state: State, context: Context, parts: Parts, row: Stored, placement: Stored | None) -> Change:
    """Remove a deleted instance with all that was written for it."""
    instance: instance_pb2.Instance = row.message
    uid = instance.meta.uid
    change = common.remove(keys.INSTANCES, parts, row)
    change.writes[keys.INSTANCE_STATUS.key(uid)] = None
    if placement is not None:
        key = keys.PLACEMENTS.key(placement.message.node, uid)
        change.compares.append(unchanged(key, placement.mod_revision))
        change.writes[key] = None
    for port_row in state.ports_of(parts[0], parts[1]):
        port = port_row.message
        change.writes[keys.PORTS.key(parts[0], port.meta.name)] = None
        network = state.find(keys.NETWORKS, parts[0], port.spec.network)
        if network is not None:
            network_uid = network.message.meta.uid
            change.writes[keys.MACS.key(network_uid, port.spec.mac)] = None
            for fixed in port.spec.addresses:
                change.writes[keys.ADDRESSES.key(network_uid, fixed.address)] = None
    gone = operation_pb2.OperationError(reason="CONFLICT", message="the instance was deleted")
    for where, operation in _open_operations(state, uid):
        error = None if operation.message.verb == "instance.delete" else gone
        _end(change, context, where, operation, error)
    change.events.append(common.event(context, "instance", instance.meta, "Deleted", "the instance is gone"))
    return change
