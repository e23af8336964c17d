"""What the server offers beyond the standard methods: files, events, explanations, health, metrics.

**Edge**: gRPC over a Unix socket; promtool and qemu-img as child processes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
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
from controller.files import TORN_S, FileStore
from controller.journal import MemoryJournal, check_journal
from controller.reconcile import export
from controller.store import keys
from controller.store.lease import LeaseTask
from controller.store.memory import MemoryStore, NoFaults
from controller.store.protocol import StoreUnavailableError
from cumulet import lifecycle
from cumulet.clock import SystemClock
from cumulet.errors import (
    InvalidArgumentError,
    NotFoundError,
    RevisionGoneError,
    TooLargeError,
    UnavailableError,
)
from cumulet.kinds import FLAVOR, IMAGE, INSTANCE, NODE, OPERATION, Kind
from cumulet.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    image_pb2,
    instance_pb2,
    operation_pb2,
    system_pb2,
    system_pb2_grpc,
)
from cumulet.wire_errors import from_rpc_error
from tests.scenario.serving import WAIT_S, Cloud, agent_of, refusal, sample, until, until_true

ROOT = Path(__file__).resolve().parents[2]
QCOW2, RAW, BLOB = image_pb2.FILE_FORMAT_QCOW2, image_pb2.FILE_FORMAT_RAW, image_pb2.FILE_FORMAT_BLOB
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
    assert len(ours) == 16
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


# --- image files ----------------------------------------------------------------------------------


def _qemu_img(*arguments: str) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def _qcow2(path: Path, *options: str) -> bytes:
    _qemu_img("create", "-q", "-f", "qcow2", *options, str(path), "8M")
    return path.read_bytes()


def _with_backing_file(path: Path) -> bytes:
    base = path.with_name("base")
    _qcow2(base)
    _qemu_img("create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(path))
    return path.read_bytes()


def _with_data_file(path: Path) -> bytes:
    return _qcow2(path, "-o", f"data_file={path}.data")


async def test_an_upload_is_found_and_read_back(cloud: Cloud, tmp_path: Path) -> None:
    data = _qcow2(tmp_path / "disk")
    digest = hashlib.sha256(data).hexdigest()
    file = await cloud.upload(data, QCOW2, sha256=digest, size_bytes=len(data))
    assert (file.sha256, file.size_bytes, file.virtual_size_bytes) == (digest, len(data), 8 << 20)
    both = await asyncio.gather(*(cloud.upload(data, QCOW2) for _ in range(4)))
    assert all(found == file for found in both)
    assert {path.name for path in (cloud.directory / "files").iterdir()} == {digest, f"{digest}.json"}
    stub = agent_pb2_grpc.AgentServiceStub(cloud.channel)
    read = b""
    async for reply in stub.ReadFile(agent_pb2.ReadFileRequest(sha256=digest, offset=100)):
        assert reply.size_bytes == len(data)
        read += reply.chunk
    assert read == data[100:]


BAD_FILES: dict[str, tuple[Callable[[Path], bytes], Any, dict[str, Any], str]] = {
    "raw that says qcow2": (lambda path: bytes(4096), QCOW2, {}, "not qcow2"),
    "qcow2 that says raw": (_qcow2, RAW, {}, "the file is qcow2, not raw"),
    "a backing file": (_with_backing_file, QCOW2, {}, "refused"),
    "a data file": (_with_data_file, QCOW2, {}, "refused"),
    "a torn qcow2": (lambda path: _qcow2(path)[:40], QCOW2, {}, "not qcow2"),
    "other bytes": (_qcow2, QCOW2, {"sha256": "ab" * 32}, "send the file again"),
    "another size": (_qcow2, QCOW2, {"size_bytes": 5}, "5 bytes were announced"),
    "no format": (_qcow2, 0, {}, "it is not guessed"),
    "an unknown format": (_qcow2, 77, {}, "it is not guessed"),
}


@pytest.mark.parametrize("what", BAD_FILES)
async def test_a_file_that_is_not_what_it_says_is_refused_and_not_kept(
    cloud: Cloud, tmp_path: Path, what: str
) -> None:
    make, claimed, header, said = BAD_FILES[what]
    error = await refusal(cloud.upload(make(tmp_path / "disk"), claimed, **header))
    assert isinstance(error, InvalidArgumentError)
    assert error.violations[0].field.startswith("header.")
    assert said in str(error)
    await until(lambda: not list((cloud.directory / "files").iterdir()))


async def test_a_kernel_is_no_disk_and_a_missing_file_no_image(cloud: Cloud, tmp_path: Path) -> None:
    await cloud.seed()
    image = sample(IMAGE, "bad")
    image.spec.disk.CopyFrom(await cloud.upload(_with_backing_file(tmp_path / "disk"), BLOB))
    error = await refusal(cloud.create(IMAGE, image))
    assert isinstance(error, InvalidArgumentError)
    assert error.violations[0].field == "spec.disk.format"
    image.spec.disk.sha256 = "cd" * 32
    assert "upload it first" in str(await refusal(cloud.create(IMAGE, image)))
    stub = agent_pb2_grpc.AgentServiceStub(cloud.channel)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.ReadFile(agent_pb2.ReadFileRequest(sha256="cd" * 32)).read()
    assert isinstance(from_rpc_error(failed.value), NotFoundError)


async def test_what_is_too_large_or_says_nothing_is_refused(cloud: Cloud) -> None:
    assert isinstance(await refusal(cloud.upload(b"", RAW, size_bytes=2**40)), TooLargeError)
    call = IMAGE.stub(cloud.channel).UploadFile(iter([image_pb2.UploadFileRequest(chunk=b"x")]))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    assert "must be the first message" in str(from_rpc_error(failed.value))


def test_torn_uploads_go_and_those_under_way_stay(tmp_path: Path) -> None:
    for name, age_s in (("upload-old", TORN_S + 60), ("upload-new", 0)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    FileStore(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["upload-new"]


# --- operations, events, explanations -------------------------------------------------------------


@both_stores
async def test_the_life_of_an_instance_on_an_agent(cloud: Cloud) -> None:
    await cloud.seed()
    async with agent_of(cloud):
        done = await cloud.wait(await cloud.create(INSTANCE, sample(INSTANCE, "web")))
        assert (done.done, done.error.reason) == (True, "")
        shown = await cloud.get(INSTANCE, "web")
        assert (shown.status.phase, shown.status.node, shown.status.boots) == (
            lifecycle.RUNNING,
            "sim-0001",
            1,
        )
        for verb, boots, phase in (
            ("Reboot", 2, lifecycle.RUNNING),
            ("Stop", 2, lifecycle.STOPPED),
            ("Start", 3, lifecycle.RUNNING),
        ):
            asked = await cloud.call(INSTANCE, f"{verb}Instance", project="default", name="web")
            done = await cloud.wait(asked)
            assert (done.done, done.error.reason) == (True, ""), verb
            shown = await cloud.get(INSTANCE, "web")
            assert (shown.status.boots, shown.status.phase) == (boots, phase), verb
        verified = await system_pb2_grpc.SystemServiceStub(cloud.channel).Verify(system_pb2.VerifyRequest())
        assert list(verified.nodes) == ["sim-0001"]
        assert not verified.differences
        assert verified.items_compared > 0
        done = await cloud.wait(await cloud.delete(INSTANCE, "web"))
        assert (done.done, done.error.reason) == (True, "")
        assert isinstance(await refusal(cloud.get(INSTANCE, "web")), NotFoundError)
        node = await cloud.get(NODE, "sim-0001")
        assert (node.status.instances, node.status.allocated.vcpu) == (0, 0)


async def test_a_create_waits_for_room_and_says_why(cloud: Cloud) -> None:
    await cloud.seed()
    operation = await cloud.create(INSTANCE, sample(INSTANCE, "web"))
    await until(lambda: bool(cloud.controller.state.rows(keys.INSTANCE_STATUS)))
    explained = await cloud.call(INSTANCE, "ExplainInstance", project="default", name="web")
    assert "fits nowhere" in explained.summary
    assert explained.revision
    assert "cumulet node list" in list(getattr(explained, "try"))
    assert [event.reason for event in explained.events] == ["Created", "NoCapacity"]
    async with agent_of(cloud):
        assert (await cloud.wait(operation)).done
        explained = await cloud.call(INSTANCE, "ExplainInstance", project="default", name="web")
        (verdict,) = explained.nodes
        assert (verdict.node, verdict.fits, verdict.current, verdict.rank) == ("sim-0001", True, True, 1)
        assert verdict.score_terms
        await cloud.call(NODE, "CordonNode", name="sim-0001", reason="disk")
        await cloud.create(INSTANCE, sample(INSTANCE, "db"))
        explained = await cloud.call(INSTANCE, "ExplainInstance", project="default", name="db")
        assert next(iter(getattr(explained, "try"))) == "cumulet node uncordon sim-0001"
        assert "disk" in explained.nodes[0].reasons[0]


async def test_waiting_ends_with_the_operation_or_the_time(cloud: Cloud) -> None:
    await cloud.seed()
    operation = await cloud.create(INSTANCE, sample(INSTANCE, "web"))
    waiting = asyncio.create_task(cloud.wait(operation))
    started = time.monotonic()
    assert not (await cloud.wait(operation, seconds=1)).done
    assert 0.9 < time.monotonic() - started < 10
    assert not waiting.done()
    await cloud.delete(INSTANCE, "web")
    ended = await waiting
    assert (ended.done, ended.error.reason) == (True, "CONFLICT")
    missing = operation_pb2.WaitOperationRequest(project="default", name="op-none")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await OPERATION.stub(cloud.channel).WaitOperation(missing)
    assert isinstance(from_rpc_error(failed.value), NotFoundError)


def _reason(event: Any) -> str:
    return str(event.reason)


async def test_events_are_listed_in_order_by_page_and_target_and_watched(cloud: Cloud) -> None:
    stub = event_pb2_grpc.EventServiceStub(cloud.channel)
    watch = stub.WatchEvents(event_pb2.WatchEventsRequest(target="instance/web"))
    await until(lambda: bool(cloud.controller.events._listeners))  # nothing tells a client
    await cloud.seed()
    await cloud.create(INSTANCE, sample(INSTANCE, "web"))
    await cloud.delete(INSTANCE, "web")
    async with asyncio.timeout(WAIT_S):
        seen = [_reason(await watch.read()) for _ in range(3)]
    watch.cancel()
    assert seen[0] == "Created"
    assert "DeleteRequested" in seen
    await until(lambda: not cloud.controller.state.rows(keys.INSTANCES))
    everything = (await stub.ListEvents(event_pb2.ListEventsRequest(project="-"))).events
    revisions = [event.revision for event in everything]
    assert revisions == sorted(revisions)
    assert {event.target.kind for event in everything} >= {
        "project",
        "flavor",
        "image",
        "network",
        "instance",
    }
    paged: list[str] = []
    token = ""
    while True:
        request = event_pb2.ListEventsRequest(project="-", page_size=2, page_token=token)
        page = await stub.ListEvents(request)
        paged += [event.uid for event in page.events]
        token = page.next_page_token
        if not token:
            break
    assert paged == [event.uid for event in everything]
    for request, kind in (
        (event_pb2.ListEventsRequest(page_size=-1), InvalidArgumentError),
        (event_pb2.ListEventsRequest(page_token="ä"), InvalidArgumentError),
        (event_pb2.ListEventsRequest(page_token="Zm9yZ290dGVu"), RevisionGoneError),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.ListEvents(request)
        assert isinstance(from_rpc_error(failed.value), kind)


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the cloud is made: its leader exports every 15 s otherwise."""
    monkeypatch.setattr(export, "EXPORT_S", 0.2)


@pytest.mark.usefixtures("quick_export")
async def test_events_go_to_the_journal_and_leave_the_store(cloud: Cloud) -> None:
    await cloud.seed()
    store = cloud.controller.store
    assert (await store.list(keys.JOURNAL.prefix())).items

    async def exported() -> bool:
        return not (await store.list(keys.JOURNAL.prefix())).items

    await until_true(exported)
    assert check_journal(cloud.directory / "journal.jsonl") is None
    listed = await event_pb2_grpc.EventServiceStub(cloud.channel).ListEvents(
        event_pb2.ListEventsRequest(project="-")
    )
    assert "Created" in {event.reason for event in listed.events}


@pytest.mark.parametrize("cloud", ["etcd"], indirect=True)
async def test_one_vm_costs_at_most_four_transactions(cloud: Cloud, request: pytest.FixtureRequest) -> None:
    """From its create to running, by etcd's own count: what its log has to agree on, refused or not."""
    server = request.getfixturevalue("etcd")
    await cloud.seed()

    async def proposals() -> float:
        return float(await asyncio.to_thread(server.metric, "etcd_server_proposals_committed_total"))

    async with agent_of(cloud):
        before = await proposals()
        done = await cloud.wait(await cloud.create(INSTANCE, sample(INSTANCE, "web"), request_id="once"))
        spent = await proposals() - before
    assert done.done
    assert 3 <= spent <= 4


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
