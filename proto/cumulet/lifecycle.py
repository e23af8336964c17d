"""An instance's phases: the one table of transitions, and how a phase follows from facts.

**Pure.** An illegal transition raises and changes nothing.
"""

from __future__ import annotations

from typing import Final

from cumulet.v1 import agent_pb2 as agent
from cumulet.v1 import instance_pb2 as pb

PENDING: Final = pb.INSTANCE_PHASE_PENDING
STARTING: Final = pb.INSTANCE_PHASE_STARTING
RUNNING: Final = pb.INSTANCE_PHASE_RUNNING
STOPPING: Final = pb.INSTANCE_PHASE_STOPPING
STOPPED: Final = pb.INSTANCE_PHASE_STOPPED
FAILED: Final = pb.INSTANCE_PHASE_FAILED
DELETING: Final = pb.INSTANCE_PHASE_DELETING
UNKNOWN: Final = pb.INSTANCE_PHASE_UNKNOWN

# What a person must see end. Each has an owner: the scheduler for Pending, the node for the others.
TRANSIENT: Final = frozenset({PENDING, STARTING, STOPPING, DELETING, UNKNOWN})

_UP: Final = (agent.DOMAIN_STATE_RUNNING, agent.DOMAIN_STATE_PAUSED, agent.DOMAIN_STATE_SHUTTING_DOWN)

# From any phase to Deleting, and from a silent node's Unknown back to whatever it then reports.
TRANSITIONS: Final[dict[pb.InstancePhase.ValueType, frozenset[pb.InstancePhase.ValueType]]] = {
    PENDING: frozenset({STARTING, RUNNING, STOPPING, STOPPED, FAILED, DELETING, UNKNOWN}),
    STARTING: frozenset({PENDING, RUNNING, STOPPING, STOPPED, FAILED, DELETING, UNKNOWN}),
    RUNNING: frozenset({STARTING, STOPPING, STOPPED, FAILED, DELETING, UNKNOWN}),
    STOPPING: frozenset({STARTING, RUNNING, STOPPED, FAILED, DELETING, UNKNOWN}),
    STOPPED: frozenset({PENDING, STARTING, RUNNING, STOPPING, FAILED, DELETING, UNKNOWN}),
    FAILED: frozenset({PENDING, STARTING, RUNNING, STOPPING, STOPPED, DELETING, UNKNOWN}),
    UNKNOWN: frozenset({PENDING, STARTING, RUNNING, STOPPING, STOPPED, FAILED, DELETING}),
    DELETING: frozenset(),
}


class IllegalTransitionError(Exception):
    """A phase was to follow that the table does not allow."""


def check_transition(before: pb.InstancePhase.ValueType, after: pb.InstancePhase.ValueType) -> None:
    """Raise IllegalTransitionError unless `after` equals or may follow `before` (0: a new object)."""
    if before in (0, after) or after in TRANSITIONS[before]:
        return
    name = pb.InstancePhase.Name
    raise IllegalTransitionError(f"an instance cannot go from {name(before)} to {name(after)}")


def derive_phase(
    *,
    deleted: bool,
    placed: bool,
    node_known: bool,
    power: int,
    boots_asked: int,
    state: int,
    boots_done: int,
    failed: bool,
) -> pb.InstancePhase.ValueType:
    """The phase from facts: intent (deleted, power, boots), placement, and the node's last word.

    `node_known`: the node has a session now. `state` is a DomainState, 0 when the node has not
    spoken of the instance yet. `failed`: the node has given up on it.
    """
    if deleted:
        return DELETING
    if not placed:
        return PENDING if power == pb.POWER_STATE_ON else STOPPED
    if not node_known and state:
        return UNKNOWN
    if failed:
        return FAILED
    if power == pb.POWER_STATE_OFF:
        return STOPPING if state in _UP or not state else STOPPED
    if boots_done < boots_asked:
        return STARTING
    if state in (agent.DOMAIN_STATE_RUNNING, agent.DOMAIN_STATE_PAUSED):
        return RUNNING
    if state == agent.DOMAIN_STATE_SHUTTING_DOWN:
        return STOPPING
    return STOPPED if state == agent.DOMAIN_STATE_OFF else STARTING
