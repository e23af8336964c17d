"""The life of one instance through the real API server, controller and agent code, over fake drivers.

**Edge**: one process, a Unix socket; etcd's place is taken by the memory store, libvirt's by the fakes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controller.api.server import Server
from controller.controller import Controller
from controller.files import FileStore
from controller.journal import MemoryJournal
from controller.store.lease import LeaseTask
from controller.store.memory import MemoryStore
from cumulet.client import Client
from cumulet.clock import SystemClock
from cumulet.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    QuotaExceededError,
    UnavailableError,
)
from cumulet.v1 import image_pb2, instance_pb2
from tests.bench.simulated_agents import build_agent

RUNNING = instance_pb2.INSTANCE_PHASE_RUNNING
STOPPED = instance_pb2.INSTANCE_PHASE_STOPPED
WAIT_S = 30.0
ATTACHES = 200  # an agent that closed its stream at once lost one message in four


@asynccontextmanager
async def cloud(directory: Path) -> AsyncIterator[str]:
    """A controller and one agent; the API's address."""
    address = f"unix:{directory}/api.sock"
    store = MemoryStore()
    loop = asyncio.get_running_loop()
    controller = Controller(
        store,
        lambda lease_id, _: LeaseTask(store, lease_id, loop.time()),
        MemoryJournal(),
        SystemClock(),
        random.Random(1),
        address,
    )
    server = Server(controller, FileStore(directory / "files"), [address], insecure=False)
    agent, uplink = build_agent("n1", address, 7)
    async with asyncio.TaskGroup() as group:
        running = [controller.run(), server.run(), agent.run(), uplink.run()]
        tasks = [group.create_task(coroutine) for coroutine in running]
        yield address
        for task in tasks:
            task.cancel()


def seed(client: Client, directory: Path) -> None:
    file = directory / "disk.raw"
    file.write_bytes(bytes(1 << 20))
    client.create("project", {"meta": {"name": "default"}, "spec": {"quota": {"instances": 2}}})
    resources = {"vcpu": 1, "memory_mib": 512, "disk_gib": 5}
    client.create("flavor", {"meta": {"name": "small"}, "spec": {"resources": resources}})
    uploaded = client.upload_file(file, image_pb2.FILE_FORMAT_RAW)
    image = image_pb2.Image()
    image.meta.name = "blank"
    image.spec.disk.CopyFrom(uploaded)
    client.create("image", image)
    client.create("network", {"meta": {"name": "default"}, "spec": {"outbound_nat": True}})
    client.create(
        "subnet", {"meta": {"name": "default"}, "spec": {"network": "default", "cidr": "10.0.0.0/24"}}
    )


def wanted(name: str, **spec: object) -> dict[str, object]:
    networks = [{"network": "default"}]
    return {
        "meta": {"name": name},
        "spec": {"flavor": "small", "image": "blank", "networks": networks, **spec},
    }


@pytest.fixture
def in_cloud(tmp_path: Path) -> Callable[[Callable[[Client], None]], None]:
    """Runs a synchronous story against a cloud of its own."""

    async def run(story: Callable[[Client], None]) -> None:
        async with cloud(tmp_path) as address:
            with Client([address]) as client:
                await asyncio.to_thread(seed, client, tmp_path)
                await asyncio.to_thread(story, client)

    return lambda story: asyncio.run(run(story))


def test_an_instance_lives_from_create_to_delete(in_cloud: Callable[..., None]) -> None:
    def story(client: Client) -> None:
        operation = client.create("instance", wanted("web"))
        assert client.wait_operation(operation.meta.name, timeout_s=WAIT_S).done
        web = client.get("instance", "web")
        assert (web.status.phase, web.status.node, web.status.boots) == (RUNNING, "n1", 1)
        assert web.status.addresses[0].startswith("10.0.0.")
        client.wait_operation(client.act("instance", "Stop", "web").meta.name, timeout_s=WAIT_S)
        assert client.get("instance", "web").status.phase == STOPPED
        client.wait_operation(client.act("instance", "Start", "web").meta.name, timeout_s=WAIT_S)
        started = client.get("instance", "web")
        assert (started.status.phase, started.status.boots) == (RUNNING, 2)
        found = client.verify()
        assert (list(found.differences), list(found.nodes)) == ([], ["n1"])
        assert found.items_compared > 5
        client.wait_operation(client.delete("instance", "web").meta.name, timeout_s=WAIT_S)
        assert client.list("instance") == []
        assert client.list("port") == []
        assert list(client.verify().differences) == []
        reasons = [event.reason for event in client.events() if event.target.name == "web"]
        assert reasons[:2] == ["Created", "Placed"]
        assert reasons[-1] == "Deleted"

    in_cloud(story)


def test_refusals_are_typed_and_name_the_field(in_cloud: Callable[..., None]) -> None:
    def story(client: Client) -> None:
        with pytest.raises(InvalidArgumentError) as unknown:
            client.create("instance", wanted("web", flavor="huge", image="none"))
        assert {violation.field for violation in unknown.value.violations} == {"spec.flavor", "spec.image"}
        outside = [{"network": "default", "address": "10.9.0.1"}]
        with pytest.raises(InvalidArgumentError, match="outside the network's subnets"):
            client.create("instance", wanted("web", networks=outside))
        overlapping = {"network": "default", "cidr": "10.0.0.0/25"}
        with pytest.raises(InvalidArgumentError, match="overlaps subnet default"):
            client.create("subnet", {"meta": {"name": "second"}, "spec": overlapping})
        client.create("instance", wanted("one"))
        with pytest.raises(AlreadyExistsError):
            client.create("instance", wanted("one"))
        client.create("instance", wanted("two"))
        with pytest.raises(QuotaExceededError, match="2 of 2"):
            client.create("instance", wanted("three"))

    in_cloud(story)


def test_a_console_that_ends_says_why(in_cloud: Callable[..., None]) -> None:
    """Regression: the agent's last word was lost when it closed its stream before the leader had read it."""

    def story(client: Client) -> None:
        operation = client.create("instance", wanted("web"))
        assert client.wait_operation(operation.meta.name, timeout_s=WAIT_S).done
        open_console = client.console("web")
        shown = iter(open_console)
        open_console.send(b"echoed")
        seen = b""
        while b"echoed" not in seen:
            seen += next(shown)
        client.wait_operation(client.act("instance", "Stop", "web").meta.name, timeout_s=WAIT_S)
        with pytest.raises(UnavailableError, match="the console of web ended: the console ended"):
            list(shown)
        for _ in range(ATTACHES):
            with pytest.raises(UnavailableError, match="NotRunning"):
                list(client.console("web"))
        client.wait_operation(client.act("instance", "Start", "web").meta.name, timeout_s=WAIT_S)
        attached = client.console("web")
        next(iter(attached))
        attached.close()
        assert list(attached) == []  # who detaches is told nothing

    in_cloud(story)
