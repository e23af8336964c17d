"""A directory of ten thousand ports in the real kernel: a change costs a change, a look what happened."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address

import pytest

from agent.errors import DriverError
from agent.net import names
from agent.net.directory import Spot, digest_of_directory, entries_of
from agent.net.driver import NetworkIntent, RemotePort
from agent.net.kernel_driver import KernelNet
from agent.net.netlink_neighbour import Entry, Neighbour, payload_of
from agent.net.rtnetlink import EntryChange, NeighbourEvents, Netlink
from tests.unit.agent_net.lab import Lab, network_intent, new_uid, open_lab

PORTS = 10_000
ENTRIES_OF_A_PORT = 3  # the bridge's, the tunnel's and a neighbour
CHEAPER = 20  # an incremental change against a full one, in CPU time; some 1,000 were seen


@dataclass(frozen=True, slots=True)
class Big:
    lab: Lab
    net: KernelNet
    network: NetworkIntent
    remotes: frozenset[RemotePort]
    full_cpu_s: float


def _remote(number: int) -> RemotePort:
    return RemotePort(
        new_uid(),
        f"52:54:01:00:{number >> 8:02x}:{number & 0xFF:02x}",
        (IPv4Address("10.0.1.0") + number,),
        IPv4Address("198.51.100.1") + number % 100,
    )


@pytest.fixture
async def big() -> AsyncIterator[Big]:
    async with open_lab() as lab:
        net = lab.driver()
        network = network_intent(cidr="10.0.0.0/16")
        await net.ensure_network(network)
        remotes = frozenset(map(_remote, range(PORTS)))
        cpu_s = await _cpu_s(net.ensure_directory(network.uid, remotes))
        yield Big(lab, net, network, remotes, cpu_s)
        await net.close()


async def _cpu_s(work: Awaitable[object]) -> float:
    """Of the whole process, the kernel's part included."""
    before = time.process_time()
    await work
    return time.process_time() - before


async def test_one_port_among_ten_thousand_touches_its_entries_only(big: Big) -> None:
    events = await big.lab.inside(big.lab.host, NeighbourEvents)
    extra = _remote(PORTS)
    moved = replace(extra, vtep=IPv4Address("198.51.100.200"))
    try:
        for remotes, touched in (
            (big.remotes | {extra}, ENTRIES_OF_A_PORT),
            (big.remotes | {moved}, 1),
            (big.remotes, ENTRIES_OF_A_PORT),
        ):
            cpu_s = await _cpu_s(big.net.ensure_directory(big.network.uid, remotes))
            assert len({_place(entry) for _, entry in events.take()}) == touched
            assert cpu_s < big.full_cpu_s / CHEAPER
            assert await _directory(big) == digest_of_directory(remotes)
    finally:
        events.close()


async def test_a_look_at_ten_thousand_ports_does_not_list_them(big: Big) -> None:
    await big.net.observe_net()
    quiet_s = await _cpu_s(big.net.observe_net())
    again = big.lab.driver()
    listed_s = await _cpu_s(again.observe_net())
    await again.close()
    assert quiet_s < listed_s / 5
    assert await _directory(big) == digest_of_directory(big.remotes)


async def test_more_changes_than_events_are_kept_are_noticed_and_repaired(big: Big) -> None:
    """Somebody deletes everything between two looks."""
    await big.lab.inside(big.lab.host, partial(_delete_all, big))
    assert await _directory(big) == digest_of_directory(frozenset())
    await big.net.ensure_directory(big.network.uid, big.remotes)
    assert await _directory(big) == digest_of_directory(big.remotes)


def _place(entry: Entry) -> tuple[object, ...]:
    """A neighbour's removal is told twice: it fails, and goes."""
    return (type(entry), entry.address if isinstance(entry, Neighbour) else entry.mac)


def _delete_all(big: Big) -> None:
    with Netlink() as netlink:
        bridge = netlink.find_link(names.bridge_name(big.network.uid))
        tunnel = netlink.find_link(names.tunnel_name(big.network.uid))
        assert bridge is not None
        assert tunnel is not None
        entries = entries_of(big.remotes, Spot(bridge.index, tunnel.index))
        changes = [EntryChange(False, payload_of(entry)) for entry in entries]
        for start in range(0, len(changes), 500):
            netlink.change_entries(changes[start : start + 500])


async def _directory(big: Big) -> str:
    return (await big.net.observe_net()).directories[big.network.uid].partition(",")[0]


async def test_tunnels_end_where_the_agent_is_told() -> None:
    """An agent that starts with another underlay address, or with none, notices and rebuilds."""
    network, remotes = network_intent(), frozenset(map(_remote, range(3)))
    async with open_lab() as lab:
        for end, spans in ((None, True), (IPv4Address("203.0.113.9"), True), (None, False), (None, True)):
            net = lab.driver(end, spans=spans)
            assert network.uid not in (await net.observe_net()).networks or not await _is_complete(
                net, network
            )
            await net.ensure_network(network)
            assert await _is_complete(net, network)
            if spans:
                await net.ensure_directory(network.uid, remotes)
                directories = {network.uid: digest_of_directory(remotes)}
            else:
                with pytest.raises(DriverError, match="--underlay-address") as refused:
                    await net.ensure_directory(network.uid, remotes)
                assert (refused.value.reason, refused.value.permanent) == ("NoUnderlay", True)
                directories = {}
            assert (await net.observe_net()).directories == directories
            assert await lab.inside(lab.host, partial(_tunnel_end, network)) == (
                (end or lab.underlay) if spans else None
            )
            await net.close()


async def _is_complete(net: KernelNet, network: NetworkIntent) -> bool:
    return (await net.observe_net()).networks[network.uid].complete


def _tunnel_end(network: NetworkIntent) -> object:
    with Netlink() as netlink:
        link = netlink.find_link(names.tunnel_name(network.uid))
        return link.tunnel.local if link is not None and link.tunnel is not None else None
