"""Scenarios of an agent that is told of ports on other nodes, on virtual time over the fakes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

from agent.apply import JITTER
from agent.drivers import Drivers
from agent.errors import DriverError
from agent.net.directory import digest_of_directory
from agent.net.driver import Net
from agent.reconcile import OBSERVE_AGAIN_S, OBSERVE_EVERY_S
from cumulet.v1 import agent_pb2 as pb

from .build import instance, plan, uid
from .lab import Lab, in_lab

RUNNING = pb.DOMAIN_STATE_RUNNING
NETWORK = uid(2, 1)


def remote(number: int, vtep: str = "192.0.2.2") -> pb.PlannedRemotePort:
    address = f"10.1.0.{number}"
    return pb.PlannedRemotePort(
        uid=uid(6, number), mac=f"02:00:00:00:06:{number:02x}", addresses=[address], vtep=vtep
    )


async def tell(lab: Lab, network: pb.NetworkDirectory) -> None:
    await lab.leader.send(pb.ControllerMessage(directory=pb.DirectoryChange(networks=[network])))


async def run_told(lab: Lab, *numbers: int) -> None:
    """A running instance whose network has these ports elsewhere."""
    lab.start()
    await lab.leader.set_plan(plan(instance(1, networks=(1,))))
    await lab.until(lambda: lab.state(uid(1, 1)) == RUNNING)
    put = [remote(number) for number in numbers]
    await tell(lab, pb.NetworkDirectory(network_uid=NETWORK, full=True, put=put))
    await lab.until(lambda: known(lab) == set(numbers))


def known(lab: Lab) -> set[int]:
    """Numbers of the remote ports that the node's kernel leads to."""
    network = lab.kernel._networks.get(NETWORK)
    return {int(one.uid[-4:], 16) for one in network.remotes} if network is not None else set()


def test_a_directory_follows_what_is_told() -> None:
    async def scenario(lab: Lab) -> None:
        await run_told(lab, 1, 2)
        await tell(lab, pb.NetworkDirectory(network_uid=NETWORK, put=[remote(3)]))
        await lab.until(lambda: known(lab) == {1, 2, 3})
        await tell(lab, pb.NetworkDirectory(network_uid=NETWORK, gone_port_uids=[uid(6, 1)]))
        await lab.until(lambda: known(lab) == {2, 3})

    in_lab(scenario)


def test_ports_elsewhere_are_no_reason_to_look_at_what_runs_here() -> None:
    async def scenario(lab: Lab) -> None:
        await run_told(lab, 1)
        assert lab.agent is not None
        agent = lab.agent
        await asyncio.sleep(60)  # whatever was to be looked at is
        looks = agent.rounds
        for number in range(2, 200):
            await tell(lab, pb.NetworkDirectory(network_uid=NETWORK, put=[remote(number)]))
            await lab.until(lambda number=number: number in known(lab))  # type: ignore[misc]
        passed_s = 198 * 0.05
        assert agent.rounds - looks <= passed_s / OBSERVE_EVERY_S + 2
        # Looks come all the same, however much is told.
        for number in range(2, 1000):
            await tell(lab, pb.NetworkDirectory(network_uid=NETWORK, put=[remote(number % 250)]))
            await asyncio.sleep(0.05)
        assert agent.rounds - looks >= 3

    in_lab(scenario)


def test_what_cannot_be_programmed_is_tried_again_without_a_look() -> None:
    async def scenario(lab: Lab) -> None:
        await run_told(lab, 1)
        assert lab.agent is not None
        await asyncio.sleep(60)
        looks = lab.agent.rounds
        lab.kernel.fail_next("ensure_directory", DriverError("NetworkEffectFailed", "planted"))
        await tell(lab, pb.NetworkDirectory(network_uid=NETWORK, put=[remote(2)]))
        await lab.until(lambda: known(lab) == {1, 2})
        assert lab.agent.results["EnsureDirectory", "error"] == 1
        assert lab.agent.rounds - looks <= 1

    in_lab(scenario)


class _CountedNet:
    """The driver, and how often the network was looked at."""

    def __init__(self, net: Net) -> None:
        self._net = net
        self.looks = 0

    def __getattr__(self, name: str) -> Any:
        self.looks += name == "observe_net"
        return getattr(self._net, name)


def test_a_try_that_is_not_needed_any_more_is_no_reason_to_look_again_and_again() -> None:
    """Regression: the time of its next try had passed, and small looks came one after the other."""

    async def scenario(lab: Lab) -> None:
        counted: list[_CountedNet] = []

        def wrap(drivers: Drivers) -> Drivers:
            counted.append(_CountedNet(drivers.net))
            return replace(drivers, net=cast(Net, counted[0]))

        lab.wrap = wrap
        await run_told(lab, 1)
        await asyncio.sleep(60)
        lab.kernel.fail_next("ensure_directory", DriverError("NetworkEffectFailed", "planted"))
        await tell(lab, pb.NetworkDirectory(network_uid=NETWORK, put=[remote(2)]))
        await lab.until(lambda: lab.agent is not None and bool(lab.agent.failures()))
        await tell(lab, pb.NetworkDirectory(network_uid=NETWORK, gone_port_uids=[uid(6, 2)]))
        before = counted[0].looks
        await asyncio.sleep(30)
        assert counted[0].looks - before < 10

    in_lab(scenario)


def test_a_node_that_cannot_be_looked_at_is_not_asked_again_and_again_for_a_try_that_is_due() -> None:
    """Regression: the next try's time had passed, and looks that failed came one after the other."""

    async def scenario(lab: Lab) -> None:
        await run_told(lab, 1)
        assert lab.agent is not None
        await asyncio.sleep(60)
        lab.kernel.fail_next("ensure_directory", DriverError("NetworkEffectFailed", "planted"))
        await tell(lab, pb.NetworkDirectory(network_uid=NETWORK, put=[remote(2)]))
        await lab.until(lambda: lab.agent is not None and bool(lab.agent.failures()))
        lab.machine.stop_libvirtd()
        lab.agent.wake()
        looks = lab.agent.rounds
        await asyncio.sleep(30)
        assert 0 < lab.agent.rounds - looks < 30 / (OBSERVE_AGAIN_S * (1 - JITTER)) + 3

    in_lab(scenario)


def test_a_network_that_cannot_be_looked_at_is_said_and_followed_later() -> None:
    async def scenario(lab: Lab) -> None:
        await run_told(lab, 1)
        await asyncio.sleep(60)
        for _ in range(2):  # the small look and the one that follows it
            lab.kernel.fail_next("observe_net", DriverError("NetworkUnreadable", "planted"))
        await tell(lab, pb.NetworkDirectory(network_uid=NETWORK, put=[remote(2)]))
        await lab.until(lambda: known(lab) == {1, 2})
        said = [one.reason for one in lab.conditions("HypervisorReady")]
        assert "NetworkUnreadable" in said

    in_lab(scenario)


def test_an_entry_that_somebody_deletes_is_put_back() -> None:
    async def scenario(lab: Lab) -> None:
        await run_told(lab, 1, 2)
        whole = digest_of_directory(lab.kernel._networks[NETWORK].remotes)
        lab.kernel.lose_entry(NETWORK)
        assert len(known(lab)) == 1
        await lab.until(lambda: known(lab) == {1, 2})
        assert digest_of_directory(lab.kernel._networks[NETWORK].remotes) == whole

    in_lab(scenario)


def test_a_restart_of_the_agent_leaves_what_is_programmed_until_it_is_told_anew() -> None:
    async def scenario(lab: Lab) -> None:
        await run_told(lab, 1, 2)
        await lab.kill()
        rounds = len(lab.leader.reports)
        lab.start()
        await lab.until(lambda: len(lab.leader.reports) > rounds and lab.state(uid(1, 1)) == RUNNING)
        assert known(lab) == {1, 2}
        await tell(lab, pb.NetworkDirectory(network_uid=NETWORK, full=True, put=[remote(2), remote(4)]))
        await lab.until(lambda: known(lab) == {2, 4})

    in_lab(scenario)


def test_a_directory_that_fails_holds_up_no_instance_and_is_tried_again() -> None:
    async def scenario(lab: Lab) -> None:
        lab.start()
        for _ in range(3):
            lab.kernel.fail_next("ensure_directory", DriverError("NetworkEffectFailed", "planted"))
        await lab.leader.set_plan(plan(instance(1, networks=(1,))))
        await lab.until(lambda: bool(lab.leader.hellos))
        await tell(lab, pb.NetworkDirectory(network_uid=NETWORK, full=True, put=[remote(1)]))
        await lab.until(lambda: lab.state(uid(1, 1)) == RUNNING)
        await lab.until(lambda: known(lab) == {1})

    in_lab(scenario)
