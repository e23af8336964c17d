"""Admission of networks: VNI, the segment of a provider network, quota.

**Pure.**
"""

from __future__ import annotations

from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.admit.project import charge_network
from controller.admit.provider import (
    check_outbound,
    check_segment,
    claim_segment,
    describe_segment,
    free_segment,
)
from controller.commit import Change
from controller.state import State
from controller.store import keys
from controller.store.protocol import absent, range_absent, range_unchanged_since
from cumulet.errors import FailedPreconditionError, UnavailableError
from cumulet.v1 import network_pb2

MUTABLE = ("meta.labels", "spec.description", "spec.outbound_nat")
# The protocol has 24 bits. A network's transit address on a node is 100.64.0.0/10 plus its VNI: 22 bits.
VNI_MAX: Final = 2**22 - 2
VNI_TRIES: Final = 64  # random draws: even with half of all VNIs taken, a miss is 1 in 2**64


def create(state: State, context: Context, project: str, given: network_pb2.Network) -> Change:
    violations = Violations()
    project_row = common.get_live_row(state, keys.PROJECTS, project)
    meta = common.new_meta(given.meta, project, context, violations)
    _check(given.spec, violations)
    if given.spec.HasField("provider"):
        check_segment(state, project, given.spec, violations)
    violations.raise_any(f"network {given.meta.name!r} was not created")
    vni = free_vni(state, context)  # a provider network has one, too: nodes tell networks apart by it
    made = network_pb2.Network(meta=meta, spec=given.spec, status=network_pb2.NetworkStatus(vni=vni))
    change = common.put_new(state, keys.NETWORKS, (project, meta.name), made)
    charge_network(change, state, project)
    common.rest_on(change, keys.PROJECTS, project_row, project)
    claim_vni(change, vni, meta.uid)
    how = f"with VNI {vni}"
    if given.spec.HasField("provider"):
        claim_segment(change, given.spec.provider, meta.uid)
        how = f"on uplink {describe_segment(given.spec.provider)}"
    text = f"network {meta.name} was created {how}"
    change.events.append(common.event(context, "network", meta, "Created", text))
    return change


def update(
    state: State, context: Context, parts: tuple[str, ...], given: network_pb2.Network, mask: FieldMask
) -> Change:
    row, merged = common.updated(state, keys.NETWORKS, parts, given, mask, MUTABLE)
    violations = Violations()
    _check(merged.spec, violations)
    violations.raise_any(f"network {'/'.join(parts)} was not changed")
    return common.put_changed(keys.NETWORKS, parts, row, merged)


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    row = common.get_row(state, keys.NETWORKS, *parts)
    common.check_etag(keys.NETWORKS, parts, row, etag)
    project, name = parts
    subnets = [
        where[1]
        for where, subnet in state.rows(keys.SUBNETS, project).items()
        if subnet.message.spec.network == name
    ]
    if subnets:
        raise FailedPreconditionError(
            f"network {project}/{name} has subnet(s) {', '.join(sorted(subnets))}: delete them first",
            hints=[f"cumulet subnet delete {subnets[0]} --project {project}"],
        )
    meta = row.message.meta
    router = state.router_of(project, name)
    if router is not None:
        user = router.message.meta.name
        raise FailedPreconditionError(
            f"network {project}/{name} is attached to router {user}: detach it first",
            hints=[f"cumulet router show {user} --project {project}"],
        )
    held = state.ports_in(project, name)
    if held:
        raise FailedPreconditionError(
            f"network {project}/{name} has {len(held)} port(s): delete their instances"
        )
    change = common.remove(keys.NETWORKS, parts, row)
    change.compares += [
        range_absent(keys.MACS.prefix(meta.uid)),  # every port has one
        range_unchanged_since(keys.SUBNETS.prefix(project), state.revision),
        range_unchanged_since(keys.ROUTERS.prefix(project), state.revision),
    ]
    change.writes[keys.VNIS.key(str(row.message.status.vni))] = None
    if row.message.spec.HasField("provider"):
        free_segment(change, row.message.spec.provider)
    change.events.append(common.event(context, "network", meta, "Deleted", f"network {name} was deleted"))
    return change


def _check(spec: network_pb2.NetworkSpec, violations: Violations) -> None:
    common.check_description(spec.description, violations)
    check_outbound(spec, violations)


def claim_vni(change: Change, vni: int, uid: str) -> None:
    """Nobody else has it, and from now on nobody else gets it."""
    key = keys.VNIS.key(str(vni))
    change.compares.append(absent(key))
    change.writes[key] = uid.encode()


def free_vni(state: State, context: Context) -> int:
    """A random one, for a network or a router. Raises UnavailableError."""
    for _ in range(VNI_TRIES):
        vni = context.rng.randint(1, VNI_MAX)
        if state.find(keys.VNIS, str(vni)) is None:
            return vni
    raise UnavailableError("no free VNI was found: too many networks for this cloud")
