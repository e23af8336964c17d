"""What the data plane costs a packet: throughput, packets a second and round trips by path, as ratios.

**Edge**: two nodes in namespaces with the real driver, guests as namespaces that are ports with security
groups on. Every guest has a second link, to a bridge without any rule, across nodes with VXLAN: the baseline
of the same run. Routed paths are also compared with the same hops, a plain router between two such bridges
(`_to_same_hops`). Runs take turns, and a ratio is the median of neighbouring runs.
"""

from __future__ import annotations

import asyncio
import operator
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Final, TypeVar

from agent.net.balancer import BalancerIntent, ListenerIntent, MemberIntent
from agent.net.driver import (
    FloatingIntent,
    GroupIntent,
    NetworkIntent,
    PortIntent,
    RouterDirectory,
    RouterIntent,
    Segment,
)
from tests.bench.report import Suite
from tests.support import traffic
from tests.support.bare_nodes import LINK as BARE_LINK
from tests.support.bare_nodes import BareNodes
from tests.unit.agent_net.lab import network_intent, new_uid, with_port
from tests.unit.agent_net.neighbours import Guest, all_out, boot, group, in_groups, rule, with_ports
from tests.unit.agent_net.span import (
    WORLD,
    WORLD_CIDR,
    WORLD_GATEWAY,
    Cloud,
    Node,
    open_cloud,
    remotes_of,
)

ROUNDS: Final = 11
QUICK_ROUNDS: Final = 3
BURST_S: Final = 0.15  # longer, and a busy machine's other work shows
PINGS: Final = 200
MTU: Final = 1450  # of every link, as the tunnel's overhead demands
RED, BLUE = "10.7.0.0/24", "10.8.0.0/24"
BARE: Final = (IPv4Network("10.17.0.0/24"), IPv4Network("10.18.0.0/24"))
FLOATING: Final = IPv4Address("198.51.100.70")
BALANCED: Final = IPv4Address("10.7.0.200")
BALANCED_PORT: Final = 7_000
_OUTSIDE: Final = "outside"
_OUTSIDE_NUMBER: Final = 20
_OUR_LINK: Final = "eth0"
_SAME_HOPS: Final = "same hops"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a guest is: in which network, on which node, with which number; `bare`: in which network without
    rules it is, too."""

    name: str
    network: int
    node: int
    number: int
    bare: int


PLACES: Final = (
    Place("red1", 0, 0, 5, 0),
    Place("red2", 0, 0, 6, 0),
    Place("red3", 0, 1, 7, 0),
    Place("blue1", 1, 0, 8, 1),
    Place("blue2", 1, 1, 9, 1),
    Place("desk", 2, 0, 12, 0),
)


@dataclass(frozen=True, slots=True)
class End:
    """A guest with both its links."""

    guest: Guest
    bare: str

    async def do(self, work: Callable[[], T]) -> T:
        return await self.guest.lab.inside(self.guest.namespace, work)


@dataclass(frozen=True, slots=True)
class Lane:
    """One way to a guest: its address there, and the link by which packets arrive.

    `own`: the address that the guest has, where another one leads to it. `port`: the only one that does; 0
    for all.
    """

    source: End
    target: End
    address: str
    link: str
    own: str = ""
    port: int = 0

    @property
    def bound(self) -> tuple[str, int]:
        """Where the guest listens."""
        return self.own or self.address, self.port


@dataclass(frozen=True, slots=True)
class Way:
    """Ours, and what it is compared with. `same_hops`: of a routed path, a plain router.

    `pings`: echo requests go all the way; a load balancer answers them itself.
    """

    name: str
    ours: Lane
    bridge: Lane
    same_hops: Lane | None = None
    pings: bool = True

    def lanes(self) -> dict[str, Lane]:
        known = {"ours": self.ours, "bridge": self.bridge, _SAME_HOPS: self.same_hops}
        return {name: lane for name, lane in known.items() if lane is not None}


# -- the cloud --------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_ends() -> AsyncIterator[dict[str, End]]:
    """The guests of PLACES. Their group is a default one: in from its members, out to everybody."""
    async with open_cloud(2) as cloud:
        bare = BareNodes(cloud, BARE, MTU)
        await bare.build()
        router = RouterIntent(
            new_uid(), 99, (ip_network(RED), ip_network(BLUE)), False, MTU, balancers=(_balancer(),)
        )
        networks = [
            replace(network_intent(vni, cidr), router_uid=router.uid) for vni, cidr in ((7, RED), (8, BLUE))
        ]
        networks.append(_provider_network())
        uid = new_uid()
        ports = {
            one.name: in_groups(with_port(networks[one.network], one.number, one.name)[1], uid)
            for one in PLACES
        }
        members = [str(port.addresses[0]) for port in ports.values()]
        from_outside = rule("in", cidr=str(WORLD_CIDR))
        default = group(rule("in", remote=uid), from_outside, *all_out(), members=members, uid=uid)
        for node in cloud.nodes:
            part = replace(router, floating=(_floating(),)) if node is cloud.nodes[0] else router
            await _apply(cloud, node, part, networks, ports, default)
        ends = {one.name: await _boot(cloud, bare, networks, ports[one.name], one) for one in PLACES}
        first = cloud.nodes[0]
        outside = await bare.plug(first, cloud.world, _OUTSIDE, 0, _OUTSIDE_NUMBER)
        ends[_OUTSIDE] = End(Guest(first.lab, ports["red1"], cloud.world), outside)
        yield ends


def _provider_network() -> NetworkIntent:
    made = network_intent(9, str(WORLD_CIDR), outbound_nat=False)
    subnets = (replace(made.subnets[0], gateway=WORLD_GATEWAY),)
    return replace(made, subnets=subnets, segment=Segment(WORLD))


def _floating() -> FloatingIntent:
    """Of red1."""
    target = _number(RED, "red1")
    return FloatingIntent(FLOATING, WORLD, WORLD_CIDR, WORLD_GATEWAY, target)


def _balancer() -> BalancerIntent:
    """In red, for blue1."""
    listeners = tuple(ListenerIntent(protocol, BALANCED_PORT) for protocol in (6, 17))
    member = MemberIntent(_number(BLUE, "blue1"), 0, drain=False, health_port=BALANCED_PORT)
    return BalancerIntent(new_uid(), "lb", BALANCED, listeners, by_source=False, members=(member,))


def _number(cidr: str, name: str) -> IPv4Address:
    return IPv4Network(cidr)[next(one.number for one in PLACES if one.name == name)]


async def _apply(
    cloud: Cloud,
    node: Node,
    router: RouterIntent,
    networks: list[NetworkIntent],
    ports: dict[str, PortIntent],
    default: GroupIntent,
) -> None:
    """One round of a node's agent."""
    await node.net.ensure_group(default)
    await node.net.ensure_router(router)
    away = []
    for index, network in enumerate(networks):
        mine = [one for one in PLACES if one.network == index]
        here = [ports[one.name] for one in mine if cloud.nodes[one.node] is node]
        there = [one for one in mine if cloud.nodes[one.node] is not node]
        await node.net.ensure_network(with_ports(network, *here))
        away.append(remotes_of((cloud.nodes[one.node].address, ports[one.name]) for one in there))
        await node.net.ensure_directory(network.uid, away[-1])
    joined = tuple(remotes for network, remotes in zip(networks, away, strict=True) if network.router_uid)
    await node.net.ensure_router_directory(router.uid, RouterDirectory(joined))


async def _boot(
    cloud: Cloud, bare: BareNodes, networks: list[NetworkIntent], port: PortIntent, place: Place
) -> End:
    node = cloud.nodes[place.node]
    guest = await boot(node.lab, node.net, networks[place.network], port)
    await node.lab.run(guest.namespace, "ip", "link", "set", _OUR_LINK, "mtu", str(MTU))
    address = await bare.plug(node, guest.namespace, place.name, place.bare, place.number)
    return End(guest, address)


def ways(ends: dict[str, End]) -> list[Way]:
    """Each path that is measured."""
    bridged = {"same-node": "red2", "across-vxlan": "red3"}
    routed = {"router-same-node": ("blue1", "red2"), "router-across": ("blue2", "red3")}
    source = ends["red1"]
    found = [
        Way(name, _ours(source, ends[target]), _bare(source, ends[target]))
        for name, target in bridged.items()
    ]
    for name, (target, near) in routed.items():
        hops = _bare(source, ends[target])
        found.append(Way(name, _ours(source, ends[target]), _bare(source, ends[near]), hops))
    outside, blue = ends[_OUTSIDE], ends["blue1"]
    own = source.guest.address()
    found.append(
        Way(
            "floating-ip",
            Lane(outside, source, str(FLOATING), _OUR_LINK, own),
            _bare(outside, source),
            _bare(outside, blue),
        )
    )
    desk = ends["desk"]
    found.append(Way("provider-network", _ours(outside, desk), _bare(outside, desk)))
    by_balancer = Lane(source, blue, str(BALANCED), _OUR_LINK, blue.guest.address(), BALANCED_PORT)
    hops = _bare(source, blue)
    found.append(Way("load-balancer", by_balancer, _bare(source, ends["red2"]), hops, pings=False))
    return found


def _ours(source: End, target: End) -> Lane:
    return Lane(source, target, target.guest.address(), _OUR_LINK)


def _bare(source: End, target: End) -> Lane:
    return Lane(source, target, target.bare, BARE_LINK)


# -- what is measured -------------------------------------------------------------------------------------


async def throughput_gbps(lane: Lane) -> float:
    swallower = await lane.target.do(partial(traffic.Swallower, *lane.bound))
    await lane.source.do(partial(traffic.pour, (lane.address, swallower.port), BURST_S))
    return await asyncio.to_thread(swallower.bits_per_s) / 1e9


async def packets_kpps(lane: Lane, *, answered: bool) -> float:
    """Smallest datagrams that arrive. A flow that was never answered is judged anew with every packet."""
    count = partial(traffic.packets_received, lane.link)
    with closing(await lane.target.do(partial(traffic.make_sink, *lane.bound))) as sink:
        client = await lane.source.do(partial(traffic.connect, sink, lane.address, answered=answered))
        with closing(client):
            before = await lane.target.do(count)
            elapsed_s = await lane.source.do(partial(traffic.flood, client, BURST_S))
            return (await lane.target.do(count) - before) / elapsed_s / 1e3


async def round_trip_us(lane: Lane) -> float:
    return 1e6 * await lane.source.do(partial(traffic.round_trip_s, lane.address, PINGS))


async def _in_turns(way: Way, run: Callable[[Lane], Awaitable[float]], rounds: int) -> dict[str, list[float]]:
    """Values by lane; the machine's state is the same for neighbours."""
    lanes = way.lanes()
    for lane in lanes.values():
        await run(lane)  # neighbours are found, caches are warm
    found: dict[str, list[float]] = {name: [] for name in lanes}
    for number in range(rounds):
        for name in lanes if number % 2 else reversed(lanes):
            found[name].append(await run(lanes[name]))
    return found


@dataclass(frozen=True, slots=True)
class Kind:
    """What is measured on every path, and how ours is compared with a baseline."""

    name: str
    unit: str
    run: Callable[[Lane], Awaitable[float]]
    value_unit: str
    compare: Callable[[float, float], float]

    async def report(self, suite: Suite, way: Way, rounds: int) -> None:
        values = await _in_turns(way, self.run, rounds)
        ours = values.pop("ours")
        for baseline, theirs in values.items():
            value = statistics.median(map(self.compare, ours, theirs))
            context = {
                "path": way.name,
                "baseline": baseline,
                "rounds": rounds,
                f"ours_{self.unit}": round(statistics.median(ours), 2),
                f"baseline_{self.unit}": round(statistics.median(theirs), 2),
            }
            name = f"{self.name}_to_same_hops" if baseline == _SAME_HOPS else self.name
            suite.figure(name, value, self.value_unit, **context)


KINDS: Final = (
    Kind("path_throughput_ratio", "gbps", throughput_gbps, "1", operator.truediv),
    Kind("path_pps_ratio", "kpps", partial(packets_kpps, answered=True), "1", operator.truediv),
    Kind("path_pps_unanswered_ratio", "kpps", partial(packets_kpps, answered=False), "1", operator.truediv),
    Kind("path_rtt_added_us", "us", round_trip_us, "us", operator.sub),
)


def measure(suite: Suite, rounds: int = ROUNDS) -> None:
    asyncio.run(_measure(suite, rounds))


async def _measure(suite: Suite, rounds: int) -> None:
    async with open_ends() as ends:
        for way in ways(ends):
            for kind in KINDS:
                if way.pings or kind.run is not round_trip_us:
                    await kind.report(suite, way, rounds)


if __name__ == "__main__":
    measure(Suite("net-paths"))
