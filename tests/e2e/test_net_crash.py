"""An agent that dies between any two effects of the network driver: nothing is stuck, nothing is left.

The driver is stopped before its nth effect on the real kernel, for every n, and another one takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from agent.errors import DriverError
from agent.net import dnsmasq, kernel_host, kernel_network, netns, nft, rtnetlink, state, sysctl
from agent.net.directory import digest_of_directory
from agent.net.driver import NetworkIntent, PortIntent, RemotePort
from agent.net.kernel_driver import KernelNet
from tests.unit.agent_net.lab import Lab, network_intent, open_lab, with_port

REMOTES = frozenset(
    {
        RemotePort("r1", "52:54:00:00:01:01", (IPv4Address("10.7.0.101"),), IPv4Address("203.0.113.101")),
        RemotePort("r2", "52:54:00:00:01:02", (IPv4Address("10.7.0.102"),), IPv4Address("203.0.113.102")),
    }
)
EFFECTS: tuple[tuple[Any, str], ...] = (
    (rtnetlink.Netlink, "_do"),
    (rtnetlink.Netlink, "change_entries"),
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
    (sysctl, "set_forwarding"),
)


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


async def test_every_prefix_of_setting_up_can_be_finished_or_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = Fuse(monkeypatch)
    network, port = with_port(network_intent(), 5)
    async with open_lab() as lab:
        untouched = await lab.host_links()
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
            assert await lab.host_links() == untouched, effects
            await heir.close()
            effects += 1
        assert effects > 30


async def test_every_prefix_of_tearing_down_can_be_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    fuse = Fuse(monkeypatch)
    network, port = with_port(network_intent(), 5)
    async with open_lab() as lab:
        untouched = await lab.host_links()
        effects = 0
        died = True
        while died:
            heir = lab.driver()
            await _set_up(heir, network, port)
            died = await _dies(fuse, lab, effects, lambda net: _tear_down(net, network, port))
            await _tear_down(heir, network, port)
            assert (await heir.observe_net()).items == (), effects
            assert await lab.host_links() == untouched, effects
            await heir.close()
            effects += 1
        assert effects > 8
