"""Load balancers: who gets a connection, from where, and what becomes of it when members change.

Real kernel, real tunnels; nodes, guests and the underlay between them are network namespaces.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import pytest

from agent.net import conntrack, names
from agent.net.balancer_rules import family_of, table_name
from agent.net.conntrack_wire import Connection
from agent.net.driver import IPAddress
from cumulet.addresses import part_address, part_address6
from tests.unit.agent_net import probes, talk
from tests.unit.agent_net.balanced import (
    TCP,
    UDP,
    VIP_PORT,
    VIPS,
    answering,
    asks,
    balance,
    balancer,
    member,
    members,
    open_balanced,
)
from tests.unit.agent_net.neighbours import all_out, group, rule
from tests.unit.agent_net.routed import PORT, Site

MEMBERS = ("red1", "red2", "blue1", "blue2")  # of both subnets, on two nodes


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> int:
    """Of the balancer and its members; guests have both."""
    return int(request.param)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with open_balanced() as made:
        yield made


async def test_connections_go_around_exactly_from_everywhere(site: Site, version: int) -> None:
    """Client and member in one subnet on one node and across nodes, in two; a client on a third node."""
    await balance(site, balancer(*members(site, *MEMBERS, version=version)))
    async with answering(site, *MEMBERS):
        for client in ("red11", "blue1", "red2", "red3", "blue3"):
            for protocol in (TCP, UDP):
                found = await asks(site, client, 40, protocol)
                assert found == dict.fromkeys(MEMBERS, 10), (client, protocol)
    assert [await site.invalid(node) for node in site.cloud.nodes] == [0, 0, 0]


async def test_each_connection_is_counted_once_for_its_listener(site: Site, version: int) -> None:
    made = balancer(*members(site, *MEMBERS, version=version))
    await balance(site, made)
    async with answering(site, *MEMBERS):
        await asks(site, "red3", 12, TCP)
        await asks(site, "red3", 5, UDP)
    counts = [(await node.net.net_stats()).routers[site.router.uid].listeners for node in site.cloud.nodes]
    packets = [{listener: count.packets for listener, count in found.items()} for found in counts]
    tcp, udp = (f"{made.uid}/{protocol}/{VIP_PORT}" for protocol in ("tcp", "udp"))
    assert packets == [{tcp: 0, udp: 0}, {tcp: 0, udp: 0}, {tcp: 12, udp: 5}]


async def test_by_source_a_client_has_one_member_on_every_node(site: Site, version: int) -> None:
    await balance(site, balancer(*members(site, *MEMBERS, version=version), by_source=True))
    seen: set[str] = set()
    async with answering(site, *MEMBERS):
        for client in ("red11", "blue1", "red2", "blue2", "red3", "blue3"):
            found = await asks(site, client, 20)
            assert list(found.values()) == [20], client
            seen |= found.keys()
    assert len(seen) > 1


async def test_a_member_may_be_its_own_client(site: Site, version: int) -> None:
    await balance(site, balancer(*members(site, "red1", "red2", version=version)))
    async with answering(site, "red1", "red2"):
        assert await asks(site, "red2", 20) == {"red1": 10, "red2": 10}


async def test_what_nobody_takes_is_refused(site: Site, version: int) -> None:
    """Without members, and where nobody listens; the address itself answers echo requests."""
    await balance(site, balancer(version=version))
    for port in (VIP_PORT, VIP_PORT + 1):
        assert await _error(site, "red3", VIPS[version], port) == "ConnectionRefusedError"
    assert await site.ping("red3", VIPS[version], tries=3)
    await balance(site, balancer(*members(site, "red1", version=version)))
    assert await _error(site, "red3", VIPS[version], VIP_PORT + 1) == "ConnectionRefusedError"
    async with answering(site, "red1"):
        assert await asks(site, "red3") == {"red1": 1}
    await balance(site)
    assert await _error(site, "red3", VIPS[version], VIP_PORT) != "ConnectionRefusedError"
    assert not await site.ping("red3", VIPS[version])


async def test_a_member_that_drains_keeps_what_it_has_and_one_that_goes_does_not(
    site: Site, version: int
) -> None:
    made = balancer(*members(site, "red1", version=version))
    await balance(site, made)
    async with answering(site, "red1", "blue2"):
        kept = await _begin(site, "red3", VIPS[version])
        assert kept.says() == "red1"
        draining = replace(
            made, members=(member(site, "red1", version, drain=True), member(site, "blue2", version))
        )
        await balance(site, draining)
        assert await asks(site, "red3", 10) == {"blue2": 10}
        assert kept.says() == "red1"
        await balance(site, replace(made, members=members(site, "blue2", version=version)))
        assert kept.says() == ""
        assert await asks(site, "red3", 10) == {"blue2": 10}
        other = await _begin(site, "red3", VIPS[version])
        assert other.says() == "blue2"
        await balance(site)
        assert other.says() == ""


async def test_who_is_down_gets_nothing_new_unless_all_are(site: Site, version: int) -> None:
    made = balancer(*members(site, "red1", "blue2", version=version))
    await balance(site, made)
    third = site.cloud.nodes[2]
    async with answering(site, "red1", "blue2"):
        kept = {
            made.says(): made
            for made in [await _begin(site, "red3", VIPS[version]), await _begin(site, "red3", VIPS[version])]
        }
        assert kept.keys() == {"red1", "blue2"}
        down = frozenset({member(site, "blue2", version).probed})
        await third.net.ensure_health(site.router.uid, made.uid, down)
        await site.check()
        assert await asks(site, "red3", 10) == {"red1": 10}
        assert kept["blue2"].says() == "blue2"
        assert await asks(site, "red2", 10) == {"red1": 5, "blue2": 5}  # another node's health is its own
        everybody = frozenset({one.probed for one in made.members})
        await third.net.ensure_health(site.router.uid, made.uid, everybody)
        assert await asks(site, "red3", 10) == {"red1": 5, "blue2": 5}
        assert await third.net.balancer_health(site.router.uid) == {made.uid: everybody}


async def test_members_groups_judge_the_true_client(site: Site, version: int) -> None:
    """On the node of the member, as if no balancer were between."""
    second, port = site.at("red2")
    allowed = site.guests["red3"].address(version)
    only = group(*all_out(), rule("in", "tcp", (PORT, PORT), cidr=allowed, version=version))
    await second.net.ensure_group(only)
    judged = replace(port, security_groups=(only.uid,))
    site.placed[site.placed.index((second, port))] = (second, judged)
    await balance(site, balancer(*members(site, "red2", version=version)))
    await second.net.ensure_port(judged)
    async with answering(site, "red2"):
        assert await asks(site, "red3", 5) == {"red2": 5}
        assert await asks(site, "red11", 2) == {"": 2}


async def test_a_client_that_may_reach_the_balancer_only_keeps_its_connection_when_groups_change(
    site: Site, version: int
) -> None:
    """Client and member are on one node and in one subnet, so their network knows both connections."""
    first, port = site.at("red11")
    only = group(rule("out", "tcp", cidr=str(VIPS[version]), version=version))
    await first.net.ensure_group(only)
    judged = replace(port, security_groups=(only.uid,))
    site.placed[site.placed.index((first, port))] = (first, judged)
    made = balancer(*members(site, "red1", version=version))
    await balance(site, made)
    await first.net.ensure_port(judged)
    async with answering(site, "red1"):
        kept = await _begin(site, "red11", VIPS[version])
        assert kept.says() == "red1"
        before = await first.lab.inside(first.lab.host, _to_members)
        assert len(before) == 1
        more = replace(
            only, rules=(*only.rules, rule("out", "udp", cidr=str(VIPS[version]), version=version))
        )
        for changed in (more, only):
            await first.net.ensure_group(changed)
            assert await first.lab.inside(first.lab.host, _to_members) == before
            assert kept.says() == "red1"
        await first.net.ensure_group(replace(only, rules=more.rules[1:]))
        assert kept.says() == ""


async def test_a_damaged_table_is_noticed_and_put_back_while_connections_go_on(
    site: Site, version: int
) -> None:
    made = balancer(*members(site, "red1", "blue2", version=version))
    await balance(site, made)
    second, third = site.cloud.nodes[1:]
    vip, part = VIPS[version], str((part_address if version == 4 else part_address6)(second.address))
    damages: dict[str, tuple[str, ...]] = {
        "flushed": ("nft", "flush", "ruleset"),
        "gone": ("nft", "delete", "table", family_of(made), table_name(made.uid)),
        "edited": ("nft", "add", "rule", family_of(made), table_name(made.uid), "prerouting", "counter"),
        "address gone": ("ip", "address", "del", f"{vip}/{vip.max_prefixlen}", "dev", "lo"),
        "address of somebody": ("ip", "address", "add", f"{vip + 1}/{vip.max_prefixlen}", "dev", "lo"),
        "route to a part gone": ("ip", f"-{version}", "route", "del", part),
    }
    if version == 6:
        gateway = names.inner_gateway_name(site.red.uid)
        damages |= {
            "address gone from the gateway": ("ip", "address", "del", f"{vip}/128", "dev", gateway),
            "no IPv6 on the loopback": ("sysctl", "-w", "net.ipv6.conf.lo.disable_ipv6=1"),
        }
    async with answering(site, "red1", "blue2"):
        kept = await _begin(site, "red3", VIPS[version])
        name = kept.says()
        assert name
        for what, command in damages.items():
            done = await third.lab.run(site.namespace(third), *command)
            assert done.returncode == 0, (what, done.stderr)
            with pytest.raises(AssertionError):
                await site.check()
            if what != "flushed":  # without any translation the namespace itself would answer, and end it
                assert kept.says() == name, what
            await site.apply_on(third)
            await site.check()
            assert kept.says() == name, what
            assert await asks(site, "red3", 10) == {"red1": 5, "blue2": 5}, what


async def test_who_looks_for_the_address_is_heard_by_its_own_node_only(site: Site, version: int) -> None:
    """Not by guests of its network on another node."""
    made = balancer(*members(site, "blue2", version=version))
    await balance(site, made)
    first, asker, other = site.cloud.nodes[0], site.guests["red1"], site.guests["red2"]
    link, target = names.inner_gateway_name(site.red.uid), made.address.packed
    near = await first.lab.inside(site.namespace(first), partial(probes.Ear, link=link))
    far = await other.lab.inside(other.namespace, probes.Ear)
    try:
        await asker.lab.run(asker.namespace, "ip", "neigh", "flush", "dev", "eth0")
        assert await site.ping("red1", made.address, tries=3)
        assert any(_asks_who_has(frame, target) for frame in await asyncio.to_thread(near.heard))
        assert not any(target in frame for frame in await asyncio.to_thread(far.heard))
    finally:
        near.close()
        far.close()


async def test_a_networks_own_server_does_not_notice(site: Site, version: int) -> None:
    """DHCP and DNS go on when a balancer comes and goes."""
    third = site.cloud.nodes[2]
    before = third.lab.server_pid(site.red)
    assert before is not None
    await balance(site, balancer(version=version))
    await balance(site)
    assert third.lab.server_pid(site.red) == before


async def test_an_agent_that_starts_anew_touches_nothing(site: Site, version: int) -> None:
    made = balancer(*members(site, "red1", "blue2", version=version))
    await balance(site, made)
    third = site.cloud.nodes[2]
    down = frozenset({made.members[0].probed})
    await third.net.ensure_health(site.router.uid, made.uid, down)
    async with answering(site, "red1", "blue2"):
        kept = await _begin(site, "red3", VIPS[version])
        await third.net.close()
        assert kept.says() == "blue2"
        third.net = third.lab.driver()
        seen = (await third.net.observe_net()).routers[site.router.uid]
        assert seen == (await site.cloud.nodes[0].net.observe_net()).routers[site.router.uid]
        before = await third.lab.run(site.namespace(third), "nft", "-a", "list", "ruleset")
        await site.apply_on(third)
        after = await third.lab.run(site.namespace(third), "nft", "-a", "list", "ruleset")
        assert Counter(_handles(after.stdout)) == Counter(_handles(before.stdout))
        assert await third.net.balancer_health(site.router.uid) == {made.uid: down}
        assert kept.says() == "blue2"
        assert await asks(site, "red3", 5) == {"blue2": 5}


def _asks_who_has(frame: bytes, target: bytes) -> bool:
    """A question of ARP, or one of ND to all nodes with the address's last bits."""
    is_question = frame[12:14] == b"\x08\x06" or (frame[12:14] == b"\x86\xdd" and frame[54] == 135)
    return is_question and target in frame


def _to_members() -> set[bytes]:
    """What networks of the calling thread's node know of connections to a member's port; each has an id."""
    found: set[bytes] = set()

    def note(connection: Connection) -> bool:
        if connection.second == PORT:
            found.add(connection.key)
        return False

    for zone in (1, 2):  # red's and blue's
        conntrack.end_connections(zone, note)
    return found


def _handles(listing: str) -> list[str]:
    return [line.rpartition("# handle ")[2] for line in listing.splitlines() if "# handle " in line]


class _Open(talk.Talk):
    def says(self) -> str:
        """The name of whoever is at the other end; empty for nobody."""
        try:
            self._socket.send(b"who?")
            return self._socket.recv(64).decode()
        except OSError:
            return ""


async def _begin(site: Site, source: str, vip: IPAddress) -> _Open:
    guest = site.guests[source]
    return await guest.lab.inside(guest.namespace, partial(_Open, "tcp", str(vip), VIP_PORT))


async def _error(site: Site, source: str, vip: IPAddress, port: int) -> str:
    guest = site.guests[source]

    def connect() -> str:
        family = socket.AF_INET if vip.version == 4 else socket.AF_INET6
        with socket.socket(family) as client:
            client.settimeout(1.0)
            try:
                client.connect((str(vip), port))
            except OSError as err:
                return type(err).__name__
        return ""

    return await guest.lab.inside(guest.namespace, connect)
