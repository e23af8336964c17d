"""1,000 instances over simulated agents: real controller process, real etcd, real gRPC.

**Edge**: starts etcd, a controller and a process of agents, creates instances through the API, watches them.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from cumulet.v1 import (
    flavor_pb2,
    flavor_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    instance_pb2,
    instance_pb2_grpc,
    meta_pb2,
    network_pb2,
    network_pb2_grpc,
    project_pb2,
    project_pb2_grpc,
    subnet_pb2,
    subnet_pb2_grpc,
)
from tests.bench.report import Suite, percentile
from tests.support.etcd import EtcdServer

ROOT = Path(__file__).resolve().parents[2]
CREATES_AT_ONCE = 64
TIMEOUT_S = 300.0
IDLE_S = 60.0  # covers every periodic work but compaction
QUIET_S = 40.0  # after the last change: by then its events have left etcd (controller/reconcile/export.py)
# What went through raft, by etcd's own count: transactions that write, committed or refused; no reads.
ETCD_TXNS = "etcd_server_proposals_committed_total"
_DISK = "etcd_disk_wal_fsync_duration_seconds"


@dataclass(frozen=True, slots=True)
class Cloud:
    etcd: EtcdServer
    address: str
    controller_pid: int
    metrics_url: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_cloud(agents: int) -> Iterator[Cloud]:
    """etcd, one controller, and a process of simulated agents."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-fleet-")))
        etcd = stack.enter_context(EtcdServer())
        address = f"unix:{directory}/api.sock"
        metrics_port = free_port()
        controller = stack.enter_context(
            process(
                directory / "controller.log",
                "controller.main",
                *("--etcd", etcd.endpoint, "--listen", address, "--data-dir", str(directory / "data")),
                *("--metrics-address", f"127.0.0.1:{metrics_port}"),
            )
        )
        wait_serving(address)
        fleet = stack.enter_context(
            process(
                directory / "agents.log",
                "tests.bench.simulated_agents",
                *("--controller", address, "--agents", str(agents)),
            )
        )
        assert fleet.stdout is not None
        if fleet.stdout.readline().strip() != b"ready":
            raise RuntimeError(
                f"the agents did not connect:\n{(directory / 'agents.log').read_text()[-3000:]}"
            )
        yield Cloud(etcd, address, controller.pid, f"http://127.0.0.1:{metrics_port}/metrics")


@contextmanager
def process(log: Path, module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            cwd=ROOT,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_serving(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(TIMEOUT_S)


async def seed(channel: grpc.aio.Channel, quota: int) -> None:
    """A project, a flavor, an image, a network with a large subnet."""
    project = project_pb2.Project(meta=meta_pb2.Meta(name="default"))
    project.spec.quota.instances = quota
    await project_pb2_grpc.ProjectServiceStub(channel).CreateProject(
        project_pb2.CreateProjectRequest(project=project), wait_for_ready=True
    )
    flavor = flavor_pb2.Flavor(meta=meta_pb2.Meta(name="small"))
    flavor.spec.resources.CopyFrom(meta_pb2.Resources(vcpu=1, memory_mib=512, disk_gib=5))
    await flavor_pb2_grpc.FlavorServiceStub(channel).CreateFlavor(
        flavor_pb2.CreateFlavorRequest(flavor=flavor)
    )
    images = image_pb2_grpc.ImageServiceStub(channel)
    header = image_pb2.UploadHeader(format=image_pb2.FILE_FORMAT_RAW)
    parts = [image_pb2.UploadFileRequest(header=header), image_pb2.UploadFileRequest(chunk=bytes(1 << 20))]
    uploaded = await images.UploadFile(iter(parts))
    image = image_pb2.Image(meta=meta_pb2.Meta(name="blank"))
    image.spec.disk.CopyFrom(uploaded.file)
    await images.CreateImage(image_pb2.CreateImageRequest(image=image))
    network = network_pb2.Network(meta=meta_pb2.Meta(name="default"))
    await network_pb2_grpc.NetworkServiceStub(channel).CreateNetwork(
        network_pb2.CreateNetworkRequest(network=network)
    )
    subnet = subnet_pb2.Subnet(meta=meta_pb2.Meta(name="default"))
    subnet.spec.network, subnet.spec.cidr = "default", "10.0.0.0/16"
    await subnet_pb2_grpc.SubnetServiceStub(channel).CreateSubnet(
        subnet_pb2.CreateSubnetRequest(subnet=subnet)
    )


class Observer:
    """Watches instances; when each was seen running, by name."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = instance_pb2_grpc.InstanceServiceStub(channel)
        self.running_at: dict[str, float] = {}
        self.watching = asyncio.Event()
        self._more = asyncio.Event()

    async def run(self) -> None:
        async for change in self._stub.WatchInstances(instance_pb2.WatchInstancesRequest(project="default")):
            if change.type == meta_pb2.CHANGE_TYPE_BOOKMARK:
                self.watching.set()
            elif change.instance.status.phase == instance_pb2.INSTANCE_PHASE_RUNNING:
                self.running_at.setdefault(change.instance.meta.name, time.perf_counter())
                self._more.set()

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.running_at) < count:
                self._more.clear()
                await self._more.wait()


async def create_all(channel: grpc.aio.Channel, count: int, prefix: str = "vm") -> dict[str, float]:
    """Create with bounded concurrency; when each was asked for, by name."""
    stub = instance_pb2_grpc.InstanceServiceStub(channel)
    gate = asyncio.Semaphore(CREATES_AT_ONCE)
    asked: dict[str, float] = {}

    async def create(name: str) -> None:
        async with gate:
            asked[name] = time.perf_counter()
            instance = instance_pb2.Instance(meta=meta_pb2.Meta(name=name))
            instance.spec.flavor, instance.spec.image = "small", "blank"
            instance.spec.networks.add(network="default")
            request = instance_pb2.CreateInstanceRequest(instance=instance, request_id=f"bench-{name}")
            await stub.CreateInstance(request)

    await asyncio.gather(*(create(f"{prefix}-{index:05d}") for index in range(count)))
    return asked


async def _run(suite: Suite, cloud: Cloud, agents: int, instances: int) -> None:
    async with grpc.aio.insecure_channel(cloud.address) as channel:
        await seed(channel, instances + 10)
        observer = Observer(channel)
        watching = asyncio.create_task(observer.run())
        await observer.watching.wait()
        txns_before = purposes(cloud)
        etcd_before = cloud.etcd.metric(ETCD_TXNS)
        cpu_before = cpu_s(cloud.controller_pid)
        started = time.perf_counter()
        asked = await create_all(channel, instances)
        await observer.wait_for(instances)
        finished = max(observer.running_at.values())
        cpu = cpu_s(cloud.controller_pid) - cpu_before
        etcd_txns = cloud.etcd.metric(ETCD_TXNS) - etcd_before
        watching.cancel()
        latencies = [observer.running_at[name] - asked[name] for name in asked]
        context = {"agents": agents, "instances": instances, "boot_s": 1.0}
        fsync = wal_fsync_s(cloud)
        suite.figure(
            "fleet_running_per_s", instances / (finished - started), "1/s", **context, etcd_fsync_mean_s=fsync
        )
        suite.figure("fleet_create_to_running_p50_s", percentile(latencies, 0.50), "s", **context)
        suite.figure("fleet_create_to_running_p99_s", percentile(latencies, 0.99), "s", **context)
        suite.figure("fleet_controller_cpu_ms_per_vm", 1000 * cpu / instances, "ms", **context)
        suite.figure("fleet_controller_rss_mib", rss_mib(cloud.controller_pid), "MiB", **context)
        now = purposes(cloud)
        by_purpose = {key: now[key] - txns_before.get(key, 0) for key in now}
        suite.figure("etcd_txns_per_vm", etcd_txns / instances, "1", **context, by_purpose=by_purpose)


async def _idle(suite: Suite, cloud: Cloud, agents: int) -> None:
    await asyncio.sleep(QUIET_S)
    before = cloud.etcd.metric("etcd_debugging_mvcc_put_total") + cloud.etcd.metric(
        "etcd_debugging_mvcc_delete_total"
    )
    cpu_before = cpu_s(cloud.controller_pid)
    await asyncio.sleep(IDLE_S)
    after = cloud.etcd.metric("etcd_debugging_mvcc_put_total") + cloud.etcd.metric(
        "etcd_debugging_mvcc_delete_total"
    )
    suite.figure("idle_etcd_writes_per_s", (after - before) / IDLE_S, "1/s", agents=agents, seconds=IDLE_S)
    busy = (cpu_s(cloud.controller_pid) - cpu_before) / IDLE_S
    suite.figure("idle_controller_cpu_share", busy, "1", agents=agents, seconds=IDLE_S)


def purposes(cloud: Cloud) -> dict[str, float]:
    """Transactions by purpose, from the controller's own metrics."""
    return purposes_at(cloud.metrics_url)


def purposes_at(metrics_url: str) -> dict[str, float]:
    with urllib.request.urlopen(metrics_url) as answer:
        text = answer.read().decode()
    found = re.findall(
        r'cumulet_controller_etcd_transactions_total\{outcome="(\w+)",purpose="(\w+)"\} (\S+)', text
    )
    return {f"{purpose}/{outcome}": float(value) for outcome, purpose, value in found}


def wal_fsync_s(cloud: Cloud) -> float:
    """Mean time of etcd's fdatasync in this run: what a write cannot be faster than."""
    total = cloud.etcd.metric(f"{_DISK}_sum")
    return round(total / max(cloud.etcd.metric(f"{_DISK}_count"), 1), 6)


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    assert found is not None
    return int(found.group(1)) / 1024


def measure(suite: Suite, agents: int, instances: int, *, idle: bool) -> None:
    """All figures of one fleet size."""
    with running_cloud(agents) as cloud:
        asyncio.run(_run(suite, cloud, agents, instances))
        if idle:
            asyncio.run(_idle(suite, cloud, agents))


if __name__ == "__main__":
    measure(Suite("fleet"), int(sys.argv[1]), int(sys.argv[2]), idle=len(sys.argv) > 3)
