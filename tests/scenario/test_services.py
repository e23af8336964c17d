"""What the server itself offers: errors in every form, health, reflection, metrics, who leads.

**Edge**: gRPC over a Unix socket; promtool as a child process.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import generate_latest

from controller.api.server import PROTO_FILES, Server
from controller.controller import Controller
from controller.files import FileStore
from controller.journal import MemoryJournal
from controller.store.lease import LeaseTask
from controller.store.memory import MemoryStore, NoFaults
from controller.store.protocol import StoreUnavailableError
from cumulet.clock import SystemClock
from cumulet.errors import (
    NotFoundError,
    UnavailableError,
)
from cumulet.kinds import FLAVOR, INSTANCE, Kind
from cumulet.v1 import (
    instance_pb2,
    system_pb2,
    system_pb2_grpc,
)
from cumulet.wire_errors import from_rpc_error
from tests.scenario.serving import Cloud, agent_of, refusal, sample, until, until_true

ROOT = Path(__file__).resolve().parents[2]
both_stores = pytest.mark.parametrize("cloud", ["memory", "etcd"], indirect=True)


# --- errors ---------------------------------------------------------------------------------------


async def test_an_error_says_it_in_every_form_that_the_field_knows(cloud: Cloud) -> None:
    await cloud.seed()
    bad = sample(INSTANCE, "Bad")
    bad.spec.flavor = "huge"
    request = instance_pb2.CreateInstanceRequest(instance=bad)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await INSTANCE.stub(cloud.channel).CreateInstance(request)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert _details(failed.value, error_details_pb2.ErrorInfo()).reason == "INVALID_ARGUMENT"
    fields = _details(failed.value, error_details_pb2.BadRequest()).field_violations
    assert {violation.field for violation in fields} == {"meta.name", "spec.flavor"}
    assert len(_details(failed.value, error_details_pb2.RequestInfo()).request_id) == 32
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await INSTANCE.stub(cloud.channel).GetInstance(
            instance_pb2.GetInstanceRequest(project="default", name="none")
        )
    links = _details(missing.value, error_details_pb2.Help()).links
    assert [link.description for link in links] == ["cumulet instance list --project default"]


def _details(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    for detail in status.details:
        if detail.Is(kind.DESCRIPTOR):
            detail.Unpack(kind)
            return kind
    raise AssertionError(f"no {kind.DESCRIPTOR.name} in {status}")


async def test_every_outcome_is_counted_under_its_code(cloud: Cloud) -> None:
    await cloud.seed()
    await refusal(cloud.get(FLAVOR, "none"))
    await refusal(cloud.get(FLAVOR, "No Name"))
    await cloud.get(FLAVOR, "small")
    watch = cloud.watch(FLAVOR)
    await watch.until_bookmark()
    watch.close()

    def count(method: str, code: str) -> float:
        labels = {"grpc_service": "cumulet.v1.FlavorService", "grpc_method": method, "grpc_code": code}
        return cloud.controller.metrics.registry.get_sample_value("grpc_server_handled_total", labels) or 0

    assert [count("GetFlavor", code) for code in ("OK", "NOT_FOUND", "INVALID_ARGUMENT")] == [1, 1, 1]
    await until(lambda: count("WatchFlavors", "CANCELLED") == 1)


# --- the server's own services --------------------------------------------------------------------


async def test_health_reflection_and_channelz(cloud: Cloud) -> None:
    health = health_pb2_grpc.HealthStub(cloud.channel)
    await until_serving(health)
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(_any(cloud.channel))
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    async for reply in reflection.ServerReflectionInfo(iter([ask])):
        listed = {service.name for service in reply.list_services_response.service}
    ours = {name.full_name for module in PROTO_FILES for name in module.DESCRIPTOR.services_by_name.values()}
    assert len(ours) == 21
    assert ours < listed
    servers = await channelz_pb2_grpc.ChannelzStub(_any(cloud.channel)).GetServers(
        channelz_pb2.GetServersRequest()
    )
    assert sum(server.data.calls_started for server in servers.server) > 0


def _any(channel: grpc.aio.Channel) -> Any:
    """grpc's own stubs are typed for synchronous channels only."""
    return channel


async def until_serving(stub: Any) -> None:
    async def serves() -> bool:
        reply = await stub.Check(health_pb2.HealthCheckRequest())
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    await until_true(serves)


class _Away(NoFaults):
    """etcd that does not answer until told."""

    def __init__(self) -> None:
        self.away = True

    async def before_call(self, what: str) -> None:
        if self.away:
            raise StoreUnavailableError(f"{what}: away")


async def test_before_it_has_read_its_state_it_says_so_and_lies_about_nothing(directory: Path) -> None:
    faults = _Away()
    store = MemoryStore(faults=faults)
    address = f"unix:{directory}/api.sock"
    controller = Controller(
        store,
        lambda lease, at: LeaseTask(store, lease, at),
        MemoryJournal(),
        SystemClock(),
        random.Random(1),
        address,
    )
    server = Server(controller, FileStore(directory / "files"), [address], insecure=False)
    tasks = [asyncio.create_task(controller.run()), asyncio.create_task(server.run())]
    async with grpc.aio.insecure_channel(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        status = (await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)).status
        assert status == health_pb2.HealthCheckResponse.NOT_SERVING
        get = FLAVOR.message("GetFlavorRequest")(name="small")
        with pytest.raises(grpc.aio.AioRpcError) as early:
            await FLAVOR.stub(channel).GetFlavor(get)
        assert isinstance(from_rpc_error(early.value), UnavailableError)
        faults.away = False
        await until_serving(health)
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await FLAVOR.stub(channel).GetFlavor(get)
        assert isinstance(from_rpc_error(late.value), NotFoundError)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_metrics_pass_promtool_and_show_the_cloud(cloud: Cloud) -> None:
    await cloud.seed()
    async with agent_of(cloud):
        await cloud.wait(await cloud.create(INSTANCE, sample(INSTANCE, "web")))
        text = generate_latest(cloud.controller.metrics.registry)
    promtool = shutil.which("promtool")
    assert promtool is not None, "promtool is missing: apt-get install prometheus"
    checked = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stderr.decode(), checked.stdout.decode()) == (0, "", "")
    lines = text.decode().splitlines()
    assert 'cumulet_instances{phase="Running",project="default"} 1.0' in lines
    assert 'cumulet_node_ready{node="sim-0001"} 1.0' in lines
    assert 'cumulet_node_allocated{node="sim-0001",resource="memory_mib"} 512.0' in lines
    for family in ("scheduler_decisions_total", "controller_queue_depth", "controller_queue_seconds_count"):
        assert any(line.startswith(f"cumulet_{family}") for line in lines), family


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "0.0.0.0:0"], "there is no TLS yet"),
        (["--listen", "unix:/nowhere/at/all.sock"], "cannot listen"),
    ],
)
def test_an_address_that_cannot_be_is_refused_with_exit_code_2(
    arguments: list[str], said: str, directory: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "controller.main",
            "--etcd",
            "127.0.0.1:1",
            "--data-dir",
            str(directory),
            "--metrics-address",
            "127.0.0.1:0",
            *arguments,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("kind", [INSTANCE], ids=["instance"])
async def test_a_follower_says_who_leads(cloud: Cloud, kind: Kind) -> None:
    await cloud.seed()
    cloud.controller.leading, leading = None, cloud.controller.leading
    system = system_pb2_grpc.SystemServiceStub(cloud.channel)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await system.Verify(system_pb2.VerifyRequest())
    assert cloud.address in str(from_rpc_error(failed.value))
    assert (await system.GetCloud(system_pb2.GetCloudRequest())).leader_address == cloud.address
    await cloud.create(kind, sample(kind, "web"))
    cloud.controller.leading = leading
