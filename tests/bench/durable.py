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
import os
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc.aio
import uvloop

from controller.store import etcd_wire as wire
from controller.store import keys
from controller.store.etcd_channel import MESSAGE_BYTES_MAX
from controller.store.etcdpb import rpc_pb2 as pb
from controller.store.etcdpb import rpc_pb2_grpc as stubs
from tests.bench.fleet import cpu_s, free_port, process, purposes_at, rss_mib, wait_serving
from tests.bench.pending import Maker
from tests.bench.report import Suite, percentile
from tests.support.etcd import EtcdServer

LOAD_OPS: Final = 120  # of a transaction while etcd is filled
RATES_PER_S: Final = (1_000, 2_500, 5_000)  # of the open loop; the last is what is aimed at
TICK_S: Final = 0.005  # what the open loop's writer has due is written together
TIMEOUT_S: Final = 60.0
WARM_S: Final = 1.0  # of the open loop, not counted: connections, caches
_FSYNC: Final = "etcd_disk_wal_fsync_duration_seconds"
_PROPOSALS: Final = "etcd_server_proposals_committed_total"


@dataclass(frozen=True, slots=True)
class Sizes:
    nodes: int
    drain: int
    rates_per_s: tuple[int, ...]  # of the open loop, one after the other: where it begins to queue is seen
    seconds: float
    whole: bool  # the open loop writes all keys of a create, not only the instance
    data_dir: Path
    profile: str

    def context(self) -> dict[str, object]:
        return {"nodes": self.nodes, "etcd_data": str(self.data_dir)}


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
    spy = subprocess.Popen(["py-spy", "record", "-r", "250", "-f", "raw", "-o", file, "-p", str(pid)])
    try:
        yield
    finally:
        spy.send_signal(2)
        spy.wait(60)


@dataclass(frozen=True, slots=True)
class Meter:
    """What the run has cost so far."""

    at: float
    cpu_s: float
    etcd_cpu_s: float
    own_cpu_s: float  # this process: the writer and the observer
    machine_cpu_s: float
    txns: float
    fsyncs: dict[str, float]

    @classmethod
    def read(cls, pid: int, etcd: EtcdServer) -> Meter:
        return cls(
            time.perf_counter(),
            cpu_s(pid),
            cpu_s(etcd.pid),
            time.process_time(),
            machine_cpu_s(),
            etcd.metric(_PROPOSALS),
            _fsyncs(etcd),
        )


def machine_cpu_s() -> float:
    """Seconds that all cores together have been busy."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def load_context(before: Meter, after: Meter) -> dict[str, object]:
    """What else the figures rest on: etcd's disk, and the cores that others kept busy meanwhile."""
    took_s = after.at - before.at
    ours = sum(getattr(after, name) - getattr(before, name) for name in ("cpu_s", "etcd_cpu_s", "own_cpu_s"))
    others = (after.machine_cpu_s - before.machine_cpu_s - ours) / took_s
    cores = {"cores": os.cpu_count(), "cores_ours": round(ours / took_s, 2), "cores_others": round(others, 2)}
    return {**fsync_context(before, after), **cores}


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
        context = {"placements": sizes.drain, **sizes.context(), **load_context(before, after)}
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


async def open_loop(
    suite: Suite, sizes: Sizes, rate_per_s: int, etcd: EtcdServer, directory: Path, maker: Maker
) -> None:
    """Instances become pending at a fixed rate."""
    client = Client(etcd.endpoint)
    count = int(rate_per_s * (sizes.seconds + WARM_S))
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
            sent, acked = await _write_at_rate(client, rate_per_s, _written(due, sizes))
            await _until(seen, more, count)
        gc.enable()
        after = Meter.read(pid, etcd)
        counted = [uid for uid, _ in due[int(rate_per_s * WARM_S) :]]
        waits = [1000 * max(seen[uid] - acked[uid], 0.0) for uid in counted]
        whole = [1000 * (seen[uid] - sent[uid]) for uid in counted]
        context = {
            "rate_per_s": rate_per_s,
            "seconds": sizes.seconds,
            "keys_each": 6 if sizes.whole else 1,
            **sizes.context(),
            **load_context(before, after),
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


def _written(
    due: Sequence[tuple[str, dict[bytes, bytes]]], sizes: Sizes
) -> deque[tuple[str, dict[bytes, bytes]]]:
    """What the open loop writes of each instance: its own key comes first."""
    return deque((uid, writes if sizes.whole else dict(list(writes.items())[:1])) for uid, writes in due)


async def _write_at_rate(
    client: Client, rate_per_s: int, waiting: deque[tuple[str, dict[bytes, bytes]]]
) -> tuple[dict[str, float], dict[str, float]]:
    """When each instance was due, and when its write was answered."""
    sent: dict[str, float] = {}
    acked: dict[str, float] = {}

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
            while waiting and written < (now - started) * rate_per_s:
                uid, keys_of = waiting.popleft()
                if len(writes) + len(keys_of) > LOAD_OPS:
                    group.create_task(write(uids, writes))
                    uids, writes = [], {}
                sent[uid] = started + written / rate_per_s
                uids.append(uid)
                writes |= keys_of
                written += 1
            if writes:
                group.create_task(write(uids, writes))
            await asyncio.sleep(TICK_S)
    return sent, acked


def measure(suite: Suite, sizes: Sizes) -> None:
    """Each measurement with an etcd of its own."""
    if sizes.drain:
        _measure(sizes, partial(drain, suite, sizes))
    for rate_per_s in sizes.rates_per_s:
        _measure(sizes, partial(open_loop, suite, sizes, rate_per_s))


def _measure(sizes: Sizes, what: Callable[[EtcdServer, Path, Maker], Coroutine[Any, Any, None]]) -> None:
    with ExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="bench-durable-", dir=sizes.data_dir)
        directory = Path(stack.enter_context(made))
        etcd = stack.enter_context(EtcdServer(data_dir=directory))

        async def run() -> None:
            maker = Maker()
            client = Client(etcd.endpoint)
            await client.fill(list(maker.base(sizes.nodes).items()))
            await client.close()
            await what(etcd, directory, maker)

        uvloop.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description="Durable placements: drain rate and open-loop latency")
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--drain", type=int, default=20_000, help="instances; 0 leaves it out")
    parser.add_argument(
        "--rates", type=int, nargs="*", default=RATES_PER_S, help="of the open loop; none leave it out"
    )
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
        tuple(options.rates),
        options.seconds,
        options.whole,
        options.data_dir,
        options.profile,
    )
    measure(Suite("durable"), sizes)


if __name__ == "__main__":
    main()
