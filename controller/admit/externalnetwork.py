"""Admission of external networks: their ranges, and the addresses that floating IPs take from them.

**Pure.** IPv6 ranges are in range6.py.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Network
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.admit.pool import Pool, parse_pool, pool_of
from controller.admit.provider import check_against_subnets, rest_on_subnets
from controller.admit.range6 import Range6, parse_range6, range6_of
from controller.admit.subnet import RESERVED
from controller.commit import Change
from controller.state import State
from controller.store import keys
from controller.store.protocol import range_absent, range_unchanged_since
from controller.tables import Stored
from cumulet.addresses import SLAAC_PREFIX_LENGTH
from cumulet.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError
from cumulet.names import name_error
from cumulet.v1 import externalnetwork_pb2

MUTABLE = (
    *("meta.labels", "spec.description", "spec.gateway", "spec.ranges"),
    *("spec.cidr6", "spec.gateway6"),
)
PREFIX_MIN: Final = 8
PREFIX_MAX: Final = 30  # gateway, node, and something to give away


def create(
    state: State, context: Context, project: str, given: externalnetwork_pb2.ExternalNetwork
) -> Change:
    violations = Violations()
    meta = common.new_meta(given.meta, "", context, violations)
    spec = externalnetwork_pb2.ExternalNetworkSpec()
    spec.CopyFrom(given.spec)
    _check(state, meta.name, spec, violations)
    violations.raise_any(f"external network {given.meta.name!r} was not created")
    made = externalnetwork_pb2.ExternalNetwork(meta=meta, spec=spec)
    change = common.put_new(state, keys.EXTERNAL_NETWORKS, (meta.name,), made)
    change.compares.append(range_unchanged_since(keys.EXTERNAL_NETWORKS.prefix(), state.revision))
    rest_on_subnets(change, state, spec.uplink)
    text = f"external network {meta.name} ({spec.cidr}) was created"
    change.events.append(common.event(context, "external-network", meta, "Created", text))
    return change


def update(
    state: State,
    context: Context,
    parts: tuple[str, ...],
    given: externalnetwork_pb2.ExternalNetwork,
    mask: FieldMask,
) -> Change:
    row, merged = common.updated(state, keys.EXTERNAL_NETWORKS, parts, given, mask, MUTABLE)
    violations = Violations()
    _check(state, parts[0], merged.spec, violations)
    violations.raise_any(f"external network {parts[0]} was not changed")
    _check_given_away(state, row, merged.spec, violations)
    violations.raise_any(f"external network {parts[0]} was not changed")
    change = common.put_changed(keys.EXTERNAL_NETWORKS, parts, row, merged)
    change.compares += [
        range_unchanged_since(keys.EXTERNAL_NETWORKS.prefix(), state.revision),
        range_unchanged_since(keys.ADDRESSES.prefix(row.message.meta.uid), state.revision),
    ]
    rest_on_subnets(change, state, merged.spec.uplink)
    return change


def delete(state: State, context: Context, parts: tuple[str, ...], etag: str) -> Change:
    row = common.get_row(state, keys.EXTERNAL_NETWORKS, *parts)
    common.check_etag(keys.EXTERNAL_NETWORKS, parts, row, etag)
    uid = row.message.meta.uid
    given = sorted(taken_of(state, uid, 4))
    subnets = sorted(f"{text}/{SLAAC_PREFIX_LENGTH}" for text in taken_of(state, uid, 6))
    for held, what, noun in ((given, "floating IP(s)", "floating-ip"), (subnets, "subnet(s)", "subnet")):
        if held:
            raise FailedPreconditionError(
                f"external network {parts[0]} has {len(held)} {what}, such as {held[0]}: delete them",
                hints=[f"cumulet {noun} list --all-projects"],
            )
    change = common.remove(keys.EXTERNAL_NETWORKS, parts, row)
    change.compares.append(range_absent(keys.ADDRESSES.prefix(row.message.meta.uid)))
    meta = row.message.meta
    text = f"external network {meta.name} was deleted"
    change.events.append(common.event(context, "external-network", meta, "Deleted", text))
    return change


def taken_of(state: State, uid: str, ip_version: int) -> set[str]:
    """Addresses of floating IPs, or first addresses of subnets (range6.py)."""
    return {text for text in state.addresses_in(uid) if (":" in text) == (ip_version == 6)}


def _check_given_away(
    state: State, row: Stored, spec: externalnetwork_pb2.ExternalNetworkSpec, violations: Violations
) -> None:
    """What somebody has stays in its ranges."""
    uid, pool, range6 = row.message.meta.uid, pool_of(spec), range6_of(spec)
    lost = sorted(text for text in taken_of(state, uid, 4) if not pool.holds(IPv4Address(text)))
    if lost:
        text = f"{', '.join(lost[:8])} would be outside, and floating IPs have them"
        violations.add("spec.ranges", text)
    subnets = [IPv6Network(f"{text}/{SLAAC_PREFIX_LENGTH}") for text in taken_of(state, uid, 6)]
    lost6 = sorted(map(str, (one for one in subnets if range6 is None or not range6.holds(one))))
    if lost6:
        field = "spec.gateway6" if spec.cidr6 == row.message.spec.cidr6 else "spec.cidr6"
        violations.add(field, f"{', '.join(lost6[:8])} would not be given away, and subnets have them")


def choose_floating_address(
    context: Context, network: Stored, taken: Collection[str], wish: str
) -> IPv4Address:
    """The wish, or a free one. Raises InvalidArgumentError, FailedPreconditionError when none is free."""
    name, pool = network.message.meta.name, pool_of(network.message.spec)
    if wish:
        return _wished(name, pool, taken, wish)
    found = pool.find_free(context.rng, taken)
    if found is not None:
        return found
    raise FailedPreconditionError(
        f"all {pool.size} addresses of external network {name} are taken: delete a floating IP that nobody "
        "needs, or have its ranges extended",
        hints=[f"cumulet external-network show {name}", "cumulet floating-ip list"],
    )


def _wished(name: str, pool: Pool, taken: Collection[str], wish: str) -> IPv4Address:
    try:
        address = IPv4Address(wish)
    except AddressValueError:
        raise _refuse_address(f"{wish!r} is not an IPv4 address") from None
    if not pool.holds(address):
        raise _refuse_address(f"{address} is not one that external network {name} gives away: {pool}")
    if wish in taken:
        raise _refuse_address(f"{address} is taken: choose another or none")
    return address


def _refuse_address(text: str) -> InvalidArgumentError:
    return InvalidArgumentError.of("the address was refused", [FieldViolation("spec.address", text)])


def _check(
    state: State, own_name: str, spec: externalnetwork_pb2.ExternalNetworkSpec, violations: Violations
) -> None:
    common.check_description(spec.description, violations)
    violations.add("spec.uplink", name_error(spec.uplink))
    cidr = _parse_cidr(spec.cidr, violations)
    gateway = _parse_gateway(spec.gateway, cidr, violations)
    pool = parse_pool(spec.ranges, cidr, gateway, violations)
    range6 = parse_range6(spec, violations)
    if violations.found:
        return
    spec.cidr = str(cidr)
    if range6 is not None:
        spec.cidr6 = str(range6.cidr)
        spec.gateway6 = "" if range6.gateway is None else str(range6.gateway)
        _check_apart(state, own_name, range6, violations)
    for parts, row in state.rows(keys.EXTERNAL_NETWORKS).items():
        other = row.message
        if parts[0] == own_name or other.spec.uplink != spec.uplink:
            continue
        shared = pool.shared_with(pool_of(other.spec))
        if shared:
            text = f"{shared} overlaps what external network {parts[0]} gives away on the same uplink"
            violations.add("spec.ranges", text)
    check_against_subnets(state, spec.uplink, pool, range6, violations)


def _check_apart(state: State, own_name: str, range6: Range6, violations: Violations) -> None:
    """Whatever link they are on: an address of it is one port's."""
    for parts, row in state.rows(keys.EXTERNAL_NETWORKS).items():
        other = range6_of(row.message.spec)
        if parts[0] != own_name and other is not None and other.cidr.overlaps(range6.cidr):
            text = f"{range6.cidr} overlaps {other.cidr} of external network {parts[0]}"
            violations.add("spec.cidr6", text)


def _parse_gateway(text: str, cidr: IPv4Network, violations: Violations) -> IPv4Address | None:
    if not text:
        return None
    try:
        gateway = IPv4Address(text)
    except AddressValueError:
        violations.add("spec.gateway", f"{text!r} is not an IPv4 address")
        return None
    if gateway not in cidr:
        violations.add("spec.gateway", f"{gateway} is not in {cidr}")
    return gateway


def _parse_cidr(text: str, violations: Violations) -> IPv4Network:
    try:
        cidr = IPv4Network(text)
    except ValueError as error:
        violations.add("spec.cidr", f"{text!r} is not an IPv4 range such as 203.0.113.0/24 ({error})")
        return IPv4Network("0.0.0.0/30")
    if not PREFIX_MIN <= cidr.prefixlen <= PREFIX_MAX:
        violations.add("spec.cidr", f"/{cidr.prefixlen} must be between /{PREFIX_MIN} and /{PREFIX_MAX}")
    for reserved in RESERVED:
        if isinstance(reserved, IPv4Network) and cidr.overlaps(reserved):
            violations.add("spec.cidr", f"{cidr} overlaps {reserved}, which is reserved")
    return cidr
