"""Security groups with guests' packets: what they let through, what they do not, and what ends with a rule.

Real kernel, real nft; guests are network namespaces behind ports of one node.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, ip_network

import pytest

from agent.errors import DriverError
from agent.net import conntrack, guest_rules, nft, security
from agent.net import rule_words as words
from agent.net.conntrack_wire import Connection
from agent.net.driver import AddressPair, GroupIntent, NetworkIntent, PortIntent, digest_of_group
from agent.net.kernel_driver import KernelNet
from agent.net.rule_words import TABLE, Json
from tests.unit.agent_net import probes
from tests.unit.agent_net.frames import ethernet
from tests.unit.agent_net.lab import Lab, network_intent, new_uid, open_lab, with_port
from tests.unit.agent_net.neighbours import Guest, all_out, boot, group, in_groups, rule, with_ports
from tests.unit.agent_net.span import open_cloud
from tests.unit.agent_net.spoofs import IPV4, udp4
from tests.unit.agent_net.talk import Talk

CIDR6 = "2001:db8:7::/64"
OPEN = (7000, 7005, 7010, 8000)


@dataclass(frozen=True, slots=True)
class World:
    lab: Lab
    net: KernelNet

    async def guests(self, *groups: tuple[str, ...], network: NetworkIntent | None = None) -> list[Guest]:
        """Guests of one dual-stack network, each in these groups."""
        network = network or network_intent(cidr6=CIDR6)
        ports: list[PortIntent] = []
        for number, uids in enumerate(groups, start=5):
            _, port = with_port(network, number)
            ports.append(in_groups(port, *uids))
        network = with_ports(network, *ports)
        await self.net.ensure_network(network)
        return [await boot(self.lab, self.net, network, port) for port in ports]

    async def groups(self, *groups: GroupIntent) -> None:
        for one in groups:
            await self.net.ensure_group(one)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with open_lab() as lab:
        net = lab.driver()
        try:
            yield World(lab, net)
        finally:
            await net.close()


async def _goes_on(talk: Talk) -> bool:
    return await asyncio.to_thread(talk.goes_on)


@pytest.mark.parametrize("version", [4, 6])
async def test_what_is_not_allowed_is_dropped_and_replies_pass(world: World, version: int) -> None:
    web = group(
        *all_out(),
        rule("in", "tcp", (7000, 7009), version=version),
        rule("in", "udp", (8000, 8000), version=version),
    )
    client = group(*all_out())
    await world.groups(web, client)
    a, b = await world.guests((client.uid,), (web.uid,))
    async with b.echoing(*OPEN), a.echoing(*OPEN):
        for kind, number in (("tcp", 7000), ("tcp", 7005), ("udp", 8000)):
            assert await a.reaches(b, kind, number, version)
            assert not await b.reaches(a, kind, number, version)
        for kind, number in (("tcp", 7010), ("udp", 7005), ("tcp", 8000)):
            assert not await a.reaches(b, kind, number, version)
        assert not await a.pings(b, version)
        await world.groups(replace(client, rules=(*all_out(), rule("in", version=version))))  # the control
        assert await b.reaches(a, "tcp", 7005, version)


async def test_a_port_in_no_group_talks_to_its_nodes_services_only(world: World) -> None:
    everything = group(*all_out(), rule("in"), rule("in", version=6))
    await world.groups(everything)
    nowhere, somewhere = await world.guests((), (everything.uid,))
    async with nowhere.echoing(*OPEN), somewhere.echoing(*OPEN):
        for version in (4, 6):
            assert not await nowhere.reaches(somewhere, "tcp", 7000, version)
            assert not await somewhere.reaches(nowhere, "tcp", 7000, version)
        found = await world.lab.inside(nowhere.namespace, partial(probes.ask_name, "10.7.0.1", "vm6"))
        assert found == [str(somewhere.port.addresses[0])]


async def test_egress_is_judged_too(world: World) -> None:
    open_in = group(rule("in"), rule("in", version=6))
    one_way = group(rule("out", "tcp", (7005, 7005), cidr="10.7.0.6/32"))
    await world.groups(open_in, one_way)
    a, b, c = await world.guests((one_way.uid,), (open_in.uid,), (open_in.uid,))
    async with b.echoing(*OPEN), c.echoing(*OPEN):
        assert await a.reaches(b, "tcp", 7005)
        assert not await a.reaches(b, "tcp", 7000)
        assert not await a.reaches(b, "udp", 7005)
        assert not await a.reaches(c, "tcp", 7005)  # not in the range
        assert not await a.reaches(b, "tcp", 7005, 6)  # not this IP version
        assert not await b.reaches(c, "tcp", 7005)  # no rule lets b begin anything


@pytest.mark.parametrize("version", [4, 6])
async def test_a_remote_group_is_who_is_in_it_now(world: World, version: int) -> None:
    friends = group()
    host = group(rule("in", "tcp", version=version, remote=friends.uid))
    client = group(*all_out())
    await world.groups(host, friends, client)
    a, b, c = await world.guests((client.uid, friends.uid), (host.uid,), (client.uid,))
    async with b.echoing(*OPEN):
        assert not await a.reaches(b, "tcp", 7000, version)
        await world.groups(replace(friends, members=frozenset(a.port.addresses)))
        assert await a.reaches(b, "tcp", 7000, version)
        assert not await c.reaches(b, "tcp", 7000, version)
        await world.groups(replace(friends, members=frozenset(c.port.addresses)))
        assert not await a.reaches(b, "tcp", 7000, version)
        assert await c.reaches(b, "tcp", 7000, version)


async def test_icmp_by_type(world: World) -> None:
    client = group(*all_out())
    echo = group(rule("in", "icmp", icmp=(8, 0)), rule("in", "icmpv6", version=6, icmp=(128, None)))
    other = group(rule("in", "icmp", icmp=(13, None)), rule("in", "icmpv6", version=6, icmp=(144, None)))
    await world.groups(client, echo, other)
    a, b, c = await world.guests((client.uid,), (echo.uid,), (other.uid,))
    assert [await a.pings(b), await a.pings(b, 6)] == [True, True]
    assert [await a.pings(c), await a.pings(c, 6)] == [False, False]


@pytest.mark.parametrize("kind", ["tcp", "udp"])
async def test_a_connection_ends_with_the_only_rule_that_allows_it(world: World, kind: str) -> None:
    client = group(*all_out())
    narrow, wide = rule("in", kind, (7000, 7000)), rule("in", kind, (6000, 8000), cidr="10.7.0.0/24")
    host = group(narrow, wide)
    await world.groups(client, host)
    a, b = await world.guests((client.uid,), (host.uid,))
    async with b.echoing(*OPEN):
        talk = await a.begin(b, kind, 7000)
        assert await _goes_on(talk)
        await world.groups(replace(host, rules=(wide,)))
        assert await _goes_on(talk)  # another rule still allows it
        await world.groups(replace(host, rules=(rule("in", kind, (7005, 7005)),)))
        assert not await _goes_on(talk)
        talk.close()


async def test_a_connection_ends_with_membership_and_with_the_ports_groups(world: World) -> None:
    friends = group()
    client, host = group(*all_out()), group(rule("in", "udp", remote=friends.uid))
    await world.groups(client, host, friends)
    a, b = await world.guests((client.uid, friends.uid), (host.uid,))
    await world.groups(replace(friends, members=frozenset(a.port.addresses)))
    async with b.echoing(*OPEN):
        talk = await a.begin(b, "udp", 7000)
        assert await _goes_on(talk)
        await world.groups(replace(friends, members=frozenset()))
        assert not await _goes_on(talk)
        await world.groups(replace(friends, members=frozenset(a.port.addresses)))
        assert await _goes_on(talk)
        network = network_intent(cidr6=CIDR6, uid=a.port.network_uid)
        await world.net.ensure_network(with_ports(network, a.port, in_groups(b.port, client.uid)))
        assert not await _goes_on(talk)
        talk.close()


async def test_a_port_does_not_inherit_connections_with_an_address(world: World) -> None:
    client, host, closed = group(*all_out()), group(rule("in", "udp")), group(*all_out())
    await world.groups(client, host, closed)
    a, b = await world.guests((client.uid,), (host.uid,))
    heir = replace(in_groups(b.port, closed.uid), uid=new_uid())
    network = network_intent(cidr6=CIDR6, uid=a.port.network_uid)
    async with b.echoing(*OPEN):
        talk = await a.begin(b, "udp", 7000)
        assert await _goes_on(talk)
    await world.net.ensure_port_absent(b.port.uid)
    await world.net.ensure_network(with_ports(network, a.port, heir))
    c = await boot(world.lab, world.net, network, heir)
    async with c.echoing(*OPEN):
        assert not await _goes_on(talk)
        await world.groups(replace(closed, rules=(rule("in", "udp"),)))  # the control
        assert await _goes_on(talk)
        talk.close()


async def test_tenants_with_the_same_addresses_do_not_meet(world: World) -> None:
    """One's connection says nothing about the other's: the same addresses and ports, in another zone."""
    client, host, closed = group(*all_out()), group(rule("in", "udp", (7000, 7000))), group()
    await world.groups(client, host, closed)
    a, b = await world.guests((client.uid,), (host.uid,), network=network_intent(vni=1))
    c, d = await world.guests((client.uid,), (closed.uid,), network=network_intent(vni=2))
    assert (a.address(), b.address()) == (c.address(), d.address())
    async with b.echoing(*OPEN), d.echoing(*OPEN):
        asked = [await one.reaches(two, "udp", 7000, 4, 40_000) for one, two in ((a, b), (c, d), (a, b))]
        assert asked == [True, False, True]
        await world.groups(replace(closed, rules=(rule("in", "udp", (7000, 7000)),)))  # the control
        assert await c.reaches(d, "udp", 7000, 4, 40_000)


async def test_a_port_reaches_its_nodes_services_and_nothing_else(world: World) -> None:
    """In a group that nobody told the node of, and in one without rules."""
    empty = group()
    await world.groups(empty)
    a, b, c = await world.guests((new_uid(),), (empty.uid,), (empty.uid,))
    network_gateway = "10.7.0.1"
    for guest in (a, b):
        assert await world.lab.dhcp(guest.namespace) is not None
        assert await guest.pings(network_gateway)
        assert await guest.pings("2001:db8:7::1")
        asked = await world.lab.inside(guest.namespace, partial(probes.ask_name, network_gateway, "vm6"))
        assert asked == ["10.7.0.6"]
    async with c.echoing(*OPEN):
        assert not await a.reaches(c, "tcp", 7000)
        assert not await a.pings(c)
    from_gateway = world.lab.netns_dir / f"cumulet-{a.port.network_uid}"
    assert not await world.lab.ping(from_gateway, a.address())
    await world.groups(replace(empty, rules=(rule("in", "icmp"),)))
    assert await world.lab.ping(from_gateway, b.address())  # the control


async def test_one_group_that_the_kernel_refuses_holds_up_no_other(world: World) -> None:
    bad, good = group(rule("in", "tcp")), group(rule("in", "tcp", (7000, 7000)))
    client = group(*all_out())
    await world.groups(client)
    a, b, c = await world.guests((client.uid,), (good.uid,), (bad.uid,))
    taken = {"family": "inet", "table": TABLE, "name": f"members4-{bad.uid}", "type": "mark"}
    await world.lab.inside(world.lab.host, partial(nft.commit, [{"add": {"set": taken}}]))
    with pytest.raises(DriverError, match=bad.uid) as refused:
        await world.groups(bad)
    assert refused.value.reason == nft.REFUSED
    await world.groups(good)
    async with b.echoing(*OPEN), c.echoing(*OPEN):
        assert await a.reaches(b, "tcp", 7000)
        assert not await a.reaches(c, "tcp", 7000)
    observed = await world.net.observe_net()
    assert observed.groups[good.uid] == digest_of_group(good)
    assert observed.groups.get(bad.uid) != digest_of_group(bad)


async def test_flushed_and_edited_groups_are_noticed_and_put_back(world: World) -> None:
    client, host = group(*all_out()), group(rule("in", "tcp", (7000, 7000)), members=["10.7.0.9"])
    await world.groups(client, host)
    a, b = await world.guests((client.uid,), (host.uid,))
    chain = {"family": "inet", "table": TABLE, "name": f"in-{host.uid}"}
    opened = {"family": "inet", "table": TABLE, "chain": f"in-{host.uid}", "expr": [{"accept": None}]}
    members = {"family": "inet", "table": TABLE, "name": f"members4-{host.uid}"}
    ports = security.ports_name([host.uid])
    edits: dict[str, Json] = {
        "rules flushed": {"flush": {"chain": chain}},
        "rule added": {"add": {"rule": opened}},
        "members flushed": {"flush": {"set": members}},
        "everything flushed": {"flush": {"ruleset": None}},
        "the ports' chain flushed": {"flush": {"chain": {**chain, "name": f"ports-in-{ports}"}}},
        "the zone's chain flushed": {"flush": {"chain": {**chain, "name": "zone-1"}}},
    }
    async with b.echoing(*OPEN):
        for name, edit in edits.items():
            await world.lab.inside(world.lab.host, partial(nft.commit, [edit]))
            assert (await world.net.observe_net()).groups[host.uid] != digest_of_group(host), name
            await world.groups(client, host)
            for one in (a, b):
                await world.net.ensure_port(one.port)
            seen = (await world.net.observe_net()).groups
            assert seen == {one.uid: digest_of_group(one) for one in (client, host)}, name
            assert await a.reaches(b, "tcp", 7000), name
            assert not await a.reaches(b, "tcp", 7005), name


async def test_removed_groups_leave_nothing(world: World) -> None:
    client, host = group(*all_out()), group(rule("in", "tcp", remote=new_uid()))
    await world.groups(client, host)
    a, b = await world.guests((client.uid,), (host.uid, new_uid()))
    for one in (a, b):
        await world.net.ensure_port_absent(one.port.uid)
    for uid in (client.uid, host.uid):
        await world.net.ensure_group_absent(uid)
    rules = await world.lab.run(world.lab.host, "nft", "list", "table", "inet", TABLE)
    assert not [line for line in rules.stdout.splitlines() if "in-" in line or "members" in line]
    assert (await world.net.observe_net()).groups == {}


async def test_one_guest_cannot_fill_the_table_of_connections(world: World) -> None:
    """With a smaller number in the same rule."""
    most, client, host = 50, group(*all_out()), group(rule("in", "udp"))
    await world.groups(client, host)
    a, b, c = await world.guests((client.uid,), (host.uid,), (client.uid,))
    services = {"family": "inet", "table": TABLE, "name": "services"}
    fewer = [{"flush": {"chain": services}}, words.rule("inet", "services", *guest_rules.too_many(most))]
    await world.lab.inside(world.lab.host, partial(nft.commit, fewer))
    ends = IPv4Address(a.address()), IPv4Address(b.address())
    packets = (udp4(*ends, (own, 9), b"") for own in range(1024, 1024 + 4 * most))
    frames = [ethernet(b.port.mac, a.port.mac, IPV4, packet) for packet in packets]
    async with b.echoing(*OPEN):
        assert await a.reaches(b, "udp", 7000)
        await world.lab.inside(a.namespace, partial(probes.send_frames, frames))
        tracked = await world.lab.inside(world.lab.host, partial(_count_connections, 1))
        assert most - 5 <= tracked <= most
        assert not await a.reaches(b, "udp", 7005)
        assert await c.reaches(b, "udp", 7005)  # another guest's connections are its own


def _count_connections(zone: int) -> int:
    seen: list[Connection] = []

    def note(connection: Connection) -> bool:
        seen.append(connection)
        return False

    assert conntrack.end_connections(zone, note) == 0
    return len(seen)


async def test_allowed_pairs_are_who_the_port_may_be_besides(world: World) -> None:
    everything = group(*all_out(), rule("in"), rule("in", version=6))
    await world.groups(everything)
    a, b = await world.guests((everything.uid,), (everything.uid,))
    pairs = (
        AddressPair(ip_network("10.7.0.100/32")),
        AddressPair(ip_network("10.7.0.128/28")),
        AddressPair(ip_network("10.7.0.128/30")),  # within the other
        AddressPair(ip_network("2001:db8:7::100/128")),
    )
    own = ("10.7.0.100", "10.7.0.129", "10.7.0.143", "2001:db8:7::100")
    others = ("10.7.0.101", "10.7.0.144", "2001:db8:7::101")
    for address in (*own, *others):
        length = "64" if ":" in address else "24"
        await world.lab.run(a.namespace, "ip", "addr", "add", f"{address}/{length}", "dev", "eth0")

    async def answers() -> list[str]:
        return [one for one in (*own, *others) if await world.lab.ping(b.namespace, one)]

    assert await answers() == []
    wide = network_intent(cidr6=CIDR6, uid=a.port.network_uid)
    paired = with_ports(wide, replace(a.port, allowed_pairs=pairs), b.port)
    await world.net.ensure_network(paired)
    assert await answers() == list(own)
    assert (await world.net.observe_net()).networks[wide.uid].complete
    await world.net.ensure_network(with_ports(wide, a.port, b.port))
    for one in own:
        await world.lab.run(b.namespace, "ip", "neigh", "flush", "dev", "eth0")
        assert not await world.lab.ping(b.namespace, one)


@pytest.mark.parametrize("version", [4, 6])
async def test_groups_judge_at_both_ends_of_a_tunnel(version: int) -> None:
    """The sender's rules on its node, the receiver's on the other; each node has half of what is allowed."""
    friends = group()
    client = group(*all_out())
    host = group(rule("in", "tcp", (7000, 7000), version=version, remote=friends.uid))
    async with open_cloud(2) as cloud:
        network, first_port = with_port(network_intent(cidr6=CIDR6), 5)
        network, second_port = with_port(network, 6)
        first_port, second_port = in_groups(first_port, client.uid), in_groups(second_port, host.uid)
        here, there = cloud.nodes
        await cloud.spread(network, (here, first_port), (there, second_port))
        for node in cloud.nodes:
            for one in (client, host, replace(friends, members=frozenset(first_port.addresses))):
                await node.net.ensure_group(one)
        a = await boot(here.lab, here.net, network, first_port)
        b = await boot(there.lab, there.net, network, second_port)
        async with a.echoing(*OPEN), b.echoing(*OPEN):
            assert await a.reaches(b, "tcp", 7000, version)
            assert not await a.reaches(b, "tcp", 7005, version)
            assert not await b.reaches(a, "tcp", 7000, version)
            talk = await a.begin(b, "tcp", 7000, version)
            assert await _goes_on(talk)
            await there.net.ensure_group(friends)  # nobody is in it any more
            assert not await _goes_on(talk)
            talk.close()
            await there.net.ensure_group(replace(friends, members=frozenset(first_port.addresses)))
            assert await a.reaches(b, "tcp", 7000, version)
            await here.net.ensure_group(replace(client, rules=()))
            assert not await a.reaches(b, "tcp", 7000, version)
