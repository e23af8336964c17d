"""Distributed routers: what their parts on the nodes carry, and what leaves by none of them.

Real kernel, real tunnels; nodes, guests and the underlay between them are network namespaces.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, ip_network

import pytest

from agent.net import names
from agent.net.addressing import ROUTER_TUNNEL_LINK
from agent.net.driver import AddressPair, RouteIntent, RouterIntent
from agent.net.netlink_route import RouterRoute
from agent.net.router_entries import peer_mac
from agent.net.rtnetlink import RouteEvents
from tests.unit.agent_net import frames, lab, probes
from tests.unit.agent_net.lab import network_intent, new_uid, with_port
from tests.unit.agent_net.routed import BLUE, PORT, RED, Site, open_site
from tests.unit.agent_net.span import open_cloud

_ANSWER_S = 5.0  # a gateway gives up to find a neighbour after three seconds
_SYN_ACK = 0x12
_IP_RECVERR, _IPV6_RECVERR = 11, 25  # a host that is unreachable is an error for a datagram, too
PLACEMENTS = {
    "same node": ("red1", "blue1"),
    "other node": ("red1", "blue2"),
    "and back": ("blue2", "red1"),
    "the other way round": ("red2", "blue1"),
    "same node, the other": ("blue2", "red2"),
    "same network": ("red1", "red2"),
}


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with open_site() as made:
        yield made


@pytest.fixture
async def asking_site() -> AsyncIterator[Site]:
    """With guests that hear of their routers by advertisements."""
    async with open_site(dhcp=True) as made:
        yield made


# -- what is carried --------------------------------------------------------------------------------------


async def test_all_placements(site: Site) -> None:
    await site.check()
    for name, (source, target) in PLACEMENTS.items():
        for address in site.at(target)[1].addresses:
            assert await site.ping(source, address, tries=3), (name, address)


async def test_a_packet_of_just_the_guests_mtu_passes_whole(site: Site) -> None:
    async with site.cloud.watched() as seen:
        for name, (source, target) in PLACEMENTS.items():
            for version, headers in ((4, 28), (6, 48)):
                payloads = [bytes(site.red.mtu - headers)] * 20
                assert await site.deliver(source, target, version, payloads) == payloads, (name, version)
    assert max(one.outer_length for one in seen) == 1500
    assert not any(one.is_fragment for one in seen)


async def test_between_nodes_packets_take_the_routers_tunnel_there_and_back(site: Site) -> None:
    """Whichever network is where. Within a network they take the network's own."""
    async with site.cloud.watched() as seen:
        for source, target in PLACEMENTS.values():
            for address in site.at(target)[1].addresses:
                assert await site.ping(source, address, tries=3)
    assert {one.vni for one in seen} == {site.router.vni, site.red.vni}
    macs = {one.inner[:6].hex(":") for one in seen if one.vni == site.router.vni}
    assert macs == {peer_mac(node.address) for node in site.cloud.nodes}


async def test_connections_are_seen_whole_by_every_part(site: Site) -> None:
    for source, target in (("red1", "blue2"), ("blue2", "red1"), ("red1", "blue1")):
        for version in (4, 6):
            assert await site.connects(source, target, version, times=25) == 25, (source, target, version)
    assert [await site.invalid(node) for node in site.cloud.nodes] == [0, 0]


async def test_the_control_an_answer_to_nothing_is_invalid(site: Site) -> None:
    """What replies by another way than their questions came would be to the router: half a connection."""
    first, second = site.cloud.nodes
    question, answer = site.at("red1")[1].addresses[0], site.at("blue2")[1].addresses[0]
    assert isinstance(question, IPv4Address)
    assert isinstance(answer, IPv4Address)
    packet = frames.tcp(peer_mac(first.address), peer_mac(second.address), answer, question, PORT, _SYN_ACK)
    send = partial(probes.send_frames, [packet] * 20, ROUTER_TUNNEL_LINK)
    await second.lab.inside(site.namespace(second), send)
    assert [await site.invalid(node) for node in site.cloud.nodes] == [20, 0]


async def test_gateways_answer_at_home(site: Site) -> None:
    async with site.cloud.watched() as seen:
        for source, gateways in (
            ("red1", ("10.7.0.1", "2001:db8:7::1")),
            ("blue2", ("10.8.0.1", "2001:db8:8::1")),
        ):
            for gateway in gateways:
                assert await site.ping(source, gateway, tries=3)
    assert seen == []


# -- what leaves, and what does not -----------------------------------------------------------------------


async def test_guests_leave_by_the_address_of_their_node(site: Site) -> None:
    for source in ("red1", "blue1", "red2"):
        assert await site.outside_sees(source) == str(lab.HOST_ADDRESS)
    site.router = replace(site.router, outbound_nat=False)
    await site.apply()
    await site.check()
    for source in ("red1", "blue2"):
        assert await site.outside_sees(source) == ""
    assert await site.ping("red1", site.guests["blue2"].address())


async def test_an_address_that_nobody_has_is_unreachable_and_stays_in_the_cloud(site: Site) -> None:
    """Of a network that is on the guest's node, and of one that is not. In the control it has no refusal."""
    first, _ = site.cloud.nodes
    await first.net.ensure_port_absent(site.at("blue1")[1].uid)
    site.placed.remove(site.at("blue1"))
    await site.apply()
    await site.check()
    async with site.leaving(first) as seen:
        assert await _error(site, "red1", "10.8.0.77") == errno.EHOSTUNREACH
        assert await _error(site, "red1", "2001:db8:8::77") in (errno.EHOSTUNREACH, errno.ENETUNREACH)
        assert await _error(site, "red1", "10.7.1.77") == 0  # the control: not the router's, so it may leave
        assert await site.ping("red1", site.guests["blue2"].address(), tries=2)
    assert [frame for frame in seen if b"inside" in frame] == []
    assert len(seen) > 0
    await first.lab.run(site.namespace(first), "ip", "route", "del", "unreachable", "10.8.0.0/24")
    async with site.leaving(first) as seen:
        assert await _error(site, "red1", "10.8.0.77") == 0
    assert [frame for frame in seen if b"inside" in frame] != []
    assert (await first.net.observe_net()).routers == {site.router.uid: ""}
    await site.apply()
    await site.check()


async def _error(site: Site, source: str, target: str) -> int:
    """What a guest is told about a datagram; 0 when nothing."""
    guest = site.guests[source]
    inside = target.startswith(("10.8.", "2001:db8:8:"))
    return await guest.lab.inside(guest.namespace, partial(_send, target, b"inside" if inside else b"out"))


def _send(target: str, payload: bytes) -> int:
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(_ANSWER_S)
        if client.family == socket.AF_INET6:
            client.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        else:
            client.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        client.connect((target, PORT))
        client.send(payload)
        try:
            client.recv(64)
        except TimeoutError:
            return 0
        except OSError as err:
            return err.errno or 0
    return 0


async def test_a_network_alone_does_not_join_its_subnets() -> None:
    """The control is the same network in a router. Both guests are on one node, behind one gateway."""
    async with open_cloud(1) as cloud:
        (node,) = cloud.nodes
        router = RouterIntent(new_uid(), 99, (), True)
        halves = [network_intent(7, cidr) for cidr in (RED[0], BLUE[0])]
        network = replace(halves[0], subnets=tuple(half.subnets[0] for half in halves))
        ports = [
            replace(with_port(half, 5 + at)[1], network_uid=network.uid) for at, half in enumerate(halves)
        ]
        network = replace(network, ports=tuple(ports))
        await node.net.ensure_network(network)
        guests = [await node.boot(port) for port in ports]
        for guest in guests:
            assert await node.lab.dhcp(guest) is not None
        for joined in (False, True, False):
            if joined:
                await node.net.ensure_router(router)
            await node.net.ensure_network(replace(network, router_uid=router.uid if joined else ""))
            assert await node.lab.ping(guests[0], ports[1].addresses[0], tries=3) == joined
            assert await node.lab.ping(guests[0], network.subnets[0].gateway, tries=3)


# -- changes ----------------------------------------------------------------------------------------------


async def test_a_network_leaves_its_router_and_comes_back_while_its_guests_talk(asking_site: Site) -> None:
    site = asking_site
    async with site.conversation("red1", "red2", 4) as talk4, site.conversation("red2", "red1", 6) as talk6:
        for attached in (False, True, False, True):
            site.red = replace(site.red, router_uid=site.router.uid if attached else "")
            await site.apply()
            await site.check()
            assert talk4.goes_on()
            assert talk6.goes_on()
            await site.settles(routed=attached)
            for address in site.at("blue2")[1].addresses:
                assert await site.ping("red1", address, tries=3 if attached else 1) == attached, address
            assert await site.ping("red1", "10.7.0.1", tries=3)
    for node in site.cloud.nodes:
        assert not (node.lab.netns_dir / names.namespace_name(site.red.uid)).exists()


async def test_one_more_port_is_one_more_route(site: Site) -> None:
    """One for each of its addresses; and what did not change is not touched."""
    first, second = site.cloud.nodes
    before = site.directory(first)
    more = with_port(site.blue, 77, "more")[1]
    site.placed.append((second, more))
    events = await first.lab.inside(site.namespace(first), RouteEvents)
    await first.net.ensure_router_directory(site.router.uid, site.directory(first))
    told = [found for _, found in events.take()]
    assert {one.destination for one in told if isinstance(one, RouterRoute)} == set(more.addresses)
    assert len(told) == len(more.addresses)
    await first.net.ensure_router_directory(site.router.uid, site.directory(first))
    assert list(events.take()) == []
    await first.net.ensure_router_directory(site.router.uid, before)
    assert len(list(events.take())) == len(more.addresses)
    events.close()


async def test_a_port_moves_to_another_node(site: Site) -> None:
    first, second = site.cloud.nodes
    port = site.at("blue2")[1]
    await second.net.ensure_port_absent(port.uid)
    site.placed = [(first if one is port else node, one) for node, one in site.placed]
    await site.apply()
    await site.check()
    await site.boot("blue2")
    for source in ("red1", "red2"):
        for address in port.addresses:
            assert await site.ping(source, address, tries=20), (source, address)


async def test_static_routes_lead_behind_a_port_here_and_elsewhere(site: Site) -> None:
    """A guest of blue on the second node stands for a range; from both nodes packets for it come to it."""
    behind, (second, hop) = ip_network("192.168.0.0/24"), site.at("blue2")
    wide = replace(hop, allowed_pairs=(AddressPair(behind),))
    site.placed[site.placed.index((second, hop))] = (second, wide)
    for node in site.cloud.nodes:
        here = RouteIntent(behind, None, hop.addresses[0], site.blue.uid)
        site.static[node.address] = (here if node is second else RouteIntent(behind, second.address),)
    await site.apply()
    await second.net.ensure_port(wide)
    await site.check()
    guest = site.guests["blue2"].namespace
    await second.lab.run(guest, "ip", "address", "add", "192.168.0.1/24", "dev", "lo")
    for source in ("red1", "blue1", "red2"):
        assert await site.ping(source, "192.168.0.1", tries=3), source
    site.static.clear()
    await site.apply()
    await site.check()
    assert not await site.ping("red1", "192.168.0.1")
