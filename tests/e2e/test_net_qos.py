"""Rates of ports, measured with guests' packets in both directions against a port without limits.

Real kernel queues; guests are network namespaces behind ports of one node.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import pytest

from agent.net import names, qos
from agent.net.driver import PortIntent
from agent.net.kernel_driver import KernelNet
from agent.net.queues import Queues
from agent.net.rates import Rates
from agent.net.rtnetlink import Netlink
from tests.unit.agent_net.lab import Lab, network_intent, open_lab, with_port
from tests.unit.agent_net.neighbours import Guest, boot, with_ports

LIMIT_BPS = 24_000_000
TOLERANCE = 0.15
_PORT = 7000
_DATA = bytes(1000)
_FRAME_BYTES = len(_DATA) + 8 + 20 + 14  # what the kernel's bucket counts
_LASTS_S = 1.5
_BURST = 12  # each millisecond: four times the limit
_SKIPPED = 60  # datagrams that a full bucket lets through at once
_QUIET_S = 0.5


@pytest.fixture
async def node() -> AsyncIterator[tuple[Lab, KernelNet]]:
    async with open_lab() as lab:
        net = lab.driver()
        try:
            yield lab, net
        finally:
            await net.close()


async def _guests(lab: Lab, net: KernelNet, *limits: tuple[int, int]) -> list[Guest]:
    """With these rates towards and away."""
    network = network_intent()
    ports: list[PortIntent] = []
    for number, (towards, away) in enumerate(limits, start=5):
        _, port = with_port(network, number)
        ports.append(replace(port, ingress_bps=towards, egress_bps=away))
    network = with_ports(network, *ports)
    await net.ensure_network(network)
    return [await boot(lab, net, network, port) for port in ports]


def _send(target: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.connect((target, _PORT))
        end = time.monotonic() + _LASTS_S
        while time.monotonic() < end:
            for _ in range(_BURST):
                client.send(_DATA)
            time.sleep(0.001)


def _receive(server: socket.socket) -> float:
    """Bits per second between the first datagram after the burst and the last."""
    times = []
    with server:
        server.settimeout(_LASTS_S)
        try:
            while True:
                server.recv(2048)
                times.append(time.monotonic())
                server.settimeout(_QUIET_S)
        except TimeoutError:
            steady = times[_SKIPPED:]
    return (len(steady) - 1) * _FRAME_BYTES * 8 / (steady[-1] - steady[0])


async def _rate(sender: Guest, receiver: Guest) -> float:
    def listen() -> socket.socket:
        server = socket.socket(type=socket.SOCK_DGRAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        server.bind(("", _PORT))
        return server

    server = await receiver.lab.inside(receiver.namespace, listen)
    receiving = asyncio.create_task(asyncio.to_thread(_receive, server))
    await sender.lab.inside(sender.namespace, partial(_send, receiver.address()))
    return await receiving


async def test_rates_both_ways_are_what_was_asked_for(node: tuple[Lab, KernelNet]) -> None:
    limited, free, other = await _guests(*node, (LIMIT_BPS, LIMIT_BPS), (0, 0), (0, 0))
    for sender, receiver in ((free, limited), (limited, free)):
        measured = await _rate(sender, receiver)
        assert measured == pytest.approx(LIMIT_BPS, rel=TOLERANCE)
    assert await _rate(free, other) > LIMIT_BPS * (1 + TOLERANCE) * 1.5  # the control


async def test_rates_are_observed_changed_and_taken_away(node: tuple[Lab, KernelNet]) -> None:
    lab, net = node
    (guest,) = await _guests(lab, net, (8_000_000, 16_000_000))
    port, tap = guest.port, names.tap_name(guest.port.uid)

    def rates() -> Rates:
        with Netlink() as host:
            link = host.find_link(tap)
            assert link is not None
            return qos.read_rates([link])[tap]

    def lose(what: str) -> None:
        with Netlink() as host, Queues() as queues:
            link = host.find_link(tap)
            assert link is not None
            if what == "bucket":
                queues.delete_bucket(link.index)
            elif what == "redirection":
                queues.delete_ingress(link.index)
            else:
                qos.delete_shaper(host, port.uid)

    assert await lab.inside(lab.host, rates) == Rates(8_000_000, 16_000_000)
    assert (await net.observe_net()).taps == {port.uid: True}
    for what in ("bucket", "redirection", "shaper"):
        await lab.inside(lab.host, partial(lose, what))
        assert (await net.observe_net()).taps == {port.uid: False}, what
        await net.ensure_port(port)
        assert (await net.observe_net()).taps == {port.uid: True}, what
        assert await lab.inside(lab.host, rates) == Rates(8_000_000, 16_000_000), what
    network = with_ports(
        network_intent(uid=port.network_uid), replace(port, ingress_bps=0, egress_bps=32_000_000)
    )
    await net.ensure_network(network)
    assert await lab.inside(lab.host, rates) == Rates(0, 32_000_000)
    await net.ensure_port(replace(port, ingress_bps=0, egress_bps=0))
    assert await lab.inside(lab.host, rates) == Rates()
    assert names.shaper_name(port.uid) not in await lab.host_links()
    await net.ensure_port(port)
    await net.ensure_port_absent(port.uid)
    assert names.shaper_name(port.uid) not in await lab.host_links()
