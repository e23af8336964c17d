"""Announcements of others: an address is let go without a session, and defended with one.

The ears are datagram sockets here; real ones are in tests/e2e/test_lab_floating.py.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from agent.conflicts import DEFEND_S, Conflicts
from agent.intent import External, parse_plan, without_address
from agent.net.announce import advertisement, announcement, parse_advertisement, parse_announcement
from agent.net.driver import IPAddress
from agent.net.ears import Ear, Place
from agent.report import Snapshot
from cumulet.v1 import agent_pb2 as pb
from tests.unit.agent_net.frames import checksum

from .build import instance, plan

OURS, THEIRS = "02:00:00:00:00:01", "02:00:00:00:00:02"
ADDRESS, OTHER = IPv4Address("203.0.113.70"), IPv4Address("203.0.113.71")
REQUEST, REPLY = 1, 2
ADDRESS6 = IPv6Address("2001:db8::70")
_HEADERS = 54  # of Ethernet and IPv6
ROUTER_UID = "00000006-0000-0000-0000-000000000009"


@dataclass
class Clock:
    at: float = 1_000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


@dataclass
class Stage:
    """An agent that answers for ADDRESS on one uplink, and what became of it."""

    mouth: socket.socket
    ear: Ear
    clock: Clock = field(default_factory=Clock)
    live: bool = True
    yielded: list[External] = field(default_factory=list)
    announced_again: list[External] = field(default_factory=list)
    happened: asyncio.Event = field(default_factory=asyncio.Event)
    rounds: int = 0

    @property
    def announced(self) -> frozenset[External]:
        return frozenset({("internet", ADDRESS)}) - set(self.yielded)

    def has_live_session(self) -> bool:
        return self.live

    def yield_address(self, external: External) -> None:
        self.yielded.append(external)
        self.happened.set()

    async def round_after(self, seen: int) -> Snapshot:
        if self.rounds:
            await asyncio.Event().wait()
        self.rounds += 1
        return Snapshot(1, pb.PlanVersion(), True, {}, {}, (), 0.0)

    async def ears(self, places: frozenset[Place]) -> dict[Place, Ear]:
        return {("internet", 4): self.ear} if ("internet", 4) in places else {}

    async def announce(self, uplink: str, address: IPAddress) -> None:
        self.announced_again.append((uplink, address))
        self.happened.set()

    async def hears(self, mac: str, address: IPv4Address, operation: int = REQUEST) -> bool:
        """Whether anything comes of it before what is said next has been heard."""
        self.happened.clear()
        self.mouth.send(announcement(mac, address, operation))
        for _ in range(20):  # the loop reads a socket that is ready in its next round
            await asyncio.sleep(0)
        return self.happened.is_set()


@asynccontextmanager
async def running() -> AsyncIterator[Stage]:
    heard, mouth = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.setblocking(False)
    stage = Stage(mouth, Ear(7, OURS, heard))
    conflicts = Conflicts(stage, stage, stage.clock)
    await conflicts.follow()
    work = asyncio.create_task(conflicts.run())
    try:
        yield stage
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        mouth.close()
    assert heard.fileno() < 0  # whoever listens closes it


async def test_without_a_session_the_address_is_let_go_at_the_first_word() -> None:
    async with running() as stage:
        stage.live = False
        assert await stage.hears(THEIRS, ADDRESS)
        assert stage.yielded == [("internet", ADDRESS)]
        assert not await stage.hears(THEIRS, ADDRESS)
        assert stage.announced_again == []


async def test_with_a_session_it_is_said_again_but_not_in_a_quarrel() -> None:
    async with running() as stage:
        for operation in (REQUEST, REPLY):
            assert await stage.hears(THEIRS, ADDRESS, operation) == (operation == REQUEST)
        stage.clock.at += DEFEND_S
        assert await stage.hears(THEIRS, ADDRESS)
        assert stage.announced_again == [("internet", ADDRESS)] * 2
        assert stage.yielded == []


async def test_its_own_words_other_addresses_and_questions_are_no_conflict() -> None:
    async with running() as stage:
        stage.live = False
        assert not await stage.hears(OURS, ADDRESS)
        assert not await stage.hears(THEIRS, OTHER)
        question = bytearray(announcement(THEIRS, ADDRESS, REQUEST))
        question[-4:] = OTHER.packed  # who has OTHER? tell ADDRESS
        for frame in (bytes(question), bytes(question)[:20], b""):
            stage.mouth.send(frame)
        assert await stage.hears(THEIRS, ADDRESS)  # the control


@given(st.binary(min_size=6, max_size=6), st.ip_addresses(v=4), st.sampled_from([REQUEST, REPLY]))
def test_an_announcement_is_understood(mac: bytes, address: IPv4Address, operation: int) -> None:
    text = mac.hex(":")
    assert parse_announcement(announcement(text, address, operation)) == (text, address)


@given(st.binary(min_size=6, max_size=6), st.ip_addresses(v=6))
def test_an_advertisement_is_understood(mac: bytes, address: IPv6Address) -> None:
    text = mac.hex(":")
    frame = advertisement(text, address)
    assert parse_advertisement(frame[_HEADERS:]) == (text, address)
    pseudo = frame[22:54] + struct.pack("!II", len(frame) - _HEADERS, 58)
    assert checksum(pseudo + frame[_HEADERS:]) == 0


@given(st.binary(max_size=64))
def test_no_message_breaks_the_listener(message: bytes) -> None:
    found = parse_advertisement(message)
    assert found is None or advertisement(*found)[_HEADERS:][:1] == message[:1]


def test_an_answer_that_overrides_nothing_is_no_announcement() -> None:
    """A neighbour that is asked by somebody else says where it is, too."""
    message = bytearray(advertisement(THEIRS, ADDRESS6)[_HEADERS:])
    message[4] = 0x40  # solicited
    assert parse_advertisement(bytes(message)) is None


@given(st.binary(max_size=64))
def test_no_frame_breaks_the_listener(frame: bytes) -> None:
    found = parse_announcement(frame)
    assert found is None or announcement(*found, operation=REQUEST)[12:14] == frame[12:14]


def test_a_plan_without_an_address_is_otherwise_the_same() -> None:
    planned = plan()
    router = planned.routers.add(uid=ROUTER_UID, vni=9)
    for address in (ADDRESS, OTHER):
        router.floating_addresses.add(
            uid=ROUTER_UID, address=str(address), uplink="internet", cidr="203.0.113.0/24"
        )
    before = parse_plan(planned)
    after = without_address(before, ("internet", ADDRESS))
    assert [one.address for one in after.routers[ROUTER_UID].intent.floating] == [OTHER]
    assert without_address(after, ("moon", OTHER)) == after
    assert after.instances == before.instances


def test_a_plan_answers_for_the_addresses_of_its_own_ports_in_routed_subnets() -> None:
    planned = plan(instance(1, networks=(1, 2)), networks=(1, 2))
    planned.networks[0].router_uid = ROUTER_UID
    for port, address in zip(planned.instances[0].ports, (ADDRESS6, IPv6Address("2001:db8::9")), strict=True):
        port.addresses.extend([str(address), "2001:db8:7::1"])
    router = planned.routers.add(uid=ROUTER_UID, vni=9)
    router.routed_subnets.add(
        cidr="2001:db8::/64", gateway="2001:db8::1", uplink="internet", external_cidr="2001:db8::/32"
    )
    before = parse_plan(planned)
    assert before.refusals == ()
    (routed,) = before.routers[ROUTER_UID].intent.routed
    assert routed.addresses == (ADDRESS6,)  # of another network's port is none of it
    after = without_address(before, ("internet", ADDRESS6))
    assert after.routers[ROUTER_UID].intent.answered == ()
    assert without_address(before, ("moon", ADDRESS6)) == before
