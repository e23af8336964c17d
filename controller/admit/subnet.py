"""Admission of subnets: ranges, gateways, and the addresses that ports take from them.

**Pure.** IPv4 addresses are chosen and kept; an IPv6 address follows from its port's MAC (SLAAC), so none is
ever taken, and a port has one in each IPv6 subnet of its network.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.admit.pool import Pool, parse_pool, pool_of
from controller.admit.project import charge_external_subnet
from controller.admit.provider import (
    check_against_external,
    check_range_against_external,
    find_provider,
    rest_on_external,
)
from controller.admit.range6 import claim_of, find_external, take_subnet
from controller.commit import Change
from controller.state import State
from controller.store import keys
from controller.store.protocol import absent, range_unchanged_since, unchanged
from controller.tables import Stored
from cumulet.addresses import (
    PART_RANGE,
    PART_RANGE6,
    SLAAC_PREFIX_LENGTH,
    follows_from_mac,
    parse_address,
    parse_range,
    slaac_address,
)
from cumulet.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError
from cumulet.v1 import port_pb2, subnet_pb2

MUTABLE = ("meta.labels", "spec.dns_servers", "spec.ranges")
PREFIX_MIN: Final = 8  # a larger range is a typing error
PREFIX_MAX: Final = 29  # network, broadcast, gateway, and five for guests
DNS_SERVERS_MAX: Final = 3  # what resolvers read (MAXNS in resolv.h)
LOST_SHOWN: Final = 8  # addresses that a refusal names
RANGES_KEPT: Final = 4096  # parsed ones: a plan asks for its subnet's at each port
DRAWN6: Final = 2**32  # a load balancer's IPv6 address: short enough to be read
MACS: Final = 2**40  # that ports can have: admit/instance.py draws five bytes

# Guests could not tell these from their own, the node's or the world's special addresses.
RESERVED: Final = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        str(PART_RANGE),
        str(PART_RANGE6),
        "224.0.0.0/3",
        "::/8",
        "fe80::/10",
        "ff00::/8",
    )
)

Address = IPv4Address | IPv6Address
Cidr = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Range:
    """A subnet's parsed addresses. `pool` is what IPv4 ports are given; None in IPv6."""

    cidr: Cidr
    gateway: Address
    pool: Pool | None

    @property
    def usable(self) -> int:
        """Addresses that ports can have."""
        return MACS if self.pool is None else self.pool.size

    def holds(self, address: Address) -> bool:
        """Whether a guest could have the address, given to it or not."""
        return address in self.cidr and address not in (
            self.cidr.network_address,  # of IPv6 that of any router (RFC 4291, section 2.6.1)
            self.cidr.broadcast_address,
            self.gateway,
        )


def range_of(spec: subnet_pb2.SubnetSpec) -> Range:
    """The addresses of a stored subnet."""
    return _parse_range(spec.cidr, spec.gateway, tuple(spec.ranges))


@lru_cache(maxsize=RANGES_KEPT)
def _parse_range(cidr: str, gateway: str, ranges: tuple[str, ...]) -> Range:
    parsed = ip_network(cidr)
    spec = subnet_pb2.SubnetSpec(cidr=cidr, gateway=gateway, ranges=ranges)
    return Range(parsed, ip_address(gateway), pool_of(spec) if parsed.version == 4 else None)


def addresses_of(state: State, port: port_pb2.Port) -> list[str]:
    """All addresses of a port: those that it holds, and one of each IPv6 subnet of its network."""
    held = [fixed.address for fixed in port.spec.addresses]
    ranges = (
        range_of(row.message.spec).cidr for _, row in subnets_of(state, port.meta.project, port.spec.network)
    )
    return held + [
        str(slaac_address(cidr, port.spec.mac)) for cidr in ranges if isinstance(cidr, IPv6Network)
    ]


def create(state: State, context: Context, project: str, given: subnet_pb2.Subnet) -> Change:
    violations = Violations()
    project_row = common.get_live_row(state, keys.PROJECTS, project)
    meta = common.new_meta(given.meta, project, context, violations)
    external = find_external(state, given.spec.external_network, violations)
    wish = _parse_cidr(given.spec.cidr, violations) if given.spec.cidr or external is None else None
    _check_dns(given.spec, violations)
    network = state.find(keys.NETWORKS, project, given.spec.network)
    if network is None:
        violations.add("spec.network", f"network {given.spec.network!r} does not exist in project {project}")
    elif external is not None and network.message.spec.HasField("provider"):
        problem = f"network {given.spec.network} is the operator's, and has its addresses"
        violations.add("spec.external_network", problem)
    cidr = wish
    if external is not None and not violations.found:
        cidr = take_subnet(state, context, project, given.spec.network, external, wish)
    gateway = _parse_gateway(given.spec.gateway, cidr, violations)
    if network is not None and cidr is not None:
        _check_overlap(state, project, given, cidr, violations)
    if cidr is not None and gateway is not None:
        _check_ranges(state, project, given.spec, cidr, gateway, violations)
    violations.raise_any(f"subnet {given.meta.name!r} was not created")
    assert network is not None  # violations.raise_any has refused otherwise
    spec = subnet_pb2.SubnetSpec(
        network=given.spec.network,
        cidr=str(cidr),
        gateway=str(gateway),
        dns_servers=given.spec.dns_servers,
        ranges=given.spec.ranges,
        external_network=given.spec.external_network,
    )
    change = common.put_new(
        state, keys.SUBNETS, (project, meta.name), subnet_pb2.Subnet(meta=meta, spec=spec)
    )
    common.rest_on(change, keys.PROJECTS, project_row, project)
    common.rest_on(change, keys.NETWORKS, network, project, given.spec.network)
    change.compares += [
        range_unchanged_since(table.prefix(project), state.revision) for table in (keys.SUBNETS, keys.ROUTERS)
    ]
    _rest_on_external(change, state, project, spec)
    if external is not None and isinstance(cidr, IPv6Network):
        charge_external_subnet(change, state, project)
        claim = keys.ADDRESSES.key(external.message.meta.uid, claim_of(cidr))
        change.compares += [
            absent(claim),
            unchanged(keys.EXTERNAL_NETWORKS.key(given.spec.external_network), external.mod_revision),
        ]
        change.writes[claim] = meta.uid.encode()
    return change


def update(
    state: State, context: Context, parts: tuple[str, ...], given: subnet_pb2.Subnet, mask: FieldMask
) -> Change:
    row, merged = common.updated(state, keys.SUBNETS, parts, given, mask, MUTABLE)
    violations = Violations()
    project, spec = parts[0], merged.spec
    was = range_of(row.message.spec)
    _check_dns(spec, violations)
    _check_ranges(state, project, spec, was.cidr, was.gateway, violations)
    violations.raise_any(f"subnet {'/'.join(parts)} was not changed")
    change = common.put_changed(keys.SUBNETS, parts, row, merged)
    if list(spec.ranges) != list(row.message.spec.ranges):
        _check_held(change, state, project, spec, violations)
        violations.raise_any(f"subnet {'/'.join(parts)} was not changed")
        _rest_on_external(change, state, project, spec)
    return change


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    row = common.get_row(state, keys.SUBNETS, *parts)
    common.check_etag(keys.SUBNETS, parts, row, etag)
    project, name = parts
    users = [
        where[1]
        for where, port in state.rows(keys.PORTS, project).items()
        if any(fixed.subnet == name for fixed in port.message.spec.addresses)
    ]
    if users:
        raise FailedPreconditionError(
            f"subnet {project}/{name} is used by {len(users)} port(s), such as {users[0]}: "
            "delete their instances first"
        )
    held = [
        other.message.meta.name
        for other in state.balancers_in(project, row.message.spec.network)
        if ip_address(other.message.spec.address) in range_of(row.message.spec).cidr
    ]
    if held:
        raise FailedPreconditionError(
            f"subnet {project}/{name} holds the address of load balancer {held[0]}: delete that first",
            hints=[f"cumulet load-balancer delete {held[0]} --project {project}"],
        )
    change = common.remove(keys.SUBNETS, parts, row)
    external = state.find(keys.EXTERNAL_NETWORKS, row.message.spec.external_network)
    if external is not None:
        own = IPv6Network(row.message.spec.cidr)
        change.writes[keys.ADDRESSES.key(external.message.meta.uid, claim_of(own))] = None
    change.compares += [
        range_unchanged_since(table.prefix(project), state.revision)
        for table in (keys.PORTS, keys.LOAD_BALANCERS)
    ]
    return change


def subnets_of(state: State, project: str, network: str) -> list[tuple[str, Stored]]:
    """(name, row) of a network's subnets, by name."""
    return [(row.message.meta.name, row) for row in state.subnets_of(project, network)]


def choose_address(
    state: State,
    context: Context,
    network: Stored,
    wish: str,
    besides: Collection[str] = (),
    field: str = "spec.networks.address",
) -> tuple[str, str] | None:
    """(subnet name, IPv4 address) for a port or a load balancer: the wish, or a free one; none of `besides`.

    None in a network of IPv6 only. Random draws, so that concurrent controllers rarely choose the same.
    Raises InvalidArgumentError about `field` for a wish that cannot be, FailedPreconditionError when nothing
    is free.
    """
    name, project = network.message.meta.name, network.message.meta.project
    every = subnets_of(state, project, name)
    if not every:
        raise FailedPreconditionError(
            f"network {project}/{name} has no subnet, so its ports can have no address",
            hints=[f"cumulet subnet create SUBNET --network {name} --cidr 10.0.0.0/24 --project {project}"],
        )
    ranges = [(subnet, range_of(row.message.spec)) for subnet, row in every]
    subnets = [(subnet, addresses) for subnet, addresses in ranges if addresses.pool is not None]
    held = state.addresses_in(network.message.meta.uid).keys()
    taken = {*held, *besides} if besides else held  # of ten thousand no copy is made
    if wish:
        return _wished(project, name, subnets, taken, wish, field)
    for subnet, addresses in subnets:
        assert addresses.pool is not None  # it is of IPv4
        found = addresses.pool.find_free(context.rng, taken)
        if found is not None:
            return subnet, str(found)
    if not subnets:
        return None
    raise _exhausted(project, name, every)


def choose_address6(state: State, context: Context, network: Stored, wish: IPv6Address | None) -> IPv6Address:
    """An IPv6 address of a network for a load balancer: the wish, or a free one of its first IPv6 subnet.

    Never one that a guest may make of its MAC, so what is held does not tell all that is taken, and need not.
    Raises InvalidArgumentError about spec.address for a wish that cannot be, or without any IPv6 subnet.
    """
    name, project = network.message.meta.name, network.message.meta.project
    every = [(subnet, range_of(row.message.spec)) for subnet, row in subnets_of(state, project, name)]
    subnets = [(subnet, addresses) for subnet, addresses in every if addresses.cidr.version == 6]
    taken = state.addresses_in(network.message.meta.uid)

    def refuse(text: str) -> InvalidArgumentError:
        return InvalidArgumentError.of("the address was refused", [FieldViolation("spec.address", text)])

    if not subnets:
        raise refuse(f"network {project}/{name} has no IPv6 subnet: create one, or ask for IPv4")
    if wish is not None:
        where = next((subnet for subnet, addresses in subnets if addresses.holds(wish)), None)
        if where is None:
            ranges = ", ".join(f"{addresses.cidr} ({subnet})" for subnet, addresses in subnets)
            text = "is outside the network's IPv6 subnets or reserved in them (first, last, gateway)"
            raise refuse(f"{wish} {text}: {ranges}")
        if follows_from_mac(wish):
            text = "is of the form that guests make of their MACs (ff:fe in its middle)"
            raise refuse(f"{wish} {text}: choose another or none, as {_draw6(context, subnets[0][1], taken)}")
        if str(wish) in taken:
            raise refuse(f"{wish} is taken in network {project}/{name}: choose another or none")
        return wish
    return _draw6(context, subnets[0][1], taken)


def _draw6(context: Context, addresses: Range, taken: Collection[str]) -> IPv6Address:
    """The last 32 bits at random: the 32 before them are 0, so no MAC leads to it. A subnet has more of these
    than the store has room for keys."""
    first = addresses.cidr.network_address
    assert isinstance(first, IPv6Address)
    while True:
        found = first + context.rng.randrange(1, DRAWN6)
        if addresses.holds(found) and str(found) not in taken:
            return found


def _wished(
    project: str,
    network: str,
    subnets: list[tuple[str, Range]],
    taken: Collection[str],
    wish: str,
    field: str,
) -> tuple[str, str]:

    def refuse(text: str) -> InvalidArgumentError:
        return InvalidArgumentError.of("the address was refused", [FieldViolation(field, text)])

    try:
        address = IPv4Address(wish)
    except AddressValueError:
        raise refuse(f"{wish!r} is not an IPv4 address (IPv6 addresses follow from the MAC)") from None
    for subnet, addresses in subnets:
        if _gives(addresses, address):
            if str(address) in taken:
                raise refuse(f"{address} is taken in network {project}/{network}: choose another or none")
            return subnet, str(address)
        if addresses.holds(address):
            raise refuse(f"{address} is not one that subnet {subnet} gives away: {addresses.pool}")
    ranges = ", ".join(f"{addresses.cidr} ({subnet})" for subnet, addresses in subnets)
    raise refuse(
        f"{address} is outside the network's subnets or reserved in them (first, last, gateway): {ranges}"
    )


def _exhausted(project: str, network: str, subnets: list[tuple[str, Stored]]) -> FailedPreconditionError:
    refused = f"all addresses of network {project}/{network} are taken"
    narrow = next((name for name, row in subnets if row.message.spec.ranges), None)
    if narrow is not None:
        return FailedPreconditionError(
            f"{refused}: widen the ranges of subnet {narrow}, or add a subnet",
            hints=[f"cumulet subnet show {narrow} --project {project}"],
        )
    return FailedPreconditionError(
        f"{refused}: add a subnet",
        hints=[f"cumulet subnet create SUBNET --network {network} --cidr 10.1.0.0/24 --project {project}"],
    )


def _parse_cidr(text: str, violations: Violations) -> Cidr | None:
    try:
        cidr = parse_range(text)
    except ValueError as error:
        problem = f"{text!r} is not a range such as 10.0.0.0/24 or fd00:1::/64 ({error})"
        if not text:
            problem = (
                "give a range such as 10.0.0.0/24, or an external network that an IPv6 one is taken from"
            )
        violations.add("spec.cidr", problem)
        return None
    if isinstance(cidr, IPv6Network):
        if cidr.prefixlen != SLAAC_PREFIX_LENGTH:
            problem = (
                f"/{cidr.prefixlen} must be /{SLAAC_PREFIX_LENGTH}: guests make their addresses themselves"
            )
            violations.add("spec.cidr", problem)
    elif not PREFIX_MIN <= cidr.prefixlen <= PREFIX_MAX:
        violations.add("spec.cidr", f"/{cidr.prefixlen} must be between /{PREFIX_MIN} and /{PREFIX_MAX}")
    for reserved in RESERVED:
        if cidr.version == reserved.version and cidr.overlaps(reserved):
            violations.add("spec.cidr", f"{cidr} overlaps {reserved}, which is reserved")
    return cidr


def _parse_gateway(text: str, cidr: Cidr | None, violations: Violations) -> Address | None:
    if cidr is None:
        return None
    if not text:
        return cidr.network_address + 1
    try:
        gateway = parse_address(text)
    except ValueError:
        violations.add("spec.gateway", f"{text!r} is not an IP address")
        return None
    if gateway not in cidr or gateway in (cidr.network_address, cidr.broadcast_address):
        violations.add("spec.gateway", f"{gateway} is not a host address of {cidr}")
    return gateway


def _check_ranges(
    state: State,
    project: str,
    spec: subnet_pb2.SubnetSpec,
    cidr: Cidr,
    gateway: Address,
    violations: Violations,
) -> None:
    """That the subnet has what it is to give away, and that nobody else gives it away."""
    segment = find_provider(state, project, spec.network)
    if isinstance(cidr, IPv6Network):
        if spec.ranges:
            text = "are of IPv4: guests make IPv6 addresses themselves, leave it out"
            violations.add("spec.ranges", text)
        if segment is not None:
            check_range_against_external(state, segment, cidr, violations)
        return
    assert isinstance(gateway, IPv4Address)  # it is in the range
    pool = parse_pool(spec.ranges, cidr, gateway, violations)
    if segment is not None:
        check_against_external(state, segment, pool, violations)


def _rest_on_external(change: Change, state: State, project: str, spec: subnet_pb2.SubnetSpec) -> None:
    segment = find_provider(state, project, spec.network)
    if segment is not None:
        rest_on_external(change, state, segment)


def _check_held(
    change: Change, state: State, project: str, spec: subnet_pb2.SubnetSpec, violations: Violations
) -> None:
    """That no address in use would be outside the new ranges, and that none comes to be."""
    network = common.get_row(state, keys.NETWORKS, project, spec.network)
    addresses, uid = range_of(spec), network.message.meta.uid
    every = map(ip_address, state.addresses_in(uid))
    held = sorted(one for one in every if isinstance(one, IPv4Address))
    lost = [str(one) for one in held if addresses.holds(one) and not _gives(addresses, one)]
    if lost:
        text = f"{', '.join(lost[:LOST_SHOWN])} would be outside, and ports or load balancers have them"
        violations.add("spec.ranges", text)
    change.compares.append(range_unchanged_since(keys.ADDRESSES.prefix(uid), state.revision))


def _gives(addresses: Range, address: IPv4Address) -> bool:
    return addresses.pool is not None and addresses.pool.holds(address)


def _check_dns(spec: subnet_pb2.SubnetSpec, violations: Violations) -> None:
    """Servers of the other family are fine: a guest with both asks any."""
    if len(spec.dns_servers) > DNS_SERVERS_MAX:
        violations.add("spec.dns_servers", f"{len(spec.dns_servers)} servers, at most {DNS_SERVERS_MAX}")
    for text in spec.dns_servers:
        try:
            parse_address(text)
        except ValueError:
            violations.add("spec.dns_servers", f"{text!r} is not an IP address")


def _check_overlap(
    state: State, project: str, given: subnet_pb2.Subnet, cidr: Cidr, violations: Violations
) -> None:
    router = state.router_of(project, given.spec.network)
    networks = [given.spec.network] if router is None else router.message.spec.networks
    for name, row in (found for network in networks for found in subnets_of(state, project, network)):
        other = ip_network(row.message.spec.cidr)
        if (
            cidr.version == other.version and cidr.overlaps(other) and name != given.meta.name
        ):  # that it exists already is said elsewhere
            where = "the same network" if router is None else f"router {router.message.meta.name}"
            violations.add("spec.cidr", f"{cidr} overlaps subnet {name} ({other}) of {where}")
