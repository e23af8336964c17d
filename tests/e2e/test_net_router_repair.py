"""Whatever somebody edits or deletes of a router is noticed by the next look and put back by one round."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv6Address, ip_network

import pytest

from agent.errors import DriverError
from agent.net import names
from agent.net.driver import RouteIntent
from agent.net.router_entries import peer_address, peer_mac
from tests.unit.agent_net.lab import with_port
from tests.unit.agent_net.routed import Site, open_site

STRANGER = "192.0.2.250"
_TRIES, _AGAIN_S = 100, 0.1
UNKNOWN_MAC = "52:54:00:ee:ee:ee"
NOBODY = "00:00:00:00:00:00"  # of a tunnel's entry for everybody


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with open_site() as made:
        yield made


def _damages(site: Site) -> dict[str, tuple[str, ...]]:
    """Commands that run inside the router's namespace, or on the node where the name says so."""
    address4, address6 = map(str, site.at("blue2")[1].addresses)
    vtep = site.cloud.nodes[1].address
    next_hop, mac = str(peer_address(vtep)), peer_mac(vtep)
    fdb, dst = ("bridge", "fdb"), ("dev", "vx0", "dst")
    return {
        "route gone": ("ip", "route", "del", address4),
        "IPv6 route gone": ("ip", "-6", "route", "del", address6),
        "route edited": ("ip", "route", "replace", "unreachable", address4),
        "IPv6 route edited": ("ip", "-6", "route", "replace", "unreachable", address6),
        "route of somebody": ("ip", "route", "add", "10.8.0.0/28", "dev", "up0"),
        "nobody's range open": ("ip", "route", "del", "unreachable", "10.8.0.0/24"),
        "no way out": ("ip", "route", "del", "default"),
        "neighbour gone": ("ip", "neigh", "del", next_hop, "dev", "vx0"),
        "neighbour edited": ("ip", "neigh", "replace", next_hop, "lladdr", UNKNOWN_MAC, "dev", "vx0"),
        "entry gone": (*fdb, "del", mac, *dst, str(vtep)),
        "entry edited": (*fdb, "replace", mac, *dst, STRANGER),
        "entry for everybody": (*fdb, "append", NOBODY, *dst, STRANGER),
        "tunnel gone": ("ip", "link", "del", "vx0"),
        "tunnel down": ("ip", "link", "set", "vx0", "down"),
        "tunnel too wide": ("ip", "link", "set", "vx0", "mtu", "1500"),
        "way out down": ("ip", "link", "set", "up0", "down"),
        "way out gone": ("ip", "link", "del", "up0"),
        "gateway gone": ("ip", "link", "del", names.inner_gateway_name(site.red.uid)),
        "gateway down": ("ip", "link", "set", names.inner_gateway_name(site.red.uid), "down"),
        "rules flushed": ("nft", "flush", "ruleset"),
        "rule added": ("nft", "add", "rule", "inet", "cumulet", "forward", "counter"),
        "not forwarding": ("sysctl", "-qw", "net.ipv4.ip_forward=0"),
        "not forwarding IPv6": ("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0"),
        "node: uplink gone": ("ip", "link", "del", names.uplink_name(site.router.uid)),
        "node: uplink's guard gone": ("nft", "flush", "set", "inet", "cumulet", "uplinks"),
        "node: peers gone": ("nft", "flush", "set", "inet", "cumulet-guard", "peers"),
        "node: rules flushed": ("nft", "flush", "ruleset"),
    }


async def test_every_damage_is_noticed_and_put_back(site: Site) -> None:
    first = site.cloud.nodes[0]
    for name, command in _damages(site).items():
        where = first.lab.host if name.startswith("node:") else site.namespace(first)
        done = await first.lab.run(where, *command)
        assert done.returncode == 0, (name, done.stderr)
        with pytest.raises(AssertionError):
            await site.check()
        await site.apply_on(first)
        await site.check()
        for address in site.at("blue2")[1].addresses:
            assert await site.ping("red1", address, tries=3), (name, address)


async def test_a_namespace_that_lost_its_name_is_made_anew(site: Site) -> None:
    """Servers keep the old one alive, and with it a tunnel of the same VNI."""
    first = site.cloud.nodes[0]
    done = await first.lab.run(first.lab.host, "umount", str(site.namespace(first)))
    assert done.returncode == 0, done.stderr
    with pytest.raises(AssertionError):
        await site.check()
    await _apply_until_done(site)
    await site.check()
    for address in site.at("blue2")[1].addresses:
        assert await site.ping("red1", address, tries=3)


async def _apply_until_done(site: Site) -> None:
    """As an agent that tries again: the kernel takes a namespace down after its last process, at leisure."""
    for _ in range(_TRIES):
        try:
            await site.apply()
        except DriverError:
            await asyncio.sleep(_AGAIN_S)
        else:
            return
    raise AssertionError("the router was not made anew")


async def test_a_route_that_the_kernel_refuses_holds_up_no_other(site: Site) -> None:
    """A static route by a multicast address, which no border has caught, among a good one and a new port."""
    first, second = site.cloud.nodes
    good = RouteIntent(ip_network("192.168.0.0/24"), vtep=second.address)
    bad = RouteIntent(ip_network("2001:db8:bad::/48"), None, IPv6Address("ff02::1"), site.red.uid)
    site.placed.append((second, with_port(site.blue, 77, "more")[1]))
    site.static[first.address] = (good, bad)
    with pytest.raises(DriverError, match=site.router.uid):
        await site.apply_on(first)
    shown = await first.lab.run(site.namespace(first), "ip", "route")
    assert "192.168.0.0/24" in shown.stdout
    assert "10.8.0.77" in shown.stdout
    site.static[first.address] = (good,)
    await site.apply_on(first)
    await site.check()
