"""A cloud on paper for the controller's unit tests: pure changes applied to a State, no store.

**Pure** but for `running`, which feeds a State from a MemoryStore and commits to it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from controller.admit import flavor, image, instance, keypair, network, node, project, subnet
from controller.admit.common import Context
from controller.commit import Change, Committer
from controller.feed import Feed
from controller.state import State
from controller.store import keys, protocol
from controller.store.keys import Table
from controller.store.memory import MemoryStore
from controller.store.mvcc import Mvcc
from cumulet.v1 import (
    agent_pb2,
    flavor_pb2,
    image_pb2,
    instance_pb2,
    keypair_pb2,
    meta_pb2,
    network_pb2,
    node_pb2,
    project_pb2,
    store_pb2,
    subnet_pb2,
)

ATTACH = instance_pb2.NetworkAttachment
NOW = 1_800_000_000.0
SHA = "ab" * 32
ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAlbWsOcJ2F3f6WUkBBIVtGxfdhU1zJzNxTYf4kRZdm8 me@laptop"


@dataclass(slots=True)
class SetClock:
    """A clock that stands where it is put."""

    wall: float = NOW
    up: float = 1_000.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.up


class Paper:
    """A State over a real Mvcc: `do` commits a change as etcd would, guards and all."""

    def __init__(self, seed: int = 1) -> None:
        self.mvcc = Mvcc()
        self.state = State()
        self.state.load(self.mvcc.revision, ())
        self.context = Context(NOW, random.Random(seed))

    def do(self, change: Change | None) -> Any:
        """The change's result. Fails the test when a guard does not hold."""
        assert change is not None
        assert all(map(self.mvcc.holds, change.compares)), "a guard does not hold"
        self.write(change.writes)
        return change.result

    def holds(self, change: Change) -> bool:
        return all(map(self.mvcc.holds, change.compares))

    def write(self, writes: dict[bytes, bytes | None]) -> None:
        before = self.mvcc.revision
        self.mvcc.apply(
            [
                protocol.Delete(key) if value is None else protocol.Put(key, value)
                for key, value in writes.items()
            ]
        )
        _, changes = self.mvcc.changes_since(b"", before + 1, 1)
        self.state.apply(self.mvcc.revision, changes)

    def put(self, table: Table, parts: Sequence[str], message: Any) -> None:
        self.write({table.key(*parts): message.SerializeToString()})

    def seed(self) -> Paper:
        """Project, flavor, image, key pair, network `lan` with subnet `lan-a`."""
        make = self.context
        self.do(project.create(self.state, make, "", project_message()))
        self.do(flavor.create(self.state, make, "", flavor_message()))
        self.do(image.create(self.state, make, "", image_message(), held=held))
        self.do(keypair.create(self.state, make, "p1", keypair_message()))
        self.do(network.create(self.state, make, "p1", network_message()))
        self.do(subnet.create(self.state, make, "p1", subnet_message()))
        return self

    def add_node(self, name: str = "n1", **capacity: int) -> None:
        hello = agent_pb2.AgentHello(node=name, address="192.0.2.1")
        self.do(node.register(self.state, self.context, hello))
        amounts: dict[str, Any] = {"vcpu": 8, "memory_mib": 16_384, "disk_gib": 200, **capacity}
        status = node_pb2.NodeStatus(capacity=meta_pb2.Resources(**amounts))
        status.conditions.add(type="Ready", status=meta_pb2.CONDITION_STATUS_TRUE, reason="AgentConnected")
        self.put(keys.NODE_STATUS, (name,), status)

    def add_instance(self, name: str = "web", **spec: Any) -> instance_pb2.Instance:
        self.do(instance.create(self.state, self.context, "p1", instance_message(name, **spec)))
        return self.instance(name)

    def place(self, name: str = "web", node_name: str = "n1", epoch: int = 1) -> None:
        made = self.instance(name)
        record = store_pb2.PlacementRecord(
            instance_uid=made.meta.uid,
            project="p1",
            name=name,
            node=node_name,
            epoch=epoch,
            resources=made.spec.resources,
        )
        self.put(keys.PLACEMENTS, (node_name, made.meta.uid), record)

    def lead(self, restore_generation: int = 1) -> None:
        self.put(keys.CLOUD, (), store_pb2.CloudRecord(uid="c", restore_generation=restore_generation))
        self.put(keys.LEADER_KEY, (), store_pb2.LeaderRecord(address="unix:/x"))

    def instance(self, name: str = "web") -> instance_pb2.Instance:
        row = self.state.find(keys.INSTANCES, "p1", name)
        assert row is not None
        found: instance_pb2.Instance = row.message
        return found


def held(sha256: str) -> image_pb2.ImageFile | None:
    """A file store that holds one qcow2 disk."""
    if sha256 != SHA:
        return None
    return image_pb2.ImageFile(
        sha256=SHA, size_bytes=1 << 20, format=image_pb2.FILE_FORMAT_QCOW2, virtual_size_bytes=2 << 30
    )


def project_message(name: str = "p1", **quota: Any) -> project_pb2.Project:
    return project_pb2.Project(
        meta=meta_pb2.Meta(name=name), spec=project_pb2.ProjectSpec(quota=project_pb2.Quota(**quota))
    )


def flavor_message(name: str = "small", **amounts: int) -> flavor_pb2.Flavor:
    wanted: dict[str, Any] = {"vcpu": 1, "memory_mib": 512, "disk_gib": 5, **amounts}
    resources = meta_pb2.Resources(**wanted)
    return flavor_pb2.Flavor(meta=meta_pb2.Meta(name=name), spec=flavor_pb2.FlavorSpec(resources=resources))


def image_message(name: str = "debian", sha256: str = SHA) -> image_pb2.Image:
    spec = image_pb2.ImageSpec(disk=image_pb2.ImageFile(sha256=sha256), min_memory_mib=256)
    return image_pb2.Image(meta=meta_pb2.Meta(name=name), spec=spec)


def keypair_message(name: str = "me", public_key: str = ED25519) -> keypair_pb2.KeyPair:
    return keypair_pb2.KeyPair(
        meta=meta_pb2.Meta(name=name), spec=keypair_pb2.KeyPairSpec(public_key=public_key)
    )


def network_message(name: str = "lan") -> network_pb2.Network:
    return network_pb2.Network(meta=meta_pb2.Meta(name=name))


def subnet_message(name: str = "lan-a", cidr: str = "10.0.0.0/24", **spec: Any) -> subnet_pb2.Subnet:
    fields = {"network": "lan", "cidr": cidr, **spec}
    return subnet_pb2.Subnet(meta=meta_pb2.Meta(name=name), spec=subnet_pb2.SubnetSpec(**fields))


def instance_message(name: str = "web", **spec: Any) -> instance_pb2.Instance:
    fields: dict[str, Any] = {"flavor": "small", "image": "debian", **spec}
    fields.setdefault("networks", [instance_pb2.NetworkAttachment(network="lan")])
    return instance_pb2.Instance(meta=meta_pb2.Meta(name=name), spec=instance_pb2.InstanceSpec(**fields))


def fields_of(violations: Iterable[Any]) -> set[str]:
    return {violation.field for violation in violations}


@dataclass(slots=True)
class Running:
    """A State that follows a store, and a committer on it."""

    store: MemoryStore
    state: State
    feed: Feed
    committer: Committer
    task: asyncio.Task[None]


@asynccontextmanager
async def running(
    store: MemoryStore,
    guards: Callable[[], Sequence[protocol.Compare]] = tuple,
    seed: int = 1,
) -> AsyncIterator[Running]:
    rng = random.Random(seed)
    state = State()
    feed = Feed(store, state, rng)
    committer = Committer(store, state, SetClock(), rng, "test", guards)
    following = asyncio.create_task(feed.run())
    await feed.ready.wait()
    committing = asyncio.create_task(committer.run())
    try:
        yield Running(store, state, feed, committer, committing)
    finally:
        for task in (committing, following):
            task.cancel()
        await asyncio.gather(committing, following, return_exceptions=True)
