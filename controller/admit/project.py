"""Admission of projects, and what their quota allows.

**Pure.** A project's usage is derived from its instances and networks; nothing is counted in a record.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.admit.securitygroup import DEFAULT_GROUP, put_default
from controller.commit import Change
from controller.state import State
from controller.store import keys
from controller.store.keys import Table
from controller.store.protocol import range_absent, range_unchanged_since, unchanged
from controller.tables import Stored
from cumulet.errors import FailedPreconditionError, QuotaExceededError
from cumulet.resources import Resources
from cumulet.v1 import project_pb2

MUTABLE = ("meta.labels", "spec")
INSTANCES_DEFAULT: Final = 1_000  # more than a first trial needs, few enough to notice a runaway script
NETWORKS_DEFAULT: Final = 100
FLOATING_IPS_DEFAULT: Final = 50  # OpenStack's default
EXTERNAL_SUBNETS_DEFAULT: Final = 16  # what a site with a /60 gets from its provider (RFC 6177)
OWNED: Final = (
    keys.INSTANCES,
    keys.FLOATING_IPS,
    keys.PLACEMENT_GROUPS,
    keys.ROUTERS,
    keys.PORTS,
    keys.SUBNETS,
    keys.NETWORKS,
    keys.KEY_PAIRS,
)


def create(state: State, context: Context, project: str, given: project_pb2.Project) -> Change:
    violations = Violations()
    meta = common.new_meta(given.meta, "", context, violations)
    _check(given.spec, violations)
    violations.raise_any(f"project {given.meta.name!r} was not created")
    made = project_pb2.Project(meta=meta, spec=given.spec)
    change = common.put_new(state, keys.PROJECTS, (meta.name,), made)
    put_default(state, context, meta.name, change)
    change.events.append(
        common.event(context, "project", meta, "Created", f"project {meta.name} was created")
    )
    return change


def update(
    state: State, context: Context, parts: tuple[str, ...], given: project_pb2.Project, mask: FieldMask
) -> Change:
    row, merged = common.updated(state, keys.PROJECTS, parts, given, mask, MUTABLE)
    violations = Violations()
    _check(merged.spec, violations)
    violations.raise_any(f"project {parts[0]} was not changed")
    return common.put_changed(keys.PROJECTS, parts, row, merged)


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    row = common.get_row(state, keys.PROJECTS, *parts)
    common.check_etag(keys.PROJECTS, parts, row, etag)
    change = common.remove(keys.PROJECTS, parts, row)
    for table in OWNED:
        held = state.rows(table, parts[0])
        if held:
            noun = common.NOUNS[table]
            raise FailedPreconditionError(
                f"project {parts[0]} still holds {len(held)} {noun}(s): delete them first",
                hints=[f"cumulet {noun} list --project {parts[0]}"],
            )
        change.compares.append(range_absent(table.prefix(parts[0])))
    _remove_groups(change, state, parts[0])
    return change


def _remove_groups(change: Change, state: State, project: str) -> None:
    """The default group came with the project and goes with it; others are the users'."""
    rows = state.rows(keys.SECURITY_GROUPS, project)
    others = sorted(where[1] for where in rows if where[1] != DEFAULT_GROUP)
    if others:
        raise FailedPreconditionError(
            f"project {project} still holds security group(s) {', '.join(others)}: delete them first",
            hints=[f"cumulet security-group delete {others[0]} --project {project}"],
        )
    change.compares.append(range_unchanged_since(keys.SECURITY_GROUPS.prefix(project), state.revision))
    for where in rows:
        change.writes[keys.SECURITY_GROUPS.key(*where)] = None


def charge_instance(
    change: Change, state: State, project: str, asked: Resources, asked_devices_milli: int
) -> None:
    """Guard a new instance by the project's quota. Raises QuotaExceededError with every sum that is over."""
    quota = common.get_live_row(state, keys.PROJECTS, project).message.spec.quota
    limit = quota.instances if quota.HasField("instances") else INSTANCES_DEFAULT
    count = len(state.rows(keys.INSTANCES, project))
    over = [f"instances: {count} of {limit} are used"] if count + 1 > limit else []
    used = state.used_by(project).as_dict()
    limits = quota.resources
    named = {"vcpu": limits.vcpu, "memory_mib": limits.memory_mib, "disk_gib": limits.disk_gib}
    for name, bound in {**named, **limits.extended}.items():
        have, more = used.get(name, 0), asked.get(name)
        if bound and more and have + more > bound:
            over.append(f"{name}: {have} of {bound} are used, {more} more are asked for")
    have, more = state.devices_used_by(project), asked_devices_milli
    if quota.HasField("devices_milli") and more and have + more > quota.devices_milli:
        over.append(f"devices_milli: {have} of {quota.devices_milli} are used, {more} more are asked for")
    _refuse_over(project, over)
    change.compares.append(range_unchanged_since(keys.INSTANCES.prefix(project), state.revision))
    _guard_quota(change, state, project)


def charge_network(change: Change, state: State, project: str) -> None:
    """Guard a new network by the project's quota. Raises QuotaExceededError."""
    _charge_one(change, state, project, keys.NETWORKS, "networks", NETWORKS_DEFAULT)


def charge_floating_ip(change: Change, state: State, project: str) -> None:
    """Guard a new floating IP by the project's quota. Raises QuotaExceededError."""
    _charge_one(change, state, project, keys.FLOATING_IPS, "floating_ips", FLOATING_IPS_DEFAULT)


def charge_external_subnet(change: Change, state: State, project: str) -> None:
    """Guard a new subnet of an external network by the project's quota. Raises QuotaExceededError."""
    count = len(external_subnets(state, project))
    _charge(change, state, project, keys.SUBNETS, "external_subnets", EXTERNAL_SUBNETS_DEFAULT, count)


def external_subnets(state: State, project: str) -> list[Stored]:
    rows = state.rows(keys.SUBNETS, project).values()
    return [row for row in rows if row.message.spec.external_network]


def _charge_one(change: Change, state: State, project: str, table: Table, field: str, default: int) -> None:
    """One more object of a table, as many as the quota's field allows."""
    _charge(change, state, project, table, field, default, len(state.rows(table, project)))


def _charge(
    change: Change, state: State, project: str, table: Table, field: str, default: int, count: int
) -> None:
    quota = common.get_live_row(state, keys.PROJECTS, project).message.spec.quota
    limit = getattr(quota, field) if quota.HasField(field) else default
    _refuse_over(project, [f"{field}: {count} of {limit} are used"] if count + 1 > limit else [])
    change.compares.append(range_unchanged_since(table.prefix(project), state.revision))
    _guard_quota(change, state, project)


def _guard_quota(change: Change, state: State, project: str) -> None:
    row = common.get_row(state, keys.PROJECTS, project)
    change.compares.append(unchanged(keys.PROJECTS.key(project), row.mod_revision))


def _refuse_over(project: str, over: list[str]) -> None:
    if over:
        raise QuotaExceededError(
            f"project {project} is at its quota: {'; '.join(over)}",
            hints=[f"cumulet project show {project}", f"cumulet instance list --project {project}"],
        )


def _check(spec: project_pb2.ProjectSpec, violations: Violations) -> None:
    common.check_description(spec.description, violations)
    common.check_security_level(spec.security_level, violations)
    common.check_resources(spec.quota.resources, "spec.quota.resources", violations)
    for name in ("instances", "networks", "floating_ips", "external_subnets", "devices_milli"):
        if getattr(spec.quota, name) < 0:
            violations.add(f"spec.quota.{name}", "must not be negative")
