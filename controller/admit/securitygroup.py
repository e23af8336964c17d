"""Admission of security groups, and of the groups that ports are in.

**Pure.** A rule's id follows from its content: the same rule has the same id everywhere and for ever, and a
list that is written again unchanged changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Referred, Violations
from controller.commit import Change
from controller.state import State
from controller.store import keys
from controller.store.protocol import range_unchanged_since
from cumulet.addresses import parse_range
from cumulet.errors import FailedPreconditionError
from cumulet.protocols import ICMP, PORT_MAX, WITH_PORTS, protocol_number
from cumulet.v1 import meta_pb2, securitygroup_pb2

MUTABLE = ("meta.labels", "spec")
DEFAULT_GROUP: Final = "default"
RULES_MAX: Final = 256  # of one group: each is a rule in the kernel of every node with a member
GROUPS_OF_PORT_MAX: Final = 8  # each is a jump for the first packet of every connection
ICMP_MAX: Final = 255
INGRESS: Final = securitygroup_pb2.TRAFFIC_DIRECTION_INGRESS
EGRESS: Final = securitygroup_pb2.TRAFFIC_DIRECTION_EGRESS


def create(state: State, context: Context, project: str, given: securitygroup_pb2.SecurityGroup) -> Change:
    violations = Violations()
    project_row = common.get_live_row(state, keys.PROJECTS, project)
    meta = common.new_meta(given.meta, project, context, violations)
    spec = securitygroup_pb2.SecurityGroupSpec()
    spec.CopyFrom(given.spec)
    named = _check(state, project, given.meta.name, spec, violations)
    violations.raise_any(f"security group {given.meta.name!r} was not created")
    change = _put_group(state, context, meta, spec)
    common.rest_on(change, keys.PROJECTS, project_row, project)
    _rest_on_groups(change, state, project, named)
    return change


def put_default(state: State, context: Context, project: str, change: Change) -> None:
    """Add a project's first group to a change: members reach each other and everyone, as in OpenStack."""
    if state.find(keys.SECURITY_GROUPS, project, DEFAULT_GROUP) is not None:
        return
    violations = Violations()
    meta = common.new_meta(meta_pb2.Meta(name=DEFAULT_GROUP), project, context, violations)
    spec = securitygroup_pb2.SecurityGroupSpec(description="of instances that name no other")
    spec.rules.add(direction=EGRESS)
    spec.rules.add(direction=INGRESS, remote_group=DEFAULT_GROUP)
    _check(state, project, DEFAULT_GROUP, spec, violations)
    made = _put_group(state, context, meta, spec)
    change.compares += made.compares
    change.writes |= made.writes
    change.events += made.events


def update(
    state: State,
    context: Context,
    parts: tuple[str, ...],
    given: securitygroup_pb2.SecurityGroup,
    mask: FieldMask,
) -> Change:
    row, merged = common.updated(state, keys.SECURITY_GROUPS, parts, given, mask, MUTABLE)
    violations = Violations()
    named = _check(state, parts[0], parts[1], merged.spec, violations)
    violations.raise_any(f"security group {'/'.join(parts)} was not changed")
    change = common.put_changed(keys.SECURITY_GROUPS, parts, row, merged)
    _rest_on_groups(change, state, parts[0], named - {parts[1]})
    return change


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    """Raises FailedPreconditionError while a port is in it or a rule refers to it."""
    project, name = parts
    row = common.get_row(state, keys.SECURITY_GROUPS, *parts)
    common.check_etag(keys.SECURITY_GROUPS, parts, row, etag)
    members = state.ports_with(project, name)
    if members:
        raise FailedPreconditionError(
            f"security group {project}/{name} has {len(members)} port(s), such as "
            f"{members[0].message.meta.name}: take them out or delete their instances first",
            hints=[f"cumulet port list --project {project}"],
        )
    users = [
        where[1]
        for where, other in state.rows(keys.SECURITY_GROUPS, project).items()
        if where[1] != name and any(rule.remote_group == name for rule in other.message.spec.rules)
    ]
    if users:
        raise FailedPreconditionError(
            f"rules of security group(s) {', '.join(sorted(users))} refer to {project}/{name}: "
            "remove them first",
            hints=[f"cumulet security-group show {sorted(users)[0]} --project {project}"],
        )
    change = common.remove(keys.SECURITY_GROUPS, parts, row)
    change.compares += [
        range_unchanged_since(table.prefix(project), state.revision)
        for table in (keys.PORTS, keys.SECURITY_GROUPS)
    ]
    change.events.append(
        common.event(
            context, "security-group", row.message.meta, "Deleted", f"security group {name} was deleted"
        )
    )
    return change


def check_groups(
    state: State, project: str, names: Sequence[str], field: str, violations: Violations
) -> list[Referred]:
    """The rows of the groups that a port is to be in."""
    if len(names) > GROUPS_OF_PORT_MAX:
        violations.add(field, f"{len(names)} groups, at most {GROUPS_OF_PORT_MAX}")
    referred: list[Referred] = []
    for index, name in enumerate(names):
        row = state.find(keys.SECURITY_GROUPS, project, name)
        if row is None:
            known = state.rows(keys.SECURITY_GROUPS, project)
            violations.add(f"{field}[{index}]", common.unknown("security group", name, known))
        elif name in names[:index]:
            violations.add(f"{field}[{index}]", f"{name} is there twice")
        else:
            referred.append((keys.SECURITY_GROUPS, row, project, name))
    return referred


def _put_group(
    state: State, context: Context, meta: meta_pb2.Meta, spec: securitygroup_pb2.SecurityGroupSpec
) -> Change:
    made = securitygroup_pb2.SecurityGroup(meta=meta, spec=spec)
    change = common.put_new(state, keys.SECURITY_GROUPS, (meta.project, meta.name), made)
    text = f"security group {meta.name} was created"
    change.events.append(common.event(context, "security-group", meta, "Created", text))
    return change


def _rest_on_groups(change: Change, state: State, project: str, names: Iterable[str]) -> None:
    for name in sorted(names):
        row = common.get_row(state, keys.SECURITY_GROUPS, project, name)
        common.rest_on(change, keys.SECURITY_GROUPS, row, project, name)


def _check(
    state: State,
    project: str,
    own_name: str,
    spec: securitygroup_pb2.SecurityGroupSpec,
    violations: Violations,
) -> set[str]:
    """Check the rules and give them their ids. Returns the other groups that they refer to."""
    common.check_description(spec.description, violations)
    if len(spec.rules) > RULES_MAX:
        violations.add("spec.rules", f"{len(spec.rules)} rules, at most {RULES_MAX}")
        return set()
    named: set[str] = set()
    seen: set[str] = set()
    for index, rule in enumerate(spec.rules):
        field = f"spec.rules[{index}]"
        _check_rule(rule, field, violations)
        rule.id = _rule_id(rule)
        violations.add(field, "is there twice" if rule.id in seen else None)
        seen.add(rule.id)
        if rule.remote_group and rule.remote_group != own_name:
            named.add(rule.remote_group)
            if state.find(keys.SECURITY_GROUPS, project, rule.remote_group) is None:
                known = state.rows(keys.SECURITY_GROUPS, project)
                problem = common.unknown("security group", rule.remote_group, known)
                violations.add(f"{field}.remote_group", f"{problem} in project {project}")
    return named


def _check_rule(rule: securitygroup_pb2.SecurityRule, field: str, violations: Violations) -> None:
    if rule.direction not in (INGRESS, EGRESS):
        violations.add(f"{field}.direction", "must be INGRESS (towards the instance) or EGRESS")
    if rule.ip_version not in (0, 4, 6):
        violations.add(f"{field}.ip_version", f"{rule.ip_version} is neither 4 nor 6 (0: both)")
    _check_remote(rule, field, violations)
    number = protocol_number(rule.protocol, rule.ip_version or 4)
    if number is None:
        problem = f"{rule.protocol!r} is not tcp, udp, sctp, icmp or a number from 1 to 255"
        violations.add(f"{field}.protocol", problem)
    _check_ports(rule, field, violations, has_ports=number in WITH_PORTS)
    _check_icmp(rule, field, violations)


def _check_remote(rule: securitygroup_pb2.SecurityRule, field: str, violations: Violations) -> None:
    if rule.remote_cidr and rule.remote_group:
        violations.add(f"{field}.remote_group", "give a range or a group, not both")
    if not rule.remote_cidr:
        return
    try:
        cidr = parse_range(rule.remote_cidr)
    except ValueError as error:
        violations.add(f"{field}.remote_cidr", f"{rule.remote_cidr!r} is not a range ({error})")
        return
    if rule.ip_version and rule.ip_version != cidr.version:
        violations.add(f"{field}.remote_cidr", f"{cidr} is not of IPv{rule.ip_version}")
    rule.remote_cidr, rule.ip_version = str(cidr), cidr.version


def _check_ports(
    rule: securitygroup_pb2.SecurityRule, field: str, violations: Violations, *, has_ports: bool
) -> None:
    if not rule.port_min and not rule.port_max:
        return
    if not has_ports:
        violations.add(f"{field}.port_min", f"protocol {rule.protocol or 'any'} has no ports")
    elif not 1 <= rule.port_min <= rule.port_max <= PORT_MAX:
        problem = f"{rule.port_min}-{rule.port_max} is not a range within 1-{PORT_MAX}"
        violations.add(f"{field}.port_max", problem)


def _check_icmp(rule: securitygroup_pb2.SecurityRule, field: str, violations: Violations) -> None:
    for name in ("icmp_type", "icmp_code"):
        if not rule.HasField(name):
            continue
        if rule.protocol != ICMP:
            violations.add(f"{field}.{name}", f"protocol {rule.protocol or 'any'} has none")
        if not 0 <= getattr(rule, name) <= ICMP_MAX:
            violations.add(f"{field}.{name}", f"{getattr(rule, name)} is not between 0 and {ICMP_MAX}")
    if rule.HasField("icmp_code") and not rule.HasField("icmp_type"):
        violations.add(f"{field}.icmp_code", "means nothing without icmp_type")
    if rule.HasField("icmp_type") and not rule.ip_version:
        violations.add(f"{field}.ip_version", "a type differs between IPv4 and IPv6: give 4 or 6")


def _rule_id(rule: securitygroup_pb2.SecurityRule) -> str:
    content = securitygroup_pb2.SecurityRule()
    content.CopyFrom(rule)
    content.id = ""
    digest = hashlib.sha256(content.SerializeToString(deterministic=True)).hexdigest()
    return f"sgr-{digest[:12]}"
