"""Nodes ask members of load balancers whether they live, and leave those that do not.

Real kernel, real tunnels, real sockets; nodes, guests and the underlay are network namespaces.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from types import MappingProxyType

import pytest

from agent.health import Health
from agent.health_board import Board
from agent.intent import NOTHING, PlanIntent
from agent.net.balancer import HealthIntent, Probed
from agent.net_intent import RouterPlan
from agent.report import Snapshot
from cumulet.addresses import part_address, part_address6
from tests.unit.agent_net.balanced import answering, asks, balance, balancer, members, open_balanced
from tests.unit.agent_net.neighbours import all_out, group, rule
from tests.unit.agent_net.routed import PORT, Site
from tests.unit.agent_net.span import Node

CHECK = HealthIntent("", 1, 1, 2, 2)
# Until a member that fell silent is left: `fall` questions, and one that was just answered.
LEFT_WITHIN_S = CHECK.interval_s * (CHECK.fall + 1) + CHECK.timeout_s
BACK_WITHIN_S = CHECK.interval_s * (CHECK.rise + 1) + CHECK.timeout_s
_LOOK_S = 0.05


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest) -> int:
    """Of the balancer and its members; guests have both."""
    return int(request.param)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with open_balanced() as made:
        yield made


class _Rounds:
    """An agent whose plan does not change."""

    def __init__(self, plan: PlanIntent) -> None:
        self.intent = plan

    async def round_after(self, seen: int) -> Snapshot:
        raise NotImplementedError


@asynccontextmanager
async def watching(site: Site, *nodes: Node) -> AsyncIterator[list[Board]]:
    """The health of the router's balancers, as these nodes see it."""
    routers = MappingProxyType({site.router.uid: RouterPlan(site.router, (), ())})
    plan = replace(NOTHING, routers=routers)
    boards = [Board() for _ in nodes]
    async with asyncio.TaskGroup() as group:
        watchers = [Health(_Rounds(plan), node.net, board) for node, board in zip(nodes, boards, strict=True)]
        for one in watchers:
            await one.follow(plan, group)
        yield boards
        for one in watchers:
            await one.follow(NOTHING, group)


async def becomes(board: Board, wanted: dict[str, frozenset[Probed]], within_s: float) -> float:
    """How long it took."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.timeout(within_s):
        while board.unhealthy != wanted:
            await board.after(board.version)
    return loop.time() - started


async def test_who_falls_silent_is_left_in_time_and_comes_back(site: Site, version: int) -> None:
    """By every node for itself: members are on the first and second, the client on the third."""
    made = balancer(*members(site, "red1", "blue2", version=version), health=CHECK)
    await balance(site, made)
    red1 = frozenset({made.members[0].probed})
    async with answering(site, "blue2"), watching(site, *site.cloud.nodes) as boards:
        async with answering(site, "red1"):
            assert sum((await asks(site, "red3", 10)).values()) == 10
            assert [board.unhealthy for board in boards] == [{}, {}, {}]
        for board in boards:
            await becomes(board, {made.uid: red1}, LEFT_WITHIN_S)
        for client in ("red3", "red2", "red11"):
            assert await asks(site, client, 10) == {"blue2": 10}, client
        await site.check()
        async with answering(site, "red1"):
            for board in boards:
                await becomes(board, {}, BACK_WITHIN_S)
            assert await asks(site, "red3", 10) == {"red1": 5, "blue2": 5}


async def test_when_all_are_silent_all_stay(site: Site, version: int) -> None:
    made = balancer(*members(site, "red1", "blue2", version=version), health=CHECK)
    await balance(site, made)
    third = site.cloud.nodes[2]
    async with watching(site, third) as (board,):
        await becomes(board, {made.uid: made.probed()}, LEFT_WITHIN_S)
        async with answering(site, "red1", "blue2"):
            assert await asks(site, "red3", 10) == {"red1": 5, "blue2": 5}


async def test_groups_let_the_nodes_ask_and_nobody_else(site: Site, version: int) -> None:
    """The member's groups let nobody in; in the control they let the client in."""
    second, port = site.at("blue2")
    closed = group(*all_out())
    await second.net.ensure_group(closed)
    judged = replace(port, security_groups=(closed.uid,))
    site.placed[site.placed.index((second, port))] = (second, judged)
    made = balancer(*members(site, "blue2", version=version), health=CHECK)
    await balance(site, made)
    await second.net.ensure_port(judged)
    third = site.cloud.nodes[2]
    async with answering(site, "blue2"):
        for node in (third, second):
            async with watching(site, node) as (board,):
                await asyncio.sleep(LEFT_WITHIN_S)
                assert board.unhealthy == {}
        assert await asks(site, "red3", 2) == {"": 2}
        opened = replace(closed, rules=(*closed.rules, rule("in", "tcp", (PORT, PORT), version=version)))
        await second.net.ensure_group(opened)
        assert await asks(site, "red3", 2) == {"blue2": 2}


async def test_a_guest_cannot_ask_as_if_it_were_a_node(site: Site, version: int) -> None:
    """It sends from a part's address; the filter of senders drops it."""
    guest = site.guests["red3"]
    part = (part_address if version == 4 else part_address6)(site.cloud.nodes[2].address)
    await guest.lab.run(
        guest.namespace, "ip", "address", "add", f"{part}/{part.max_prefixlen}", "dev", "eth0"
    )
    async with answering(site, "blue2"):
        target = site.guests["blue2"].address(version)
        assert await guest.lab.inside(guest.namespace, lambda: _connects(target, ""))
        assert not await guest.lab.inside(guest.namespace, lambda: _connects(target, str(part)))


async def test_http_is_healthy_from_200_to_399(site: Site, version: int) -> None:
    made = balancer(*members(site, "red1", version=version), health=replace(CHECK, http_path="/ready"))
    await balance(site, made)
    third, member = site.cloud.nodes[2], site.guests["red1"]
    asked: Counter[bytes] = Counter()
    status = {"now": 500}
    server = http_server(status, asked)
    await member.lab.inside(member.namespace, server.__enter__)
    try:
        async with watching(site, third) as (board,):
            await becomes(board, {made.uid: made.probed()}, LEFT_WITHIN_S)
            for good, bad in ((200, 404), (302, 503)):
                status["now"] = good
                await becomes(board, {}, BACK_WITHIN_S)
                status["now"] = bad
                await becomes(board, {made.uid: made.probed()}, LEFT_WITHIN_S)
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)
    assert asked.keys() == {b"GET /ready HTTP/1.1"}


@contextmanager
def http_server(status: dict[str, int], asked: Counter[bytes]) -> Iterator[None]:
    """Answers every request with the status of now."""
    listener = socket.create_server(("", PORT), family=socket.AF_INET6, dualstack_ipv6=True)

    def serve() -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection:
                asked[connection.recv(4096).partition(b"\r\n")[0]] += 1
                connection.sendall(f"HTTP/1.1 {status['now']} So\r\nContent-Length: 0\r\n\r\n".encode())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _connects(target: str, source: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET) as client:
        client.settimeout(0.5)
        client.bind((source, 0))
        try:
            client.connect((target, PORT))
        except OSError:
            return False
    return True
