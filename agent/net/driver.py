"""The network driver's protocol and values.

**Pure**: types only. `kernel_driver.py` and `fake.py` implement it and pass
`tests/contract/test_net.py`. Names on the host are derived from uids (`names.py`); what does not carry
our mark is invisible to every method.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Protocol

from agent.net.balancer import BalancerIntent, Probed
from agent.net.stats import NetStats
from agent.net.summed import hash_over

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

GUEST_MTU_DEFAULT: Final = 1450  # an underlay of 1500 less the tunnel's 50 (RFC 7348, section 5)


@dataclass(frozen=True, slots=True)
class SubnetIntent:
    """An address range. IPv6 ranges are /64 and their guests make their addresses themselves (SLAAC)."""

    uid: str
    cidr: IPNetwork
    gateway: IPAddress
    dns_servers: tuple[IPAddress, ...]


@dataclass(frozen=True, slots=True)
class AddressPair:
    """What a port may use besides its own addresses. `mac` empty: the port's own."""

    cidr: IPNetwork
    mac: str = ""


@dataclass(frozen=True, slots=True)
class PortIntent:
    """One port of a local instance: a tap on its network's bridge, and what DHCP answers to its MAC.

    `security_groups`: uids, in order. A port without one, or with one that the node was never told of,
    receives nothing but what its node's own services answer. None, which no plan has, is not judged by
    groups at all. Rates in bits per second towards the guest (`ingress_bps`) and from it; 0 is no limit.
    """

    uid: str
    network_uid: str
    mac: str
    addresses: tuple[IPAddress, ...]
    hostname: str
    security_groups: tuple[str, ...] | None = ()
    allowed_pairs: tuple[AddressPair, ...] = ()
    ingress_bps: int = 0
    egress_bps: int = 0

    @property
    def group_uids(self) -> tuple[str, ...]:
        return self.security_groups or ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A network that the operator has: the name of the link to it, and its 802.1Q identifier there, or 0.

    Not `joined`, the guests here have each other and their node, and nothing passes by the link.
    """

    uplink: str
    vlan: int = 0
    joined: bool = True


@dataclass(frozen=True)
class NetworkIntent:
    """A network as it is to be on this node, with the ports of local instances in uid order.

    `router_uid`: the router whose namespace holds the network's gateways; empty: the network's own does.
    `segment`: the operator's network that this one is; then its subnets' gateways are the operator's, too,
    and it has no tunnel. None: one of the cloud's own. `answered`: load balancers' addresses that its
    gateway's link has, too (balancer.answered_in).
    """

    uid: str
    vni: int
    subnets: tuple[SubnetIntent, ...]
    outbound_nat: bool
    ports: tuple[PortIntent, ...]
    mtu: int = GUEST_MTU_DEFAULT
    router_uid: str = ""
    segment: Segment | None = None
    answered: tuple[IPv6Address, ...] = ()

    @functools.cached_property
    def digest(self) -> str:
        """Kept, since each look compares all networks, and one may have a thousand ports."""
        return _digest_of_intent(self)

    def __hash__(self) -> int:
        """Without its ports, for the same reason."""
        return hash((self.uid, self.vni))


@dataclass(frozen=True, slots=True, order=True)
class RemotePort:
    """A port of the same network on another node: frames to `mac` go through the tunnel to `vtep`.

    `hostname`: the name that guests here find it by; empty for none.
    """

    uid: str
    mac: str
    addresses: tuple[IPAddress, ...]
    vtep: IPAddress
    hostname: str = ""

    def __hash__(self) -> int:
        """By the uid alone: sets of ten thousand are made and compared at every change."""
        return hash(self.uid)


@dataclass(frozen=True, slots=True)
class RuleIntent:
    """One rule that allows something. `port_min` 0: any port; `icmp_type`, `icmp_code` None: any.

    `protocol`: IANA's number, 0 for any. With neither `remote_cidr` nor `remote_group`: everybody.
    """

    uid: str
    egress: bool
    ip_version: int
    protocol: int = 0
    port_min: int = 0
    port_max: int = 0
    icmp_type: int | None = None
    icmp_code: int | None = None
    remote_cidr: IPNetwork | None = None
    remote_group: str = ""


@dataclass(frozen=True, slots=True)
class GroupIntent:
    """A security group: what its members may do, and the addresses that a rule means by this group."""

    uid: str
    rules: tuple[RuleIntent, ...]
    members: frozenset[IPAddress]


@dataclass(frozen=True, slots=True)
class ForwardIntent:
    """Packets of a protocol (IANA's number) to a port go to a port of another address."""

    protocol: int
    port: int
    target: IPv4Address
    target_port: int


@dataclass(frozen=True, slots=True)
class FloatingIntent:
    """An address of the outside that this node answers for.

    `uplink` is the name of the link to its network, whose range is `cidr`; `gateway` is that network's way to
    the world, None leaves it to the node's routes. All packets go to `fixed`, which is here, or to what
    `forwards` say; or those of a load balancer's listeners to its `members`.
    """

    address: IPv4Address
    uplink: str
    cidr: IPv4Network
    gateway: IPv4Address | None = None
    fixed: IPv4Address | None = None
    forwards: tuple[ForwardIntent, ...] = ()
    members: tuple[IPv4Address, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutedIntent:
    """A subnet whose addresses are the outside's, too: this node answers for `addresses`, of its ports here.

    `router_address` is the subnet's gateway, from which the router tells the outside of packets that are too
    big. `uplink`, `cidr` and `gateway` as those of a FloatingIntent.
    """

    subnet: IPv6Network
    router_address: IPv6Address
    uplink: str
    cidr: IPv6Network
    gateway: IPv6Address | None = None
    addresses: tuple[IPv6Address, ...] = ()


@dataclass(frozen=True, slots=True)
class RouterIntent:
    """A router's part on this node.

    `vni` is that of the tunnel between its parts, `cidrs` are all its networks' ranges: nothing for them
    leaves by the uplink. `mtu` is its networks'. `announcers` are the nodes that answer for an address which
    leads to a port here: what came by them goes back by them. `balancers` are in order of uids.
    """

    uid: str
    vni: int
    cidrs: tuple[IPNetwork, ...]
    outbound_nat: bool
    mtu: int = GUEST_MTU_DEFAULT
    floating: tuple[FloatingIntent, ...] = ()
    announcers: tuple[IPAddress, ...] = ()
    balancers: tuple[BalancerIntent, ...] = ()
    routed: tuple[RoutedIntent, ...] = ()

    @property
    def answered(self) -> tuple[tuple[str, IPAddress], ...]:
        """(uplink, address) of the outside that the node is to answer for."""
        routed = ((one.uplink, address) for one in self.routed for address in one.addresses)
        return (*((one.uplink, one.address) for one in self.floating), *routed)


@dataclass(frozen=True, slots=True)
class RouteIntent:
    """Where packets to a range go: to the router's part on node `vtep`, or to `next_hop` in a network of the
    router that is on this node; with neither they are refused."""

    cidr: IPNetwork
    vtep: IPAddress | None = None
    next_hop: IPAddress | None = None
    network_uid: str = ""


@dataclass(frozen=True, slots=True)
class RouterDirectory:
    """What a router's part knows of other nodes: by network, its ports there; and static routes."""

    remotes: tuple[frozenset[RemotePort], ...]
    routes: tuple[RouteIntent, ...] = ()


@dataclass(frozen=True, slots=True)
class ObservedNetwork:
    """One network's presence on this node.

    `complete`: every part that the driver makes for a network is there (bridge, namespace, uplink,
    DHCP server alive, rules). `digest`: of the intent that was last programmed completely; `router_uid` is
    its router.
    """

    uid: str
    complete: bool
    digest: str
    router_uid: str = ""


@dataclass(frozen=True, slots=True)
class ObservedNet:
    """What of ours is on the host. `taps` by port uid: attached to the right bridge and up.

    `leased` are addresses that a DHCP client holds; of a port with IPv6 alone, those that its gateway has
    heard of. `items`: (kind, host name, owner uid) of every single thing, for `cumulet verify`. `directories`
    (by network; compare with `digest_of_directory`), `groups`, `routers` and `router_directories` (by router;
    compare with `digest_of_router_directory`): the digest of what is programmed; one that is edited or
    incomplete has another digest than every intent. `announced`: (uplink, address) of the outside that the
    node answers for, whoever asked for it.
    """

    networks: dict[str, ObservedNetwork]
    taps: dict[str, bool]
    leased: frozenset[str]
    items: tuple[tuple[str, str, str], ...]
    directories: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    routers: dict[str, str] = field(default_factory=dict)
    router_directories: dict[str, str] = field(default_factory=dict)
    announced: frozenset[tuple[str, IPAddress]] = frozenset()


class Net(Protocol):
    """Methods raise DriverError. Every ensure is idempotent and safe to stop at any point."""

    async def observe_net(self) -> ObservedNet: ...

    async def net_stats(self) -> NetStats:
        """What the node counts of ports, networks, routers and rules that are here."""

    async def ensure_network(self, network: NetworkIntent) -> None:
        """Bridge, namespace, addresses, DHCP, rules, NAT as intended. Running guests keep their packets.

        Its router, if it has one, must be there.
        """

    async def ensure_port(self, port: PortIntent) -> None:
        """The tap, on its network's bridge, up. The network must be there."""

    async def ensure_port_absent(self, uid: str) -> None: ...

    async def ensure_network_absent(self, uid: str) -> None: ...

    async def ensure_directory(self, network_uid: str, remotes: frozenset[RemotePort]) -> None:
        """Exactly these ports of the network are on other nodes. What did not change is not touched.

        The network must be there.
        """

    async def ensure_group(self, group: GroupIntent) -> None:
        """In one transaction. A change of members touches the difference of the set only.

        What a removed rule alone allowed ends, established connections too.
        """

    async def ensure_group_absent(self, uid: str) -> None:
        """Ports that are still in it lose what it allowed."""

    async def ensure_router(self, router: RouterIntent) -> None:
        """Namespace, rules, uplink, tunnel between its parts. Networks come into it by `ensure_network`."""

    async def ensure_router_directory(self, uid: str, directory: RouterDirectory) -> None:
        """Exactly these routes lead to other nodes. What did not change is not touched.

        The router must be there, and the networks that static routes lead into.
        """

    async def ensure_health(self, router_uid: str, balancer_uid: str, down: frozenset[Probed]) -> None:
        """These members of a balancer get no new connections, unless all are down; in one transaction.

        Without effect for a balancer that is not there. It is no part of a router's digest.
        """

    async def balancer_health(self, router_uid: str) -> dict[str, frozenset[Probed]]:
        """By balancer that is programmed: members that were last said to be down."""

    async def ensure_router_absent(self, uid: str) -> None:
        """Networks that are still in it lose their gateways until they are ensured."""

    async def close(self) -> None: ...


def announces_ipv6(network: NetworkIntent) -> bool:
    """Its gateway has IPv6 addresses and tells guests of the ranges: an operator's network has its own."""
    return network.segment is None and any(subnet.cidr.version == 6 for subnet in network.subnets)


def digest_of(intent: NetworkIntent | RouterIntent) -> str:
    """A short digest of the intent that an observed network or router is compared by."""
    return intent.digest if isinstance(intent, NetworkIntent) else _digest_of_intent(intent)


def _digest_of_intent(intent: NetworkIntent | RouterIntent) -> str:
    return hashlib.sha256(repr(intent).encode()).hexdigest()[:16]


def digest_of_group(group: GroupIntent) -> str:
    return f"{_hash_of_rules(group.rules) ^ hash_over(group.members, _hash_of_member):016x}"


@functools.lru_cache(maxsize=4096)  # groups of one node; a look compares all of them, and few have changed
def _hash_of_rules(rules: tuple[RuleIntent, ...]) -> int:
    return _hash_of(repr(rules))


def _hash_of_member(address: IPAddress) -> int:
    return _hash_of(str(address))


def _hash_of(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
