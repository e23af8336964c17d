"""An agent that dies between any two effects of the network driver: nothing is stuck, nothing is left.

The driver is stopped before its nth effect on the real kernel, for every n, and another one takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, ip_network
from typing import Any

import pytest

from agent.errors import DriverError
from agent.net import (
    announce,
    bpf,
    dnsmasq,
    kernel_host,
    kernel_network,
    kernel_segment,
    netns,
    nft,
    queues,
    router_state,
    rtnetlink,
    state,
    sysctl,
)
from agent.net.directory import digest_of_directory
from agent.net.driver import (
    NetworkIntent,
    ObservedNet,
    PortIntent,
    RemotePort,
    RouterDirectory,
    RouterIntent,
    Segment,
    digest_of,
)
from agent.net.kernel_driver import KernelNet
from agent.net.router_entries import digest_of_router_directory
from tests.unit.agent_net.lab import Lab, network_intent, new_uid, open_lab, with_port

REMOTES = frozenset(
    {
        RemotePort("r1", "52:54:00:00:01:01", (IPv4Address("10.7.0.101"),), IPv4Address("203.0.113.101")),
        RemotePort("r2", "52:54:00:00:01:02", (IPv4Address("10.7.0.102"),), IPv4Address("203.0.113.102")),
    }
)
EFFECTS: tuple[tuple[Any, str], ...] = (
    (rtnetlink.Netlink, "_do"),
    (rtnetlink.Netlink, "change_entries"),
    (rtnetlink.Netlink, "change_routes"),
    (rtnetlink, "create_tap"),
    (nft, "commit"),
    (nft, "commit_text"),
    (netns, "create"),
    (netns, "remove"),
    (dnsmasq, "start"),
    (dnsmasq, "stop"),
    (dnsmasq, "reload"),
    (kernel_network, "write_text"),
    (kernel_host, "write_text"),
    (state, "write_text"),
    (router_state, "write_text"),
    (sysctl, "set_forwarding"),
    (queues.Queues, "_do"),
    (bpf, "load"),
    (announce, "introduce"),
    (kernel_segment, "write_text"),
)
UPLINK = "office"
KINDS = pytest.mark.parametrize("segment", [None, Segment(UPLINK, 20)], ids=str)


class Fuse:
    """Lets `left` effects happen, then none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1 << 30
        for owner, name in EFFECTS:
            monkeypatch.setattr(owner, name, self._fused(getattr(owner, name)))

    def _fused(self, effect: Callable[..., Any]) -> Callable[..., Any]:
        def fused(*arguments: Any) -> Any:
            if self.left <= 0:
                raise OSError("the agent is dead")
            self.left -= 1
            return effect(*arguments)

        return fused


async def _set_up(net: KernelNet, network: NetworkIntent, port: PortIntent) -> None:
    await net.ensure_network(network)
    await net.ensure_directory(network.uid, REMOTES)
    await net.ensure_port(port)


async def _tear_down(net: KernelNet, network: NetworkIntent, port: PortIntent) -> None:
    await net.ensure_port_absent(port.uid)
    await net.ensure_network_absent(network.uid)


async def _dies(fuse: Fuse, lab: Lab, effects: int, work: Callable[[KernelNet], Any]) -> bool:
    """True when the driver died on the way."""
    net = lab.driver()
    fuse.left = effects
    try:
        await work(net)
    except DriverError as err:
        assert "the agent is dead" in err.message  # noqa: PT017
        return True
    finally:
        fuse.left = 1 << 30
        await net.close()
    return False


async def _traces(lab: Lab) -> tuple[object, ...]:
    """Links, whose frames the uplink takes, tables of nftables, and what is remembered of uplinks."""

    def stations() -> frozenset[str]:
        with rtnetlink.Netlink() as host:
            link = host.find_link("eth0")
            assert link is not None
            return frozenset(mac for mac in host.stations(link.index) if not int(mac[:2], 16) & 1)

    taken = await lab.inside(lab.host, stations)
    tables = await lab.inside(lab.host, nft.list_names)
    return await lab.host_links(), taken, tables, (lab.state_dir / "stations.json").exists()


@KINDS
async def test_every_prefix_of_setting_up_can_be_finished_or_undone(
    monkeypatch: pytest.MonkeyPatch, segment: Segment | None
) -> None:
    fuse = Fuse(monkeypatch)
    network, port = with_port(replace(network_intent(), segment=segment), 5)
    async with open_lab() as lab:
        lab.uplinks[UPLINK] = "eth0"
        untouched = await _traces(lab)
        effects = 0
        while await _dies(fuse, lab, effects, lambda net: _set_up(net, network, port)):
            heir = lab.driver()
            seen = await heir.observe_net()
            directory = seen.directories.get(network.uid)
            is_ready = (
                seen.taps.get(port.uid, False)
                and seen.networks[network.uid].complete
                and directory == digest_of_directory(REMOTES)
            )
            assert not is_ready, f"looks ready after {effects} effects"
            if effects % 2:
                await _set_up(heir, network, port)
                seen = await heir.observe_net()
                assert seen.networks[network.uid].complete
                assert seen.taps == {port.uid: True}
                assert seen.directories == {network.uid: digest_of_directory(REMOTES)}
            await _tear_down(heir, network, port)
            assert (await heir.observe_net()).items == (), effects
            assert await _traces(lab) == untouched, effects
            await heir.close()
            effects += 1
        assert effects > 30


@KINDS
async def test_every_prefix_of_tearing_down_can_be_finished(
    monkeypatch: pytest.MonkeyPatch, segment: Segment | None
) -> None:
    fuse = Fuse(monkeypatch)
    network, port = with_port(replace(network_intent(), segment=segment), 5)
    async with open_lab() as lab:
        lab.uplinks[UPLINK] = "eth0"
        untouched = await _traces(lab)
        effects = 0
        died = True
        while died:
            heir = lab.driver()
            await _set_up(heir, network, port)
            died = await _dies(fuse, lab, effects, lambda net: _tear_down(net, network, port))
            await _tear_down(heir, network, port)
            assert (await heir.observe_net()).items == (), effects
            assert await _traces(lab) == untouched, effects
            await heir.close()
            effects += 1
        assert effects > 8


async def _attach(net: KernelNet, router: RouterIntent, network: NetworkIntent) -> None:
    await net.ensure_router(router)
    await net.ensure_network(replace(network, router_uid=router.uid))
    await net.ensure_router_directory(router.uid, RouterDirectory((REMOTES,)))


async def _detach(net: KernelNet, router: RouterIntent, network: NetworkIntent) -> None:
    await net.ensure_network(network)
    await net.ensure_router_absent(router.uid)


async def _is_attached(net: KernelNet, router: RouterIntent, network: NetworkIntent) -> bool:
    seen = await net.observe_net()
    at = seen.networks[network.uid]
    wanted = digest_of_router_directory(RouterDirectory((REMOTES,)))
    return (at.complete, at.router_uid, seen.routers, seen.router_directories) == (
        True,
        router.uid,
        {router.uid: digest_of(router)},
        {router.uid: wanted},
    )


def _things(seen: ObservedNet) -> set[tuple[str, str]]:
    """Without process ids."""
    return {(kind, owner if kind == "dhcp-server" else name) for kind, name, owner in seen.items}


async def test_every_prefix_of_attaching_can_be_finished_or_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of detaching. The guest's tap is on its bridge all the time."""
    fuse = Fuse(monkeypatch)
    router = RouterIntent(new_uid(), 99, (ip_network("10.7.0.0/24"), ip_network("10.8.0.0/24")), True)
    network, port = with_port(network_intent(), 5)
    async with open_lab() as lab:
        untouched = await lab.host_links()
        first = lab.driver()
        await _set_up(first, network, port)
        alone = _things(await first.observe_net())
        await first.close()
        for forth, back in ((_attach, _detach), (_detach, _attach)):
            effects, died = 0, True
            while died:
                died = await _dies(fuse, lab, effects, partial(forth, router=router, network=network))
                heir = lab.driver()
                if died and forth is _attach:
                    assert not await _is_attached(heir, router, network), effects
                if effects % 2:
                    await forth(heir, router, network)
                await back(heir, router, network)
                seen = await heir.observe_net()
                assert seen.taps == {port.uid: True}
                if back is _detach:
                    assert seen.networks[network.uid].complete
                    assert (_things(seen), seen.routers) == (alone, {}), effects
                else:
                    assert await _is_attached(heir, router, network), effects
                await heir.close()
                effects += 1
            assert effects > 15
            last = lab.driver()
            await forth(last, router, network)
            await last.close()
        heir = lab.driver()
        await _tear_down(heir, network, port)
        assert (await heir.observe_net()).items == ()
        assert await lab.host_links() == untouched
        await heir.close()
