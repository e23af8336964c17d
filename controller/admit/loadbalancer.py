"""Admission of load balancers: their address, what they listen to, and whom they may name as members.

**Pure.** The address is held like a port's, so nobody else gets it. Instances and labels may name what is not
there yet: what vanished or has not come is no member.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.admit.provider import find_provider
from controller.admit.subnet import Address, choose_address, choose_address6, range_of, subnets_of
from controller.balancers import networks_near, version_of
from controller.commit import Change
from controller.selector import parse_selector
from controller.state import State
from controller.store import keys
from controller.store.protocol import absent, range_unchanged_since
from controller.tables import Stored
from cumulet.addresses import parse_address
from cumulet.errors import InvalidArgumentError
from cumulet.names import name_error
from cumulet.protocols import PORT_MAX, TRANSLATED
from cumulet.v1 import loadbalancer_pb2

MUTABLE = (
    "meta.labels",
    "spec.description",
    "spec.listeners",
    "spec.algorithm",
    "spec.members",
    "spec.health_check",
)
LISTENERS_MAX: Final = 32  # each is a chain with a rule for each member, on every node with clients
ENTRIES_MAX: Final = 64
PATH_MAX: Final = 1_024
INTERVAL_DEFAULT_S: Final = 5
TIMEOUT_DEFAULT_S: Final = 2
RISE_DEFAULT: Final = 2
FALL_DEFAULT: Final = 3
# Of a health check. A node asks each member of each balancer, so an interval is a promise of load.
BOUNDS: Final = {"interval_s": (1, 3600), "timeout_s": (1, 60), "rise": (1, 10), "fall": (1, 10)}


def create(state: State, context: Context, project: str, given: loadbalancer_pb2.LoadBalancer) -> Change:
    violations = Violations()
    project_row = common.get_live_row(state, keys.PROJECTS, project)
    meta = common.new_meta(given.meta, project, context, violations)
    spec = loadbalancer_pb2.LoadBalancerSpec()
    spec.CopyFrom(given.spec)
    network = _check_network(state, project, spec, violations)
    wish = _check_version(state, project, spec, violations)
    _check(state, project, spec, violations)
    violations.raise_any(f"load balancer {given.meta.name!r} was not created")
    assert network is not None  # violations.raise_any has refused otherwise
    _take_address(state, context, network, spec, wish, violations)
    violations.raise_any(f"load balancer {given.meta.name!r} was not created")
    made = loadbalancer_pb2.LoadBalancer(meta=meta, spec=spec)
    change = common.put_new(state, keys.LOAD_BALANCERS, (project, meta.name), made)
    common.rest_on(change, keys.PROJECTS, project_row, project)
    common.rest_on(change, keys.NETWORKS, network, project, spec.network)
    _rest_on_ranges(change, state, project)
    key = keys.ADDRESSES.key(network.message.meta.uid, spec.address)
    change.compares.append(absent(key))
    change.writes[key] = meta.uid.encode()
    text = f"load balancer {meta.name} was created at {spec.address}"
    change.events.append(common.event(context, "load-balancer", meta, "Created", text))
    return change


def update(
    state: State,
    context: Context,
    parts: tuple[str, ...],
    given: loadbalancer_pb2.LoadBalancer,
    mask: FieldMask,
) -> Change:
    row, merged = common.updated(state, keys.LOAD_BALANCERS, parts, given, mask, MUTABLE)
    violations = Violations()
    merged.spec.ip_version = version_of(merged)  # a record of before has none
    _check(state, parts[0], merged.spec, violations)
    _check_own_address(merged.spec, violations)
    violations.raise_any(f"load balancer {'/'.join(parts)} was not changed")
    change = common.put_changed(keys.LOAD_BALANCERS, parts, row, merged)
    _rest_on_ranges(change, state, parts[0])
    return change


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    """Its connections end."""
    row = common.get_row(state, keys.LOAD_BALANCERS, *parts)
    common.check_etag(keys.LOAD_BALANCERS, parts, row, etag)
    change = common.remove(keys.LOAD_BALANCERS, parts, row)
    network = state.find(keys.NETWORKS, parts[0], row.message.spec.network)
    if network is not None:
        change.writes[keys.ADDRESSES.key(network.message.meta.uid, row.message.spec.address)] = None
    meta = row.message.meta
    text = f"load balancer {meta.name} was deleted"
    change.events.append(common.event(context, "load-balancer", meta, "Deleted", text))
    return change


def _rest_on_ranges(change: Change, state: State, project: str) -> None:
    """That the router and its subnets are those that were checked."""
    change.compares += [
        range_unchanged_since(table.prefix(project), state.revision) for table in (keys.ROUTERS, keys.SUBNETS)
    ]


def _check_network(
    state: State, project: str, spec: loadbalancer_pb2.LoadBalancerSpec, violations: Violations
) -> Stored | None:
    network = state.find(keys.NETWORKS, project, spec.network)
    if network is None:
        known = state.rows(keys.NETWORKS, project)
        violations.add("spec.network", common.unknown("network", spec.network, known))
    elif find_provider(state, project, spec.network) is not None:
        problem = f"{spec.network} is a provider network: no router of the cloud balances there"
        violations.add("spec.network", problem)
    elif state.router_of(project, spec.network) is None:
        problem = f"{spec.network} has no router, which is what balances: attach it to one first"
        violations.add("spec.network", problem)
    return network


def _check_version(
    state: State, project: str, spec: loadbalancer_pb2.LoadBalancerSpec, violations: Violations
) -> Address | None:
    """The parsed wish for an address; None without one. Decides the IP version where it is not given."""
    wish = None
    if spec.address:
        try:
            wish = parse_address(spec.address)
        except ValueError as error:
            violations.add("spec.address", f"{spec.address!r} is not an IP address ({error})")
    if spec.ip_version not in (0, 4, 6):
        violations.add("spec.ip_version", f"{spec.ip_version} is neither 4 nor 6 (0: that of the address)")
    elif wish is not None and spec.ip_version not in (0, wish.version):
        violations.add("spec.ip_version", f"{wish} is not of IPv{spec.ip_version}: give one of the two")
    elif wish is not None:
        spec.ip_version = wish.version
    elif not spec.ip_version:
        subnets = [row.message.spec for _, row in subnets_of(state, project, spec.network)]
        versions = {range_of(subnet).cidr.version for subnet in subnets}
        spec.ip_version = 6 if versions == {6} else 4
    return wish


def _take_address(
    state: State,
    context: Context,
    network: Stored,
    spec: loadbalancer_pb2.LoadBalancerSpec,
    wish: Address | None,
    violations: Violations,
) -> None:
    """Fills in the address."""
    if spec.ip_version == 6:
        own = wish if isinstance(wish, IPv6Address) else None
        spec.address = str(choose_address6(state, context, network, own))
        _check_own_address(spec, violations)
        return
    found = choose_address(state, context, network, spec.address, field="spec.address")
    if found is None:
        violations.add("spec.ip_version", f"{spec.network} has no IPv4 subnet: ask for IPv6")
        return
    spec.address = found[1]
    _check_own_address(spec, violations)


def _check_own_address(spec: loadbalancer_pb2.LoadBalancerSpec, violations: Violations) -> None:
    for index, member in enumerate(spec.members):
        if member.address == spec.address:
            text = f"{member.address} is the load balancer's own address"
            violations.add(f"spec.members[{index}].address", text)


def _check(
    state: State, project: str, spec: loadbalancer_pb2.LoadBalancerSpec, violations: Violations
) -> None:
    common.check_description(spec.description, violations)
    if spec.algorithm not in loadbalancer_pb2.BalancingAlgorithm.values():
        violations.add("spec.algorithm", "must be ROUND_ROBIN or SOURCE_HASH")
    spec.algorithm = spec.algorithm or loadbalancer_pb2.BALANCING_ALGORITHM_ROUND_ROBIN
    _check_listeners(spec, violations)
    if len(spec.members) > ENTRIES_MAX:
        violations.add("spec.members", f"{len(spec.members)} entries, at most {ENTRIES_MAX}")
    for index, member in enumerate(spec.members):
        _check_member(state, project, spec, member, f"spec.members[{index}]", violations)
    if spec.HasField("health_check"):
        _check_health(spec, violations)


def _check_listeners(spec: loadbalancer_pb2.LoadBalancerSpec, violations: Violations) -> None:
    if not 1 <= len(spec.listeners) <= LISTENERS_MAX:
        violations.add("spec.listeners", f"{len(spec.listeners)} listeners, 1 to {LISTENERS_MAX}")
    seen: set[tuple[str, int]] = set()
    for index, listener in enumerate(spec.listeners):
        field = f"spec.listeners[{index}]"
        if listener.protocol not in TRANSLATED.values():
            violations.add(f"{field}.protocol", f"{listener.protocol!r} is neither tcp nor udp")
        _check_port(listener.port, f"{field}.port", violations, least=1)
        if (listener.protocol, listener.port) in seen:
            violations.add(field, f"{listener.protocol}:{listener.port} is there twice")
        seen.add((listener.protocol, listener.port))


def _check_member(
    state: State,
    project: str,
    spec: loadbalancer_pb2.LoadBalancerSpec,
    member: loadbalancer_pb2.LoadBalancerMember,
    field: str,
    violations: Violations,
) -> None:
    given = [name for name in ("instance", "selector", "address") if getattr(member, name)]
    if len(given) != 1:
        violations.add(field, "names an instance, or a selector, or an address: exactly one of them")
        return
    _check_port(member.port, f"{field}.port", violations, least=0)
    if member.instance:
        violations.add(f"{field}.instance", name_error(member.instance))
    elif member.selector:
        try:
            parse_selector(member.selector)
        except InvalidArgumentError as error:
            violations.add(f"{field}.selector", error.violations[0].description)
    else:
        _check_address(state, project, spec, member, f"{field}.address", violations)


def _check_address(
    state: State,
    project: str,
    spec: loadbalancer_pb2.LoadBalancerSpec,
    member: loadbalancer_pb2.LoadBalancerMember,
    field: str,
    violations: Violations,
) -> None:
    try:
        address = parse_address(member.address)
    except ValueError as error:
        violations.add(field, f"{member.address!r} is not an IP address ({error})")
        return
    if address.version != spec.ip_version:
        text = "members have the load balancer's IP version"
        violations.add(field, f"{address} is not of IPv{spec.ip_version}: {text}")
        return
    member.address = str(address)
    ranges = [
        range_of(row.message.spec)
        for name in networks_near(state, project, spec.network)
        for row in state.subnets_of(project, name)
    ]
    if not any(one.holds(address) for one in ranges):
        violations.add(field, f"{address} is no guest's address in a network of the router")


def _check_health(spec: loadbalancer_pb2.LoadBalancerSpec, violations: Violations) -> None:
    check = spec.health_check
    if not check.protocol:
        spec.ClearField("health_check")  # an update without a protocol takes the check away
        return
    if check.protocol not in ("tcp", "http"):
        violations.add("spec.health_check.protocol", f"{check.protocol!r} is neither tcp nor http")
    _check_port(check.port, "spec.health_check.port", violations, least=0)
    if check.protocol == "http":
        check.path = check.path or "/"
    fits = check.path.startswith("/") and check.path.isascii() and check.path.isprintable()
    if check.path and (
        check.protocol != "http" or " " in check.path or len(check.path) > PATH_MAX or not fits
    ):
        problem = f"{check.path[:64]!r} is no path of http: printable, without spaces, from / on"
        violations.add("spec.health_check.path", problem)
    defaults = (INTERVAL_DEFAULT_S, TIMEOUT_DEFAULT_S, RISE_DEFAULT, FALL_DEFAULT)
    for (name, (least, most)), default in zip(BOUNDS.items(), defaults, strict=True):
        amount = getattr(check, name) or default
        setattr(check, name, amount)
        if not least <= amount <= most:
            violations.add(f"spec.health_check.{name}", f"{amount} is not between {least} and {most}")


def _check_port(port: int, field: str, violations: Violations, *, least: int) -> None:
    if not least <= port <= PORT_MAX:
        violations.add(field, f"{port} is not between {least} and {PORT_MAX}")
