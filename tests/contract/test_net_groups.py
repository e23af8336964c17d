"""The network driver's contract for security groups, over the fake and over this machine's kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from typing import Any

import pytest

from agent.errors import DriverError
from agent.net.driver import GroupIntent, digest_of_group
from tests.support.net import World
from tests.unit.agent_net.lab import network_intent, new_uid, with_port
from tests.unit.agent_net.neighbours import all_out, group, in_groups, rule, with_ports

WEB = group(*all_out(), rule("in", "tcp", (80, 90), cidr="10.0.0.0/8"), members=["10.7.0.5", "2001:db8::5"])


async def test_a_group_is_there_under_its_digest_and_goes(world: World) -> None:
    network, port = with_port(network_intent(), 5)
    await world.net.ensure_network(network)
    await world.net.ensure_port(in_groups(port, WEB.uid))
    assert (await world.net.observe_net()).groups == {}
    await world.net.ensure_group(WEB)
    once = await world.net.observe_net()
    assert once.groups == {WEB.uid: digest_of_group(WEB)}
    await world.net.ensure_group(WEB)
    assert await world.net.observe_net() == once
    await world.net.ensure_group_absent(WEB.uid)
    await world.net.ensure_group_absent(WEB.uid)
    assert (await world.net.observe_net()).groups == {}
    for uid in (port.uid,):
        await world.net.ensure_port_absent(uid)
    await world.net.ensure_network_absent(network.uid)
    assert (await world.net.observe_net()).items == ()


async def test_every_change_changes_the_digest(world: World) -> None:
    friends = group(members=["10.7.0.9"])
    changes = (
        WEB,
        replace(WEB, members=WEB.members | {IPv4Address("10.7.0.77")}),
        replace(WEB, members=frozenset()),
        replace(WEB, rules=WEB.rules[:2]),
        replace(WEB, rules=(rule("in", "udp", (5, 5), remote=friends.uid),)),
        replace(WEB, rules=()),
    )
    for wanted in (*changes, WEB):
        await world.net.ensure_group(wanted)
        assert (await world.net.observe_net()).groups == {WEB.uid: digest_of_group(wanted)}, wanted
    await world.net.ensure_group(friends)
    assert set((await world.net.observe_net()).groups) == {WEB.uid, friends.uid}


async def test_an_agent_restart_sees_the_same_groups(world: World) -> None:
    network, port = with_port(network_intent(), 5)
    port = in_groups(port, WEB.uid, new_uid())
    await world.net.ensure_group(WEB)
    await world.net.ensure_network(with_ports(network, port))
    await world.net.ensure_port(port)
    before = await world.net.observe_net()
    assert before.taps == {port.uid: True}
    again = world.restart()
    assert await again.observe_net() == before
    await again.ensure_group(WEB)
    assert await again.observe_net() == before


HOSTILE: tuple[tuple[str, object], ...] = (
    ("uid", 'a"; flush ruleset; #'),
    ("uid", ""),
    ("ip_version", 5),
    ("protocol", 256),
    ("port_max", 70_000),
    ("port_min", 99),
    ("icmp_type", 256),
    ("icmp_code", -1),
    ("remote_cidr", ip_network("2001:db8::/64")),
    ("remote_group", "../../etc"),
)


async def test_a_hostile_rule_is_refused_with_its_group(world: World) -> None:
    await world.net.ensure_group(WEB)
    sound = rule("in", "tcp", (80, 90))
    for field, value in HOSTILE:
        changed: dict[str, Any] = {field: value}
        hostile = replace(WEB, rules=(sound, replace(sound, **changed)))
        with pytest.raises(DriverError, match=WEB.uid) as refused:
            await world.net.ensure_group(hostile)
        assert (refused.value.reason, refused.value.permanent) == ("InvalidIntent", True), field
    with pytest.raises(DriverError, match="uid"):
        await world.net.ensure_group(GroupIntent("../../etc", (), frozenset()))
    assert (await world.net.observe_net()).groups == {WEB.uid: digest_of_group(WEB)}
