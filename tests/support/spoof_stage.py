"""An attacker and a victim on one network of a real node, raw frames between them, and floods.

**Edge**: namespaces, packet sockets and the kernel's own rules, through a lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from agent.net import addressing, names, nft
from agent.net.driver import NetworkIntent, PortIntent
from agent.net.elements import Json
from agent.net.kernel_driver import KernelNet
from cumulet.addresses import link_local_address
from tests.unit.agent_net import probes, spoofs
from tests.unit.agent_net.lab import Lab, network_intent, open_lab, with_port
from tests.unit.agent_net.neighbours import Guest, boot, group, in_groups, rule, with_ports
from tests.unit.agent_net.spoofs import HONEST, Make, Scene

TRIALS = 200  # frames in each class
CIDR6 = "2001:db8:7::/64"


@dataclass(frozen=True, slots=True)
class Stage:
    """An attacker and a victim that would let everything in, on one network."""

    lab: Lab
    net: KernelNet
    network: NetworkIntent
    attacker: Guest
    victim: Guest

    @property
    def scene(self) -> Scene:
        gateway6 = IPv6Address(self.network.subnets[1].gateway)
        return Scene(
            mac=self.attacker.port.mac,
            own4=IPv4Address(self.attacker.address()),
            own6=IPv6Address(self.attacker.address(6)),
            link_local=link_local_address(self.attacker.port.mac),
            victim_mac=self.victim.port.mac,
            victim4=IPv4Address(self.victim.address()),
            victim6=IPv6Address(self.victim.address(6)),
            gateway_mac=addressing.fixed_mac("gateway", self.network.uid),
            gateway4=IPv4Address(self.network.subnets[0].gateway),
            gateway6=gateway6,
            other4=IPv4Address("10.99.0.5"),
        )

    async def delivered(self, classes: Mapping[str, Make]) -> dict[str, int]:
        """How many of each class's frames came out anywhere but where they were sent."""
        places = self.victim.namespace, self.lab.namespace_of(self.network)
        links = "eth0", names.inner_gateway_name(self.network.uid)
        ears = [
            await self.lab.inside(place, partial(probes.Ear, link=link))
            for place, link in zip(places, links, strict=True)
        ]
        try:
            frames = [
                frame
                for number, make in enumerate(classes.values())
                for frame in _frames(self.scene, number, make)
            ]
            await self.lab.inside(self.attacker.namespace, partial(probes.send_frames, frames))
            heard = [await asyncio.to_thread(ear.heard) for ear in ears]
            found = Counter(kind for kind, _ in spoofs.find_markers(itertools.chain.from_iterable(heard)))
            return {name: found[number] for number, name in enumerate(classes)}
        finally:
            for ear in ears:
                ear.close()


def _frames(scene: Scene, number: int, make: Make) -> Iterator[bytes]:
    for trial in range(TRIALS):
        made = make(scene, spoofs.marker(number, trial))
        yield from (made,) if isinstance(made, bytes) else made


@asynccontextmanager
async def _stage(lab: Lab, net: KernelNet) -> AsyncIterator[Stage]:
    everything = group(rule("in"), rule("out"), rule("in", version=6), rule("out", version=6))
    await net.ensure_group(everything)
    network = network_intent(cidr6=CIDR6)
    ports = [in_groups(with_port(network, number)[1], everything.uid) for number in (5, 6)]
    network = with_ports(network, *ports)
    await net.ensure_network(network)
    attacker, victim = [await boot(lab, net, network, port) for port in ports]
    yield Stage(lab, net, network, attacker, victim)


@asynccontextmanager
async def open_stage() -> AsyncIterator[Stage]:
    async with open_lab() as lab:
        net = lab.driver()
        try:
            async with _stage(lab, net) as made:
                yield made
        finally:
            await net.close()


async def drop_everything(stage: Stage) -> None:
    """A rule against all frames: the control of what must not be lost."""
    chain = {"family": "bridge", "table": "control"}
    hook = {"type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}
    commands: list[Json] = [
        {"add": {"table": {"family": "bridge", "name": "control"}}},
        {"add": {"chain": {**chain, "name": "all", **hook}}},
    ]
    await stage.lab.inside(stage.lab.host, partial(nft.commit, commands))


async def remove_filters(stage: Stage) -> None:
    """All rules of the node go: the control of every zero."""
    await stage.lab.inside(stage.lab.host, partial(nft.commit, [{"flush": {"ruleset": None}}]))


class Flood:
    """The same frame again and again out of a guest, from a thread, until it is stopped."""

    def __init__(self, frame: bytes) -> None:
        self._frame = frame
        self._stop = threading.Event()
        self.sent = 0

    def run(self) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
            mouth.bind(("eth0", 0))
            while not self._stop.is_set():
                with contextlib.suppress(OSError):  # the link's queue is full, or it is not up yet
                    mouth.send(self._frame)
                    self.sent += 1

    async def reaches(self, count: int) -> None:
        """So many more frames were sent."""
        wanted = self.sent + count
        while self.sent < wanted:  # noqa: ASYNC110 (a thread counts, which cannot set an event)
            await asyncio.sleep(0)

    def stop(self) -> None:
        self._stop.set()


@dataclass(frozen=True, slots=True)
class Plugged:
    """Frames that were sent while a port was plugged, and of those how many came from it or to it."""

    sent: int
    arrived_from: int
    arrived_at: int


async def plug_newcomers(stage: Stage) -> tuple[Plugged, Plugged, Plugged]:
    """Two ports that may neither send nor receive, and one that may both: the control."""
    closed, everything = group(), group(rule("in"), rule("out"))
    for one in (closed, everything):
        await stage.net.ensure_group(one)
    ports = [
        in_groups(with_port(stage.network, number)[1], uid)
        for number, uid in ((7, closed.uid), (8, closed.uid), (9, everything.uid))
    ]
    await stage.net.ensure_network(with_ports(stage.network, *stage.network.ports, *ports))
    first, second, control = [await _plug_under_flood(stage, port) for port in ports]
    return first, second, control


async def _plug_under_flood(stage: Stage, port: PortIntent) -> Plugged:
    namespace = await stage.lab.plug_guest(port)
    newcomer = replace(stage.scene, mac=port.mac, own4=IPv4Address(port.addresses[0]))
    towards = replace(stage.scene, victim_mac=port.mac, victim4=newcomer.own4)
    floods = [
        (namespace, Flood(_one(HONEST["UDP over IPv4"](newcomer, spoofs.marker(1, 1))))),
        (stage.attacker.namespace, Flood(_one(HONEST["UDP over IPv4"](towards, spoofs.marker(2, 1))))),
    ]
    ears = [await stage.lab.inside(place, probes.Ear) for place in (stage.victim.namespace, namespace)]
    async with asyncio.TaskGroup() as tasks:
        for place, flood in floods:
            tasks.create_task(stage.lab.inside(place, flood.run))
        for _, flood in floods:
            await flood.reaches(TRIALS)
        await stage.net.ensure_port(port)
        for _, flood in floods:
            await flood.reaches(TRIALS)
            flood.stop()
    heard = [await asyncio.to_thread(ear.heard) for ear in ears]
    for ear in ears:
        ear.close()
    arrived = [
        sum(spoofs.marker(kind, 1) in frame for frame in frames) for kind, frames in enumerate(heard, start=1)
    ]
    return Plugged(sum(flood.sent for _, flood in floods), *arrived)


def _one(made: bytes | tuple[bytes, ...]) -> bytes:
    assert isinstance(made, bytes)
    return made
