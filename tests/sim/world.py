"""One run of one seed: a cloud of real code, a contended workload, faults, then peace, then the judgement.

**Pure** but for the event loop: virtual time, in this process alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from controller.admit import flavor, image, network, project, subnet
from controller.admit import instance as admit_instance
from controller.admit.common import Context
from controller.commit import Change
from controller.controller import Controller
from controller.journal import MemoryJournal
from controller.state import State
from controller.store import keys
from cumulet.errors import CumuletError, NotFoundError
from cumulet.v1 import flavor_pb2, image_pb2, meta_pb2, network_pb2, node_pb2, project_pb2, subnet_pb2
from tests.sim.bugs import planted
from tests.sim.clients import CLIENTS, PROJECTS, Api, Client, NoAnswerError, delete_instance
from tests.sim.loop import DeadlockError, LivelockError, VirtualLoop
from tests.sim.nemesis import Nemesis
from tests.sim.nodes import SimNode
from tests.sim.oracle import Capacity, Oracle
from tests.sim.peace import find_leftovers, find_unsettled
from tests.sim.replicas import Replica
from tests.sim.store import StoreRates, WatchedServer
from tests.sim.trace import Trace, Violation

STORM_S: Final = (60.0, 150.0)  # how long faults and clients go on
# The design's deadline of an hour is shortened, so that two of them fit a run.
DEADLINE_S: Final = 180.0
CALM_S: Final = 40.0  # what is settled must stay so: longer than a silence and two looks
START_S: Final = 60.0
LOOK_S: Final = 1.0
SETTLE_LOOK_S: Final = 4.0

NODES: Final = {
    "n1": Capacity(vcpu=8, memory_mib=512, disk_gib=64),
    "n2": Capacity(vcpu=8, memory_mib=512, disk_gib=64),
    "n3": Capacity(vcpu=8, memory_mib=256, disk_gib=64),
}
PHYSICAL_VCPU: Final = 2  # times the default ratio of 4 gives the capacity above
ADDRESSES: Final = ("c1", "c2")
IMAGE: Final = b"QFI\xfb" + b"disk" * 64
FEW_MACS: Final = 16
FEW_VNIS: Final = 6


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gave. `trace_hash` is equal in every replay of the seed."""

    seed: int
    violations: tuple[Violation, ...]
    trace_hash: str
    virtual_s: float
    ops: dict[str, int]
    faults: dict[str, int]
    tail: str = ""
    steps: int = 0

    def describe(self) -> str:
        """For a failure: what, when, and how to see it again."""
        head = f"seed {self.seed} at {self.virtual_s:.1f} virtual s: CUMULET_SIM_SEED={self.seed} replays it"
        return "\n".join([head, *(str(violation) for violation in self.violations[:5]), self.tail])


@dataclass
class World:
    seed: int
    directory: Path
    trace: Trace
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"sim/{self.seed}")
        self.oracle = Oracle(self.trace, dict(NODES))
        self.rates = StoreRates()
        self.over = asyncio.Event()
        self.server = WatchedServer(self.oracle.on_change)
        name = f"sim/{self.seed}"
        self.nodes = [
            SimNode(node, room, self.oracle, self.trace, name, ADDRESSES) for node, room in NODES.items()
        ]
        for node in self.nodes:
            node.machine.vcpu = PHYSICAL_VCPU
        links = [node.link for node in self.nodes]
        journal = MemoryJournal()
        files = {hashlib.sha256(IMAGE).hexdigest(): IMAGE}
        self.replicas = [
            Replica(address, self.server, self.rates, links, journal, files, self.trace, name, self.directory)
            for address in ADDRESSES
        ]
        self.api = Api(self.replicas, self.oracle, self.trace, random.Random(f"{name}/api"))

    async def run(self) -> None:
        """Storm, then peace. Violations are in the trace."""
        async with asyncio.TaskGroup() as group:
            supervisors = [group.create_task(replica.supervise()) for replica in self.replicas]
            await self._set_up()
            for node in self.nodes:
                node.start_agent()
            await self._storm(group)
            await self._judge()
            for supervisor in supervisors:
                supervisor.cancel()
            for replica in self.replicas:
                replica.kill()
            for node in self.nodes:
                node.kill_agent()
        await self._bury()

    async def _bury(self) -> None:
        processes = [replica.process for replica in self.replicas] + [node.process for node in self.nodes]
        for process in processes:
            if process is not None:
                await process.ended()

    @property
    def broken(self) -> bool:
        return bool(self.trace.violations)

    # --- beginning -------------------------------------------------------------------------------

    async def _set_up(self) -> None:
        async with asyncio.timeout(START_S):
            controller = self.replicas[0].controller
            while controller is None:
                await asyncio.sleep(LOOK_S)
                controller = self.replicas[0].controller
            await controller.ready.wait()
        await _seed_cloud(controller, self.rng)

    # --- storm -----------------------------------------------------------------------------------

    async def _storm(self, group: asyncio.TaskGroup) -> None:
        self._set_rates(self.rng.choice((0.0, 0.3, 1.0)))
        clients = [Client(self.api, random.Random(self.rng.random()), tuple(NODES)) for _ in range(CLIENTS)]
        running = [group.create_task(client.run(self.over)) for client in clients]
        nemesis = Nemesis(
            self.replicas,
            self.nodes,
            self.server,
            self.api,
            self.trace,
            random.Random(self.rng.random()),
            group,
            self.over,
        )
        tormenting = group.create_task(nemesis.run())
        await self._until(lambda: self.broken, self.rng.uniform(*STORM_S))
        self.trace.note("the storm is over")
        self.over.set()
        self._set_rates(0.0)
        await asyncio.wait({*running, tormenting})
        await self._until(lambda: not nemesis.busy, DEADLINE_S)
        for node in self.nodes:
            node.machine._failures.clear()
            node.kernel._faults.clear()

    def _set_rates(self, strength: float) -> None:
        rates = self.rates
        rates.unavailable = 0.01 * strength
        rates.unknown_before = rates.unknown_after = rates.late = 0.01 * strength
        rates.swallow = 0.004 * strength
        self.api.loss = 0.05 * strength

    async def _until(self, holds: Callable[[], bool], seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not holds():
            if loop.time() >= end:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    # --- peace -----------------------------------------------------------------------------------

    async def _judge(self) -> None:
        """I14 with what there is, then everything is deleted: I13."""
        if self.broken:
            return
        await self._insist("uncordon", self._uncordon_all)
        await self._settle("I14", self._unsettled)
        if self.broken:
            return
        await self._insist("delete", self._delete_all)
        await self._settle("I13", self._leftovers)

    def snapshot(self) -> State:
        """The store as it is, read past every replica."""
        listing = self.server.mvcc.list_prefix(keys.PREFIX, 0, b"", 0)
        state = State()
        state.load(listing.revision, listing.items)
        return state

    async def _unsettled(self) -> list[str]:
        return await find_unsettled(self.snapshot(), self.nodes, self.oracle)

    async def _leftovers(self) -> list[str]:
        return await find_leftovers(self.snapshot(), self.nodes)

    async def _settle(self, invariant: str, look: Callable[[], Awaitable[list[str]]]) -> None:
        """Within two deadlines nothing may be wrong any more, and stay so."""
        loop = asyncio.get_running_loop()
        end = loop.time() + 2 * DEADLINE_S
        good_since: float | None = None
        while not self.broken:
            wrong = await look()
            now = loop.time()
            good_since = (good_since if good_since is not None else now) if not wrong else None
            if good_since is not None and now - good_since >= CALM_S:
                return
            if now >= end and good_since is None:
                self.trace.violate(invariant, "; ".join(wrong[:6]))
                return
            await asyncio.sleep(SETTLE_LOOK_S)

    async def _insist(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """In peace every call succeeds in the end."""
        error: Exception | None = None
        end = asyncio.get_running_loop().time() + 2 * DEADLINE_S
        while asyncio.get_running_loop().time() < end:
            try:
                await work()
            except (CumuletError, NoAnswerError) as found:
                error = found
                await asyncio.sleep(LOOK_S)
            else:
                return
        self.trace.violate("I14", f"{what} does not succeed in peace: {error!r}")

    async def _uncordon_all(self) -> None:
        for node in self.nodes:
            request = node_pb2.UncordonNodeRequest(name=node.name, request_id=self.api.new_id())
            await self.api.ask("NodeService.UncordonNode", request)

    async def _delete_all(self) -> None:
        for parts, row in sorted(self.snapshot().rows(keys.INSTANCES).items()):
            if not row.message.meta.HasField("deleted_at"):
                try:
                    await delete_instance(self.api, *parts)
                except NotFoundError:
                    continue


async def _seed_cloud(controller: Controller, rng: random.Random) -> None:
    """Projects with little quota, two flavors, an image, a network with five addresses each."""
    context = Context(controller.clock.now(), rng)
    digest = hashlib.sha256(IMAGE).hexdigest()
    file = image_pb2.ImageFile(
        sha256=digest, size_bytes=len(IMAGE), format=image_pb2.FILE_FORMAT_QCOW2, virtual_size_bytes=2**20
    )
    made: list[Callable[[State], Change]] = [
        lambda state: image.create(
            state,
            context,
            "",
            image_pb2.Image(
                meta=meta_pb2.Meta(name="img"),
                spec=image_pb2.ImageSpec(disk=image_pb2.ImageFile(sha256=digest)),
            ),
            held=lambda _: file,
        )
    ]
    for name, vcpu, memory_mib in (("small", 1, 128), ("large", 2, 256)):
        spec = flavor_pb2.FlavorSpec(
            resources=meta_pb2.Resources(vcpu=vcpu, memory_mib=memory_mib, disk_gib=1)
        )
        given = flavor_pb2.Flavor(meta=meta_pb2.Meta(name=name), spec=spec)
        made.append(lambda state, given=given: flavor.create(state, context, "", given))  # type: ignore[misc]
    for name in PROJECTS:
        quota = project_pb2.Quota(instances=4, resources=meta_pb2.Resources(vcpu=6))
        owner = project_pb2.Project(meta=meta_pb2.Meta(name=name), spec=project_pb2.ProjectSpec(quota=quota))
        net = network_pb2.Network(meta=meta_pb2.Meta(name="net", project=name))
        sub = subnet_pb2.Subnet(
            meta=meta_pb2.Meta(name="sub", project=name),
            spec=subnet_pb2.SubnetSpec(network="net", cidr="10.0.0.0/29"),
        )
        made.append(lambda state, owner=owner: project.create(state, context, "", owner))  # type: ignore[misc]
        made.append(
            lambda state, net=net, name=name: network.create(state, context, name, net)  # type: ignore[misc]
        )
        made.append(
            lambda state, sub=sub, name=name: subnet.create(state, context, name, sub)  # type: ignore[misc]
        )
    for change in made:
        await controller.api_committer.commit(change)


@contextmanager
def contention() -> Iterator[None]:
    """Few MACs and VNIs, so that two really draw the same, and a short deadline of operations."""
    kept = (admit_instance._new_mac, network.VNI_MAX, admit_instance.OPERATION_DEADLINE_S)
    admit_instance._new_mac = _draw_mac
    network.VNI_MAX = FEW_VNIS  # type: ignore[misc]
    admit_instance.OPERATION_DEADLINE_S = DEADLINE_S  # type: ignore[misc]
    try:
        yield
    finally:
        admit_instance._new_mac, network.VNI_MAX, admit_instance.OPERATION_DEADLINE_S = kept  # type: ignore[misc]


@contextmanager
def _silence() -> Iterator[None]:
    """Logs of thousands of crashes help nobody; the trace has what counts."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _draw_mac(rng: random.Random) -> str:
    return f"02:00:00:00:00:{rng.randrange(FEW_MACS):02x}"


def run_seed(seed: int, bug: str = "") -> Result:
    """Run a seed to its end, or to its first violation; with a planted bug if one is named."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="cumulet-sim-"))
        stack.enter_context(contention())
        stack.enter_context(_silence())
        stack.enter_context(planted(bug))
        loop = VirtualLoop(random.Random(f"loop/{seed}"))
        loop.set_exception_handler(lambda _, __: None)  # errors nobody waited for: their caller was killed
        trace = Trace(seed, loop.time)
        try:
            loop.run_until_complete(World(seed, Path(directory), trace).run())
        except (DeadlockError, LivelockError) as error:
            trace.violate("I14", f"{error}: {loop.describe_ready()}")
        except BaseExceptionGroup as error:
            trace.violate("crash", f"the simulation itself failed: {error.exceptions!r}")
        finally:
            loop.abandon()
    return Result(
        seed,
        tuple(trace.violations),
        trace.hexdigest(),
        loop.time(),
        dict(trace.ops),
        dict(trace.faults),
        trace.tail() if trace.violations else "",
        loop.steps,
    )
