"""What the network driver counts, over the fake and over this machine's kernel, with real frames there."""

from __future__ import annotations

from dataclasses import replace

from agent.net.counters import ANTI_SPOOFING
from agent.net.driver import NetworkIntent, PortIntent
from agent.net.stats import NetStats, PortStats
from tests.contract.test_net_routers import in_router, router_intent
from tests.support.net import SIZE_BYTES, World
from tests.unit.agent_net.lab import network_intent, with_port
from tests.unit.agent_net.neighbours import all_out, group, in_groups, rule

HONEST, FORGED = 7, 5


async def _two_guests(world: World) -> tuple[NetworkIntent, PortIntent, PortIntent]:
    network, first = with_port(network_intent(), 5)
    network, second = with_port(network, 6)
    await world.net.ensure_network(network)
    for port in (first, second):
        await world.plug(port)
        await world.net.ensure_port(port)
    return network, first, second


async def _port(world: World, port: PortIntent) -> PortStats:
    return (await world.net.net_stats()).ports[port.uid]


async def test_an_untouched_node_counts_nothing(world: World) -> None:
    stats = await world.net.net_stats()
    assert (stats.ports, stats.networks, stats.routers) == ({}, {}, {})
    assert (stats.rules, stats.dropped) == ({}, {})


async def test_frames_are_counted_for_sender_and_receiver_as_guests_see_them(world: World) -> None:
    network, first, second = await _two_guests(world)
    before = await world.net.net_stats()
    await world.send(first, second, HONEST, True)
    after = await world.net.net_stats()
    sender, receiver = ((before.ports[one.uid], after.ports[one.uid]) for one in (first, second))
    assert sender[1].network_uid == receiver[1].network_uid == network.uid
    assert sender[1].traffic.sent_packets - sender[0].traffic.sent_packets == HONEST
    assert sender[1].traffic.sent_bytes - sender[0].traffic.sent_bytes == HONEST * SIZE_BYTES
    assert receiver[1].traffic.received_packets - receiver[0].traffic.received_packets == HONEST
    assert receiver[1].traffic.received_bytes - receiver[0].traffic.received_bytes == HONEST * SIZE_BYTES
    assert receiver[1].traffic.sent_packets == receiver[0].traffic.sent_packets
    assert (sender[1].refused, receiver[1].refused) == (0, 0)


async def test_what_a_guest_sends_as_somebody_else_is_counted_for_it_and_reaches_nobody(world: World) -> None:
    _, first, second = await _two_guests(world)
    before = await world.net.net_stats()
    await world.send(first, second, FORGED, False)
    await world.send(second, first, HONEST, True)  # the control
    after = await world.net.net_stats()
    assert after.ports[first.uid].refused == FORGED
    assert after.ports[second.uid].refused == 0
    assert after.dropped[ANTI_SPOOFING] - before.dropped[ANTI_SPOOFING] == FORGED
    received = [after.ports[one.uid].traffic.received_packets for one in (first, second)]
    assert received[0] - before.ports[first.uid].traffic.received_packets == HONEST
    assert received[1] == before.ports[second.uid].traffic.received_packets
    # Ensured again, nothing is programmed anew.
    await world.net.ensure_port(first)
    assert (await _port(world, first)).refused == FORGED


async def test_counts_are_the_nodes_and_not_the_agents(world: World) -> None:
    _, first, second = await _two_guests(world)
    await world.send(first, second, HONEST, True)
    await world.send(first, second, FORGED, False)
    before = await world.net.net_stats()
    again = world.restart()
    assert _steady(await again.net_stats()) == _steady(before)
    await again.ensure_port_absent(second.uid)
    left = await again.net_stats()
    assert left.ports.keys() == {first.uid}
    assert left.ports[first.uid].refused == FORGED


async def test_a_port_that_is_made_again_begins_at_nothing(world: World) -> None:
    _, first, second = await _two_guests(world)
    await world.send(first, second, FORGED, False)
    await world.net.ensure_port_absent(first.uid)
    await world.net.ensure_port(first)
    assert (await _port(world, first)).refused == 0


async def test_only_a_limited_port_has_a_count_of_what_its_limit_dropped(world: World) -> None:
    network, port = with_port(network_intent(), 5)
    await world.net.ensure_network(network)
    for towards, away in ((0, 0), (10**6, 0), (0, 10**6), (10**6, 10**6), (0, 0)):
        await world.net.ensure_port(replace(port, ingress_bps=towards, egress_bps=away))
        seen = await _port(world, port)
        wanted = (0 if towards else None, 0 if away else None)
        assert (seen.received_over_rate, seen.sent_over_rate) == wanted


async def test_networks_and_routers_are_counted_while_they_are_here(world: World) -> None:
    router = router_intent()
    network, port = with_port(in_router(router), 5)
    await world.net.ensure_router(router)
    await world.net.ensure_network(network)
    empty = await world.net.net_stats()
    assert (empty.networks[network.uid].ports, empty.networks[network.uid].unmarked) == (0, 0)
    await world.net.ensure_port(port)
    stats = await world.net.net_stats()
    assert stats.networks.keys() == {network.uid}
    assert stats.networks[network.uid].ports == 1
    assert stats.networks[network.uid].tunnel is not None
    seen = stats.routers[router.uid]
    assert seen.uplink is not None
    assert seen.tunnel is not None
    assert (seen.dropped, seen.listeners) == (0, {})
    await world.net.ensure_port_absent(port.uid)
    await world.net.ensure_network_absent(network.uid)
    await world.net.ensure_router_absent(router.uid)
    gone = await world.net.net_stats()
    assert (gone.ports, gone.networks, gone.routers) == ({}, {}, {})


async def test_every_rule_of_every_group_has_a_count(world: World) -> None:
    web = group(*all_out(), rule("in", "tcp", (80, 90), cidr="10.0.0.0/8"), members=["10.7.0.5"])
    network, port = with_port(network_intent(), 5)
    await world.net.ensure_group(web)
    await world.net.ensure_network(network)
    await world.net.ensure_port(in_groups(port, web.uid))
    assert (await world.net.net_stats()).rules == {(web.uid, one.uid): 0 for one in web.rules}
    fewer = replace(web, rules=web.rules[1:])
    await world.net.ensure_group(fewer)
    assert (await world.net.net_stats()).rules == {(web.uid, one.uid): 0 for one in fewer.rules}
    await world.net.ensure_port_absent(port.uid)
    await world.net.ensure_group_absent(web.uid)
    assert (await world.net.net_stats()).rules == {}


def _steady(stats: NetStats) -> NetStats:
    """Without what the node does by itself."""
    return replace(stats, networks={}, connections=0)
