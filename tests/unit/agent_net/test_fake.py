"""The fake's faults: each does what its name says, once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.errors import DriverError
from agent.net.driver import PortIntent
from agent.net.fake import FakeHost, FakeNet
from tests.unit.agent_net.lab import network_intent, with_port

ERROR = DriverError("Planted", "planted")


async def _node(*, auto_lease: bool = False) -> tuple[FakeNet, PortIntent]:
    net = FakeNet(FakeHost(auto_lease=auto_lease))
    network, port = with_port(network_intent(), 5)
    await net.ensure_network(network)
    await net.ensure_port(port)
    return net, port


async def test_a_fault_before_leaves_no_effect_and_one_after_leaves_it() -> None:
    net, port = await _node()
    net.host.fail_next("ensure_port_absent", ERROR)
    with pytest.raises(DriverError):
        await net.ensure_port_absent(port.uid)
    assert (await net.observe_net()).taps == {port.uid: True}
    net.host.fail_next("ensure_port_absent", ERROR, "after")
    with pytest.raises(DriverError):
        await net.ensure_port_absent(port.uid)
    assert (await net.observe_net()).taps == {}
    await net.ensure_port_absent(port.uid)


async def test_taps_get_lost_and_detached() -> None:
    net, port = await _node()
    net.host.detach_tap(port.uid)
    assert (await net.observe_net()).taps == {port.uid: False}
    net.host.lose_tap(port.uid)
    assert (await net.observe_net()).taps == {}
    await net.ensure_port(port)
    assert (await net.observe_net()).taps == {port.uid: True}


async def test_a_flushed_network_is_incomplete_until_ensured() -> None:
    net, port = await _node()
    net.host.flush_network(port.network_uid)
    assert not (await net.observe_net()).networks[port.network_uid].complete
    net.host.lease(port.uid)  # nobody answers
    assert (await net.observe_net()).leased == frozenset()
    await net.ensure_network(replace(network_intent(uid=port.network_uid), ports=(port,)))
    net.host.lease(port.uid)
    assert (await net.observe_net()).leased == {"10.7.0.5"}


async def test_leases_by_themselves_and_reboots() -> None:
    net, _ = await _node(auto_lease=True)
    assert (await net.observe_net()).leased == {"10.7.0.5"}
    net.host.reboot()
    assert (await FakeNet(net.host).observe_net()).items == ()


async def test_a_thousand_instances_are_cheap() -> None:
    net, network = FakeNet(), network_intent(cidr="10.0.0.0/16")
    ports = []
    for number in range(1000):
        network, port = with_port(network, number + 5)
        ports.append(port)
    await net.ensure_network(network)
    for port in ports:
        await net.ensure_port(port)
    assert len((await net.observe_net()).taps) == 1000  # some 10 ms in all
