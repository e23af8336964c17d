"""The durable path of placement: from pending instances in etcd to committed placements.

**Edge**: starts etcd and a controller process, writes nodes and pending instances straight into etcd in the
API's own format, watches the placements. This process is the writer and the observer; all share the machine.

*Drain*: everything is in etcd before the controller starts; placements per second from the first commit to
the last. *Open loop*: instances become pending at a fixed rate, whatever the controller does; the latency of
each is from the answer to its write until its placement is seen on a watch.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc.aio
import uvloop

from controller.admit import project
from controller.store import etcd_wire as wire
from controller.store import keys
from controller.store.etcd_channel import MESSAGE_BYTES_MAX
from controller.store.etcdpb import rpc_pb2 as pb
from controller.store.etcdpb import rpc_pb2_grpc as stubs
from cumulet.names import new_uid
from cumulet.v1 import store_pb2
from tests.bench.fleet import cpu_s, free_port, process, purposes_at, rss_mib, wait_serving
from tests.bench.report import Suite, percentile
from tests.support.etcd import EtcdServer
from tests.unit.controller.cloud import Paper, project_message

VCPU, MEMORY_MIB, DISK_GIB = 64, 196_608, 8_192  # a node, as in the traces: 64 vCPU and 192 GB
FLAVORS: Final = ((1, 1_024), (1, 2_048), (2, 2_048), (2, 4_096))  # vCPU, MiB
PROJECTS: Final = 8
LOAD_OPS: Final = 120  # of a transaction while etcd is filled
TICK_S: Final = 0.005  # what the open loop's writer has due is written together
TIMEOUT_S: Final = 60.0
WARM_S: Final = 1.0  # of the open loop, not counted: connections, caches
_FSYNC: Final = "etcd_disk_wal_fsync_duration_seconds"
_PROPOSALS: Final = "etcd_server_proposals_committed_total"


@dataclass(frozen=True, slots=True)
class Sizes:
    nodes: int
    drain: int
    rate_per_s: int
    seconds: float
    whole: bool  # the open loop writes all keys of a create, not only the instance
    data_dir: Path
    profile: str

    def context(self) -> dict[str, object]:
        return {"nodes": self.nodes, "etcd_data": str(self.data_dir)}


class Maker:
    """Pending instances as the API writes them: what admission made once, over and over with other names."""

    def __init__(self, seed: int = 1) -> None:
        self._rng = random.Random(f"instances {seed}")  # not the Paper's own uids
        self._paper = paper = Paper().seed()
        for index in range(2, PROJECTS + 1):
            paper.do(project.create(paper.state, paper.context, "", project_message(f"p{index}")))
        self._base = _stored(paper)
        self._instance = paper.add_instance("template")
        self._port = next(iter(paper.state.rows(keys.PORTS).values())).message
        self._operation = next(iter(paper.state.rows(keys.OPERATIONS).values())).message
        network = paper.state.find(keys.NETWORKS, "p1", "lan")
        assert network is not None
        self._network_uid = network.message.meta.uid
        self._made = 0

    def base(self, nodes: int) -> dict[bytes, bytes]:
        """Projects, flavor, image, network, subnet; nodes with their status as the leader writes it."""
        fleet = Paper()
        for index in range(nodes):
            fleet.add_node(f"n-{index:05d}", vcpu=VCPU, memory_mib=MEMORY_MIB, disk_gib=DISK_GIB)
        return self._base | _stored(fleet)

    def instance(self) -> tuple[str, dict[bytes, bytes]]:
        """Uid and all keys of one more instance; the instance's own is the first."""
        index = self._made
        self._made += 1
        name, where = f"vm-{index:07d}", f"p{1 + index % PROJECTS}"
        made, port, operation = map(_copy, (self._instance, self._port, self._operation))
        uid, port_uid, operation_uid = (new_uid(self._rng) for _ in range(3))
        high, middle, low = index >> 16 & 255, index >> 8 & 255, index & 255
        address, mac = f"10.{high}.{middle}.{low}", f"02:00:00:{high:02x}:{middle:02x}:{low:02x}"
        made.meta.uid, made.meta.name, made.meta.project = uid, name, where
        made.spec.resources.vcpu, made.spec.resources.memory_mib = FLAVORS[index % len(FLAVORS)]
        made.spec.networks[0].address, made.spec.networks[0].port_uid = address, port_uid
        port.meta.uid, port.meta.name, port.meta.project = port_uid, f"{name}-{port_uid[:8]}", where
        port.spec.instance, port.spec.mac, port.spec.addresses[0].address = name, mac, address
        operation.meta.uid, operation.meta.name = operation_uid, f"op-{operation_uid[:13]}"
        operation.meta.project = operation.target.project = where
        operation.target.name, operation.target.uid = name, uid
        record = store_pb2.RequestRecord(method="CreateInstance", digest=bytes(32), uid=uid)
        return uid, {
            keys.INSTANCES.key(where, name): made.SerializeToString(),
            keys.PORTS.key(where, port.meta.name): port.SerializeToString(),
            keys.ADDRESSES.key(self._network_uid, address): port_uid.encode(),
            keys.MACS.key(self._network_uid, mac): port_uid.encode(),
            keys.OPERATIONS.key(where, operation.meta.name): operation.SerializeToString(),
            keys.REQUESTS.key("0", where, f"bench-{index}"): record.SerializeToString(),
        }


def _stored(paper: Paper) -> dict[bytes, bytes]:
    """Everything but events."""
    items = paper.mvcc.list_prefix(keys.PREFIX, 0, b"", 0).items
    return {item.key: item.value for item in items if not item.key.startswith(keys.JOURNAL.prefix())}


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def put_request(writes: dict[bytes, bytes]) -> pb.TxnRequest:
    puts = [pb.RequestOp(request_put=pb.PutRequest(key=key, value=value)) for key, value in writes.items()]
    return pb.TxnRequest(success=puts)


class Client:
    """etcd as the writer and the observer see it."""

    def __init__(self, endpoint: str) -> None:
        options = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._writing = grpc.aio.insecure_channel(endpoint, options)
        self._watching = grpc.aio.insecure_channel(endpoint, options)
        self._txn = stubs.KVStub(self._writing).Txn
        self._watch = stubs.WatchStub(self._watching).Watch

    async def write(self, request: pb.TxnRequest) -> None:
        await self._txn(request, timeout=TIMEOUT_S)

    async def fill(self, writes: Sequence[tuple[bytes, bytes]]) -> None:
        for start in range(0, len(writes), LOAD_OPS):
            await self.write(put_request(dict(writes[start : start + LOAD_OPS])))

    async def close(self) -> None:
        await self._writing.close()
        await self._watching.close()

    async def watch(self, seen: dict[str, float], more: asyncio.Event) -> None:
        """When each placement was seen, by uid."""
        call = self._watch()
        await call.write(wire.watch_request(keys.PLACEMENTS.prefix(), 1))
        while isinstance(response := await call.read(), pb.WatchResponse):
            now = time.perf_counter()
            for event in response.events:
                seen[event.kv.key.rpartition(b"/")[2].decode()] = now
            more.set()


@contextmanager
def running_controller(etcd: EtcdServer, directory: Path) -> Iterator[tuple[int, str]]:
    """Its process id and where its metrics are."""
    address, port = f"unix:{directory}/api.sock", free_port()
    arguments = ("--etcd", etcd.endpoint, "--listen", address, "--data-dir", str(directory / "data"))
    log = directory / "controller.log"
    with process(log, "controller.main", *arguments, "--metrics-address", f"127.0.0.1:{port}") as started:
        wait_serving(address)
        yield started.pid, f"http://127.0.0.1:{port}/metrics"


@contextmanager
def profiled(pid: int, file: str) -> Iterator[None]:
    """py-spy on a process, when a file is named."""
    if not file:
        yield
        return
    spy = subprocess.Popen(["py-spy", "record", "-r", "400", "-f", "raw", "-o", file, "-p", str(pid)])
    try:
        yield
    finally:
        spy.send_signal(2)
        spy.wait(60)


@dataclass(frozen=True, slots=True)
class Meter:
    """What the run has cost so far."""

    cpu_s: float
    etcd_cpu_s: float
    txns: float
    fsyncs: dict[str, float]

    @classmethod
    def read(cls, pid: int, etcd: EtcdServer) -> Meter:
        return cls(cpu_s(pid), cpu_s(etcd.pid), etcd.metric(_PROPOSALS), _fsyncs(etcd))


def _fsyncs(etcd: EtcdServer) -> dict[str, float]:
    """The histogram of etcd's fdatasync: bucket's upper bound to its cumulative count, and the sum."""
    return {**etcd.buckets(_FSYNC), "sum": etcd.metric(f"{_FSYNC}_sum")}


def fsync_context(before: Meter, after: Meter) -> dict[str, object]:
    """Mean and p99 (the bucket's upper bound) of the fdatasyncs between two readings, in ms."""
    grown = {bound: count - before.fsyncs.get(bound, 0.0) for bound, count in after.fsyncs.items()}
    total_s, count = grown.pop("sum"), grown["+Inf"]
    p99 = next((bound for bound, below in grown.items() if below >= 0.99 * count), "+Inf")
    return {
        "fsyncs": int(count),
        "fsync_mean_ms": round(1000 * total_s / max(count, 1), 3),
        "fsync_p99_ms_below": round(1000 * float(p99), 1),
    }


async def drain(suite: Suite, sizes: Sizes, etcd: EtcdServer, directory: Path, maker: Maker) -> None:
    """Everything pending is in etcd; a controller starts and places it."""
    client = Client(etcd.endpoint)
    made = [maker.instance() for _ in range(sizes.drain)]
    await client.fill([item for _, keys_of in made for item in keys_of.items()])
    seen: dict[str, float] = {}
    more = asyncio.Event()
    watching = asyncio.create_task(client.watch(seen, more))
    with running_controller(etcd, directory) as (pid, metrics_url):
        before = Meter.read(pid, etcd)
        with profiled(pid, sizes.profile and f"{sizes.profile}.drain"):
            await _until(seen, more, sizes.drain)
        after = Meter.read(pid, etcd)
        took = max(seen.values()) - min(seen.values())
        context = {"placements": sizes.drain, **sizes.context(), **fsync_context(before, after)}
        suite.figure("durable_per_s", sizes.drain / took, "1/s", **context)
        _report_costs(suite, "drain", sizes.drain, before, after, context | {"rss_mib": rss_mib(pid)})
        print(purposes_at(metrics_url), flush=True)
    watching.cancel()
    await client.close()


def _report_costs(
    suite: Suite, what: str, placed: int, before: Meter, after: Meter, context: dict[str, object]
) -> None:
    def each(name: str) -> float:
        return float(getattr(after, name) - getattr(before, name)) / placed

    suite.figure("durable_controller_us", 1e6 * each("cpu_s"), "us", of=what, **context)
    suite.figure("durable_etcd_us", 1e6 * each("etcd_cpu_s"), "us", of=what, **context)
    if what == "drain":
        suite.figure("etcd_txns_per_placement", each("txns"), "1", **context)


async def _until(seen: dict[str, float], more: asyncio.Event, count: int) -> None:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while len(seen) < count:
                more.clear()
                await more.wait()
    except (TimeoutError, asyncio.CancelledError) as error:
        raise RuntimeError(f"{len(seen)} of {count} were placed within {TIMEOUT_S:.0f} s") from error


async def open_loop(suite: Suite, sizes: Sizes, etcd: EtcdServer, directory: Path, maker: Maker) -> None:
    """Instances become pending at a fixed rate."""
    client = Client(etcd.endpoint)
    count = int(sizes.rate_per_s * (sizes.seconds + WARM_S))
    due = [maker.instance() for _ in range(count)]
    seen: dict[str, float] = {}
    more = asyncio.Event()
    watching = asyncio.create_task(client.watch(seen, more))
    with running_controller(etcd, directory) as (pid, metrics_url):
        await _until_leading(client)
        before = Meter.read(pid, etcd)
        gc.collect()
        gc.freeze()
        gc.disable()  # the observer's own pauses are not the controller's
        with profiled(pid, sizes.profile and f"{sizes.profile}.open"):
            sent, acked = await _write_at_rate(client, sizes, due)
            await _until(seen, more, count)
        gc.enable()
        after = Meter.read(pid, etcd)
        counted = [uid for uid, _ in due[int(sizes.rate_per_s * WARM_S) :]]
        waits = [1000 * max(seen[uid] - acked[uid], 0.0) for uid in counted]
        whole = [1000 * (seen[uid] - sent[uid]) for uid in counted]
        context = {
            "rate_per_s": sizes.rate_per_s,
            "seconds": sizes.seconds,
            "keys_each": 6 if sizes.whole else 1,
            **sizes.context(),
            **fsync_context(before, after),
            "writes_p50_ms": round(percentile([1000 * (acked[uid] - sent[uid]) for uid in counted], 0.5), 2),
            "from_due_p99_ms": round(percentile(whole, 0.99), 2),
        }
        suite.figure("durable_p50_ms", percentile(waits, 0.50), "ms", **context)
        suite.figure("durable_p99_ms", percentile(waits, 0.99), "ms", **context)
        _report_costs(suite, "open loop", count, before, after, context | {"rss_mib": rss_mib(pid)})
        print(purposes_at(metrics_url), flush=True)
    watching.cancel()
    await client.close()


async def _until_leading(client: Client) -> None:
    """Until the leader's key is there."""
    call = client._watch()
    await call.write(wire.watch_request(keys.LEADER_KEY.key(), 1))
    while isinstance(response := await call.read(), pb.WatchResponse):
        if response.events:
            call.cancel()
            return


async def _write_at_rate(
    client: Client, sizes: Sizes, due: list[tuple[str, dict[bytes, bytes]]]
) -> tuple[dict[str, float], dict[str, float]]:
    """When each instance was due, and when its write was answered."""
    sent: dict[str, float] = {}
    acked: dict[str, float] = {}
    waiting = deque(
        (uid, keys_of if sizes.whole else dict(list(keys_of.items())[:1])) for uid, keys_of in due
    )

    async def write(uids: list[str], writes: dict[bytes, bytes]) -> None:
        await client.write(put_request(writes))
        acked.update(dict.fromkeys(uids, time.perf_counter()))

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        written = 0
        while waiting:
            now = time.perf_counter()
            uids: list[str] = []
            writes: dict[bytes, bytes] = {}
            while waiting and written < (now - started) * sizes.rate_per_s:
                uid, keys_of = waiting.popleft()
                if len(writes) + len(keys_of) > LOAD_OPS:
                    group.create_task(write(uids, writes))
                    uids, writes = [], {}
                sent[uid] = started + written / sizes.rate_per_s
                uids.append(uid)
                writes |= keys_of
                written += 1
            if writes:
                group.create_task(write(uids, writes))
            await asyncio.sleep(TICK_S)
    return sent, acked


def measure(suite: Suite, sizes: Sizes) -> None:
    """Each measurement with an etcd of its own."""
    for what, wanted in ((drain, sizes.drain), (open_loop, sizes.rate_per_s)):
        if not wanted:
            continue
        with ExitStack() as stack:
            made = tempfile.TemporaryDirectory(prefix="bench-durable-", dir=sizes.data_dir)
            directory = Path(stack.enter_context(made))
            etcd = stack.enter_context(EtcdServer(data_dir=directory))
            maker = Maker()

            async def run(what: Any = what, etcd: EtcdServer = etcd, maker: Maker = maker) -> None:
                client = Client(etcd.endpoint)
                await client.fill(list(maker.base(sizes.nodes).items()))
                await client.close()
                await what(suite, sizes, etcd, directory, maker)  # noqa: B023 (run at once)

            uvloop.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description="Durable placements: drain rate and open-loop latency")
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--drain", type=int, default=20_000, help="instances; 0 leaves it out")
    parser.add_argument("--rate", type=int, default=5_000, help="of the open loop; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--whole", action="store_true", help="the open loop writes all keys of a create")
    parser.add_argument(
        "--data-dir", type=Path, default=Path(tempfile.gettempdir()), help="where etcd writes"
    )
    parser.add_argument("--profile", default="", help="py-spy's raw stacks go to FILE.drain and FILE.open")
    options = parser.parse_args()
    sizes = Sizes(
        options.nodes,
        options.drain,
        options.rate,
        options.seconds,
        options.whole,
        options.data_dir,
        options.profile,
    )
    measure(Suite("durable"), sizes)


if __name__ == "__main__":
    main()
