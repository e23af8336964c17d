"""Admission of routers: which networks they join, and where their static routes lead.

**Pure.** A network's gateways are in one place only, so it has at most one router.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.admit.network import claim_vni, free_vni
from controller.admit.provider import find_provider
from controller.admit.subnet import Address, Cidr, Range, range_of
from controller.commit import Change
from controller.state import State
from controller.store import keys
from controller.store.protocol import range_unchanged_since
from cumulet.addresses import parse_address, parse_range
from cumulet.errors import FailedPreconditionError
from cumulet.v1 import router_pb2

MUTABLE = ("meta.labels", "spec")
NETWORKS_MAX: Final = 64  # links of one namespace on each node
ROUTES_MAX: Final = 64


def create(state: State, context: Context, project: str, given: router_pb2.Router) -> Change:
    violations = Violations()
    project_row = common.get_live_row(state, keys.PROJECTS, project)
    meta = common.new_meta(given.meta, project, context, violations)
    spec = router_pb2.RouterSpec()
    spec.CopyFrom(given.spec)
    _check(state, project, given.meta.name, spec, violations)
    violations.raise_any(f"router {given.meta.name!r} was not created")
    vni = free_vni(state, context)
    made = router_pb2.Router(meta=meta, spec=spec, status=router_pb2.RouterStatus(vni=vni))
    change = common.put_new(state, keys.ROUTERS, (project, meta.name), made)
    common.rest_on(change, keys.PROJECTS, project_row, project)
    claim_vni(change, vni, meta.uid)
    _rest_on_networks(change, state, project, spec)
    text = f"router {meta.name} was created with VNI {vni}"
    change.events.append(common.event(context, "router", meta, "Created", text))
    return change


def update(
    state: State, context: Context, parts: tuple[str, ...], given: router_pb2.Router, mask: FieldMask
) -> Change:
    row, merged = common.updated(state, keys.ROUTERS, parts, given, mask, MUTABLE)
    violations = Violations()
    _check(state, parts[0], parts[1], merged.spec, violations)
    _check_balancers(state, parts[0], set(row.message.spec.networks) - set(merged.spec.networks), violations)
    violations.raise_any(f"router {'/'.join(parts)} was not changed")
    change = common.put_changed(keys.ROUTERS, parts, row, merged)
    change.compares.append(range_unchanged_since(keys.LOAD_BALANCERS.prefix(parts[0]), state.revision))
    _rest_on_networks(change, state, parts[0], merged.spec)
    return change


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    """Its networks' gateways go back to the networks themselves.

    Raises FailedPreconditionError while a load balancer rests on it.
    """
    row = common.get_row(state, keys.ROUTERS, *parts)
    common.check_etag(keys.ROUTERS, parts, row, etag)
    held = [one for network in row.message.spec.networks for one in state.balancers_in(parts[0], network)]
    if held:
        user = held[0].message.meta.name
        raise FailedPreconditionError(
            f"router {'/'.join(parts)} carries load balancer {user}: delete that first",
            hints=[f"cumulet load-balancer delete {user} --project {parts[0]}"],
        )
    change = common.remove(keys.ROUTERS, parts, row)
    change.compares.append(range_unchanged_since(keys.LOAD_BALANCERS.prefix(parts[0]), state.revision))
    change.writes[keys.VNIS.key(str(row.message.status.vni))] = None
    meta = row.message.meta
    change.events.append(common.event(context, "router", meta, "Deleted", f"router {meta.name} was deleted"))
    return change


def ranges_behind(state: State, project: str, networks: list[str]) -> Iterator[tuple[str, Range]]:
    """(subnet name, range) of every subnet of these networks."""
    for network in networks:
        for row in state.subnets_of(project, network):
            yield row.message.meta.name, range_of(row.message.spec)


def _rest_on_networks(change: Change, state: State, project: str, spec: router_pb2.RouterSpec) -> None:
    """That the networks are there, have no other router and the same ranges as were checked."""
    for name in spec.networks:
        row = common.get_row(state, keys.NETWORKS, project, name)
        common.rest_on(change, keys.NETWORKS, row, project, name)
    change.compares += [
        range_unchanged_since(table.prefix(project), state.revision) for table in (keys.ROUTERS, keys.SUBNETS)
    ]


def _check(
    state: State, project: str, own_name: str, spec: router_pb2.RouterSpec, violations: Violations
) -> None:
    common.check_description(spec.description, violations)
    if len(spec.networks) > NETWORKS_MAX:
        violations.add("spec.networks", f"{len(spec.networks)} networks, at most {NETWORKS_MAX}")
    if len(spec.routes) > ROUTES_MAX:
        violations.add("spec.routes", f"{len(spec.routes)} routes, at most {ROUTES_MAX}")
    for index in range(len(spec.networks)):
        _check_network(state, project, own_name, spec, index, violations)
    ranges = list(ranges_behind(state, project, list(dict.fromkeys(spec.networks))))
    _check_overlaps(ranges, violations)
    for index, route in enumerate(spec.routes):
        _check_route(route, f"spec.routes[{index}]", ranges, violations)


def _check_balancers(state: State, project: str, gone: set[str], violations: Violations) -> None:
    """A load balancer is where its network's router is."""
    for network in sorted(gone):
        for row in state.balancers_in(project, network):
            problem = f"{network} has load balancer {row.message.meta.name}: delete that first"
            violations.add("spec.networks", problem)


def _check_network(
    state: State,
    project: str,
    own_name: str,
    spec: router_pb2.RouterSpec,
    index: int,
    violations: Violations,
) -> None:
    name, field = spec.networks[index], f"spec.networks[{index}]"
    if state.find(keys.NETWORKS, project, name) is None:
        violations.add(field, common.unknown("network", name, state.rows(keys.NETWORKS, project)))
    elif name in spec.networks[:index]:
        violations.add(field, f"{name} is there twice")
    elif find_provider(state, project, name) is not None:
        violations.add(field, f"network {name} is a provider network: its router is the operator's")
    other = state.router_of(project, name)
    if other is not None and other.message.meta.name != own_name:
        violations.add(
            field, f"{name} is attached to router {other.message.meta.name}: detach it there first"
        )


def _check_overlaps(ranges: list[tuple[str, Range]], violations: Violations) -> None:
    for index, (name, one) in enumerate(ranges):
        for other_name, other in ranges[:index]:
            if one.cidr.version == other.cidr.version and one.cidr.overlaps(other.cidr):
                problem = f"subnets {other_name} ({other.cidr}) and {name} ({one.cidr}) overlap"
                violations.add("spec.networks", f"{problem}: no router could tell them apart")


def _check_route(
    route: router_pb2.StaticRoute, field: str, ranges: list[tuple[str, Range]], violations: Violations
) -> None:
    cidr, next_hop = _parse_route(route, field, violations)
    if cidr is None or next_hop is None:
        return
    if cidr.version != next_hop.version:
        violations.add(f"{field}.next_hop", f"{next_hop} is not of IPv{cidr.version}")
        return
    route.cidr, route.next_hop = str(cidr), str(next_hop)
    if any(next_hop == one.gateway for _, one in ranges):
        violations.add(f"{field}.next_hop", f"{next_hop} is the router itself: packets would go in circles")
    elif not any(next_hop in one.cidr for _, one in ranges):
        violations.add(f"{field}.next_hop", f"{next_hop} is in no subnet of the router's networks")
    for name, one in ranges:
        if cidr.version == one.cidr.version and cidr.network_address in one.cidr:
            problem = f"{cidr} lies in subnet {name} ({one.cidr}), which is reached directly"
            violations.add(f"{field}.cidr", problem)


def _parse_route(
    route: router_pb2.StaticRoute, field: str, violations: Violations
) -> tuple[Cidr | None, Address | None]:
    cidr: Cidr | None = None
    next_hop: Address | None = None
    try:
        cidr = parse_range(route.cidr)
    except ValueError as error:
        violations.add(f"{field}.cidr", f"{route.cidr!r} is not a range ({error})")
    try:
        next_hop = parse_address(route.next_hop)
    except ValueError:
        violations.add(f"{field}.next_hop", f"{route.next_hop!r} is not an IP address")
    return cidr, next_hop
