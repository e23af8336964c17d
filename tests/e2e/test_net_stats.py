"""What is counted of real packets: rules, stages of dropping, tunnels, routers.

Real kernel, real nft; guests are network namespaces. What the fake counts too is in the driver's contract
(tests/contract/test_net_stats.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agent.net import names, netns, nft
from agent.net.driver import NetworkIntent
from agent.net.kernel_driver import KernelNet
from agent.net.rtnetlink import Netlink
from agent.net.rule_words import DROP, Json
from agent.net.stats import NetStats, RouterStats, Traffic
from tests.support.net import silence
from tests.unit.agent_net import frames, probes
from tests.unit.agent_net.lab import OUTSIDE_ADDRESS, Lab, join, network_intent, open_lab, with_port
from tests.unit.agent_net.neighbours import Guest, all_out, boot, group, in_groups, rule, with_ports
from tests.unit.agent_net.routed import open_site
from tests.unit.agent_net.span import open_cloud

TIMES = 6
PORT, OTHER_PORT = 7000, 7001
ETHERNET_BYTES = 14
RATE_BPS, FLOOD = 8_000_000, 500
STRANGER_MAC = "52:54:00:ff:ff:01"


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with open_lab() as made:
        yield made


@pytest.fixture
async def net(lab: Lab) -> AsyncIterator[KernelNet]:
    driver = lab.driver()
    yield driver
    await driver.close()


async def _guests(
    lab: Lab, net: KernelNet, *groups: tuple[str, ...], network: NetworkIntent | None = None
) -> list[Guest]:
    network = network or network_intent()
    ports = [in_groups(with_port(network, at)[1], *uids) for at, uids in enumerate(groups, start=5)]
    network = with_ports(network, *ports)
    await net.ensure_network(network)
    guests = [await boot(lab, net, network, port) for port in ports]
    gateway = lab.netns_dir / names.namespace_name(network.router_uid or network.uid)
    await silence(lab, gateway, *(guest.namespace for guest in guests))
    return guests


async def _datagrams(source: Guest, target: Guest, port: int, count: int = TIMES) -> None:
    """Each from a port of its own: each is the first packet of something."""
    for _ in range(count):
        await source.lab.inside(
            source.namespace, partial(probes.send_datagrams, target.address(), port, [b"x"])
        )


def _grown(before: NetStats, after: NetStats) -> dict[str, int]:
    """Stages that dropped something between."""
    grown = {stage: after.dropped[stage] - before.dropped[stage] for stage in after.dropped}
    return {stage: count for stage, count in grown.items() if count}


async def test_a_rule_counts_the_connections_that_it_let_through(lab: Lab, net: KernelNet) -> None:
    lets_in, unused = rule("in", "tcp", (PORT, PORT)), rule("in", "udp", (PORT, PORT))
    web, client = group(lets_in, unused), group(*all_out())
    for one in (web, client):
        await net.ensure_group(one)
    a, b = await _guests(lab, net, (client.uid,), (web.uid,))
    async with b.echoing(PORT):
        for _ in range(TIMES):
            assert await a.reaches(b, "tcp", PORT)
    stats = await net.net_stats()
    assert stats.rules[web.uid, lets_in.uid] == TIMES
    assert stats.rules[client.uid, client.rules[0].uid] == TIMES
    assert stats.rules[web.uid, unused.uid] == 0
    assert TIMES <= stats.connections < stats.connections_max
    # A group that is programmed anew begins at nothing; the other one goes on.
    await net.ensure_group(group(lets_in, uid=web.uid))
    stats = await net.net_stats()
    assert stats.rules == {
        (web.uid, lets_in.uid): 0,
        (client.uid, client.rules[0].uid): TIMES,
        (client.uid, client.rules[1].uid): 0,
    }


async def test_what_is_dropped_is_counted_at_the_stage_that_drops_it(lab: Lab, net: KernelNet) -> None:
    web, client = group(rule("in", "udp", (PORT, PORT))), group(*all_out())
    for one in (web, client):
        await net.ensure_group(one)
    a, b = await _guests(lab, net, (client.uid,), (web.uid,))
    assert await a.reaches(b, "udp", PORT) is False  # nobody answers; both have asked for the other's MAC
    start = await net.net_stats()
    await _datagrams(a, b, PORT)  # the control
    allowed = await net.net_stats()
    assert _grown(start, allowed) == {}
    await _datagrams(a, b, OTHER_PORT)
    inward = await net.net_stats()
    assert _grown(allowed, inward) == {"ingress": TIMES}
    await _datagrams(b, a, PORT)
    outward = await net.net_stats()
    assert _grown(inward, outward) == {"egress": TIMES}
    answers = frames.udp(a.port.mac, b.port.mac, _four(b), _four(a), 67, b"an offer")
    await lab.inside(b.namespace, partial(probes.send_frames, [answers] * TIMES))
    assert _grown(outward, await net.net_stats()) == {"never-allowed": TIMES}


async def test_counts_begin_anew_with_the_rules_and_nothing_else_is_lost(lab: Lab, net: KernelNet) -> None:
    lets_in = rule("in", "tcp", (PORT, PORT))
    web, client = group(lets_in), group(*all_out())
    for one in (web, client):
        await net.ensure_group(one)
    network = network_intent()
    a, b = await _guests(lab, net, (client.uid,), (web.uid,), network=network)
    forged = frames.udp(b.port.mac, a.port.mac, IPv4Address("192.0.2.7"), _four(b), PORT, b"")

    async def use() -> NetStats:
        async with b.echoing(PORT):
            for _ in range(TIMES):
                assert await a.reaches(b, "tcp", PORT)
        await lab.inside(a.namespace, partial(probes.send_frames, [forged] * TIMES))
        return await net.net_stats()

    def counted(stats: NetStats) -> tuple[int, int]:
        return stats.rules[web.uid, lets_in.uid], stats.ports[a.port.uid].refused

    before = await use()
    assert counted(before) == (TIMES, TIMES)
    await lab.inside(lab.host, partial(nft.commit, [{"flush": {"ruleset": None}}]))
    gone = await net.net_stats()
    assert (gone.rules, gone.dropped) == ({}, {})
    assert gone.ports[a.port.uid].traffic.sent_packets == before.ports[a.port.uid].traffic.sent_packets
    await net.ensure_group(web)
    await net.ensure_network(with_ports(network, a.port, b.port))
    fresh = await net.net_stats()
    assert counted(fresh) == (0, 0)
    assert fresh.ports.keys() == before.ports.keys()
    assert counted(await use()) == (TIMES, TIMES)


@pytest.mark.parametrize("way", ["towards", "away"])
async def test_what_a_limit_of_rate_drops_is_counted(lab: Lab, net: KernelNet, way: str) -> None:
    """More than the bucket and its queue hold, at once: what does not arrive is counted."""
    network = network_intent()
    _, sender = with_port(network, 5)
    _, receiver = with_port(network, 6)
    if way == "towards":
        receiver = replace(receiver, ingress_bps=RATE_BPS)
    else:
        sender = replace(sender, egress_bps=RATE_BPS)
    network = with_ports(network, sender, receiver)
    await net.ensure_network(network)
    a, b = [await boot(lab, net, network, port) for port in (sender, receiver)]
    frame = frames.udp(receiver.mac, sender.mac, _four(a), _four(b), PORT, bytes(1000))
    ear = await lab.inside(b.namespace, partial(probes.Ear, PORT))
    before = (await net.net_stats()).ports
    await lab.inside(a.namespace, partial(probes.send_frames, [frame] * FLOOD))
    heard = len(await asyncio.to_thread(ear.heard))
    ear.close()
    after = (await net.net_stats()).ports
    counted = {
        (uid, name): getattr(port, name)
        for uid, port in after.items()
        for name in ("received_over_rate", "sent_over_rate")
    }
    limited = (receiver.uid, "received_over_rate") if way == "towards" else (sender.uid, "sent_over_rate")
    assert 0 < heard < FLOOD
    assert counted.pop(limited) == FLOOD - heard
    assert set(counted.values()) == {None}
    sent = after[sender.uid].traffic.sent_packets - before[sender.uid].traffic.sent_packets
    assert FLOOD <= sent < FLOOD + TIMES


async def test_other_programs_rules_are_not_counted(lab: Lab, net: KernelNet) -> None:
    await _guests(lab, net, ())
    before = await net.net_stats()
    await lab.inside(lab.host, partial(nft.commit, _foreign_table("inet", "docker")))
    listed = await lab.inside(lab.host, partial(nft.list_tables, (("inet", "docker"),)))
    assert any("rule" in item for item in listed["nftables"])  # the control
    assert (await net.net_stats()).dropped.keys() == before.dropped.keys()


async def test_who_is_on_a_bridge_and_not_ours_is_counted_for_its_network(lab: Lab, net: KernelNet) -> None:
    (guest,) = await _guests(lab, net, ())
    other_network = network_intent(8, "10.8.0.0/24")
    await net.ensure_network(other_network)
    stranger = lab.netns_dir / "stranger"
    await asyncio.to_thread(_plug_stranger, lab, guest.port.network_uid)
    datagram = frames.udp(
        guest.port.mac, STRANGER_MAC, IPv4Address("10.7.0.99"), _four(guest), PORT, b"anybody?"
    )
    await lab.inside(stranger, partial(probes.send_frames, [datagram] * TIMES))
    stats = await net.net_stats()
    assert stats.networks[guest.port.network_uid].unmarked == TIMES
    assert stats.networks[other_network.uid].unmarked == 0
    assert stats.ports[guest.port.uid].traffic.received_packets < TIMES


async def test_a_tunnel_is_counted_at_both_ends() -> None:
    async with open_cloud(2) as cloud:
        network, first = with_port(network_intent(), 5)
        _, second = with_port(network, 6)
        one, other = cloud.nodes
        await cloud.spread(network, (one, first), (other, second))
        guests = [
            await boot(node.lab, node.net, network, port) for node, port in ((one, first), (other, second))
        ]
        payload = frames.udp(second.mac, first.mac, _four(guests[0]), _four(guests[1]), PORT, bytes(100))
        ear = await other.lab.inside(guests[1].namespace, partial(probes.Ear, PORT))  # or it would answer
        before = [await node.net.net_stats() for node in cloud.nodes]
        await one.lab.inside(guests[0].namespace, partial(probes.send_frames, [payload] * TIMES))
        assert len(await asyncio.to_thread(ear.heard)) == TIMES
        after = [await node.net.net_stats() for node in cloud.nodes]
        ear.close()
        out, into = (
            (then.networks[network.uid].tunnel, now.networks[network.uid].tunnel)
            for then, now in zip(before, after, strict=True)
        )
        assert None not in (*out, *into)
        size = TIMES * (len(payload) - ETHERNET_BYTES)
        assert [_more("sent_packets", *out), _more("sent_bytes", *out)] == [TIMES, size]
        assert [_more("received_packets", *into), _more("received_bytes", *into)] == [TIMES, size]
        assert [_more("received_packets", *out), _more("sent_packets", *into)] == [0, 0]


async def test_a_routers_links_and_drops_are_counted() -> None:
    async with open_site() as site:
        node, uid, outside = site.cloud.nodes[0], site.router.uid, OUTSIDE_ADDRESS
        blue2, gateway = site.guests["blue2"].address(), site.red.subnets[0].gateway
        for target in (outside, blue2):  # who is who is known
            assert await site.ping("red1", target, 5)

        async def read() -> RouterStats:
            return (await node.net.net_stats()).routers[uid]

        start = await read()
        assert [await site.ping("red1", outside) for _ in range(TIMES)] == [True] * TIMES
        out = await read()
        assert [await site.ping("red1", blue2) for _ in range(TIMES)] == [True] * TIMES
        across = await read()
        guest = site.guests["red1"]
        send = partial(probes.send_datagrams, str(gateway), OTHER_PORT, [b"x"] * TIMES)
        await guest.lab.inside(guest.namespace, send)
        refused = await read()
    # A neighbour may be asked for again meanwhile, so not always just TIMES.
    many = range(TIMES, 2 * TIMES)
    for way in ("sent_packets", "received_packets"):
        assert _more(way, start.uplink, out.uplink) in many
        assert _more(way, out.uplink, across.uplink) not in many
        assert _more(way, out.tunnel, across.tunnel) in many
        assert _more(way, start.tunnel, out.tunnel) not in many
    assert across.dropped == start.dropped
    assert refused.dropped - across.dropped == TIMES


def _more(count: str, before: Traffic | None, after: Traffic | None) -> int:
    return int(getattr(after, count) - getattr(before, count))


def _foreign_table(family: str, name: str) -> list[Json]:
    of = {"family": family, "table": name}
    return [
        {"add": {"table": {"family": family, "name": name}}},
        {"add": {"chain": {**of, "name": "foreign"}}},
        {"add": {"rule": {**of, "chain": "foreign", "expr": list(DROP)}}},
    ]


def _plug_stranger(lab: Lab, network_uid: str) -> None:
    """A link that somebody put on a network's bridge."""
    stranger = lab.netns_dir / "stranger"
    netns.create(stranger)
    join(lab.host, "stranger0", stranger, "eth0", STRANGER_MAC)
    with netns.inside(stranger):
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    with netns.inside(lab.host), Netlink() as netlink:
        link, bridge = netlink.find_link("stranger0"), netlink.find_link(names.bridge_name(network_uid))
        assert link is not None
        assert bridge is not None
        netlink.change_link(link.index, master=bridge.index)


def _four(guest: Guest) -> IPv4Address:
    return IPv4Address(guest.address())
