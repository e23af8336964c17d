"""The contended workload: many clients on few names, addresses, places and little quota.

**Pure** but for the event loop. A client repeats a request whose answer it did not get, with the same id, at
another replica; sometimes it sends one twice at once, or long after it was answered.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from cumulet.errors import (
    AlreadyExistsError,
    ConflictError,
    CumuletError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    QuotaExceededError,
    UnavailableError,
)
from cumulet.v1 import instance_pb2, meta_pb2, network_pb2, node_pb2
from tests.sim.oracle import REQUEST_LABEL, Oracle
from tests.sim.replicas import Replica
from tests.sim.trace import Trace

PROJECTS: Final = ("red", "blue")
NAMES: Final = ("a", "b", "c", "d")
BURST_NAMES: Final = (*NAMES, "e", "f")
BURST: Final = 6
FLAVORS: Final = ("small", "large")
CLIENTS: Final = 4
CALL_S: Final = 8.0  # patience with one answer
TRIES: Final = 4
THINK_S: Final = (0.1, 5.0)
KEPT: Final = 20  # old creates that may be sent again

EXPECTED: Final = (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    QuotaExceededError,
    UnavailableError,
)


class NoAnswerError(Exception):
    """The request or its answer was lost; it may have happened or may still happen."""


@dataclass
class Api:
    """How clients reach the cloud: any replica, over a lossy network."""

    replicas: list[Replica]
    oracle: Oracle
    trace: Trace
    rng: random.Random
    loss: float = 0.0
    requests: int = 0

    def new_id(self) -> str:
        self.requests += 1
        return f"r{self.requests}"

    async def call(self, method: str, request: Any) -> Any:
        """One try. Raises CumuletError, NoAnswerError."""
        replica = self.rng.choice(self.replicas)
        await asyncio.sleep(self.rng.uniform(0, 0.02))
        if self.rng.random() < self.loss:
            self.trace.fault("request_lost", method)
            await asyncio.sleep(self.rng.uniform(0, CALL_S))
            raise NoAnswerError
        try:
            async with asyncio.timeout(CALL_S):
                reply = await replica.call(method, request)
        except TimeoutError:
            raise NoAnswerError from None
        except EXPECTED as error:
            self.trace.note(f"{method} {_name(request)} at {replica.address}: {error.reason}")
            raise
        except Exception as error:
            self.trace.violate("crash", f"{method} at {replica.address} failed with {error!r}")
            raise UnavailableError("internal") from error
        if self.rng.random() < self.loss:
            self.trace.fault("answer_lost", method)
            raise NoAnswerError
        return reply

    async def ask(self, method: str, request: Any) -> Any:
        """Try until there is an answer, a few times. Raises CumuletError, NoAnswerError."""
        for attempt in range(TRIES):
            try:
                return await self.call(method, request)
            except (NoAnswerError, UnavailableError):
                if attempt == TRIES - 1:
                    raise
            await asyncio.sleep(self.rng.uniform(0.1, 1.0))
        raise AssertionError


def _name(request: Any) -> str:
    return str(getattr(request, "name", "") or request.DESCRIPTOR.name)


@dataclass
class Client:
    """One client's choices, drawn from its own source."""

    api: Api
    rng: random.Random
    nodes: tuple[str, ...]
    _sent: list[instance_pb2.CreateInstanceRequest] = field(default_factory=list)

    async def run(self, over: asyncio.Event) -> None:
        while not over.is_set():
            action = self._choose()
            try:
                await action()
                self.api.trace.ops[f"{action.__name__}"] += 1
            except (CumuletError, NoAnswerError):
                self.api.trace.ops[f"{action.__name__}_refused"] += 1
            await asyncio.sleep(self.rng.uniform(*THINK_S))

    def _choose(self) -> Callable[[], Any]:
        actions = (
            self.create,
            self.delete,
            self.start,
            self.stop,
            self.reboot,
            self.repeat,
            self.burst,
            self.cordon,
            self.uncordon,
            self.network,
        )
        return self.rng.choices(actions, weights=(34, 22, 10, 10, 6, 8, 4, 3, 6, 5))[0]

    def _where(self) -> tuple[str, str]:
        return self.rng.choice(PROJECTS), self.rng.choice(NAMES)

    async def create(self) -> None:
        request = self._new_create(*self._where())
        self._sent = [*self._sent, request][-KEPT:]
        if self.rng.random() < 0.25:
            await asyncio.gather(*(self._create(request) for _ in range(3)), return_exceptions=True)
        else:
            await self._create(request)

    def _new_create(self, project: str, name: str) -> instance_pb2.CreateInstanceRequest:
        request_id = self.api.new_id()
        address = f"10.0.0.{self.rng.randrange(2, 7)}" if self.rng.random() < 0.2 else ""
        off = self.rng.random() < 0.1
        return instance_pb2.CreateInstanceRequest(
            request_id=request_id,
            instance=instance_pb2.Instance(
                meta=meta_pb2.Meta(name=name, project=project, labels={REQUEST_LABEL: request_id}),
                spec=instance_pb2.InstanceSpec(
                    flavor=self.rng.choice(FLAVORS),
                    image="img",
                    networks=[instance_pb2.NetworkAttachment(network="net", address=address)],
                    stop_timeout_s=self.rng.choice((5, 20)),
                    power=instance_pb2.POWER_STATE_OFF if off else instance_pb2.POWER_STATE_ON,
                ),
            ),
        )

    async def burst(self) -> None:
        """Many creates at the same moment, for what can be had by few of them."""
        project = self.rng.choice(PROJECTS)
        requests = [self._new_create(project, self.rng.choice(BURST_NAMES)) for _ in range(BURST)]
        await asyncio.gather(*(self._create(request) for request in requests), return_exceptions=True)

    async def repeat(self) -> None:
        """An old create again, by a client that never got its answer."""
        if self._sent:
            await self._create(self.rng.choice(self._sent))

    async def _create(self, request: instance_pb2.CreateInstanceRequest) -> None:
        operation = await self.api.ask("InstanceService.CreateInstance", request)
        self.api.oracle.create_acked(request.request_id, operation.target.uid, operation.meta.name)

    async def delete(self) -> None:
        project, name = self._where()
        await delete_instance(self.api, project, name)

    async def start(self) -> None:
        project, name = self._where()
        self.api.oracle.power_asked((project, name))
        request = instance_pb2.StartInstanceRequest(project=project, name=name, request_id=self.api.new_id())
        await self._power("Start", request)

    async def stop(self) -> None:
        project, name = self._where()
        self.api.oracle.power_asked((project, name))
        request = instance_pb2.StopInstanceRequest(
            project=project, name=name, force=self.rng.random() < 0.3, request_id=self.api.new_id()
        )
        await self._power("Stop", request)

    async def reboot(self) -> None:
        project, name = self._where()
        self.api.oracle.power_asked((project, name))
        request = instance_pb2.RebootInstanceRequest(
            project=project, name=name, force=self.rng.random() < 0.5, request_id=self.api.new_id()
        )
        await self._power("Reboot", request)

    async def _power(self, verb: str, request: Any) -> None:
        operation = await self.api.ask(f"InstanceService.{verb}Instance", request)
        self.api.oracle.operation_acked(operation.meta.name)

    async def cordon(self) -> None:
        request = node_pb2.CordonNodeRequest(
            name=self.rng.choice(self.nodes), reason="sim", request_id=self.api.new_id()
        )
        await self.api.ask("NodeService.CordonNode", request)

    async def uncordon(self) -> None:
        request = node_pb2.UncordonNodeRequest(name=self.rng.choice(self.nodes), request_id=self.api.new_id())
        await self.api.ask("NodeService.UncordonNode", request)

    async def network(self) -> None:
        """Networks come and go, for their VNIs."""
        project, name = self.rng.choice(PROJECTS), f"extra-{self.rng.choice('xy')}"
        if self.rng.random() < 0.6:
            made = network_pb2.Network(meta=meta_pb2.Meta(name=name, project=project))
            create = network_pb2.CreateNetworkRequest(network=made, request_id=self.api.new_id())
            await self.api.ask("NetworkService.CreateNetwork", create)
        else:
            delete = network_pb2.DeleteNetworkRequest(
                project=project, name=name, request_id=self.api.new_id()
            )
            await self.api.ask("NetworkService.DeleteNetwork", delete)


async def delete_instance(api: Api, project: str, name: str) -> None:
    """Ask for a deletion; the oracle knows that it was asked for."""
    parts = (project, name)
    request = instance_pb2.DeleteInstanceRequest(project=project, name=name, request_id=api.new_id())
    api.oracle.delete_begins(parts)
    answered = False
    try:
        operation = await api.ask("InstanceService.DeleteInstance", request)
        answered = True
    finally:
        api.oracle.delete_ends(parts, answered=answered)
    api.oracle.operation_acked(operation.meta.name)
