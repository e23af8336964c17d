"""The machines of a lab from outside: start them in namespaces, find them, run in them, cut their power.

**Edge**: forks, signals, reads /proc. Nothing is remembered: what runs is found by a mark in its environment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.lab import process_one
from deploy.lab.hypervisor_config import render_files
from deploy.lab.layout import LabLayout, Machine, Role
from deploy.lab.wiring import plan_cables, plug, unplug
from deploy.local import process
from deploy.local.environment import supervised_environment, with_sbin
from deploy.local.errors import SetupError
from deploy.local.layout import checked, save_layout
from deploy.local.logs import tail
from deploy.local.process import ProcessId
from deploy.local.up import ensure_directories
from deploy.local.waiting import LOG_LINES

# In the environment of each machine's launcher, with the lab's directory.
LAB_VARIABLE: Final = "CUMULET_LAB"
# Killing a process is over when the kernel has freed its memory: a guest's takes longest.
END_TIMEOUT_S: Final = 30.0
COMMAND_TIMEOUT_S: Final = 60.0
NAMESPACES: Final = ("--net", "--mount", "--uts", "--pid")
_HYPERVISOR_DIRS: Final = ("etc", "lib", "log", "cache")


@dataclass(frozen=True, slots=True)
class Running:
    """A machine that runs: its launcher (unshare) and its process 1, by this side's numbers."""

    launcher: ProcessId
    first: ProcessId


class Starting:
    """A machine on its way: begun, then connected, then up. All of a lab go each way together."""

    def __init__(self, lab: LabLayout, machine: Machine, *, leashed: bool) -> None:
        """Prepares its directories and begins. `leashed`: it ends with the object that `finish` returns."""
        self._lab = lab
        self.machine = machine
        _prepare(machine)
        namespaces = ("unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc")
        program = (sys.executable, "-m", process_one.__name__, str(lab.state_dir), machine.name)
        with machine.log_path.open("ab") as log:
            self._launcher = subprocess.Popen(
                [*namespaces, *program, *((process_one.LEASHED,) if leashed else ())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env=_environment(lab, machine),
                start_new_session=True,
                text=True,
            )

    def connect(self, running: dict[str, Running]) -> Running:
        """Lays the cables to the switches, which run already, and lets the machine go on."""
        self._expect(process_one.READY)
        found = _running(process.find_process(self._launcher.pid))
        if found is None:
            raise self._failed("ended at once")
        for cable in plan_cables(self.machine):
            if cable.switch not in running:
                raise SetupError(f"{cable.switch} is off", "`make lab` starts the lab anew")
            for words in plug(cable, found.first.pid, self._lab.settings.mtu):
                # Process numbers are this side's, so its process namespace is not entered.
                run_in(running[cable.switch], words, entered=("--net",))
        assert self._launcher.stdin is not None
        self._launcher.stdin.write(process_one.GO)
        self._launcher.stdin.flush()
        return found

    def finish(self) -> subprocess.Popen[str]:
        """Returns once its links are up and its services start. The result holds the leash."""
        self._expect(process_one.UP)
        assert self._launcher.stdout is not None
        self._launcher.stdout.close()
        return self._launcher

    def _expect(self, line: str) -> None:
        assert self._launcher.stdout is not None
        if self._launcher.stdout.readline() != line:
            raise self._failed(f"did not become {line.strip()}")

    def _failed(self, how: str) -> SetupError:
        path = self.machine.log_path
        return SetupError(f"machine {self.machine.name} {how}", f"see {path}", tail(path, LOG_LINES))


def find_all(lab: LabLayout) -> dict[str, Running]:
    """What runs of a lab, by machine."""
    launchers = process.find_marked(LAB_VARIABLE, str(lab.state_dir))
    found = {_machine_name(launcher): _running(launcher) for launcher in launchers}
    return {name: running for name, running in found.items() if name and running is not None}


def find_machine(lab: LabLayout, name: str) -> Running:
    """Raises SetupError when the machine is off or unknown."""
    machine = lab.machine(name)
    found = find_all(lab).get(machine.name)
    if found is None:
        raise SetupError(f"machine {name} is off", f"start it: `cumulet lab start {name}`")
    return found


def end_machines(machines: Iterable[Running]) -> None:
    """As by a loss of power: the kernel kills every process inside. Raises SetupError when one stays."""
    ending = list(machines)
    for running in ending:
        process.send_signal(running.first, signal.SIGKILL)
    for running in ending:
        # Process 1 has ended when all others of its namespace have.
        for one in (running.first, running.launcher):
            if not process.wait_for_end(one, END_TIMEOUT_S):
                raise SetupError(
                    f"process {one.pid} does not end", "look at its state in /proc, and try again"
                )


def unplug_all(machine: Machine, running: dict[str, Running]) -> None:
    """Takes a machine's cables away. The kernel does it as well, but later."""
    for cable in plan_cables(machine):
        with contextlib.suppress(SetupError):  # it was faster
            run_in(running[cable.switch], unplug(cable))


def enter_argv(running: Running, argv: Sequence[str], entered: Sequence[str] = NAMESPACES) -> list[str]:
    """The command line that runs `argv` inside."""
    return ["nsenter", f"--target={running.first.pid}", *entered, "--", *argv]


def call_in(
    running: Running, argv: Sequence[str], stdin: str = "", entered: Sequence[str] = NAMESPACES
) -> subprocess.CompletedProcess[str]:
    """Runs a command inside, whatever its exit code."""
    return subprocess.run(
        enter_argv(running, argv, entered),
        input=stdin,
        env=with_sbin(os.environ),
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


def run_in(
    running: Running, argv: Sequence[str], stdin: str = "", entered: Sequence[str] = NAMESPACES
) -> str:
    """Output of a command inside. Raises SetupError with its complaint when it fails."""
    done = call_in(running, argv, stdin, entered)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).splitlines()[-LOG_LINES:]
        raise SetupError(f"{' '.join(argv)}: exit {done.returncode}", "see what it says", said)
    return done.stdout


def list_inside(running: Running) -> tuple[ProcessId, ...]:
    """Every process of the machine, by this side's numbers."""
    wanted = _pid_namespace(running.first.pid)
    numbers = sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    inside = (number for number in numbers if _pid_namespace(number) == wanted)
    return tuple(one for one in map(process.find_process, inside) if one is not None)


def _prepare(machine: Machine) -> None:
    """Directories and files of a machine that is about to start; what it had in memory is gone."""
    layout = checked(machine.layout)
    shutil.rmtree(layout.runtime_dir, ignore_errors=True)
    ensure_directories(layout)
    save_layout(layout)
    machine.boot_id_path.write_text(f"{uuid.uuid4()}\n")
    if machine.role is Role.NODE:
        for part in _HYPERVISOR_DIRS:
            machine.hypervisor_dir(part).mkdir(parents=True, exist_ok=True)
        for name, text in render_files(machine).items():
            (machine.hypervisor_dir("etc") / name).write_text(text)


def _environment(lab: LabLayout, machine: Machine) -> dict[str, str]:
    return {**supervised_environment(os.environ, machine.state_dir), LAB_VARIABLE: str(lab.state_dir)}


def _running(launcher: ProcessId | None) -> Running | None:
    if launcher is None:
        return None
    try:
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    except OSError:
        return None
    first = process.find_process(int(children[0])) if children else None
    return Running(launcher, first) if first is not None else None


def _machine_name(launcher: ProcessId) -> str:
    """From its command line; empty when it is none."""
    words = [word for word in process.command_line(launcher).split(" ") if word != process_one.LEASHED]
    return words[-1] if process_one.__name__ in words else ""


def _pid_namespace(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}/ns/pid").stat().st_ino
    except OSError:
        return 0
