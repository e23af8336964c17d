"""Provider networks: which segment of an uplink is whose, and that nobody else gives addresses away there.

**Pure.** A segment is an uplink with a VLAN, or without (0). One network at most is each segment. External
networks are on the untagged one of their uplink, so its addresses are given away by both.
"""

from __future__ import annotations

from ipaddress import IPv6Network, ip_network
from typing import Final

from controller.admit.common import Violations
from controller.admit.pool import Pool, pool_of
from controller.admit.range6 import Range6, range6_of
from controller.commit import Change
from controller.state import State
from controller.store import keys
from controller.store.protocol import absent, range_unchanged_since, unchanged
from controller.tables import Stored
from cumulet.names import name_error
from cumulet.v1 import network_pb2

IPV4: Final = 4
UNTAGGED: Final = 0
VLAN_MAX: Final = 4094  # Source: IEEE 802.1Q, table 9-2; 4095 is reserved
MTU_DEFAULT: Final = 1500  # Ethernet's
MTU_MIN: Final = 1280  # Source: RFC 8200, section 5
MTU_MAX: Final = 9216  # what switches carry


def describe_segment(segment: network_pb2.ProviderSegment) -> str:
    """`office`, or `office (VLAN 20)`."""
    return f"{segment.uplink} (VLAN {segment.vlan})" if segment.vlan else str(segment.uplink)


def find_provider(state: State, project: str, network: str) -> network_pb2.ProviderSegment | None:
    """The segment that a network is; None of one of the cloud's own, or that does not exist."""
    row = state.find(keys.NETWORKS, project, network)
    if row is None or not row.message.spec.HasField("provider"):
        return None
    found: network_pb2.ProviderSegment = row.message.spec.provider
    return found


def check_segment(state: State, project: str, spec: network_pb2.NetworkSpec, violations: Violations) -> None:
    """That a new network can be this segment."""
    segment = spec.provider
    violations.add("spec.provider.uplink", name_error(segment.uplink))
    if segment.vlan > VLAN_MAX:
        text = f"{segment.vlan} is no VLAN: 1 to {VLAN_MAX}, or 0 for untagged frames"
        violations.add("spec.provider.vlan", text)
    if segment.mtu and not MTU_MIN <= segment.mtu <= MTU_MAX:
        text = f"{segment.mtu} is not between {MTU_MIN} and {MTU_MAX} (0: {MTU_DEFAULT})"
        violations.add("spec.provider.mtu", text)
    other = _network_on(state, segment.uplink, segment.vlan)
    if other is not None:
        meta = other.message.meta
        whose = f"network {meta.name} of this project" if meta.project == project else "another project's"
        text = f"{describe_segment(segment)} is {whose}: a segment is one network"
        violations.add("spec.provider", text)


def check_outbound(spec: network_pb2.NetworkSpec, violations: Violations) -> None:
    """Packets of a provider network pass no router of the cloud that could translate them."""
    if spec.HasField("provider") and spec.outbound_nat:
        text = "guests of a provider network go out by the operator's router: leave it out"
        violations.add("spec.outbound_nat", text)


def claim_segment(change: Change, segment: network_pb2.ProviderSegment, uid: str) -> None:
    """No other network is it, and none becomes it."""
    key = _key(segment.uplink, segment.vlan)
    change.compares.append(absent(key))
    change.writes[key] = uid.encode()


def free_segment(change: Change, segment: network_pb2.ProviderSegment) -> None:
    change.writes[_key(segment.uplink, segment.vlan)] = None


def check_against_external(
    state: State, segment: network_pb2.ProviderSegment, pool: Pool, violations: Violations
) -> None:
    """That a subnet of a provider network gives away nothing that floating IPs are taken from."""
    if segment.vlan != UNTAGGED:
        return
    for (name,), row in state.rows(keys.EXTERNAL_NETWORKS).items():
        if row.message.spec.uplink == segment.uplink:
            shared = pool.shared_with(pool_of(row.message.spec))
            if shared:
                text = f"{shared} overlaps what external network {name} gives away on the same uplink"
                violations.add("spec.ranges", text)


def check_range_against_external(
    state: State, segment: network_pb2.ProviderSegment, cidr: IPv6Network, violations: Violations
) -> None:
    """That guests of a provider network do not make themselves addresses that tenants' subnets have."""
    for (name,), row in state.rows(keys.EXTERNAL_NETWORKS).items():
        range6 = range6_of(row.message.spec)
        is_there = row.message.spec.uplink == segment.uplink and segment.vlan == UNTAGGED
        if is_there and range6 is not None and range6.holds(cidr):
            text = f"{cidr} is one that external network {name} gives away on the same uplink"
            violations.add("spec.cidr", text)


def rest_on_external(change: Change, state: State, segment: network_pb2.ProviderSegment) -> None:
    """That external networks are those that were checked."""
    if segment.vlan == UNTAGGED:
        prefix = keys.EXTERNAL_NETWORKS.prefix()
        change.compares.append(range_unchanged_since(prefix, state.revision))


def check_against_subnets(
    state: State, uplink: str, pool: Pool, range6: Range6 | None, violations: Violations
) -> None:
    """That an external network gives away nothing that a provider network's subnets do."""
    network = _network_on(state, uplink, UNTAGGED)
    if network is None:
        return
    meta = network.message.meta
    for row in state.subnets_of(meta.project, meta.name):
        cidr = ip_network(row.message.spec.cidr)
        where = f"subnet {row.message.meta.name} of network {meta.name} in project {meta.project}"
        if isinstance(cidr, IPv6Network):
            if range6 is not None and range6.holds(cidr):
                violations.add("spec.cidr6", f"{cidr} is that of {where} on the same uplink")
            continue
        shared = pool.shared_with(pool_of(row.message.spec))
        if shared:
            violations.add("spec.ranges", f"{shared} overlaps what {where} gives away on the same uplink")


def rest_on_subnets(change: Change, state: State, uplink: str) -> None:
    """That the provider network on the uplink, and its subnets, are those that were checked."""
    key = _key(uplink, UNTAGGED)
    claim = state.find(keys.SEGMENTS, uplink, str(UNTAGGED))
    change.compares.append(absent(key) if claim is None else unchanged(key, claim.mod_revision))
    network = _network_on(state, uplink, UNTAGGED)
    if network is not None:
        prefix = keys.SUBNETS.prefix(network.message.meta.project)
        change.compares.append(range_unchanged_since(prefix, state.revision))


def _key(uplink: str, vlan: int) -> bytes:
    return keys.SEGMENTS.key(uplink, str(vlan))


def _network_on(state: State, uplink: str, vlan: int) -> Stored | None:
    """The network that is the segment."""
    claim = state.find(keys.SEGMENTS, uplink, str(vlan))
    found = state.find_uid(claim.message) if claim is not None else None
    return found[2] if found is not None else None
