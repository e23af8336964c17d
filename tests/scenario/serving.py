"""A real controller behind a real gRPC server on a Unix socket, over a store of the test's choice.

**Edge**: sockets, files. Agents are the real agent's core over fake drivers, also over real gRPC.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from controller.api.server import Server
from controller.controller import Controller
from controller.files import FileStore
from controller.journal import FileJournal
from controller.metrics import Metrics, StateCollector
from controller.reconcile.election import KeeperFactory
from controller.store.protocol import Store
from cumulet.clock import SystemClock
from cumulet.errors import CumuletError
from cumulet.kinds import (
    BY_NOUN,
    EXTERNAL_NETWORK,
    FLAVOR,
    FLOATING_IP,
    IMAGE,
    INSTANCE,
    KEY_PAIR,
    LOAD_BALANCER,
    NETWORK,
    OPERATION,
    PLACEMENT_GROUP,
    PROJECT,
    SUBNET,
    Kind,
)
from cumulet.v1 import (
    image_pb2,
    image_pb2_grpc,
    instance_pb2,
    meta_pb2,
    operation_pb2,
    placement_pb2,
    placementgroup_pb2,
)
from cumulet.wire_errors import from_rpc_error
from scheduler.policy import PACK, Policy
from tests.bench.simulated_agents import build_agent

WAIT_S = 20.0  # for what takes milliseconds on an idle machine
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAlbWsOcJ2F3f6WUkBBIVtGxfdhU1zJzNxTYf4kRZdm8 me@laptop"


@dataclass
class Cloud:
    """One serving controller and a channel to it."""

    controller: Controller
    address: str
    channel: grpc.aio.Channel
    files: FileStore
    directory: Path

    async def call(self, kind: Kind, method: str, **fields: Any) -> Any:
        """One unary call; a failure as the typed error that a client sees."""
        request = kind.message(f"{method}Request")(**fields)
        try:
            return await getattr(kind.stub(self.channel), method)(request)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def create(self, kind: Kind, message: Any, **fields: Any) -> Any:
        return await self.call(kind, f"Create{kind.name}", **{kind.field: message}, **fields)

    async def get(self, kind: Kind, name: str) -> Any:
        return await self.call(kind, f"Get{kind.name}", **scope(kind), name=name)

    async def update(self, kind: Kind, message: Any, *paths: str, **fields: Any) -> Any:
        mask = FieldMask(paths=paths)
        return await self.call(
            kind, f"Update{kind.name}", **{kind.field: message}, update_mask=mask, **fields
        )

    async def delete(self, kind: Kind, name: str, **fields: Any) -> Any:
        return await self.call(kind, f"Delete{kind.name}", **scope(kind), name=name, **fields)

    async def list(self, kind: Kind, **fields: Any) -> Any:
        return await self.call(kind, f"List{kind.plural}", **scope(kind), **fields)

    def watch(self, kind: Kind, **fields: Any) -> Watch:
        request = kind.message(f"Watch{kind.plural}Request")(**scope(kind), **fields)
        return Watch(getattr(kind.stub(self.channel), f"Watch{kind.plural}")(request), kind)

    async def wait(self, operation: operation_pb2.Operation, seconds: int = 20) -> operation_pb2.Operation:
        fields: dict[str, Any] = {"project": operation.meta.project, "name": operation.meta.name}
        request = operation_pb2.WaitOperationRequest(**fields)
        request.timeout.FromSeconds(seconds)
        done: operation_pb2.Operation = await OPERATION.stub(self.channel).WaitOperation(request)
        return done

    async def upload(
        self, data: bytes, file_format: Any = image_pb2.FILE_FORMAT_RAW, **header: Any
    ) -> image_pb2.ImageFile:
        parts = [
            image_pb2.UploadFileRequest(header=image_pb2.UploadHeader(format=file_format, **header)),
            *(image_pb2.UploadFileRequest(chunk=data[at : at + 65536]) for at in range(0, len(data), 65536)),
        ]
        try:
            reply = await image_pb2_grpc.ImageServiceStub(self.channel).UploadFile(iter(parts))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        file: image_pb2.ImageFile = reply.file
        return file

    async def seed(self, **quota: Any) -> None:
        """Project `default`, and one of each kind that an instance needs."""
        for kind, message in (
            (PROJECT, sample(PROJECT, "default")),
            (FLAVOR, sample(FLAVOR, "small")),
            (NETWORK, sample(NETWORK, "lan")),
        ):
            if kind is PROJECT and quota:
                message.spec.quota.MergeFrom(type(message.spec.quota)(**quota))
            await self.create(kind, message)
        await self.create(SUBNET, sample(SUBNET, "lan-a"))
        image = sample(IMAGE, "blank")
        image.spec.disk.CopyFrom(await self.upload(bytes(1 << 20)))
        await self.create(IMAGE, image)


class Watch:
    """An open watch; `change` and `until_bookmark` read it."""

    def __init__(self, call: Any, kind: Kind) -> None:
        self._call = call
        self._kind = kind

    async def change(self) -> Any:
        try:
            async with asyncio.timeout(WAIT_S):
                message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        if message is grpc.aio.EOF:
            code, details = await self._call.code(), await self._call.details()
            raise AssertionError(f"the watch ended: {code} {details}")
        return message

    async def until_bookmark(self) -> tuple[list[Any], int]:
        """Changes before the bookmark, and its revision."""
        found = []
        while (change := await self.change()).type != meta_pb2.CHANGE_TYPE_BOOKMARK:
            found.append(change)
        return found, change.revision

    async def names(self, count: int) -> list[tuple[int, str]]:
        """(type, name) of the next changes."""
        changes = [await self.change() for _ in range(count)]
        return [(change.type, getattr(change, self._kind.field).meta.name) for change in changes]

    def close(self) -> None:
        self._call.cancel()


def scope(kind: Kind) -> dict[str, str]:
    return {"project": "default"} if kind.scoped else {}


def sample(kind: Kind, name: str) -> Any:
    """A valid new object of a kind (but for an image's file)."""
    made: Any = kind.message()()
    made.meta.name = name
    if kind.scoped:
        made.meta.project = "default"
    if kind is FLAVOR:
        made.spec.resources.CopyFrom(meta_pb2.Resources(vcpu=1, memory_mib=512, disk_gib=5))
    elif kind is KEY_PAIR:
        made.spec.public_key = PUBLIC_KEY
    elif kind is SUBNET:
        made.spec.network, made.spec.cidr = "lan", "10.0.0.0/22"
    elif kind is PLACEMENT_GROUP:
        made.spec.rule = placementgroup_pb2.PLACEMENT_RULE_ANTI_AFFINITY
    elif kind is EXTERNAL_NETWORK:
        made.spec.uplink, made.spec.cidr = name, "203.0.113.0/24"
    elif kind is FLOATING_IP:
        made.spec.external_network = "internet"
    elif kind is LOAD_BALANCER:
        made.spec.network = "lan"
        made.spec.listeners.add(protocol="tcp", port=80)
    elif kind is INSTANCE:
        made.spec.flavor, made.spec.image = "small", "blank"
        made.spec.networks.append(instance_pb2.NetworkAttachment(network="lan"))
    return made


async def refusal(call: Any) -> CumuletError:
    """The typed error that a call ends with."""
    try:
        await call
    except CumuletError as error:
        return error
    raise AssertionError("the call was not refused")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (of several objects, none of which tells)
            await asyncio.sleep(0.01)


async def until_true(ask: Callable[[], Awaitable[bool]]) -> None:
    """The same for a question that takes a call."""
    async with asyncio.timeout(WAIT_S):
        while not await ask():  # noqa: ASYNC110 (the other side tells only when asked)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(
    store: Store, keeper: KeeperFactory, directory: Path, policy: Policy = PACK
) -> AsyncIterator[Cloud]:
    """A controller that leads and serves, until the end of the block."""
    metrics = Metrics()
    address = f"unix:{directory}/api.sock"
    controller = Controller(
        store,
        keeper,
        FileJournal(directory / "journal.jsonl"),
        SystemClock(),
        random.Random(1),
        address,
        metrics,
        policy,
    )
    files = FileStore(directory / "files")
    server = Server(controller, files, [address], insecure=False)
    metrics.registry.register(StateCollector(controller.state))
    tasks = [asyncio.create_task(controller.run()), asyncio.create_task(server.run())]
    try:
        await until(lambda: controller.leading is not None or any(task.done() for task in tasks))
        async with grpc.aio.insecure_channel(address) as channel:
            yield Cloud(controller, address, channel, files, directory)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def agent_of(
    cloud: Cloud,
    name: str = "sim-0001",
    devices: tuple[placement_pb2.Device, ...] = (),
    uplinks: tuple[str, ...] = (),
) -> AsyncIterator[None]:
    """An agent over fakes with a session."""
    agent, uplink = build_agent(name, cloud.address, seed=1, devices=devices, uplinks=uplinks)
    tasks = [asyncio.create_task(agent.run()), asyncio.create_task(uplink.run())]
    try:
        await until(lambda: uplink.welcomed)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


WRITABLE = tuple(kind for kind in BY_NOUN.values() if "create" in kind.verbs)
