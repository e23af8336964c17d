"""The metadata service with real packets: each guest reads its own, whatever it says of itself.

The server runs over the kernel driver in a lab of namespaces; guests are namespaces behind taps.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agent.intent import InstanceIntent, PlanIntent
from agent.metadata import Metadata
from agent.net.driver import GroupIntent, NetworkIntent, PortIntent, RuleIntent
from agent.net.kernel_driver import KernelNet
from agent.report import Snapshot
from agent.storage.driver import DiskSpec, SeedSpec
from cumulet.v1 import image_pb2
from tests.unit.agent_net.lab import Lab, network_intent, new_uid, open_lab, with_port

SCRIPT = """
import sys, http.client
connection = http.client.HTTPConnection("169.254.169.254", timeout=3)
connection.request("GET", sys.argv[1], headers=dict(one.split("=", 1) for one in sys.argv[2:]))
answer = connection.getresponse()
print(answer.status)
print(answer.read().decode())
"""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    text: str


def instance_of(port: PortIntent, secret: str) -> InstanceIntent:
    uid = new_uid()
    disk = DiskSpec(uid, image_pb2.ImageFile(sha256="ab" * 32), 1)
    seed = SeedSpec(uid, port.hostname, (), secret.encode())
    return InstanceIntent(
        uid, port.hostname, "p1", 1, True, 1, 60, 1, 256, disk, None, None, "", seed, (port,)
    )


def plan_of(*pairs: tuple[NetworkIntent, PortIntent]) -> PlanIntent:
    """One instance behind each port; its user-data is its host name's secret."""
    instances = [instance_of(port, f"secret of {port.hostname}") for _, port in pairs]
    networks = {network.uid: network for network, _ in pairs}
    return PlanIntent({one.uid: one for one in instances}, networks, {}, ())


class Guests:
    """A lab with a driver, a group that lets everything out, and the metadata service."""

    def __init__(self, lab: Lab, net: KernelNet, metadata: Metadata) -> None:
        self.lab, self.net, self.metadata = lab, net, metadata
        self.group = GroupIntent(new_uid(), (RuleIntent("out", True, 4),), frozenset())

    async def add(
        self, network: NetworkIntent, number: int, hostname: str
    ) -> tuple[NetworkIntent, PortIntent, Path]:
        network, port = with_port(network, number, hostname)
        guarded = replace(port, security_groups=(self.group.uid,))
        ports = tuple(guarded if one.uid == port.uid else one for one in network.ports)
        network = replace(network, ports=ports)
        guest = await self.lab.plug_guest(guarded)
        await self.net.ensure_group(self.group)
        await self.net.ensure_network(network)
        await self.net.ensure_port(guarded)
        assert await self.lab.dhcp(guest) is not None
        return network, guarded, guest

    async def ask(self, guest: Path, path: str, *headers: str) -> Answer:
        done = await self.lab.run(guest, "python3", "-c", SCRIPT, path, *headers)
        status, _, body = done.stdout.partition("\n")
        return Answer(int(status or 0), body.rstrip("\n") or done.stderr)


class ByHand:
    """No rounds of an agent: these tests call `follow`."""

    intent = PlanIntent({}, {}, {}, ())

    async def round_after(self, seen: int) -> Snapshot:
        raise AssertionError("nobody waits for rounds here")


@asynccontextmanager
async def open_guests() -> AsyncIterator[Guests]:
    async with open_lab() as lab:
        net = lab.driver()
        guests = Guests(lab, net, Metadata(ByHand(), net))
        try:
            yield guests
        finally:
            await guests.metadata.follow(PlanIntent({}, {}, {}, ()))
            await net.close()


async def test_each_guest_reads_its_own_though_tenants_share_addresses() -> None:
    async with open_guests() as guests:
        one = await guests.add(network_intent(7), 5, "one")
        two = await guests.add(network_intent(8), 5, "two")  # the same range, the same address
        await guests.metadata.follow(plan_of(one[:2], two[:2]))
        for _, port, guest in (one, two):
            answer = await guests.ask(guest, "/openstack/latest/user_data")
            assert answer == Answer(200, f"secret of {port.hostname}")
            meta = await guests.ask(guest, "/openstack/latest/meta_data.json")
            assert json.loads(meta.text)["name"] == port.hostname
            ec2 = await guests.ask(guest, "/latest/meta-data/local-ipv4")
            assert ec2.text == str(port.addresses[0])


async def test_headers_do_not_make_somebody_else_of_a_guest() -> None:
    async with open_guests() as guests:
        network, one, first = await guests.add(network_intent(7), 5, "one")
        network, two, _ = await guests.add(network, 6, "two")
        await guests.metadata.follow(plan_of((network, one), (network, two)))
        other = str(two.addresses[0])
        claims = [
            f"X-Forwarded-For={other}",
            f"X-Instance-ID={two.uid}",
            f"X-Real-IP={other}",
            f"Forwarded=for={other}",
            f"Host={other}",
        ]
        for claim in claims:
            assert (await guests.ask(first, "/latest/user-data", claim)).text == "secret of one"


async def test_a_guest_that_no_plan_names_reads_nothing_and_other_methods_are_refused() -> None:
    async with open_guests() as guests:
        network, one, first = await guests.add(network_intent(7), 5, "one")
        network, _, second = await guests.add(network, 6, "two")
        await guests.metadata.follow(plan_of((network, one)))
        assert (await guests.ask(first, "/latest/user-data")).status == 200
        assert (await guests.ask(second, "/latest/user-data")).status == 404


async def test_the_service_comes_back_with_its_namespace_and_goes_with_its_network() -> None:
    async with open_guests() as guests:
        network, one, guest = await guests.add(network_intent(7), 5, "one")
        plan = plan_of((network, one))
        await guests.metadata.follow(plan)
        assert (await guests.ask(guest, "/latest/user-data")).status == 200
        await guests.metadata.follow(PlanIntent({}, {}, {}, ()))
        await guests.net.ensure_network_absent(network.uid)
        assert not guests.lab.namespace_of(network).exists()
        await guests.net.ensure_network(network)
        await guests.net.ensure_port(one)
        await guests.metadata.follow(plan)
        for _ in range(20):  # a bridge that is new learns from the guest's first frames
            answer = await guests.ask(guest, "/latest/user-data")
            if answer.status == 200:
                break
            await asyncio.sleep(0.1)
        assert answer.text == "secret of one"
