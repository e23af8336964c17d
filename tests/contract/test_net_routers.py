"""The network driver's contract on routers, over the fake and over this machine's kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest

from agent.errors import DriverError
from agent.net import names
from agent.net.balancer import BalancerIntent, HealthIntent, ListenerIntent, MemberIntent
from agent.net.driver import (
    FloatingIntent,
    ForwardIntent,
    IPAddress,
    NetworkIntent,
    RemotePort,
    RoutedIntent,
    RouteIntent,
    RouterDirectory,
    RouterIntent,
    digest_of,
)
from agent.net.router_entries import digest_of_router_directory
from tests.support.net import UPLINK, World
from tests.unit.agent_net.lab import network_intent, new_uid, with_port

NOBODY = RouterDirectory(())
LB = new_uid()
LB_MEMBERS = (
    MemberIntent(IPv4Address("10.7.0.5"), 8080, False, 8080),
    MemberIntent(IPv4Address("10.8.0.5"), 0, False, 80),
)
RANGES = ("10.7.0.0/24", "10.8.0.0/24", "2001:db8:7::/64")


def router_intent(vni: int = 99) -> RouterIntent:
    return RouterIntent(new_uid(), vni, tuple(map(ip_network, RANGES)), True)


def in_router(router: RouterIntent, vni: int = 7, cidr: str = RANGES[0]) -> NetworkIntent:
    return replace(network_intent(vni, cidr), router_uid=router.uid)


def remotes(count: int, network: int = 0) -> frozenset[RemotePort]:
    """Dual stack, on a few other nodes."""
    return frozenset(
        RemotePort(
            new_uid(),
            f"52:54:00:0{network}:{number >> 8:02x}:{number & 0xFF:02x}",
            (IPv4Address("10.8.0.10") + number, IPv6Address("2001:db8:8::10") + number),
            IPv4Address("203.0.113.100") + number % 3,
        )
        for number in range(count)
    )


async def test_a_router_is_there_under_its_digest_and_goes_without_a_trace(world: World) -> None:
    router = router_intent()
    await world.net.ensure_router(router)
    once = await world.net.observe_net()
    assert once.routers == {router.uid: digest_of(router)}
    assert once.router_directories == {router.uid: digest_of_router_directory(NOBODY)}
    assert once.networks == {}
    assert {owner for _, _, owner in once.items} == {router.uid}
    assert {"router-namespace", "veth", "tunnel"} <= {kind for kind, _, _ in once.items}
    await world.net.ensure_router(router)
    assert await world.net.observe_net() == once
    await world.net.ensure_router_absent(router.uid)
    gone = await world.net.observe_net()
    assert (gone.routers, gone.router_directories, gone.items) == ({}, {}, ())
    await world.net.ensure_router_absent(router.uid)


async def test_a_changed_router_has_another_digest(world: World) -> None:
    router = router_intent()
    await world.net.ensure_router(router)
    for changed in (
        replace(router, outbound_nat=False),
        replace(router, vni=98),
        replace(router, cidrs=router.cidrs[1:]),
        replace(router, mtu=1430),
        router,
    ):
        await world.net.ensure_router(changed)
        assert (await world.net.observe_net()).routers == {router.uid: digest_of(changed)}


async def test_a_network_needs_its_router(world: World) -> None:
    router = router_intent()
    network = in_router(router)
    with pytest.raises(DriverError, match="ensure the router first") as refused:
        await world.net.ensure_network(network)
    assert refused.value.reason == "RouterMissing"
    assert (await world.net.observe_net()).items == ()
    with pytest.raises(DriverError, match="ensure the router first") as refused:
        await world.net.ensure_router_directory(router.uid, NOBODY)
    assert refused.value.reason == "RouterMissing"


async def test_a_network_comes_into_a_router_and_leaves_it(world: World) -> None:
    router, other = router_intent(), router_intent(98)
    network, port = with_port(in_router(router), 5)
    for one in (router, other):
        await world.net.ensure_router(one)
    for changed in (
        network,
        replace(network, router_uid=""),
        replace(network, router_uid=other.uid),
        network,
        replace(network, router_uid=""),
    ):
        await world.net.ensure_network(changed)
        await world.net.ensure_port(port)
        seen = await world.net.observe_net()
        at = seen.networks[network.uid]
        assert (at.complete, at.digest, at.router_uid) == (True, digest_of(changed), changed.router_uid)
        assert seen.taps == {port.uid: True}
        own = ("namespace", names.namespace_name(network.uid), network.uid)
        assert (own in seen.items) == (not changed.router_uid)
        assert set(seen.routers.values()) == {digest_of(router), digest_of(other)}
    for one in (router, other):
        await world.net.ensure_router_absent(one.uid)
    seen = await world.net.observe_net()
    assert seen.networks[network.uid].complete
    await world.net.ensure_port_absent(port.uid)
    await world.net.ensure_network_absent(network.uid)
    assert (await world.net.observe_net()).items == ()


async def test_networks_of_a_router_come_and_go_by_themselves(world: World) -> None:
    router = router_intent()
    first, second = in_router(router, 7), in_router(router, 8, RANGES[1])
    await world.net.ensure_router(router)
    for network in (first, second):
        await world.net.ensure_network(network)
    seen = await world.net.observe_net()
    assert [seen.networks[one.uid].complete for one in (first, second)] == [True, True]
    await world.net.ensure_network_absent(first.uid)
    seen = await world.net.observe_net()
    assert seen.networks == {second.uid: seen.networks[second.uid]}
    assert seen.networks[second.uid].complete
    assert seen.routers == {router.uid: digest_of(router)}


async def test_a_router_that_goes_takes_gateways_with_it_until_they_are_ensured(world: World) -> None:
    router = router_intent()
    network, port = with_port(in_router(router), 5)
    await world.net.ensure_router(router)
    await world.net.ensure_network(network)
    await world.net.ensure_port(port)
    await world.net.ensure_router_absent(router.uid)
    seen = await world.net.observe_net()
    assert not seen.networks[network.uid].complete
    assert seen.routers == {}
    await world.net.ensure_router(router)
    await world.net.ensure_network(network)
    seen = await world.net.observe_net()
    assert seen.networks[network.uid].complete
    assert (seen.routers, seen.taps) == ({router.uid: digest_of(router)}, {port.uid: True})


async def test_a_directory_follows_every_change_and_outlives_an_agent(world: World) -> None:
    router = router_intent()
    network = in_router(router)
    await world.net.ensure_router(router)
    await world.net.ensure_network(network)
    first, second, third = sorted(remotes(3))
    moved = replace(second, vtep=IPv4Address("203.0.113.200"))
    nowhere, outside = IPv4Network("192.168.0.0/16"), IPv4Network("0.0.0.0/0")
    wide6, hop = IPv6Network("2001:db8:99::/48"), IPv4Address("10.7.0.9")
    away = IPv4Address("203.0.113.150")
    for directory in (
        RouterDirectory((frozenset({first, second}),)),
        RouterDirectory((frozenset({first}), frozenset({moved}))),
        RouterDirectory((frozenset({moved, third}), frozenset())),
        RouterDirectory((), (RouteIntent(nowhere), RouteIntent(wide6))),
        RouterDirectory((frozenset({third}),), (RouteIntent(nowhere, away), RouteIntent(wide6, away))),
        RouterDirectory((frozenset({third}),), (RouteIntent(nowhere, None, hop, network.uid),)),
        RouterDirectory((frozenset({third}),), (RouteIntent(outside, None, hop, network.uid),)),
        RouterDirectory((frozenset({third}),), (RouteIntent(outside), RouteIntent(nowhere, away))),
        NOBODY,
        RouterDirectory((frozenset({first, second, third}),)),
    ):
        await world.net.ensure_router_directory(router.uid, directory)
        seen = await world.net.observe_net()
        assert seen.router_directories == {router.uid: digest_of_router_directory(directory)}, directory
        assert seen.routers == {router.uid: digest_of(router)}
    again = world.restart()
    assert await again.observe_net() == seen
    await again.ensure_router(router)
    await again.ensure_router_directory(router.uid, directory)
    assert await again.observe_net() == seen


async def test_routers_with_the_same_networks_ranges_and_peers_are_apart(world: World) -> None:
    """Of two tenants."""
    first, second = router_intent(98), router_intent(99)
    fewer, more = RouterDirectory((remotes(2),)), RouterDirectory((remotes(4),))
    for at, (router, directory) in enumerate(((first, fewer), (second, more))):
        await world.net.ensure_router(router)
        await world.net.ensure_network(in_router(router, 7 + at))
        await world.net.ensure_router_directory(router.uid, directory)
    seen = await world.net.observe_net()
    assert all(one.complete for one in seen.networks.values())
    assert seen.router_directories == {
        first.uid: digest_of_router_directory(fewer),
        second.uid: digest_of_router_directory(more),
    }
    await world.net.ensure_router_absent(second.uid)
    seen = await world.net.observe_net()
    assert seen.router_directories == {first.uid: digest_of_router_directory(fewer)}


async def test_what_cannot_be_is_refused_and_changes_nothing(world: World) -> None:
    router = router_intent()
    await world.net.ensure_router(router)
    one, other = sorted(remotes(2))
    await world.net.ensure_router_directory(router.uid, RouterDirectory((frozenset({one}),)))
    before = await world.net.observe_net()
    twice: tuple[IPAddress, ...] = one.addresses
    single = IPv4Network(one.addresses[0])
    for directory, reason in (
        (RouterDirectory((frozenset({one, replace(other, addresses=twice)}),)), "InvalidIntent"),
        (RouterDirectory((frozenset({one}),), (RouteIntent(single),)), "InvalidIntent"),
        (RouterDirectory((), (RouteIntent(single), RouteIntent(single))), "InvalidIntent"),
        (RouterDirectory((), (RouteIntent(single, None, one.addresses[0], new_uid()),)), "NetworkMissing"),
    ):
        with pytest.raises(DriverError, match=router.uid) as refused:
            await world.net.ensure_router_directory(router.uid, directory)
        assert refused.value.reason == reason
    for vni in (0, 1 << 22):
        with pytest.raises(DriverError, match="vni"):
            await world.net.ensure_router(replace(router, vni=vni))
    with pytest.raises(DriverError, match="uid"):
        await world.net.ensure_router(replace(router, uid="../../etc"))
    assert await world.net.observe_net() == before


async def test_a_router_answers_for_its_addresses_of_the_outside(world: World) -> None:
    router, cidr = router_intent(), IPv4Network("198.51.100.0/24")
    target = FloatingIntent(IPv4Address("198.51.100.7"), UPLINK, cidr, fixed=IPv4Address("10.7.0.5"))
    forward = ForwardIntent(6, 22, IPv4Address("10.8.0.9"), 2222)
    forwards = FloatingIntent(
        IPv4Address("198.51.100.8"), UPLINK, cidr, IPv4Address("198.51.100.1"), forwards=(forward,)
    )
    for floating in ((target,), (target, forwards), (forwards,), (replace(target, address=cidr[9]),), ()):
        changed = replace(router, floating=floating, announcers=(IPv4Address("203.0.113.100"),))
        for net in (world.net, world.restart()):
            await net.ensure_router(changed)
            seen = await net.observe_net()
            assert seen.routers == {router.uid: digest_of(changed)}
            assert seen.announced == {(UPLINK, one.address) for one in floating}
    await world.net.ensure_router(replace(router, floating=(target,)))
    await world.net.ensure_router_absent(router.uid)
    assert (await world.net.observe_net()).announced == frozenset()


async def test_routed_subnets_are_part_of_their_router(world: World) -> None:
    """They come and go with their ports, and live through a restart."""
    router = router_intent()
    subnet, cidr = IPv6Network("2001:db8:100:7::/64"), IPv6Network("2001:db8:100::/48")
    first = RoutedIntent(subnet, subnet[1], UPLINK, cidr, cidr[1], (subnet[5],))
    local = replace(first, gateway=IPv6Address("fe80::1"), addresses=(subnet[5], subnet[6]))
    for routed in ((first,), (local,), (replace(local, gateway=None),), (replace(first, addresses=()),), ()):
        changed = replace(router, routed=routed)
        for net in (world.net, world.restart()):
            await net.ensure_router(changed)
            seen = await net.observe_net()
            assert seen.routers == {router.uid: digest_of(changed)}
            assert seen.announced == set(changed.answered)
    await world.net.ensure_router(replace(router, routed=(local,)))
    await world.net.ensure_router_absent(router.uid)
    assert (await world.net.observe_net()).announced == frozenset()


async def test_an_uplink_that_the_node_does_not_have(world: World) -> None:
    """It is named, and everything else of the router is there."""
    cidr, network = IPv4Network("198.51.100.0/24"), in_router(router_intent())
    addresses = tuple(FloatingIntent(cidr[number], name, cidr) for number, name in ((7, UPLINK), (8, "moon")))
    router = replace(router_intent(), uid=network.router_uid, floating=addresses)
    with pytest.raises(DriverError, match=r"198\.51\.100\.8 \(moon\)") as refused:
        await world.net.ensure_router(router)
    assert (refused.value.reason, refused.value.permanent) == ("UplinkMissing", False)
    await world.net.ensure_network(network)
    seen = await world.net.observe_net()
    assert seen.routers == {router.uid: ""}
    assert seen.announced == {(UPLINK, cidr[7])}
    assert seen.networks[network.uid].complete


def balanced(router: RouterIntent, *members: MemberIntent) -> RouterIntent:
    listeners = (ListenerIntent(6, 80), ListenerIntent(17, 53))
    health = HealthIntent("", 1, 1, 2, 2)
    made = BalancerIntent(LB, "lb", IPv4Address("10.7.0.200"), listeners, False, members, health)
    return replace(router, balancers=(made,))


async def test_a_load_balancer_is_part_of_its_router(world: World) -> None:
    router = router_intent()
    for changed in (
        balanced(router),
        balanced(router, *LB_MEMBERS),
        balanced(router, *LB_MEMBERS[:1]),
        balanced(router, replace(LB_MEMBERS[0], drain=True), LB_MEMBERS[1]),
        router,
        balanced(router, *LB_MEMBERS),
    ):
        await world.net.ensure_router(changed)
        seen = await world.net.observe_net()
        assert seen.routers == {router.uid: digest_of(changed)}
        await world.net.ensure_router(changed)
        assert await world.net.observe_net() == seen
    await world.net.ensure_router_absent(router.uid)
    assert (await world.net.observe_net()).items == ()
    assert await world.net.balancer_health(router.uid) == {}


async def test_health_is_kept_and_no_part_of_what_was_asked_for(world: World) -> None:
    router = balanced(router_intent(), *LB_MEMBERS)
    first, second = (member.probed for member in LB_MEMBERS)
    await world.net.ensure_health(router.uid, LB, frozenset({first}))
    assert await world.net.balancer_health(router.uid) == {}
    await world.net.ensure_router(router)
    assert await world.net.balancer_health(router.uid) == {LB: frozenset()}
    for down in (frozenset({first}), frozenset({first, second}), frozenset({second})):
        await world.net.ensure_health(router.uid, LB, down)
        assert await world.net.balancer_health(router.uid) == {LB: down}
        assert (await world.net.observe_net()).routers == {router.uid: digest_of(router)}
    await world.net.ensure_health(router.uid, new_uid(), frozenset({first}))
    await world.net.ensure_router(router)
    assert await world.net.balancer_health(router.uid) == {LB: frozenset({second})}
    await world.net.ensure_router(balanced(router, LB_MEMBERS[0]))
    assert await world.net.balancer_health(router.uid) == {LB: frozenset()}
