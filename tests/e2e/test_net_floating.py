"""Floating IPs and port forwards: what the outside reaches, who it sees, and what is let go.

Real kernel; nodes, guests and the outside are network namespaces. Nodes are attached to the outside by links
without addresses.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agent.errors import DriverError
from agent.net import external, names
from agent.net.driver import FloatingIntent, ForwardIntent
from tests.support import echo
from tests.unit.agent_net import frames, probes, talk
from tests.unit.agent_net.balanced import VIP_PORT, answering, balancer, members, open_balanced
from tests.unit.agent_net.routed import PORT, Site
from tests.unit.agent_net.span import (
    FAR_HOST,
    WORLD,
    WORLD_BRIDGE,
    WORLD_CIDR,
    WORLD_GATEWAY,
    WORLD_LINK,
    Node,
)

FLOATING, FORWARDED, UNUSED = (IPv4Address(f"198.51.100.{number}") for number in (70, 71, 72))
OUTSIDE_PORT, FORWARD_PORT = 8080, 2222
TCP = 6


def floating(address: IPv4Address, fixed: str = "", *forwards: ForwardIntent) -> FloatingIntent:
    target = IPv4Address(fixed) if fixed else None
    return FloatingIntent(address, WORLD, WORLD_CIDR, WORLD_GATEWAY, target, forwards)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """red1 on the first node has an address; by another one blue2, on the second, is reached at one port."""
    async with open_balanced(2) as made:
        first, second = made.cloud.nodes
        blue2 = IPv4Address(made.guests["blue2"].address())
        forward = ForwardIntent(TCP, FORWARD_PORT, blue2, PORT)
        made.router = replace(made.router, outbound_nat=False)
        made.floating[first.address] = (
            floating(FLOATING, made.guests["red1"].address()),
            floating(FORWARDED, "", forward),
        )
        made.announcers[second.address] = (first.address,)
        await made.apply()
        await made.check()
        yield made


@asynccontextmanager
async def listening(site: Site, namespace: Path, port: int) -> AsyncIterator[None]:
    """Answers everybody with the address that the question came from."""
    enter = probes.listening([port])
    await site.cloud.nodes[0].lab.inside(namespace, enter.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(enter.__exit__, None, None, None)


async def seen_by_guest(site: Site, hostname: str, address: IPv4Address, port: int) -> str:
    """Who asks a guest, when the far host asks at this address; empty when nobody answers."""
    async with listening(site, site.guests[hostname].namespace, PORT):
        ask = partial(probes.who_am_i, str(address), port, source=str(FAR_HOST))
        return await site.cloud.nodes[0].lab.inside(site.cloud.world, ask)


async def seen_outside(site: Site, hostname: str) -> str:
    """Who asks the far host, when a guest does."""
    guest = site.guests[hostname]
    async with listening(site, site.cloud.world, OUTSIDE_PORT):
        ask = partial(probes.who_am_i, str(FAR_HOST), OUTSIDE_PORT)
        return await guest.lab.inside(guest.namespace, ask)


async def pinged(site: Site, address: IPv4Address, tries: int = 1) -> bool:
    return await site.cloud.nodes[0].lab.ping(site.cloud.world, address, tries)


async def test_the_outside_reaches_a_guest_and_is_seen_as_itself(site: Site) -> None:
    assert await pinged(site, FLOATING, tries=3)
    assert await seen_by_guest(site, "red1", FLOATING, PORT) == str(FAR_HOST)
    assert await seen_by_guest(site, "red1", UNUSED, PORT) == ""


async def test_what_the_guest_begins_comes_from_its_address_and_nobody_elses_leaves(site: Site) -> None:
    assert await seen_outside(site, "red1") == str(FLOATING)
    for hostname in ("blue1", "red2", "blue2"):
        assert await seen_outside(site, hostname) == ""


async def test_a_forward_to_another_node_keeps_the_client(site: Site) -> None:
    for _ in range(5):
        assert await seen_by_guest(site, "blue2", FORWARDED, FORWARD_PORT) == str(FAR_HOST)
    assert await seen_by_guest(site, "blue2", FORWARDED, PORT) == ""  # one port is forwarded, and no other
    assert not await pinged(site, FORWARDED)
    assert [await site.invalid(node) for node in site.cloud.nodes] == [0, 0]


async def test_a_load_balancer_serves_the_outside_and_members_see_the_client(
    site: Site,
) -> None:
    first, second = site.cloud.nodes
    hosts = ("red1", "blue2")
    made = replace(balancer(*members(site, *hosts)), outside=(UNUSED,))
    site.router = replace(site.router, balancers=(made,))
    addresses = tuple(IPv4Address(site.guests[name].address()) for name in hosts)
    site.floating[first.address] += (replace(floating(UNUSED), members=addresses),)
    site.announcers[second.address] = (first.address,)
    await site.apply()
    await site.check()
    ask = partial(echo.responder, socket.SOCK_STREAM, str(UNUSED), VIP_PORT)
    async with answering(site, *hosts):
        found = Counter([await first.lab.inside(site.cloud.world, ask) for _ in range(10)])
    assert found == dict.fromkeys(hosts, 5)
    for name in hosts:
        async with listening(site, site.guests[name].namespace, PORT):
            who = partial(probes.who_am_i, str(UNUSED), VIP_PORT, source=str(FAR_HOST))
            seen = {await first.lab.inside(site.cloud.world, who) for _ in range(2)}
        assert seen == {"", str(FAR_HOST)}  # the other member does not listen
    assert [await site.invalid(node) for node in site.cloud.nodes] == [0, 0]


async def test_a_member_that_is_removed_loses_connections_from_the_outside_too(site: Site) -> None:
    first = site.cloud.nodes[0]
    made = replace(balancer(*members(site, "red1")), outside=(UNUSED,))
    site.router = replace(site.router, balancers=(made,))
    member = IPv4Address(site.guests["red1"].address())
    site.floating[first.address] += (replace(floating(UNUSED), members=(member,)),)
    await site.apply()
    async with site.guests["red1"].echoing(PORT):
        begin = partial(talk.Talk, "tcp", str(UNUSED), VIP_PORT)
        conversation = await first.lab.inside(site.cloud.world, begin)
        try:
            assert conversation.goes_on()
            await site.apply()
            assert conversation.goes_on()
            site.router = replace(site.router, balancers=(replace(made, members=members(site, "blue1")),))
            await site.apply()
            assert not conversation.goes_on()
        finally:
            conversation.close()


async def test_the_control_without_the_way_back_no_forward_answers(site: Site) -> None:
    second = site.cloud.nodes[1]
    await second.lab.run(site.namespace(second), "ip", "rule", "del", "pref", "17000")
    assert await seen_by_guest(site, "blue2", FORWARDED, FORWARD_PORT) == ""
    with pytest.raises(AssertionError):
        await site.check()


async def test_guests_of_the_router_reach_the_address_too(site: Site) -> None:
    """On its own node, where no packet leaves the router."""
    lab = site.cloud.nodes[0].lab
    ear = await lab.inside(site.cloud.world, lambda: probes.Ear(link=""))
    try:
        assert await site.ping("blue1", FLOATING, tries=2)
        assert [frame for frame in await asyncio.to_thread(ear.heard) if FLOATING.packed in frame] == []
    finally:
        ear.close()


async def test_an_address_moves_and_the_outside_knows_at_once(site: Site) -> None:
    first, second = site.cloud.nodes
    assert await pinged(site, FLOATING, tries=3)  # the world knows where it is
    moved = floating(FLOATING, site.guests["red2"].address())
    site.floating[first.address] = site.floating[first.address][1:]
    await site.apply_on(first)
    assert not await pinged(site, FLOATING)
    site.floating[second.address] = (moved,)
    await site.apply_on(second)
    assert await pinged(site, FLOATING)
    await site.check()
    assert await seen_outside(site, "red2") == str(FLOATING)
    assert await seen_outside(site, "red1") == ""


async def test_nobody_outside_is_taken_for_a_guest(site: Site) -> None:
    """Groups mean guests by their addresses; who takes one outside was let in as that guest."""
    first, red1 = site.cloud.nodes[0], site.guests["red1"]
    inside = IPv4Address(site.guests["blue2"].address())
    ear = await red1.lab.inside(red1.namespace, partial(probes.Ear, PORT))
    try:
        for source, arrived in ((FAR_HOST, 20), (inside, 0)):
            frame = frames.udp("02:00:00:00:fd:01", "02:00:00:00:ff:02", source, FLOATING, PORT, b"data")
            send = partial(probes.send_frames, [frame] * 20, WORLD_BRIDGE)
            await first.lab.inside(site.cloud.world, send)
            assert len(await asyncio.to_thread(ear.heard)) == arrived, source
    finally:
        ear.close()


async def test_connections_end_with_the_address(site: Site) -> None:
    first = site.cloud.nodes[0]
    async with site.guests["red1"].echoing(PORT):
        begin = partial(talk.Talk, "tcp", str(FLOATING), PORT)
        conversation = await first.lab.inside(site.cloud.world, begin)
        try:
            assert conversation.goes_on()
            await site.apply()  # again, as every round would
            assert conversation.goes_on()
            site.floating[first.address] = (
                floating(FLOATING, site.guests["blue1"].address()),
                *site.floating[first.address][1:],
            )
            await site.apply()
            assert not conversation.goes_on()
        finally:
            conversation.close()


async def test_nothing_is_left_when_the_router_goes(site: Site) -> None:
    first = site.cloud.nodes[0]
    await first.net.ensure_router_absent(site.router.uid)
    for words in (("neigh", "show", "proxy"), ("route", "show", "proto", "199"), ("rule", "show")):
        shown = await first.lab.run(first.lab.host, "ip", *words)
        assert str(FLOATING) not in shown.stdout
        assert str(FORWARDED) not in shown.stdout
    assert await _routes_in(first, first.lab.host, int(WORLD_GATEWAY)) == ""
    assert (await first.net.observe_net()).announced == frozenset()


async def test_a_table_goes_with_the_last_that_looks_in_it(site: Site) -> None:
    first, second = site.cloud.nodes
    out, back = int(WORLD_GATEWAY), external.mark_of_node(first.address)
    site.floating[first.address] = site.floating[first.address][:1]
    await site.apply()
    assert str(WORLD_GATEWAY) in await _routes_in(first, first.lab.host, out)  # the other address needs it
    assert await _routes_in(second, site.namespace(second), back) != ""
    site.floating[first.address] = ()
    site.announcers[second.address] = ()
    await site.apply()
    await site.check()
    assert await _routes_in(first, first.lab.host, out) == ""
    assert await _routes_in(second, site.namespace(second), back) == ""


async def _routes_in(node: Node, namespace: Path, table: int) -> str:
    return (await node.lab.run(namespace, "ip", "route", "show", "table", str(table))).stdout


async def test_a_lost_uplink_keeps_nothing_else_from_working(site: Site) -> None:
    first = site.cloud.nodes[0]
    await first.lab.run(first.lab.host, "ip", "link", "set", WORLD_LINK, "down")
    with pytest.raises(DriverError, match=r"198\.51\.100\.70 \(world\)") as refused:
        await first.net.ensure_router(site.router_on(first))
    assert refused.value.reason == "UplinkMissing"
    assert (await first.net.observe_net()).routers == {site.router.uid: ""}
    assert await site.ping("red1", site.guests["blue2"].address(), tries=2)
    await first.lab.run(first.lab.host, "ip", "link", "set", WORLD_LINK, "up")
    await site.apply()
    await site.check()
    assert await pinged(site, FLOATING, tries=3)


def _damages(site: Site) -> dict[str, tuple[str, ...]]:
    """Commands on the first node, or inside the router's part on the second where the name says so."""
    table, uplink = str(int(WORLD_GATEWAY)), names.uplink_name(site.router.uid)
    back = str(external.mark_of_node(site.cloud.nodes[0].address))
    ours = ("proto", "199")
    return {
        "nobody answers": ("ip", "neigh", "del", "proxy", str(FLOATING), "dev", WORLD_LINK),
        "another link answers": ("ip", "neigh", "add", "proxy", str(FLOATING), "dev", "eth0", *ours),
        "route gone": ("ip", "route", "del", str(FLOATING)),
        "one address more": (
            *("ip", "route", "add", str(UNUSED), "via", "192.0.2.77", "dev", uplink, "onlink"),
            *ours,
        ),
        "no way out": ("ip", "route", "flush", "table", table),
        "no rule for the way out": ("ip", "rule", "del", "pref", "17001", "from", str(FLOATING)),
        "no rule for near ones": ("ip", "rule", "del", "pref", "17000", "from", str(FLOATING)),
        "not let through": ("nft", "flush", "set", "inet", "cumulet", "floating"),
        "second: no rule back": ("ip", "rule", "del", "pref", "17000"),
        "second: no way back": ("ip", "route", "flush", "table", back),
        "second: not marked": ("nft", "flush", "chain", "inet", "cumulet", "returns"),
    }


async def test_every_damage_is_noticed_and_put_back(site: Site) -> None:
    first, second = site.cloud.nodes
    for name, command in _damages(site).items():
        node = second if name.startswith("second:") else first
        where = site.namespace(second) if node is second else first.lab.host
        done = await node.lab.run(where, *command)
        assert done.returncode == 0, (name, done.stderr)
        with pytest.raises(AssertionError):
            await site.check()
        await site.apply_on(node)
        await site.check()
        assert await pinged(site, FLOATING, tries=3), name
        assert await seen_by_guest(site, "blue2", FORWARDED, FORWARD_PORT) == str(FAR_HOST), name
