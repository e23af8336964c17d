"""The network driver's contract, over the fake and over this machine's kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

import pytest

from agent.errors import DriverError
from agent.net import names
from agent.net.directory import digest_of_directory
from agent.net.driver import RemotePort, SubnetIntent, digest_of
from tests.support.net import World
from tests.unit.agent_net.lab import network_intent, new_uid, with_port


async def test_an_untouched_node_has_nothing(world: World) -> None:
    observed = await world.net.observe_net()
    assert (observed.networks, observed.taps, observed.leased, observed.items) == ({}, {}, frozenset(), ())
    assert observed.directories == {}


async def test_a_network_is_complete_under_its_digest(world: World) -> None:
    network = network_intent()
    await world.net.ensure_network(network)
    observed = await world.net.observe_net()
    assert observed.networks[network.uid].complete
    assert observed.networks[network.uid].digest == digest_of(network)
    assert {owner for _, _, owner in observed.items} == {network.uid}
    assert {"bridge", "veth", "namespace", "dhcp-server"} <= {kind for kind, _, _ in observed.items}


async def test_ensure_twice_is_once(world: World) -> None:
    network, port = with_port(network_intent(), 5)
    await world.net.ensure_network(network)
    await world.net.ensure_port(port)
    once = await world.net.observe_net()
    await world.net.ensure_network(network)
    await world.net.ensure_port(port)
    assert await world.net.observe_net() == once


async def test_a_changed_intent_changes_the_digest(world: World) -> None:
    network = network_intent()
    await world.net.ensure_network(network)
    wider = replace(
        network,
        subnets=(
            *network.subnets,
            SubnetIntent(new_uid(), IPv4Network("10.8.0.0/24"), IPv4Address("10.8.0.1"), ()),
        ),
        outbound_nat=False,
    )
    await world.net.ensure_network(wider)
    seen = (await world.net.observe_net()).networks[network.uid]
    assert (seen.complete, seen.digest) == (True, digest_of(wider))
    await world.net.ensure_network(network)
    seen = (await world.net.observe_net()).networks[network.uid]
    assert (seen.complete, seen.digest) == (True, digest_of(network))


async def test_a_port_needs_its_network(world: World) -> None:
    _, port = with_port(network_intent(), 5)
    with pytest.raises(DriverError, match=port.uid) as refused:
        await world.net.ensure_port(port)
    assert refused.value.reason == "NetworkMissing"
    assert (await world.net.observe_net()).taps == {}


async def test_a_tap_is_there_and_goes(world: World) -> None:
    network, port = with_port(network_intent(), 5)
    await world.net.ensure_network(network)
    assert (await world.net.observe_net()).taps == {}
    await world.net.ensure_port(port)
    observed = await world.net.observe_net()
    assert observed.taps == {port.uid: True}
    assert ("tap", names.tap_name(port.uid), port.uid) in observed.items
    assert observed.networks[network.uid].complete
    assert observed.leased == frozenset()
    await world.net.ensure_port_absent(port.uid)
    observed = await world.net.observe_net()
    assert observed.taps == {}
    assert {owner for _, _, owner in observed.items} == {network.uid}


async def test_removing_what_is_not_there_is_no_error(world: World) -> None:
    await world.net.ensure_port_absent(new_uid())
    await world.net.ensure_network_absent(new_uid())
    assert (await world.net.observe_net()).items == ()


async def test_a_network_goes_and_leaves_the_other(world: World) -> None:
    first, second = network_intent(vni=1), network_intent(vni=2)
    for network in (first, second):
        await world.net.ensure_network(network)
    await world.net.ensure_network_absent(first.uid)
    observed = await world.net.observe_net()
    assert set(observed.networks) == {second.uid}
    assert observed.networks[second.uid].complete
    await world.net.ensure_network_absent(second.uid)
    assert (await world.net.observe_net()).items == ()


async def test_a_tap_without_its_network_hangs_and_comes_back(world: World) -> None:
    network, port = with_port(network_intent(), 5)
    await world.net.ensure_network(network)
    await world.net.ensure_port(port)
    await world.net.ensure_network_absent(network.uid)
    assert (await world.net.observe_net()).taps == {port.uid: False}
    await world.net.ensure_network(network)
    await world.net.ensure_port(port)
    assert (await world.net.observe_net()).taps == {port.uid: True}
    await world.net.ensure_network_absent(network.uid)
    await world.net.ensure_port_absent(port.uid)
    assert (await world.net.observe_net()).items == ()


async def test_a_tap_whose_port_left_the_intent_is_out_of_place(world: World) -> None:
    network, stays = with_port(network_intent(), 5)
    network, leaves = with_port(network, 6)
    await world.net.ensure_network(network)
    for port in (stays, leaves):
        await world.net.ensure_port(port)
    await world.net.ensure_network(replace(network, ports=(stays,)))
    observed = await world.net.observe_net()
    assert observed.taps == {stays.uid: True, leaves.uid: False}
    assert observed.networks[network.uid].complete
    await world.net.ensure_port_absent(leaves.uid)
    assert (await world.net.observe_net()).taps == {stays.uid: True}


async def test_an_agent_restart_sees_the_same(world: World) -> None:
    network, port = with_port(network_intent(), 5)
    await world.net.ensure_network(network)
    await world.net.ensure_port(port)
    before = await world.net.observe_net()
    again = world.restart()
    assert await again.observe_net() == before
    await again.ensure_network(network)
    assert await again.observe_net() == before


def remote_ports(count: int) -> frozenset[RemotePort]:
    """Dual stack, on a few other nodes."""
    return frozenset(
        RemotePort(
            new_uid(),
            f"52:54:00:01:{number >> 8:02x}:{number & 0xFF:02x}",
            (IPv4Address("10.7.128.0") + number, IPv6Address("2001:db8::") + number),
            IPv4Address("203.0.113.100") + number % 5,
        )
        for number in range(count)
    )


async def test_a_directory_is_there_under_its_digest(world: World) -> None:
    network, empty = network_intent(), digest_of_directory(frozenset())
    await world.net.ensure_network(network)
    assert (await world.net.observe_net()).directories == {network.uid: empty}
    remotes = remote_ports(3)
    await world.net.ensure_directory(network.uid, remotes)
    once = await world.net.observe_net()
    assert once.directories == {network.uid: digest_of_directory(remotes)}
    assert once.networks[network.uid].complete
    await world.net.ensure_directory(network.uid, remotes)
    assert await world.net.observe_net() == once
    await world.net.ensure_directory(network.uid, frozenset())
    assert (await world.net.observe_net()).directories == {network.uid: empty}


async def test_a_directory_follows_every_change(world: World) -> None:
    network = network_intent()
    await world.net.ensure_network(network)
    first, second, third = sorted(remote_ports(3))
    moved = replace(second, vtep=IPv4Address("203.0.113.200"))
    readdressed = replace(first, addresses=(*third.addresses, *first.addresses[1:]))
    swapped = frozenset({replace(first, mac=second.mac), replace(second, mac=first.mac)})
    for remotes in (
        {first, second},
        {first, moved},
        {readdressed, moved},
        {first, third},
        swapped,
        {third},
        {first, second, third},
    ):
        wanted = frozenset(remotes)
        await world.net.ensure_directory(network.uid, wanted)
        seen = await world.net.observe_net()
        assert seen.directories == {network.uid: digest_of_directory(wanted)}, remotes


async def test_directories_are_apart_and_outlive_an_agent(world: World) -> None:
    """Two tenants' networks have the same MACs, addresses and nodes in them."""
    first, second = network_intent(vni=1), network_intent(vni=2)
    remotes = remote_ports(4)
    fewer = frozenset(sorted(remotes)[:2])
    for network, those in ((first, remotes), (second, fewer)):
        await world.net.ensure_network(network)
        await world.net.ensure_directory(network.uid, those)
    before = await world.net.observe_net()
    again = world.restart()
    assert await again.observe_net() == before
    await again.ensure_directory(first.uid, fewer)
    await again.ensure_network_absent(second.uid)
    assert (await again.observe_net()).directories == {first.uid: digest_of_directory(fewer)}
    await again.ensure_network(first)  # again, and its directory stays
    assert (await again.observe_net()).directories == {first.uid: digest_of_directory(fewer)}


async def test_a_directory_needs_its_network(world: World) -> None:
    with pytest.raises(DriverError, match="ensure the network first") as refused:
        await world.net.ensure_directory(new_uid(), remote_ports(1))
    assert refused.value.reason == "NetworkMissing"


async def test_a_directory_with_one_address_twice_is_refused(world: World) -> None:
    network = network_intent()
    await world.net.ensure_network(network)
    first, second = sorted(remote_ports(2))
    await world.net.ensure_directory(network.uid, frozenset({first}))
    for bad in (
        replace(second, mac=first.mac),
        replace(second, addresses=first.addresses),
        replace(second, mac="01:00:5e:00:00:01"),
        replace(second, mac="52:54:00:AA:BB:CC"),
    ):
        with pytest.raises(DriverError, match="mac") as refused:
            await world.net.ensure_directory(network.uid, frozenset({first, bad}))
        assert (refused.value.reason, refused.value.permanent) == ("InvalidIntent", True)
    alone = digest_of_directory(frozenset({first}))
    assert (await world.net.observe_net()).directories == {network.uid: alone}
    with pytest.raises(DriverError, match="mac"):  # by an agent that knows nothing yet
        await world.restart().ensure_directory(
            network.uid, frozenset({first, replace(second, mac=first.mac)})
        )
    assert (await world.net.observe_net()).directories == {network.uid: alone}


HOSTILE = (
    ("hostname", "a\ndhcp-script=/bin/sh"),
    ("hostname", "a,set:evil"),
    ("hostname", ""),
    ("hostname", "-a"),
    ("hostname", "a" * 64),
    ("mac", "52:54:00:00:00:01,ignore"),
    ("mac", "01:00:5e:00:00:01"),
    ("uid", "../../etc"),
    ("uid", ""),
)


async def test_hostile_text_is_refused(world: World) -> None:
    network, port = with_port(network_intent(), 5)
    await world.net.ensure_network(network)
    before = await world.net.observe_net()
    for field, value in HOSTILE:
        changed: dict[str, Any] = {field: value}
        hostile = replace(port, **changed)
        for attempt in (
            world.net.ensure_network(replace(network, ports=(hostile,))),
            world.net.ensure_port(hostile),
        ):
            with pytest.raises(DriverError, match=field) as refused:
                await attempt
            assert (refused.value.reason, refused.value.permanent) == ("InvalidIntent", True)
    assert await world.net.observe_net() == before


@pytest.mark.parametrize("vni", [0, 1 << 22])
async def test_a_vni_without_an_uplink_address_is_refused(world: World, vni: int) -> None:
    with pytest.raises(DriverError, match="vni"):
        await world.net.ensure_network(network_intent(vni=vni))
    assert (await world.net.observe_net()).items == ()
