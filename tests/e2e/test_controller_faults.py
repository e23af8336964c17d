"""Two controller processes on a real etcd, killed, frozen and cut off: acknowledged is kept, one leads.

**Edge**: real processes, signals, gRPC over Unix sockets. Agents are sessions spoken by the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import grpc

from agent.link_grpc import GrpcDialer
from controller.store import keys
from controller.store.etcd import EtcdStore
from controller.store.lease import TTL_S
from controller.store.protocol import StoreError
from cumulet.errors import CumuletError, NotFoundError, UnavailableError
from cumulet.kinds import FLAVOR, IMAGE, INSTANCE, NETWORK, PROJECT, SUBNET, Kind
from cumulet.v1 import agent_pb2, image_pb2, image_pb2_grpc, instance_pb2, meta_pb2, operation_pb2, store_pb2
from cumulet.wire_errors import from_rpc_error
from tests.scenario.serving import sample
from tests.support.etcd import EtcdServer

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 40.0
LOOKS_MIN: Final = 20  # at the pace of `_until`: a second in which no leader wrote anything
TAKEOVER_S = 15.0  # the lease's 10 s and an election
LOST = 3  # exit code of a controller that has lost its leadership
CREATES, AT_ONCE = 120, 16


class Replica:
    """One `cumulet-controller` process."""

    def __init__(self, directory: Path, name: str, etcd: str) -> None:
        self.address = f"unix:{directory}/{name}.sock"
        self._directory, self._name, self._etcd = directory, name, etcd
        self.log = directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "controller.main", "--etcd", self._etcd),
                    *("--listen", self.address, "--data-dir", str(self._directory / self._name)),
                    *("--metrics-address", f"127.0.0.1:{_free_port()}"),
                ],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
                stderr=log,
            )

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def send(self, number: signal.Signals) -> None:
        os.kill(self.running.pid, number)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cloud:
    etcd: EtcdServer
    replicas: list[Replica]
    store: EtcdStore
    channels: dict[str, grpc.aio.Channel]

    async def leader(self) -> tuple[int, Replica]:
        """(epoch, replica) of whoever holds the key."""
        found = await self.store.get(keys.LEADER_KEY.key())
        assert found is not None
        address = store_pb2.LeaderRecord.FromString(found.value).address
        return found.create_revision, next(one for one in self.replicas if one.address == address)

    def other(self, replica: Replica) -> Replica:
        return next(one for one in self.replicas if one is not replica)

    async def call(
        self, address: str, kind: Kind, method: str, timeout_s: float = 10.0, **fields: Any
    ) -> Any:
        request = kind.message(f"{method}Request")(**fields)
        try:
            return await getattr(kind.stub(self.channels[address]), method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def create_until_acknowledged(self, name: str, first: int) -> operation_pb2.Operation:
        """One create with one request id, on one replica after the other, as a client does."""
        for attempt in range(200):
            address = self.replicas[(first + attempt) % 2].address
            try:
                made: operation_pb2.Operation = await self.call(
                    address,
                    INSTANCE,
                    "CreateInstance",
                    5.0,
                    instance=sample(INSTANCE, name),
                    request_id=f"id-{name}",
                )
                return made
            except CumuletError as error:
                if error.reason not in ("UNAVAILABLE", "TIMED_OUT"):
                    raise
            await asyncio.sleep(0.1)
        raise AssertionError(f"{name} was never acknowledged")

    async def seed(self) -> None:
        address = self.replicas[0].address
        project = sample(PROJECT, "default")
        project.spec.quota.instances = 10 * CREATES
        await self.call(address, PROJECT, "CreateProject", project=project)
        await self.call(address, FLAVOR, "CreateFlavor", flavor=sample(FLAVOR, "small"))
        await self.call(address, NETWORK, "CreateNetwork", network=sample(NETWORK, "lan"))
        await self.call(address, SUBNET, "CreateSubnet", subnet=sample(SUBNET, "lan-a"))
        parts = [
            image_pb2.UploadFileRequest(header=image_pb2.UploadHeader(format=image_pb2.FILE_FORMAT_RAW)),
            image_pb2.UploadFileRequest(chunk=bytes(1 << 20)),
        ]
        stored = await image_pb2_grpc.ImageServiceStub(self.channels[address]).UploadFile(iter(parts))
        image = sample(IMAGE, "blank")
        image.spec.disk.CopyFrom(stored.file)
        await self.call(address, IMAGE, "CreateImage", image=image)
        for replica in self.replicas:  # each reads its own State, which follows the store
            await _until(lambda replica=replica: self.knows_image(replica))  # type: ignore[misc]

    async def knows_image(self, replica: Replica) -> bool:
        try:
            await self.call(replica.address, IMAGE, "GetImage", name="blank")
        except NotFoundError:
            return False
        return True


@contextmanager
def _processes() -> Iterator[tuple[EtcdServer, list[Replica]]]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="faults-")))
        etcd = stack.enter_context(EtcdServer())
        replicas = [Replica(directory, name, etcd.endpoint) for name in ("a", "b")]
        for replica in replicas:
            stack.callback(replica.close)
            replica.start()
        yield etcd, replicas


@asynccontextmanager
async def running_cloud() -> AsyncIterator[Cloud]:
    """etcd, two controllers, one of which leads, and what an instance needs."""
    with _processes() as (etcd, replicas):
        store = EtcdStore([etcd.endpoint])
        channels = {
            one.address: grpc.aio.insecure_channel(
                one.address, options=[("grpc.max_reconnect_backoff_ms", 500)]
            )
            for one in replicas
        }
        cloud = Cloud(etcd, replicas, store, channels)
        await _until(lambda: _leads(cloud))
        for one in replicas:
            await _until(lambda one=one: _serves(cloud, one))  # type: ignore[misc]
        await cloud.seed()
        yield cloud
        for channel in channels.values():
            await channel.close()
        await store.close()


async def _until(ask: Callable[[], Awaitable[bool]], within_s: float = WAIT_S) -> float:
    """Ask until it is so; the seconds it took."""
    started = time.monotonic()
    async with asyncio.timeout(within_s):
        while not await ask():  # noqa: ASYNC110 (other processes tell only when asked)
            await asyncio.sleep(0.05)
    return time.monotonic() - started


async def _leads(cloud: Cloud, above: int = 0) -> bool:
    """Somebody holds the key with an epoch above that one."""
    try:
        found = await cloud.store.get(keys.LEADER_KEY.key())
    except StoreError:
        return False
    return found is not None and found.create_revision > above


async def _serves(cloud: Cloud, replica: Replica) -> bool:
    try:
        await cloud.call(replica.address, PROJECT, "ListProjects", 2.0)
    except UnavailableError:
        return False
    return True


async def _instances(cloud: Cloud, replica: Replica) -> list[instance_pb2.Instance]:
    reply = await cloud.call(replica.address, INSTANCE, "ListInstances", project="default", page_size=5000)
    return list(reply.instances)


async def _say_hello(address: str, node: str) -> tuple[Any, agent_pb2.ControllerMessage]:
    """Open a session as an agent does; the open end and the controller's first word."""
    end = await GrpcDialer().open_session(address)
    hello = agent_pb2.AgentHello(node=node, session_nonce=str(time.monotonic_ns()))
    hello.capacity.CopyFrom(meta_pb2.Resources(vcpu=64, memory_mib=2**20, disk_gib=10_000))
    await end.send(agent_pb2.AgentMessage(hello=hello))
    async with asyncio.timeout(WAIT_S):
        return end, await end.receive()


async def _plan(end: Any) -> agent_pb2.NodePlan:
    async with asyncio.timeout(WAIT_S):
        while (message := await end.receive()).WhichOneof("kind") != "plan":
            pass
    plan: agent_pb2.NodePlan = message.plan
    return plan


async def _check_each_once(cloud: Cloud, replica: Replica, acknowledged: dict[str, str]) -> None:
    """Every acknowledged instance is there once, with one operation, its own address, and that answer."""
    found = await _instances(cloud, replica)
    assert sorted(one.meta.name for one in found) == sorted(acknowledged)
    addresses = [one.spec.networks[0].address for one in found]
    assert len(set(addresses)) == len(found)
    listing = await cloud.store.list(keys.OPERATIONS.prefix("default"))
    made = [operation_pb2.Operation.FromString(item.value) for item in listing.items]
    assert {one.target.name: one.meta.name for one in made if one.verb == "instance.create"} == acknowledged
    assert len(made) == len(acknowledged)


async def _stream(cloud: Cloud, names: list[str], meanwhile: Callable[[], Awaitable[None]]) -> dict[str, str]:
    """Create all, and do something in the middle; the operation by instance, as acknowledged."""
    gate = asyncio.Semaphore(AT_ONCE)
    acknowledged: dict[str, str] = {}
    middle = asyncio.Event()

    async def create(name: str, first: int) -> None:
        async with gate:
            acknowledged[name] = (await cloud.create_until_acknowledged(name, first)).meta.name
        if len(acknowledged) >= len(names) // 3:
            middle.set()

    async def disturb() -> None:
        await middle.wait()
        await meanwhile()

    await asyncio.gather(disturb(), *(create(name, number) for number, name in enumerate(names)))
    return acknowledged


async def test_killing_the_leader_loses_and_doubles_nothing_and_the_other_takes_over() -> None:
    async with running_cloud() as cloud:
        epoch, leader = await cloud.leader()
        follower = cloud.other(leader)
        end, word = await _say_hello(follower.address, "n1")
        assert word.redirect.leader_address == leader.address
        await end.close()
        end, word = await _say_hello(leader.address, "n1")
        assert word.welcome.heartbeat_interval_s > 0
        before = await _plan(end)
        assert before.version.leader_epoch == epoch
        killed_at = 0.0

        async def kill() -> None:
            nonlocal killed_at
            leader.send(signal.SIGKILL)
            killed_at = time.monotonic()

        acknowledged = await _stream(cloud, [f"vm-{number}" for number in range(CREATES)], kill)
        await end.close()
        await _until(lambda: _leads(cloud, above=epoch))
        assert time.monotonic() - killed_at < TAKEOVER_S
        newer, successor = await cloud.leader()
        assert successor is follower
        assert newer > epoch
        await _check_each_once(cloud, follower, acknowledged)
        end = await _join(follower.address, "n1")
        after = await _plan(end)
        assert after.version.leader_epoch == newer
        assert after.version.revision > before.version.revision
        await _until(lambda: _all_placed(cloud, CREATES))
        await end.close()
        leader.running.wait()
        leader.start()
        await _until(lambda: _serves(cloud, leader))
        await _check_each_once(cloud, leader, acknowledged)


async def _join(address: str, node: str) -> Any:
    """A session with a replica that is about to lead, or does: a follower's redirect means try again."""
    for _ in range(200):
        end, word = await _say_hello(address, node)
        if word.WhichOneof("kind") == "welcome":
            return end
        await end.close()
        await asyncio.sleep(0.05)
    raise AssertionError(f"{address} does not lead")


async def _all_placed(cloud: Cloud, count: int) -> bool:
    """Every instance has exactly one placement."""
    listing = await cloud.store.list(keys.PLACEMENTS.prefix())
    uids = [item.key.rpartition(b"/")[2] for item in listing.items]
    assert len(set(uids)) == len(uids)
    return len(uids) == count


async def test_a_leader_that_was_frozen_past_its_lease_exits_and_writes_nothing() -> None:
    async with running_cloud() as cloud:
        epoch, leader = await cloud.leader()
        follower = cloud.other(leader)
        session = await _join(leader.address, "n1")
        leader.send(signal.SIGSTOP)
        first = cloud.replicas.index(follower)
        made = [await cloud.create_until_acknowledged(f"vm-{number}", first) for number in range(10)]
        await _until(lambda: _leads(cloud, above=epoch), TAKEOVER_S)
        newer, successor = await cloud.leader()
        assert successor is follower
        await _until(lambda: _all_placed(cloud, len(made)))  # the node counts as ready for 30 s more
        await session.send(_all_running(epoch, [one.target.uid for one in made]))
        before = await _settled(cloud)
        leader.send(signal.SIGCONT)
        async with asyncio.timeout(TTL_S):
            code = await asyncio.to_thread(leader.running.wait)
        assert code == LOST, leader.log.read_text()[-3000:]
        lines = [line for line in leader.log.read_text().splitlines() if line.startswith("{")]
        assert "leadership was lost, starting afresh" in [json.loads(line)["event"] for line in lines]
        assert await _written_by_leaders(cloud) == before
        assert await cloud.leader() == (newer, follower)
        await session.close()
        await _check_each_once(cloud, follower, {one.target.name: one.meta.name for one in made})


def _all_running(epoch: int, uids: list[str]) -> agent_pb2.AgentMessage:
    """A report that waits in the frozen leader's socket: news for it to write as soon as it wakes."""
    report = agent_pb2.AgentReport(full=True, acted_on=agent_pb2.PlanVersion(leader_epoch=epoch))
    for uid in uids:
        report.instances.add(uid=uid, epoch=1, boots=1, state=agent_pb2.DOMAIN_STATE_RUNNING)
    return agent_pb2.AgentMessage(report=report)


async def _settled(cloud: Cloud) -> list[Any]:
    """What leaders have written, once the new one has written all that it had to: it stays the same."""
    seen: list[list[Any]] = []

    async def stays() -> bool:
        seen.append(await _written_by_leaders(cloud))
        return len(seen) >= LOOKS_MIN and all(look == seen[-1] for look in seen[-LOOKS_MIN:])

    await _until(stays)
    return seen[-1]


async def _written_by_leaders(cloud: Cloud) -> list[Any]:
    tables = (keys.PLACEMENTS, keys.INSTANCE_STATUS, keys.SESSIONS, keys.LEADER_KEY)
    return [(await cloud.store.list(table.prefix())).items for table in tables]


async def test_killing_etcd_loses_nothing_and_no_controller_needs_a_restart() -> None:
    async with running_cloud() as cloud:
        epoch, _ = await cloud.leader()
        pids = [replica.running.pid for replica in cloud.replicas]

        async def kill() -> None:
            await asyncio.to_thread(cloud.etcd.kill)
            await asyncio.to_thread(cloud.etcd.start)

        acknowledged = await _stream(cloud, [f"vm-{number}" for number in range(CREATES)], kill)
        await _until(lambda: _leads(cloud))
        for replica in cloud.replicas:
            await _until(lambda replica=replica: _serves(cloud, replica))  # type: ignore[misc]
            await _check_each_once(cloud, replica, acknowledged)
        assert [replica.running.poll() for replica in cloud.replicas] == [None, None]
        assert [replica.running.pid for replica in cloud.replicas] == pids
        assert (await cloud.leader())[0] == epoch
        later = await cloud.create_until_acknowledged("later", 0)
        await _check_each_once(cloud, cloud.replicas[1], {**acknowledged, "later": later.meta.name})
