"""Routed IPv6: the outside reaches guests at their own addresses, and nothing of the operator's suffers.

Real kernel; nodes, guests and the outside are network namespaces.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from agent.errors import DriverError
from agent.net import external, names, netns
from agent.net.addressing import gateway_pair
from agent.net.driver import AddressPair, RoutedIntent
from agent.net.ears import Ear
from tests.unit.agent_net import frames, probes
from tests.unit.agent_net.lab import Lab, configure, join
from tests.unit.agent_net.neighbours import all_out, boot, group, in_groups, rule
from tests.unit.agent_net.routed import PORT, Site, open_site
from tests.unit.agent_net.span import (
    FAR_HOST6,
    WORLD,
    WORLD_BRIDGE,
    WORLD_CIDR6,
    WORLD_GATEWAY6,
    WORLD_LINK,
    Node,
)

RED6, BLUE6 = IPv6Network("2001:db8:100:7::/64"), IPv6Network("fd00:8::/64")
RED, BLUE = ("10.7.0.0/24", str(RED6)), ("10.8.0.0/24", str(BLUE6))
OUTSIDE_PORT = 8080
FIRST_MAC = "02:00:00:00:fd:01"  # of the first node's link to the outside
_IPV6_MTU_DISCOVER, _IPV6_MTU, _IPV6_RECVERR, _AS_THE_PATH_SAYS = 23, 24, 25, 2  # linux/in6.h
_HEADERS = 48  # of IPv6 and UDP
_ANSWER_MS = 2_000
SETTLED = 4  # pings until links have carrier and link-local addresses are tried, up to two seconds
ROUTED = RoutedIntent(RED6, RED6[1], WORLD, WORLD_CIDR6, WORLD_GATEWAY6)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Red's IPv6 subnet is of the outside, blue's is not."""
    async with open_site(red_ranges=RED, blue_ranges=BLUE) as made:
        made.router = replace(made.router, outbound_nat=False)
        made.routed = (ROUTED,)
        await made.apply()
        await made.check()
        for hostname in ("red1", "red2"):
            assert await pinged(made, address_of(made, hostname), tries=SETTLED)
        yield made


def address_of(site: Site, hostname: str) -> IPv6Address:
    return IPv6Address(site.guests[hostname].address(6))


async def pinged(site: Site, address: IPv6Address, tries: int = 1) -> bool:
    return await site.cloud.nodes[0].lab.ping(site.cloud.world, address, tries)


@asynccontextmanager
async def listening(lab: Lab, namespace: Path, port: int) -> AsyncIterator[None]:
    """Answers everybody with the address that the question came from."""
    enter = probes.listening([port])
    await lab.inside(namespace, enter.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(enter.__exit__, None, None, None)


async def seen_by_guest(site: Site, hostname: str, port: int = PORT) -> str:
    """Who asks a guest, when the far host asks at the guest's own address; empty when nobody answers."""
    guest = site.guests[hostname]
    async with listening(guest.lab, guest.namespace, port):
        ask = partial(probes.who_am_i, guest.address(6), port, source=str(FAR_HOST6))
        return await guest.lab.inside(site.cloud.world, ask)


async def seen_outside(site: Site, hostname: str) -> str:
    """Who asks the far host, when a guest does."""
    guest = site.guests[hostname]
    async with listening(guest.lab, site.cloud.world, OUTSIDE_PORT):
        ask = partial(probes.who_am_i, str(FAR_HOST6), OUTSIDE_PORT)
        return await guest.lab.inside(guest.namespace, ask)


async def test_both_ends_see_each_other_as_they_are(site: Site) -> None:
    for hostname in ("red1", "red2"):
        assert await seen_by_guest(site, hostname) == str(FAR_HOST6)
        assert await seen_outside(site, hostname) == str(address_of(site, hostname))
    assert [await site.invalid(node) for node in site.cloud.nodes] == [0, 0]


async def test_other_subnets_neither_leave_nor_are_reached(site: Site) -> None:
    """Even when the outside has a way to them."""
    first = site.cloud.nodes[0]
    blue1 = address_of(site, "blue1")
    assert await seen_outside(site, "blue1") == ""
    for words in (
        ("ip", "-6", "route", "add", f"{blue1}/128", "dev", WORLD_BRIDGE),
        ("ip", "-6", "neigh", "add", str(blue1), "lladdr", FIRST_MAC, "dev", WORLD_BRIDGE),
    ):
        assert (await first.lab.run(site.cloud.world, *words)).returncode == 0
    assert not await pinged(site, blue1)
    assert await site.ping("red1", blue1, tries=2)  # within the router it is reached


async def test_nobody_answers_for_an_address_that_no_port_has(site: Site) -> None:
    assert not await pinged(site, RED6[0x99])
    assert not await pinged(site, RED6[1])  # the gateway is every node's, and none's


async def test_groups_judge_the_true_client(site: Site) -> None:
    first, port = site.at("red1")
    web = group(*all_out(), rule("in", "tcp", (PORT, PORT), version=6, cidr=f"{FAR_HOST6}/128"))
    await first.net.ensure_group(web)
    site.placed = [(node, in_groups(one, web.uid) if one is port else one) for node, one in site.placed]
    await site.apply()
    assert await seen_by_guest(site, "red1") == str(FAR_HOST6)
    assert await seen_by_guest(site, "red1", PORT + 1) == ""
    assert not await pinged(site, address_of(site, "red1"))
    guest = site.guests["red1"]
    async with listening(guest.lab, guest.namespace, PORT):  # the same from the gateway's address
        ask = partial(probes.who_am_i, guest.address(6), PORT, source=str(WORLD_GATEWAY6))
        assert await guest.lab.inside(site.cloud.world, ask) == ""


async def test_nobody_outside_is_taken_for_a_guest(site: Site) -> None:
    """A rule that means the router's guests by their addresses does not mean who takes one outside."""
    first = site.cloud.nodes[0]
    red1, blue2 = site.guests["red1"], address_of(site, "blue2")
    ear = await red1.lab.inside(red1.namespace, partial(probes.Ear, PORT))
    try:
        for source, arrives in ((FAR_HOST6, True), (blue2, False), (address_of(site, "red2"), False)):
            frame = frames.udp6(FIRST_MAC, "02:00:00:00:ff:02", source, address_of(site, "red1"), PORT)
            send = partial(probes.send_frames, [frame] * 20, WORLD_BRIDGE)
            await first.lab.inside(site.cloud.world, send)
            assert len(await asyncio.to_thread(ear.heard)) == (20 if arrives else 0), source
    finally:
        ear.close()


async def test_a_guest_cannot_leave_as_somebody_else(site: Site) -> None:
    """Not even where its port allows it the address."""
    guest = site.guests["red1"]
    ear = await guest.lab.inside(site.cloud.world, partial(probes.Ear, OUTSIDE_PORT))
    sources = {
        "own": (address_of(site, "red1"), 20),
        "of another node's guest": (address_of(site, "red2"), 0),
        "free one of the subnet": (RED6[0x99], 0),
        "of no routed subnet": (address_of(site, "blue1"), 0),
        "of another tenant's": (IPv6Address("2001:db8:100:8::5"), 0),
        "the outside's": (WORLD_GATEWAY6, 0),
    }
    _, port = site.at("red1")
    pairs = tuple(AddressPair(IPv6Network(source)) for source, _ in sources.values())
    allowed = replace(port, allowed_pairs=pairs)
    site.placed = [(node, allowed if one is port else one) for node, one in site.placed]
    await site.apply()
    mac = gateway_pair(site.red.uid).inner_mac
    try:
        for name, (source, arrived) in sources.items():
            frame = frames.udp6(mac, guest.port.mac, source, FAR_HOST6, OUTSIDE_PORT)
            await guest.lab.inside(guest.namespace, partial(probes.send_frames, [frame] * 20))
            assert len(await asyncio.to_thread(ear.heard)) == arrived, name
    finally:
        ear.close()


async def test_the_outside_is_told_what_is_too_big(site: Site) -> None:
    """A guest's link carries less than the outside's; the router says so, from an address that may leave."""
    guest = site.guests["red1"]
    ear = await guest.lab.inside(guest.namespace, partial(probes.Ear, PORT))
    send = partial(_send_until_told, guest.address(6), 1500 - _HEADERS)
    try:
        assert await guest.lab.inside(site.cloud.world, send)
        heard = await asyncio.to_thread(ear.heard)
        assert [len(one) for one in heard] == [site.red.mtu - _HEADERS]
    finally:
        ear.close()


async def test_an_address_moves_with_its_port_and_the_outside_knows_at_once(site: Site) -> None:
    first, second = site.cloud.nodes
    address = address_of(site, "red1")
    _, port = site.at("red1")
    guest = site.guests["red1"]
    await first.lab.run(first.lab.host, "ip", "link", "del", names.tap_name(port.uid))
    site.placed = [(second if one is port else node, one) for node, one in site.placed]
    await site.apply()
    site.guests["red1"] = await boot(second.lab, second.net, site.red, port)
    assert guest.namespace != site.guests["red1"].namespace
    await site.check()
    assert await pinged(site, address, tries=3)
    assert await seen_by_guest(site, "red1") == str(FAR_HOST6)


async def test_a_node_hears_who_else_announces_its_address(site: Site) -> None:
    """Neighbours on the link only, and not those that merely answer a question."""
    first, second = site.cloud.nodes
    red1, theirs, place = address_of(site, "red1"), FIRST_MAC[:-1] + "2", (WORLD, 6)
    ear = (await first.net.ears([place]))[place]
    assert (await first.net.ears([place]))[place] is ear
    try:
        await second.net.announce(WORLD, red1)
        assert await _heard(ear) == (theirs, red1)
        answer = frames.neighbour_advert(theirs, FIRST_MAC, red1, IPv6Address("ff02::1"), red1)
        from_afar = answer[:21] + b"\x40" + answer[22:]
        for frame, heard in ((from_afar, None), (answer, (theirs, red1))):
            await second.lab.inside(second.lab.host, partial(probes.send_frames, [frame], WORLD_LINK))
            assert await _heard(ear) == heard
    finally:
        ear.socket.close()


async def _heard(ear: Ear) -> object:
    ready, _, _ = await asyncio.to_thread(select.select, [ear.socket], [], [], 2.0)
    assert ready
    return ear.hear()


async def test_nothing_is_left_when_the_subnet_is_no_longer_routed(site: Site) -> None:
    first = site.cloud.nodes[0]
    red1 = address_of(site, "red1")
    site.routed = ()
    await site.apply()
    await site.check()
    await _is_clean(first, red1)
    assert not await pinged(site, red1)
    assert await site.ping("red1", address_of(site, "blue2"), tries=2)  # within the router nothing changed
    await first.net.ensure_router_absent(site.router.uid)
    await _is_clean(first, red1)


async def _is_clean(node: Node, address: IPv6Address) -> None:
    for words in (("neigh", "show", "proxy"), ("route", "show", "table", "all"), ("rule", "show")):
        shown = await node.lab.run(node.lab.host, "ip", "-6", *words)
        assert str(address) not in shown.stdout
        assert "199" not in shown.stdout.split()
        assert str(RED6) not in shown.stdout
    listing = await node.lab.run(node.lab.host, "nft", "list", "set", "inet", "cumulet", "routed")
    assert str(address) not in listing.stdout
    assert await _setting(node, "conf/all/forwarding") == "0"  # it was off before


async def test_a_node_without_ipv6_on_its_link_says_so(site: Site) -> None:
    first = site.cloud.nodes[0]
    await _set(first, f"conf/{WORLD_LINK}/disable_ipv6", "1")
    with pytest.raises(DriverError, match=r"IPv6 is off on ext0 \(world\)") as refused:
        await first.net.ensure_router(site.router_on(first))
    assert refused.value.reason == "UplinkWithoutIPv6"
    assert (await first.net.observe_net()).routers == {site.router.uid: ""}
    assert await site.ping("red1", address_of(site, "blue2"), tries=2)
    await _set(first, f"conf/{WORLD_LINK}/disable_ipv6", "0")
    await site.apply()
    await site.check()
    assert await pinged(site, address_of(site, "red1"), tries=SETTLED)


def _damages(site: Site) -> dict[str, tuple[str, ...]]:
    """Commands on the first node, or inside the router's part there where the name says so."""
    red1, uplink = str(address_of(site, "red1")), names.uplink_name(site.router.uid)
    table, near, ours = str(external.table_of(ROUTED)), str(RED6), ("proto", "199")
    ip = ("ip", "-6")
    return {
        "nobody answers": (*ip, "neigh", "del", "proxy", red1, "dev", WORLD_LINK),
        "another link answers": (*ip, "neigh", "add", "proxy", red1, "dev", "eth0", *ours),
        "the link does not answer": ("sh", "-c", _write_setting(f"conf/{WORLD_LINK}/proxy_ndp", "0")),
        "nothing is forwarded": ("sh", "-c", _write_setting("conf/all/forwarding", "0")),
        "route gone": (*ip, "route", "del", red1, "table", "199"),
        "no rule for guests": (*ip, "rule", "del", "pref", "16999"),
        "the node routes everybody": (*ip, "rule", "del", "pref", "17002"),
        "one address more": (
            *(*ip, "route", "add", str(RED6[0x99]), "via", "fe80::2", "dev", uplink),
            *("table", "199", *ours),
        ),
        "no hop to the router": (*ip, "neigh", "del", "fe80::2", "dev", uplink),
        "no IPv6 to the router": ("sh", "-c", _write_setting(f"conf/{uplink}/disable_ipv6", "1")),
        "no way out": (*ip, "route", "flush", "table", table),
        "no rule for the way out": (*ip, "rule", "del", "pref", "17001", "from", near),
        "no rule for near ones": (*ip, "rule", "del", "pref", "17000", "from", near),
        "not let through": ("nft", "flush", "set", "inet", "cumulet", "routed"),
        "inside: no hop to the node": (*ip, "neigh", "del", "fe80::1", "dev", "up0"),
        "inside: no way out": (*ip, "route", "del", "default"),
        "inside: no IPv6": ("sh", "-c", _write_setting("conf/up0/disable_ipv6", "1")),
    }


async def test_every_damage_is_noticed_and_put_back(site: Site) -> None:
    first = site.cloud.nodes[0]
    red1 = address_of(site, "red1")
    for name, command in _damages(site).items():
        where = site.namespace(first) if name.startswith("inside:") else first.lab.host
        done = await first.lab.run(where, *command)
        assert done.returncode == 0, (name, done.stderr)
        with pytest.raises(AssertionError):
            await site.check()
        await site.apply_on(first)
        await site.check()
        assert await pinged(site, red1, tries=3), name
        assert await seen_outside(site, "red1") == str(red1), name


# -- the operator's own -----------------------------------------------------------------------------------

ADVERTISED = IPv6Network("2001:db8:0:5::/64")


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "control"])
async def test_the_operators_advertised_address_and_route_stay(kept: bool) -> None:
    """Of the link to the outside, and of another one that has nothing to do with it. The control: what the
    kernel does when forwarding is turned on just so."""
    async with open_site(red_ranges=RED, blue_ranges=BLUE) as site:
        first = site.cloud.nodes[0]
        speakers = {WORLD_LINK: (site.cloud.world, WORLD_BRIDGE), "eth0": (first.lab.outside, "eth0")}
        for link, (where, mouth) in speakers.items():
            await first.lab.inside(where, partial(_advertise, mouth))
            await _has_advertised(first, link, there=True)
        before = {name: await _setting(first, f"conf/{name}/forwarding") for name in ("eth0", "default")}
        if not kept:
            await _set(first, "conf/all/forwarding", "1")
        site.routed = (ROUTED,)
        await site.apply()
        assert await pinged(site, address_of(site, "red1"), tries=SETTLED)
        for link, (where, mouth) in speakers.items():
            await _has_advertised(first, link, there=kept)
            if kept:  # and hears the next one
                await first.lab.inside(where, partial(_advertise, mouth, lifetime_s=0))
                await _has_advertised(first, link, there=False)
        if kept:
            after = {name: await _setting(first, f"conf/{name}/forwarding") for name in before}
            assert after == before == {"eth0": "0", "default": "0"}


@pytest.mark.parametrize("was_router", [False, True], ids=["host", "router"])
async def test_a_node_that_was_no_router_does_not_become_one(was_router: bool) -> None:
    """Between its own links; the control is a node that was one before."""
    async with open_site(red_ranges=RED, blue_ranges=BLUE) as site:
        first = site.cloud.nodes[0]
        behind = IPv6Address("2001:db8:e::2")
        for where, words in (
            (first.lab.host, ("ip", "address", "add", "2001:db8:e::1/64", "dev", "eth0", "nodad")),
            (first.lab.host, ("ip", "address", "add", "2001:db8:100::2/48", "dev", WORLD_LINK, "nodad")),
            (first.lab.host, ("ip", "-6", "route", "add", f"{FAR_HOST6}/128", "via", str(WORLD_GATEWAY6))),
            (first.lab.outside, ("ip", "address", "add", f"{behind}/64", "dev", "eth0", "nodad")),
            (first.lab.outside, ("ip", "-6", "route", "add", "default", "via", "2001:db8:e::1")),
            (site.cloud.world, ("ip", "-6", "route", "add", f"{behind}/128", "via", "2001:db8:100::2")),
        ):
            done = await first.lab.run(where, *words)
            assert done.returncode == 0, (words, done.stderr)
        if was_router:
            await _set(first, "conf/all/forwarding", "1")
        site.routed = (ROUTED,)
        await site.apply()
        await site.check()
        assert await pinged(site, address_of(site, "red1"), tries=SETTLED)
        assert await pinged(site, behind, tries=SETTLED) == was_router
        await first.net.ensure_router_absent(site.router.uid)
        assert await _setting(first, "conf/all/forwarding") == ("1" if was_router else "0")


async def test_the_operators_own_bridges_carry_what_they_did(site: Site) -> None:
    """Their frames pass the host's rules for what is forwarded, too, where the bridge asks for it."""
    lab = site.cloud.nodes[0].lab
    asks = ("nf_call_ip6tables", "1", "nf_call_iptables", "1")
    shown = await lab.run(lab.host, "ip", "link", "add", "op0", "type", "bridge", *asks)
    assert shown.returncode == 0, shown.stderr
    ends = []
    for number in (1, 2):
        end = lab.netns_dir / f"operators-{number}"
        await asyncio.to_thread(netns.create, end)
        await asyncio.to_thread(join, lab.host, f"op{number}", end, "eth0", f"02:00:00:00:0a:0{number}")
        await asyncio.to_thread(configure, end, "eth0", IPv4Address(f"10.99.0.{number}"))
        address = ("ip", "address", "add", f"2001:db8:e::{number}/64", "dev", "eth0", "nodad")
        assert (await lab.run(end, *address)).returncode == 0
        assert (await lab.run(lab.host, "ip", "link", "set", f"op{number}", "master", "op0")).returncode == 0
        ends.append(end)
    await lab.run(lab.host, "ip", "link", "set", "op0", "up")
    for family, target in (("ipv6", "2001:db8:e::2"), ("ipv4", "10.99.0.2")):
        assert await lab.ping(ends[0], target, SETTLED)
        refusal = ("nft", "add", "rule", "inet", "cumulet", "forward", "meta", "nfproto", family, "drop")
        assert (await lab.run(lab.host, *refusal)).returncode == 0
        assert not await lab.ping(ends[0], target)  # the control: they do pass these rules


def _advertise(link: str, lifetime_s: int = 1800) -> None:
    frame = frames.router_advert("02:00:00:00:ff:03", IPv6Address("fe80::99"), ADVERTISED, lifetime_s)
    probes.send_frames([frame], link)


async def _has_advertised(node: Node, link: str, *, there: bool) -> None:
    """A default route by the link, of the kernel's own making; and the address, whatever becomes of that."""

    async def ailment() -> str:
        shown = await node.lab.run(node.lab.host, "ip", "-6", "route", "show", "default", "dev", link)
        held = await node.lab.run(node.lab.host, "ip", "-6", "address", "show", "dev", link)
        is_there = "proto ra" in shown.stdout
        problems = [] if is_there == there else [f"route: {shown.stdout!r}"]
        problems += [] if str(ADVERTISED[0])[:-1] in held.stdout else [f"address: {held.stdout!r}"]
        return ", ".join(problems)

    deadline = asyncio.get_running_loop().time() + 10.0
    while problem := await ailment():
        assert asyncio.get_running_loop().time() < deadline, problem
        await asyncio.sleep(0.05)


def _send_until_told(target: str, size: int) -> bool:
    """One that is too big; when the sender has been told what fits, one that does."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _AS_THE_PATH_SAYS)
        client.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        client.bind((str(FAR_HOST6), 0))
        client.connect((target, PORT))
        client.send(bytes(size))
        told = select.poll()
        told.register(client, select.POLLERR)
        if not told.poll(_ANSWER_MS):
            return False
        client.recvmsg(64, 512, socket.MSG_ERRQUEUE)
        client.send(bytes(client.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU) - _HEADERS))
        return True


def _write_setting(name: str, value: str) -> str:
    return f"echo {value} > /proc/sys/net/ipv6/{name}"


async def _setting(node: Node, name: str) -> str:
    return (await node.lab.run(node.lab.host, "cat", f"/proc/sys/net/ipv6/{name}")).stdout.strip()


async def _set(node: Node, name: str, value: str) -> None:
    assert (await node.lab.run(node.lab.host, "sh", "-c", _write_setting(name, value))).returncode == 0
