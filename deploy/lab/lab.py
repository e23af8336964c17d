"""A lab, as its commands and the tests use it: up, down, kill, start, cut, heal, lose, run.

**Edge**: processes, namespaces, nft, gRPC. Keeps nothing in memory but the leashes of what it has started.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from cli.context import write_context
from cumulet.client import Client
from cumulet.errors import CumuletError
from cumulet.names import DEFAULT_PROJECT
from cumulet.v1 import node_pb2
from deploy.images.image import BuiltImage, build_image
from deploy.lab import faults, namespaces
from deploy.lab.faults import ANYBODY, Fault
from deploy.lab.layout import (
    FABRIC,
    SETTINGS_FILE,
    LabLayout,
    Machine,
    Role,
    Settings,
    checked,
    grown,
    load_lab,
    save_lab,
)
from deploy.lab.namespaces import Running, Starting
from deploy.lab.wiring import is_cuttable
from deploy.local import health
from deploy.local.context import forget_context
from deploy.local.errors import SetupError
from deploy.local.progress import Progress
from deploy.local.record import load_record
from deploy.local.up import CONTROLLER_TIMEOUT_S, NODE_TIMEOUT_S, check_host, seed_cloud
from deploy.local.waiting import wait_for


class Lab:
    """One lab by its directory. Several of these may look at the same lab; changes wait for each other."""

    def __init__(self, state_dir: Path, *, leashed: bool = False) -> None:
        """`leashed`: machines that are started here end with this process, however it ends; for tests."""
        self.state_dir = state_dir.absolute()
        self._leashed = leashed
        self._leashes: dict[str, subprocess.Popen[str]] = {}

    @property
    def layout(self) -> LabLayout:
        """Raises SetupError where no lab is."""
        known = load_lab(self.state_dir)
        if known is None:
            raise SetupError(f"{self.state_dir}: no lab here", "`make lab` makes one")
        return known

    # All of it

    def up(
        self, settings: Settings, progress: Progress, *, guest_image: bool = True, context: str = ""
    ) -> None:
        """A healthy, seeded cloud; again, with more nodes: the new ones too. Raises SetupError.

        `context`: name for the command line; empty leaves its configuration alone.
        """
        check_host()
        with ThreadPoolExecutor(max_workers=1) as pool:
            # The first build takes longer than everything else; it goes on beside it.
            building = pool.submit(_build_image, progress) if guest_image else None
            layout = self.ensure_machines(settings, progress)
            self._ensure_cloud(layout, building, progress)
        if context:
            write_context(context, [layout.control.layout.controller_target], DEFAULT_PROJECT)
            progress.step(f"ready: context {context!r} of the command line")

    def ensure_machines(self, settings: Settings, progress: Progress) -> LabLayout:
        """All machines run and are connected; what is on them may still be starting. Raises SetupError."""
        check_host()
        if load_lab(self.state_dir) is None:
            save_lab(checked(LabLayout(self.state_dir, settings)))
        with self._alone():
            layout = checked(grown(self.layout, settings))
            save_lab(layout)
            started = self._ensure_machines(layout)
        progress.step(f"machines started: {', '.join(started)}" if started else "all machines run")
        return layout

    def down(self) -> None:
        """Ends all and removes the lab's directory. Works on half a lab and on none. Raises SetupError."""
        layout = LabLayout(self.state_dir)  # its settings are not needed, and may be damaged
        is_ours = (self.state_dir / SETTINGS_FILE).exists()
        with self._alone() if is_ours else contextlib.nullcontext():
            namespaces.end_machines(namespaces.find_all(layout).values())
            self._drop_leashes(list(self._leashes))
            forget_context(self.state_dir.name, layout.control.layout.controller_target)
            if is_ours:
                shutil.rmtree(self.state_dir)

    # Machines

    def kill(self, name: str) -> None:
        """Cuts the power of a node or of the control machine: guests too, and nothing says good-bye."""
        machine = self._switchable(name)
        with self._alone():
            running = namespaces.find_machine(self.layout, name)
            # First the cable: the kernel would close the connections of what dies, and others would hear it.
            namespaces.unplug_all(machine, namespaces.find_all(self.layout))
            namespaces.end_machines([running])
            self._drop_leashes([name])

    def start(self, name: str) -> None:
        """Starts a machine that is off; its disks are as they were. Nothing happens to one that runs."""
        machine = self._switchable(name)
        with self._alone():
            self._power_on(self.layout, [machine], namespaces.find_all(self.layout))

    def kill_service(self, name: str, service: str) -> None:
        """Kills one process, such as `agent` of a node, with SIGKILL; it is started again."""
        layout = self.layout.machine(name).layout
        record = load_record(layout.record_path(service))
        if record is None or record.ended_at is not None:
            raise SetupError(f"{service} does not run on {name}", f"see {layout.log_dir}")
        self.run(name, ["kill", "-s", "KILL", str(record.process.pid)])

    def running(self) -> dict[str, Running]:
        """Machines that run, by name; also where a lab's directory is lost."""
        return namespaces.find_all(LabLayout(self.state_dir))

    def run(self, name: str, argv: Sequence[str], stdin: str = "") -> str:
        """Output of a command in a machine's namespaces. Raises SetupError with its complaint."""
        return namespaces.run_in(namespaces.find_machine(self.layout, name), argv, stdin)

    def call(self, name: str, argv: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
        """The same for a command that may fail."""
        return namespaces.call_in(namespaces.find_machine(self.layout, name), argv, stdin)

    def enter_argv(self, name: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs another one in a machine's namespaces."""
        return namespaces.enter_argv(namespaces.find_machine(self.layout, name), argv)

    # The underlay

    def faults(self) -> tuple[Fault, ...]:
        """What is wrong now."""
        return faults.load_faults(self.layout.faults_path)

    def cut(self, name: str, peer: str = ANYBODY, direction: str = "both") -> None:
        """Drops every frame between a machine and a peer, or everybody: `in`, `out` or `both` ways."""
        self.lose(name, 1.0, peer, direction)

    def lose(self, name: str, loss: float, peer: str = ANYBODY, direction: str = "both") -> None:
        """Drops this ratio of the frames, at random. 0 mends."""
        for end in filter(None, (name, peer)):
            self._cuttable(end)
        ways = faults.ways(name, peer, direction)
        with self._alone():
            self._set_faults(faults.with_loss(self.faults(), ways, loss))

    def heal(self, name: str = "") -> None:
        """Mends every fault of a machine, or of all."""
        with self._alone():
            self._set_faults(faults.without_machine(self.faults(), self._cuttable(name).name) if name else ())

    # The cloud

    def client(self, timeout_s: float = 30.0) -> Client:
        """A client of its API; the caller closes it."""
        return Client([self.layout.control.layout.controller_target], timeout_s=timeout_s)

    def wait_ready(self, names: Collection[str] = (), timeout_s: float = NODE_TIMEOUT_S) -> None:
        """Until these nodes, or all, are Ready in their present boot, and answer. Raises SetupError."""
        layout = self.layout
        for node in layout.nodes:
            if not names or node.name in names:
                wait_for(node.layout, "agent", partial(self.node_ailment, node), timeout_s)

    def node_ailment(self, machine: Machine) -> str | None:
        """Why a node is not Ready in its present boot, or does not answer; None when all is well."""
        with self.client(health.CALL_TIMEOUT_S) as cloud:
            try:
                node: node_pb2.Node = cloud.get("node", machine.name)
                if node.status.boot_id != machine.boot_id_path.read_text().strip():
                    return f"node {machine.name} has not reported since it was started"
                ailment = health.node_ailment(node)
                # The condition outlives its session for half a minute; only an answer is proof.
                silent = () if ailment else cloud.verify(machine.name).silent_nodes
            except CumuletError as err:
                return f"node {machine.name}: {err.message}"
        return f"node {machine.name} does not answer the controller" if silent else ailment

    # Parts

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One change after the other, from whichever process."""
        with LabLayout(self.state_dir).lock_path.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _ensure_machines(self, layout: LabLayout) -> tuple[str, ...]:
        running = namespaces.find_all(layout)
        switches = [
            machine.name for machine in layout.machines if machine.role in (Role.FABRIC, Role.OUTSIDE)
        ]
        if not all(name in running for name in switches):
            # Cables end with their switch: nothing of the others can be kept.
            namespaces.end_machines(running.values())
            layout.faults_path.unlink(missing_ok=True)
            running = {}
            if not layout.healthy_once_path.exists():
                # An etcd that loses its power before its first commit never elects itself again.
                shutil.rmtree(layout.machines_dir, ignore_errors=True)
        return self._power_on(layout, layout.machines, running)

    def _power_on(
        self, layout: LabLayout, machines: Sequence[Machine], running: dict[str, Running]
    ) -> tuple[str, ...]:
        """Starts together those that do not run; `running` gets them too. Names of those started."""
        begun = [
            Starting(layout, machine, leashed=self._leashed)
            for machine in machines
            if machine.name not in running
        ]
        switches = [one for one in begun if one.machine.role in (Role.FABRIC, Role.OUTSIDE)]
        for group in (switches, [one for one in begun if one not in switches]):
            for one in group:
                running[one.machine.name] = one.connect(running)
            for one in group:
                self._leashes[one.machine.name] = one.finish()
        return tuple(one.machine.name for one in begun)

    def _ensure_cloud(
        self, layout: LabLayout, building: Future[BuiltImage] | None, progress: Progress
    ) -> None:
        control = layout.control.layout
        wait_for(control, "controller", lambda: health.check_controller(control), CONTROLLER_TIMEOUT_S)
        layout.healthy_once_path.touch()
        progress.step("controller serves")
        seed_cloud(control, building, progress)
        self.wait_ready()
        progress.step(f"Ready: {', '.join(node.name for node in layout.nodes)}")

    def _set_faults(self, wanted: tuple[Fault, ...]) -> None:
        """Written down first: a command that is killed in between is repeated by the next."""
        faults.save_faults(self.layout.faults_path, wanted)
        self.run(FABRIC, ["nft", "-j", "-f", "-"], faults.render_ruleset(wanted))

    def _switchable(self, name: str) -> Machine:
        machine = self.layout.machine(name)
        if not is_cuttable(machine):
            raise SetupError(f"{name} holds the others' cables", "`make lab-down` ends it with all others")
        return machine

    def _cuttable(self, name: str) -> Machine:
        machine = self.layout.machine(name)
        if not is_cuttable(machine):
            raise SetupError(f"{name} has no link to the underlay", "name a node, or `control`")
        return machine

    def _drop_leashes(self, names: Collection[str]) -> None:
        for name in names:
            launcher = self._leashes.pop(name, None)
            if launcher is not None and launcher.stdin is not None:
                launcher.stdin.close()
                launcher.wait()


def _build_image(progress: Progress) -> BuiltImage:
    return build_image(report=progress.step)
