"""Admission of flavors.

**Pure.**
"""

from __future__ import annotations

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.admit.requirements import check_requirements, copy_requirements
from controller.commit import Change
from controller.state import State
from controller.store import keys
from cumulet.v1 import flavor_pb2

MUTABLE = (
    "meta.labels",
    "spec.description",
    "spec.resources",
    "spec.node_selector",
    "spec.capabilities",
    "spec.tolerations",
    "spec.preferences",
    "spec.numa_cells",
    "spec.devices",
)


def create(state: State, context: Context, project: str, given: flavor_pb2.Flavor) -> Change:
    violations = Violations()
    meta = common.new_meta(given.meta, "", context, violations)
    _check(given.spec, violations)
    violations.raise_any(f"flavor {given.meta.name!r} was not created")
    made = flavor_pb2.Flavor(meta=meta, spec=_normal(given.spec))
    change = common.put_new(state, keys.FLAVORS, (meta.name,), made)
    change.events.append(common.event(context, "flavor", meta, "Created", f"flavor {meta.name} was created"))
    return change


def update(
    state: State, context: Context, parts: tuple[str, ...], given: flavor_pb2.Flavor, mask: FieldMask
) -> Change:
    row, merged = common.updated(state, keys.FLAVORS, parts, given, mask, MUTABLE)
    violations = Violations()
    _check(merged.spec, violations)
    violations.raise_any(f"flavor {parts[0]} was not changed")
    merged.spec.CopyFrom(_normal(merged.spec))
    return common.put_changed(keys.FLAVORS, parts, row, merged)


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    """Instances keep their copy of the flavor's resources."""
    row = common.get_row(state, keys.FLAVORS, *parts)
    common.check_etag(keys.FLAVORS, parts, row, etag)
    return common.remove(keys.FLAVORS, parts, row)


def _normal(spec: flavor_pb2.FlavorSpec) -> flavor_pb2.FlavorSpec:
    """The spec with the defaults of what it requires written out."""
    normal = flavor_pb2.FlavorSpec(resources=spec.resources, description=spec.description)
    copy_requirements(spec, normal)
    return normal


def _check(spec: flavor_pb2.FlavorSpec, violations: Violations) -> None:
    common.check_resources(spec.resources, "spec.resources", violations)
    common.check_description(spec.description, violations)
    check_requirements(spec, violations)
    if spec.resources.vcpu < 1:
        violations.add("spec.resources.vcpu", "must be at least 1")
    if spec.resources.memory_mib < 64:
        violations.add("spec.resources.memory_mib", "must be at least 64")
    if spec.resources.disk_gib < 1:
        violations.add("spec.resources.disk_gib", "must be at least 1")
