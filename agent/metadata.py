"""The metadata service: each instance reads about itself at 169.254.169.254, on its own node.

**Edge**: a server in the namespace of each routing domain. Who asks is told by the address that the question
comes from, which anti-spoofing guards, and by nothing else: what a client writes into headers is not read. It
answers from the plan in force, so it goes on without a controller.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from aiohttp import web

from agent.errors import DriverError
from agent.intent import PlanIntent
from agent.metadata_tree import Asker, Document, find_document
from agent.report import Snapshot

KEEPALIVE_S: Final = 5.0  # a guest asks a handful of questions at boot
BACKLOG: Final = 128

_log = structlog.get_logger("agent.metadata")


class Rounds(Protocol):
    """The part of the agent that is needed here."""

    @property
    def intent(self) -> PlanIntent: ...

    async def round_after(self, seen: int) -> Snapshot: ...


class Listening(Protocol):
    """The part of the network driver that is needed here."""

    async def metadata_sockets(self, domain_uids: Collection[str]) -> dict[str, socket.socket]: ...


@dataclass(slots=True)
class _Site:
    listener: socket.socket
    runner: web.ServerRunner


class Metadata:
    """Servers by routing domain. `run` follows the agent's plan until cancelled."""

    def __init__(self, agent: Rounds, net: Listening) -> None:
        self._agent = agent
        self._net = net
        self._sites: dict[str, _Site] = {}
        self._plan: PlanIntent | None = None  # what the askers are of
        self._askers: dict[str, dict[str, Asker]] = {}  # by domain and address

    async def run(self) -> None:
        """One look after each round of the agent: namespaces come and go with rounds."""
        seen = -1
        try:
            while True:
                seen = (await self._agent.round_after(seen)).round
                await self.follow(self._agent.intent)
        finally:
            for uid in list(self._sites):
                await self._stop(uid)

    async def follow(self, plan: PlanIntent) -> None:
        """Serve exactly the plan's domains."""
        if plan is not self._plan:
            self._plan, self._askers = plan, index_askers(plan)
        try:
            listeners = await self._net.metadata_sockets(self._askers.keys())
        except DriverError as err:
            _log.warning("metadata of new domains is not served", reason=err.reason, message=err.message)
            return
        for uid, site in list(self._sites.items()):
            if site.listener is not listeners.get(uid):
                await self._stop(uid)
        for uid in sorted(listeners.keys() - self._sites.keys()):
            await self._start(uid, listeners[uid])

    async def _start(self, uid: str, listener: socket.socket) -> None:
        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            return self._answer(uid, request)

        runner = web.ServerRunner(web.Server(answer, keepalive_timeout=KEEPALIVE_S, access_log=None))
        await runner.setup()
        try:
            await web.SockSite(runner, listener, backlog=BACKLOG).start()
        except OSError as err:  # the next round gets another socket
            _log.warning("metadata is not served", domain=uid, message=str(err))
            await runner.cleanup()
            listener.close()
            return
        self._sites[uid] = _Site(listener, runner)

    async def _stop(self, uid: str) -> None:
        await self._sites.pop(uid).runner.cleanup()

    def _answer(self, uid: str, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="only GET and HEAD", headers={"Allow": "GET, HEAD"})
        asker = self._askers.get(uid, {}).get(_peer_address(request))
        document = find_document(asker, request.path) if asker is not None else None
        if document is None:
            return web.Response(status=404, text="not found\n")
        return _response(document)


def index_askers(plan: PlanIntent) -> dict[str, dict[str, Asker]]:
    """Who may ask, by routing domain (a router, or a network without one) and address. **Pure.**"""
    found: dict[str, dict[str, Asker]] = {}
    for instance in plan.instances.values():
        for port in instance.ports:
            network = plan.networks.get(port.network_uid)
            if network is None:
                continue
            domain = found.setdefault(network.router_uid or network.uid, {})
            asker = Asker(instance, port, plan.networks)
            domain.update({str(address): asker for address in port.addresses})
    return found


def _peer_address(request: web.BaseRequest) -> str:
    transport = request.transport
    peer: Mapping[int, object] | tuple[object, ...] | None = (
        transport.get_extra_info("peername") if transport is not None else None
    )
    return str(peer[0]) if peer else ""


def _response(document: Document) -> web.Response:
    return web.Response(body=document.body, headers={"Content-Type": document.content_type})
