"""The network driver's contract on provider networks, over the fake and over this machine's kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from agent.errors import DriverError
from agent.net.directory import digest_of_directory
from agent.net.driver import NetworkIntent, RemotePort, Segment, digest_of
from tests.support.net import UPLINK, World
from tests.unit.agent_net.lab import network_intent, new_uid, with_port

VTEP = IPv4Address("203.0.113.100")


def on_segment(segment: Segment, vni: int = 7) -> NetworkIntent:
    return replace(network_intent(vni, outbound_nat=False), segment=segment)


async def test_a_provider_network_is_there_joined_and_not_and_goes_without_a_trace(world: World) -> None:
    network, port = with_port(on_segment(Segment(UPLINK)), 5)
    remotes = frozenset({RemotePort(new_uid(), "52:54:00:00:01:01", (port.addresses[0] + 1,), VTEP)})
    for vlan in (0, 20):
        for joined in (True, False, True):
            wanted = replace(network, segment=Segment(UPLINK, vlan, joined))
            for net in (world.net, world.restart()):
                await net.ensure_network(wanted)
                await net.ensure_port(port)
                await net.ensure_directory(network.uid, remotes)
                seen = await net.observe_net()
                assert seen.networks[network.uid].complete
                assert seen.networks[network.uid].digest == digest_of(wanted)
                assert seen.taps == {port.uid: True}
                assert seen.directories == {network.uid: digest_of_directory(remotes)}
                kinds = {kind for kind, _, owner in seen.items if owner == network.uid}
                assert "tunnel" not in kinds
    await world.net.ensure_port_absent(port.uid)
    await world.net.ensure_network_absent(network.uid)
    assert (await world.net.observe_net()).items == ()


async def test_a_network_of_the_clouds_becomes_an_operators_and_back(world: World) -> None:
    network = network_intent(outbound_nat=False)
    for wanted in (network, replace(network, segment=Segment(UPLINK)), network):
        await world.net.ensure_network(wanted)
        seen = (await world.net.observe_net()).networks[network.uid]
        assert (seen.complete, seen.digest) == (True, digest_of(wanted))


async def test_a_link_that_the_node_does_not_have_is_named_and_not_needed_to_be_apart(world: World) -> None:
    network = on_segment(Segment("moon"))
    with pytest.raises(DriverError, match="moon") as refused:
        await world.net.ensure_network(network)
    assert (refused.value.reason, refused.value.permanent) == ("UplinkMissing", False)
    assert not (await world.net.observe_net()).networks[network.uid].complete
    await world.net.ensure_network(replace(network, segment=Segment("moon", joined=False)))
    assert (await world.net.observe_net()).networks[network.uid].complete


async def test_what_cannot_be_is_refused_before_anything_changes(world: World) -> None:
    before = await world.net.observe_net()
    for vlan in (-1, 4095):
        with pytest.raises(DriverError, match=r"segment\.vlan"):
            await world.net.ensure_network(on_segment(Segment(UPLINK, vlan)))
    with pytest.raises(DriverError, match="router_uid"):
        await world.net.ensure_network(replace(on_segment(Segment(UPLINK)), router_uid=new_uid()))
    assert await world.net.observe_net() == before
    network = on_segment(Segment(UPLINK))
    await world.net.ensure_network(network)
    hostile = RemotePort(new_uid(), "52:54:00:00:01:01", (), VTEP, "x\nserver=192.0.2.1")
    with pytest.raises(DriverError, match="hostname"):
        await world.net.ensure_directory(network.uid, frozenset({hostile}))
