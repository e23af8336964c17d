"""Between protobuf messages and the vocabulary's values.

**Pure.** The one place where a Resources message becomes a Resources value, and time a Timestamp.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from google.protobuf.timestamp_pb2 import Timestamp

from cumulet.resources import Resources
from cumulet.v1 import meta_pb2

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer


def resources_from(message: meta_pb2.Resources) -> Resources:
    """Raises QuantityError for what is not a resource vector."""
    extended = message.extended
    named = tuple(sorted(extended.items())) if extended else ()
    return _vector(message.vcpu, message.memory_mib, message.disk_gib, named)


# A cloud has some hundred flavors and a million vectors: equal ones are one value, checked once.
_vector: Final = lru_cache(maxsize=16_384)(Resources)


def resources_to(value: Resources) -> meta_pb2.Resources:
    return meta_pb2.Resources(
        vcpu=value.vcpu,
        memory_mib=value.memory_mib,
        disk_gib=value.disk_gib,
        extended=dict(value.extended),
    )


def timestamp(seconds: float) -> Timestamp:
    """Wall time in seconds since 1970, kept to the millisecond."""
    made = Timestamp()
    made.FromMilliseconds(int(seconds * 1000))
    return made


def find_condition(conditions: Iterable[meta_pb2.Condition], kind: str) -> meta_pb2.Condition | None:
    return next((condition for condition in conditions if condition.type == kind), None)


def set_condition(
    conditions: RepeatedCompositeFieldContainer[meta_pb2.Condition],
    kind: str,
    truth: meta_pb2.ConditionStatus.ValueType,
    reason: str,
    text: str,
    now: float,
) -> None:
    """In place; `now` (Unix seconds) is when it changed, if it did."""
    known = find_condition(conditions, kind)
    if known is None:
        known = conditions.add(type=kind)
    if (known.status, known.reason, known.message) != (truth, reason, text):
        known.status, known.reason, known.message = truth, reason, text
        known.changed_at.CopyFrom(timestamp(now))
