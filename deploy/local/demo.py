"""The demonstration: a cloud on this machine, a real VM in it, and the proof that both work.

**Edge**: runs the set-up, the `cumulet` command itself, and `ping` inside the network's namespace. What is
shown on stdout comes from this very run; progress goes to stderr. Any part that fails fails the whole.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cumulet.client import Client
from cumulet.errors import CumuletError, NotFoundError
from cumulet.v1 import instance_pb2
from deploy.local.environment import with_sbin
from deploy.local.errors import SetupError
from deploy.local.layout import CONTEXT_NAME, DEFAULT_STATE_DIR, Layout
from deploy.local.logs import tail
from deploy.local.progress import Progress
from deploy.local.seed import DEFAULT_NETWORK
from deploy.local.traces import NAMESPACE_PREFIX
from deploy.local.up import UpOptions, bring_up

INSTANCE: Final = "demo"
FLAVOR: Final = "tiny"
READY_MARK: Final = b"cumulet-guest: ready"
# A cold start under software emulation on two busy cores took 25 s; a guest that is not there by then hangs.
READY_TIMEOUT_S: Final = 180.0
READY_POLL_S: Final = 0.25
COMMAND_TIMEOUT_S: Final = 240.0
_EXECUTABLE: Final = Path(sys.executable).parent / "cumulet"


def show(progress: Progress, state_dir: Path) -> None:
    """Brings the cloud up, ensures the instance, prints what a person would look at. Raises SetupError."""
    layout = bring_up(UpOptions(state_dir), progress)
    try:
        with Client([layout.controller_target]) as cloud:
            address = ensure_instance(cloud, layout, progress)
            namespace = f"{NAMESPACE_PREFIX}{cloud.get('network', DEFAULT_NETWORK).meta.uid}"
    except CumuletError as err:
        log = tail(layout.log_path("controller"), 15)
        fix = " or ".join(err.hints) or "see `cumulet status`, then run this again"
        raise SetupError(f"the demonstration: {err.message}", fix, log) from err
    # The console's last lines come after the ping, which the guest may have waited for.
    print_command(["cumulet", "instance", "list"], layout)
    print(f"\nIts address is {address}. From inside its network:")
    inside = ["ip", "netns", "exec", namespace]
    print_command([*inside, "ping", "-c", "3", "-i", "0.2", "-W", "5", address], layout)
    print_command(["cumulet", "logs", INSTANCE, "--tail", "15"], layout)
    print_command(["cumulet", "explain", f"instance/{INSTANCE}"], layout)
    print(render_next_steps(_EXECUTABLE))


def ensure_instance(cloud: Client, layout: Layout, progress: Progress) -> str:
    """The instance runs and its guest has said that it is ready. Returns its address."""
    found = find_instance(cloud)
    if found is None:
        run_command(["cumulet", "launch", INSTANCE, "--flavor", FLAVOR, "--wait=running"], layout)
        progress.step(f"instance {INSTANCE} runs")
    elif found.status.phase == instance_pb2.INSTANCE_PHASE_STOPPED:
        run_command(["cumulet", "instance", "start", INSTANCE, "--wait"], layout)
        progress.step(f"instance {INSTANCE} was stopped and runs again")
    _wait_for_guest(cloud)
    progress.step("its guest says that it is ready")
    return str(cloud.get("instance", INSTANCE).status.addresses[0])


def find_instance(cloud: Client) -> instance_pb2.Instance | None:
    """The demonstration's instance of an earlier run."""
    try:
        found: instance_pb2.Instance = cloud.get("instance", INSTANCE)
    except NotFoundError:
        return None
    return found


def print_command(words: Sequence[str], layout: Layout) -> None:
    """Shows a command as a person would type it, and what it printed."""
    print(f"\n$ {shlex.join(words)}", flush=True)
    print(run_command(words, layout), end="", flush=True)


def run_command(words: Sequence[str], layout: Layout) -> str:
    """Output of a command. Raises SetupError with its complaint when it fails."""
    argv = [str(_EXECUTABLE), *words[1:]] if words[0] == "cumulet" else list(words)
    environment = with_sbin(os.environ)
    environment.pop("CUMULET_ENDPOINTS", None)
    environment["CUMULET_CONTEXT"] = CONTEXT_NAME
    try:
        done = subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise SetupError(f"{shlex.join(words)}: {err}", "see `cumulet status` and `cumulet doctor`") from err
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise SetupError(
            f"{shlex.join(words)}: exit {done.returncode}",
            f"see `cumulet explain instance/{INSTANCE}` and {layout.log_dir}",
            said[-15:],
        )
    return done.stdout


def render_next_steps(executable: Path) -> str:
    """What to try now; the paths work in the person's own directory."""
    command = os.path.relpath(executable) if executable.is_relative_to(Path.cwd()) else str(executable)
    steps = (
        (f"{command} console {INSTANCE}", "its serial console; Enter, then ~. leaves"),
        (f"{command} launch web --wait", "another VM"),
        (f"{command} events", "what has happened"),
        (f"{command} verify", "is everything on this machine as intended?"),
        (f"{command} status", "the processes of this cloud"),
        (f"{command} --help", "everything else"),
        ("make down", "remove every trace"),
    )
    width = max(len(words) for words, _ in steps)
    lines = [f"  {words:<{width}}  # {why}" for words, why in steps]
    return "\n".join(["", "The cloud goes on running. Try next:", *lines])


def _wait_for_guest(cloud: Client) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while True:
        log = b""
        with contextlib.suppress(CumuletError):  # its agent may just be starting again
            log = cloud.console_log(INSTANCE)
        if READY_MARK in log:
            return
        if time.monotonic() > deadline_s:
            raise SetupError(
                f"the guest of instance {INSTANCE} is not ready after {READY_TIMEOUT_S:.0f} s",
                f"see `cumulet logs {INSTANCE}`; `cumulet instance delete {INSTANCE}` and run this again",
                log.decode(errors="replace").splitlines()[-15:],
            )
        time.sleep(READY_POLL_S)


def main() -> int:
    """Runs the demonstration in the usual cloud of this machine, or in CUMULET_STATE."""
    progress = Progress()
    try:
        show(progress, Path(os.environ.get("CUMULET_STATE", DEFAULT_STATE_DIR)))
    except SetupError as err:
        progress.failure(err)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
