"""Instances as requests: what many ask for alike is read out of their specs once.

**Pure** but for its memory. Instances of one shape differ in uid and name only; a shape is all that
`build_request` reads, so a spec that differs in any of it is another shape.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from controller.fleet import build_request
from cumulet.v1 import instance_pb2
from scheduler.model import Request

SHAPES_MAX: Final = 16_384  # remembered, some 20 MiB; beyond it the memory starts anew


class Shapes:
    """`build_request`, remembered by shape."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Request] = {}

    def __len__(self) -> int:
        return len(self._known)

    def request(self, instance: instance_pb2.Instance) -> Request:
        """What `build_request` says of the instance. Raises what it raises: nothing of that is remembered."""
        meta, spec = instance.meta, instance.spec
        amounts = spec.resources
        shape = (
            meta.project,
            amounts.vcpu,
            amounts.memory_mib,
            amounts.disk_gib,
            spec.security_level,
            spec.numa_cells,
            spec.expected_lifetime_s,
            spec.image_files.architecture,
            tuple(one.uplink for one in spec.networks if one.uplink),
            _rest(spec) if _is_special(spec) else None,
        )
        known = self._known.get(shape)
        if known is None:
            if len(self._known) >= SHAPES_MAX:
                self._known.clear()
            known = self._known[shape] = build_request(instance)
        return known.named(meta.uid, meta.name)


def _is_special(spec: instance_pb2.InstanceSpec) -> bool:
    """Whether it asks for anything that has more than one value; most do not, and a look is cheap."""
    return bool(
        spec.resources.extended
        or spec.image_files.capabilities
        or spec.capabilities
        or spec.placement_groups
        or spec.node_selector
        or spec.tolerations
        or spec.preferences
        or spec.devices
        or spec.HasField("gang")
    )


def _rest(spec: instance_pb2.InstanceSpec) -> tuple[Hashable, ...]:
    return (
        tuple(sorted(spec.resources.extended.items())),
        tuple(spec.image_files.capabilities),
        tuple(spec.capabilities),
        tuple(spec.placement_groups),
        tuple(sorted(spec.node_selector.items())),
        tuple(one.SerializeToString() for one in spec.tolerations),
        tuple(one.SerializeToString() for one in spec.preferences),
        tuple(one.SerializeToString() for one in spec.devices),
        spec.gang.SerializeToString() if spec.HasField("gang") else None,
    )
