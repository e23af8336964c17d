"""Admission of placement groups.

**Pure.** An instance names its groups when it is created; a group that is named cannot be deleted.
"""

from __future__ import annotations

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Referred, Violations
from controller.commit import Change
from controller.state import State
from controller.store import keys
from controller.store.protocol import range_unchanged_since
from cumulet.errors import FailedPreconditionError
from cumulet.v1 import instance_pb2, placementgroup_pb2
from scheduler.group import PER_DOMAIN_MAX
from scheduler.model import GROUPS_MAX

# Not the rule, not the scope: members were placed by them, and would be where they must not be.
MUTABLE = ("meta.labels", "spec.description", "spec.enforcement", "spec.max_per_domain")


def create(state: State, context: Context, project: str, given: placementgroup_pb2.PlacementGroup) -> Change:
    violations = Violations()
    project_row = common.get_live_row(state, keys.PROJECTS, project)
    meta = common.new_meta(given.meta, project, context, violations)
    spec = placementgroup_pb2.PlacementGroupSpec()
    spec.CopyFrom(given.spec)
    _check(spec, violations)
    _write_defaults(spec)
    violations.raise_any(f"placement group {given.meta.name!r} was not created")
    made = placementgroup_pb2.PlacementGroup(meta=meta, spec=spec)
    change = common.put_new(state, keys.PLACEMENT_GROUPS, (project, meta.name), made)
    common.rest_on(change, keys.PROJECTS, project_row, project)
    text = f"placement group {meta.name} was created"
    change.events.append(common.event(context, "placement-group", meta, "Created", text))
    return change


def update(
    state: State,
    context: Context,
    parts: tuple[str, ...],
    given: placementgroup_pb2.PlacementGroup,
    mask: FieldMask,
) -> Change:
    """Instances that are placed stay where they are, whatever the group says now."""
    row, merged = common.updated(state, keys.PLACEMENT_GROUPS, parts, given, mask, MUTABLE)
    violations = Violations()
    _check(merged.spec, violations)
    violations.raise_any(f"placement group {'/'.join(parts)} was not changed")
    _write_defaults(merged.spec)
    return common.put_changed(keys.PLACEMENT_GROUPS, parts, row, merged)


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    """Raises FailedPreconditionError while an instance names the group."""
    row = common.get_row(state, keys.PLACEMENT_GROUPS, *parts)
    common.check_etag(keys.PLACEMENT_GROUPS, parts, row, etag)
    members = members_of(state, *parts)
    if members:
        raise FailedPreconditionError(
            f"placement group {'/'.join(parts)} is named by {len(members)} instance(s), such as "
            f"{members[0]}: delete them first",
            hints=[f"cumulet instance list --project {parts[0]}"],
        )
    change = common.remove(keys.PLACEMENT_GROUPS, parts, row)
    change.compares.append(range_unchanged_since(keys.INSTANCES.prefix(parts[0]), state.revision))
    return change


def join_groups(
    state: State,
    project: str,
    given: instance_pb2.InstanceSpec,
    spec: instance_pb2.InstanceSpec,
    violations: Violations,
) -> list[Referred]:
    """Put the groups that a new instance names into its spec, and say which rows it rests on."""
    names = list(given.placement_groups)
    if len(names) > GROUPS_MAX:
        violations.add("spec.placement_groups", f"{len(names)} groups, at most {GROUPS_MAX}")
    referred: list[Referred] = []
    for index, name in enumerate(names):
        field = f"spec.placement_groups[{index}]"
        row = state.find(keys.PLACEMENT_GROUPS, project, name)
        if row is None:
            known = state.rows(keys.PLACEMENT_GROUPS, project)
            violations.add(field, common.unknown("placement group", name, known))
        elif name in names[:index]:
            violations.add(field, f"{name} is there twice")
        else:
            referred.append((keys.PLACEMENT_GROUPS, row, project, name))
            spec.placement_groups.append(name)
    return referred


def members_of(state: State, project: str, group: str) -> list[str]:
    """Names of the instances that name the group, placed or not, in order."""
    rows = state.rows(keys.INSTANCES, project)
    return sorted(parts[1] for parts, row in rows.items() if group in row.message.spec.placement_groups)


def _write_defaults(spec: placementgroup_pb2.PlacementGroupSpec) -> None:
    spec.scope = spec.scope or placementgroup_pb2.PLACEMENT_SCOPE_NODE
    spec.enforcement = spec.enforcement or placementgroup_pb2.PLACEMENT_ENFORCEMENT_HARD


def _check(spec: placementgroup_pb2.PlacementGroupSpec, violations: Violations) -> None:
    common.check_description(spec.description, violations)
    rules = (placementgroup_pb2.PLACEMENT_RULE_AFFINITY, placementgroup_pb2.PLACEMENT_RULE_ANTI_AFFINITY)
    if spec.rule not in rules:
        violations.add("spec.rule", "must be AFFINITY (together) or ANTI_AFFINITY (apart)")
    if spec.scope not in placementgroup_pb2.PlacementScope.values():
        violations.add("spec.scope", "must be NODE, RACK or ZONE")
    if spec.enforcement not in placementgroup_pb2.PlacementEnforcement.values():
        violations.add("spec.enforcement", "must be HARD or SOFT")
    if not 0 <= spec.max_per_domain <= PER_DOMAIN_MAX:
        violations.add("spec.max_per_domain", f"is {spec.max_per_domain}, must be 0 to {PER_DOMAIN_MAX}")
