"""The words of reach: what is sent, one thing on its way, and the way as a whole.

**Pure**: values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cumulet.v1 import reach_pb2

PORT: Final = reach_pb2.REACH_STEP_KIND_PORT
GROUP: Final = reach_pb2.REACH_STEP_KIND_SECURITY_GROUP
BRIDGE: Final = reach_pb2.REACH_STEP_KIND_BRIDGE
TUNNEL: Final = reach_pb2.REACH_STEP_KIND_TUNNEL
ROUTER: Final = reach_pb2.REACH_STEP_KIND_ROUTER
NAT: Final = reach_pb2.REACH_STEP_KIND_NAT
OUTSIDE: Final = reach_pb2.REACH_STEP_KIND_OUTSIDE
BALANCER: Final = reach_pb2.REACH_STEP_KIND_BALANCER
FLOATING_IP: Final = reach_pb2.REACH_STEP_KIND_FLOATING_IP
SEGMENT: Final = reach_pb2.REACH_STEP_KIND_SEGMENT


@dataclass(frozen=True, slots=True)
class Traffic:
    """The first packet of a connection. `protocol` is IANA's number; ICMP means an echo request."""

    ip_version: int
    protocol: int
    port: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    kind: reach_pb2.ReachStepKind.ValueType
    name: str
    node: str
    passes: bool
    message: str
    rule_id: str = ""


@dataclass(frozen=True, slots=True)
class Path:
    """`steps` end with the one that decides: the last passes where the packet arrives."""

    ip_version: int
    source: str
    target: str
    steps: tuple[Step, ...]

    @property
    def reachable(self) -> bool:
        return bool(self.steps) and all(step.passes for step in self.steps)


def until_stopped(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Up to the first that does not pass."""
    stops = next((index for index, step in enumerate(steps) if not step.passes), len(steps))
    return steps[: stops + 1]
