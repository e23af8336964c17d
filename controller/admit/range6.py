"""The IPv6 range of an external network, and the subnets that tenants take from it, each a /64.

**Pure.** A subnet's first address is claimed among the external network's addresses, so nobody has it twice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from controller.admit import common
from controller.admit.common import Context, Violations
from controller.state import State
from controller.store import keys
from controller.tables import Stored
from cumulet.addresses import PART_RANGE6, SLAAC_PREFIX_LENGTH, parse_address, parse_range
from cumulet.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError
from cumulet.v1 import externalnetwork_pb2

PREFIX_MIN: Final = 16  # a larger range is a typing error
PREFIX_MAX: Final = SLAAC_PREFIX_LENGTH - 1  # the operator's own, and one to give away
DRAWS: Final = 32  # random tries before the range is searched in order
_SUBNET_ADDRESSES: Final = 1 << SLAAC_PREFIX_LENGTH
_RESERVED: Final = tuple(map(IPv6Network, ("::/8", "fe80::/10", "ff00::/8", str(PART_RANGE6))))


@dataclass(frozen=True, slots=True)
class Range6:
    """The first /64, and that of the gateway, are the operator's own."""

    cidr: IPv6Network
    gateway: IPv6Address | None

    @property
    def size(self) -> int:
        """Subnets to give away."""
        return (self.cidr.num_addresses >> SLAAC_PREFIX_LENGTH) - len(self.kept)

    @property
    def kept(self) -> set[IPv6Network]:
        own = [self.cidr.network_address]
        if self.gateway is not None and self.gateway in self.cidr:
            own.append(self.gateway)
        return {IPv6Network((address, SLAAC_PREFIX_LENGTH), strict=False) for address in own}

    def holds(self, subnet: IPv6Network) -> bool:
        return subnet.subnet_of(self.cidr) and subnet not in self.kept

    def at(self, index: int) -> IPv6Network:
        first = int(self.cidr.network_address) + index * _SUBNET_ADDRESSES
        return IPv6Network((first, SLAAC_PREFIX_LENGTH))


def range6_of(spec: externalnetwork_pb2.ExternalNetworkSpec) -> Range6 | None:
    """Of a stored external network; None for one without IPv6."""
    return parse_range6(spec, Violations())


def parse_range6(spec: externalnetwork_pb2.ExternalNetworkSpec, violations: Violations) -> Range6 | None:
    """None without IPv6, and for what is refused."""
    if not spec.cidr6:
        if spec.gateway6:
            violations.add("spec.gateway6", "there is no IPv6 range: give spec.cidr6, too")
        return None
    try:
        cidr = parse_range(spec.cidr6)
        if not isinstance(cidr, IPv6Network):
            raise ValueError("it is IPv4")
    except ValueError as error:
        text = f"{spec.cidr6!r} is not an IPv6 range such as 2001:db8:100::/48 ({error})"
        violations.add("spec.cidr6", text)
        return None
    if not PREFIX_MIN <= cidr.prefixlen <= PREFIX_MAX:
        text = f"/{cidr.prefixlen} must be between /{PREFIX_MIN} and /{PREFIX_MAX}: subnets are /64s of it"
        violations.add("spec.cidr6", text)
        return None
    for reserved in _RESERVED:
        if cidr.overlaps(reserved):
            violations.add("spec.cidr6", f"{cidr} overlaps {reserved}, which is reserved")
    return Range6(cidr, _parse_gateway(spec.gateway6, cidr, violations))


def _parse_gateway(text: str, cidr: IPv6Network, violations: Violations) -> IPv6Address | None:
    if not text:
        return None
    try:
        gateway = parse_address(text)
        if not isinstance(gateway, IPv6Address):
            raise ValueError
    except ValueError:
        violations.add("spec.gateway6", f"{text!r} is not an IPv6 address")
        return None
    if not gateway.is_link_local and gateway not in cidr:
        violations.add("spec.gateway6", f"{gateway} is neither link-local nor in {cidr}")
    if gateway == cidr.network_address:
        violations.add("spec.gateway6", f"{gateway} is every router's on the link (anycast): name one")
    return gateway


def claim_of(subnet: IPv6Network) -> str:
    """What of it is kept among the external network's addresses."""
    return str(subnet.network_address)


def find_external(state: State, name: str, violations: Violations) -> Stored | None:
    """The external network that a subnet is to be taken from; None for none."""
    if not name:
        return None
    found = state.find(keys.EXTERNAL_NETWORKS, name)
    if found is None:
        text = common.unknown("external network", name, state.rows(keys.EXTERNAL_NETWORKS))
        violations.add("spec.external_network", text)
    return found


def take_subnet(
    state: State,
    context: Context,
    project: str,
    network: str,
    external: Stored,
    wish: IPv4Network | IPv6Network | None,
) -> IPv6Network:
    """The wish, or one that is free, also in the networks that a router joins to this one. Raises as
    `choose_subnet`."""
    if isinstance(wish, IPv4Network):
        raise _refuse("spec.cidr", f"{wish} is not IPv6: what is taken of an external network is a /64")
    taken = set(state.addresses_in(external.message.meta.uid))
    if wish is None:
        router = state.router_of(project, network)
        names = [network] if router is None else router.message.spec.networks
        rows = (row for name in names for row in state.subnets_of(project, name))
        beside = (ip_network(row.message.spec.cidr) for row in rows)
        taken |= {claim_of(one) for one in beside if isinstance(one, IPv6Network)}
    return choose_subnet(context, external, taken, wish)


def choose_subnet(
    context: Context, network: Stored, taken: Collection[str], wish: IPv6Network | None
) -> IPv6Network:
    """The wish, or a free one. `taken`: claims. Raises InvalidArgumentError, FailedPreconditionError when
    none is free.

    Random draws, so that concurrent controllers rarely choose the same.
    """
    name, found = network.message.meta.name, range6_of(network.message.spec)
    if found is None:
        raise _refuse("spec.external_network", f"external network {name} has no IPv6 range")
    if wish is not None:
        if not found.holds(wish):
            problem = f"{wish} is not one that external network {name} gives away: {_say(found)}"
            raise _refuse("spec.cidr", problem)
        if claim_of(wish) in taken:
            raise _refuse("spec.cidr", f"{wish} of external network {name} is taken: choose another or none")
        return wish
    count = found.size + len(found.kept)
    for _ in range(DRAWS):
        drawn = found.at(context.rng.randrange(count))
        if found.holds(drawn) and claim_of(drawn) not in taken:
            return drawn
    for index in range(min(count, len(taken) + len(found.kept) + 1)):
        if found.holds(found.at(index)) and claim_of(found.at(index)) not in taken:
            return found.at(index)
    raise FailedPreconditionError(
        f"all {found.size} IPv6 subnets of external network {name} are taken: delete a subnet that nobody "
        "needs, or have its range extended",
        hints=[f"cumulet external-network show {name}", "cumulet subnet list"],
    )


def _say(found: Range6) -> str:
    kept = " and ".join(map(str, sorted(found.kept)))
    return f"a /64 of {found.cidr}, but not {kept}"


def _refuse(field: str, text: str) -> InvalidArgumentError:
    return InvalidArgumentError.of("the subnet was refused", [FieldViolation(field, text)])
