"""Brings a single-machine cloud up: directories, supervisor, processes, seeds, context. Repeatable.

**Edge**: the file system, processes and gRPC. A second run, also one after a run that failed or was killed,
finds what is there and does the rest.
"""

from __future__ import annotations

import contextlib
import grp
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cli.context import write_context
from cumulet.client import Client
from cumulet.errors import CumuletError
from cumulet.names import DEFAULT_PROJECT, name_error
from deploy.images.errors import ImageBuildError
from deploy.images.image import BuiltImage, build_image
from deploy.local import health, process
from deploy.local.address import free_ports, taken_ports
from deploy.local.cpu import has_virtualization
from deploy.local.environment import supervised_environment, with_sbin
from deploy.local.errors import SetupError
from deploy.local.layout import (
    CONTEXT_NAME,
    Layout,
    Ports,
    checked,
    choose_ports,
    default_runtime_dir,
    load_layout,
    save_layout,
)
from deploy.local.progress import Progress
from deploy.local.record import load_record
from deploy.local.seed import ensure_image, explain_failure, seed
from deploy.local.services import SUPERVISOR
from deploy.local.supervisor import RETRY_SIGNAL
from deploy.local.waiting import wait_for

KVM_DEVICE: Final = Path("/dev/kvm")
PROGRAMS: Final = ("virtlogd", "libvirtd", "qemu-system-x86_64", "qemu-img", "etcd", "nft", "dnsmasq")
# Generous: a busy 2-core machine takes seconds for each; a process that keeps dying ends the wait early.
ETCD_TIMEOUT_S: Final = 60.0
LIBVIRT_TIMEOUT_S: Final = 60.0
CONTROLLER_TIMEOUT_S: Final = 60.0
NODE_TIMEOUT_S: Final = 60.0
SUPERVISOR_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What a person may choose; None keeps what the cloud has, or the default."""

    state_dir: Path
    runtime_dir: Path | None = None
    node: str | None = None
    guest_image: bool = True


def bring_up(options: UpOptions, progress: Progress) -> Layout:
    """A cloud that is healthy, seeded and reachable by the CLI. Raises SetupError."""
    check_host()
    open_kvm_to_qemu(KVM_DEVICE)
    layout = ensure_layout(options)
    ensure_directories(layout)
    with ThreadPoolExecutor(max_workers=1) as pool:
        # The first build takes longer than everything else; it goes on beside it.
        building = pool.submit(_build_image, progress) if options.guest_image else None
        ensure_supervisor(layout, progress)
        wait_until_healthy(layout, progress)
        seed_cloud(layout, building, progress)
    write_context(CONTEXT_NAME, [layout.controller_target], DEFAULT_PROJECT)
    progress.step(
        f"ready: API at {layout.controller_target} and {layout.api_address}, context {CONTEXT_NAME!r}"
    )
    return layout


def check_host() -> None:
    """Root, and the programs that are started. Raises SetupError with all that is missing."""
    if os.geteuid() != 0:
        raise SetupError("bridges, namespaces and guests are made by root only", "run it as root")
    path = with_sbin(os.environ)["PATH"]
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        raise SetupError(f"not installed: {', '.join(missing)}", "run deploy/install")


def open_kvm_to_qemu(device: Path) -> None:
    """Gives the KVM device the group and mode that Debian's udev rule gives it, where no udev has run.

    As root:root 0600, libvirtd can use it and its QEMU cannot; it then probes QEMU anew for every guest, and
    a start takes half a minute. A device that somebody else arranged is left alone.
    """
    with contextlib.suppress(OSError, KeyError):  # no device, or no such group: nothing to arrange
        found = device.stat()
        if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 0, 0o600):
            os.chown(device, 0, grp.getgrnam("kvm").gr_gid)
            device.chmod(0o660)


def ensure_layout(options: UpOptions) -> Layout:
    """The cloud's layout, made and written down at the first run. Ports that others use are replaced then."""
    state_dir = options.state_dir.absolute()
    known = load_layout(state_dir)
    if known is not None:
        return checked(_unchanged(known, options))
    runtime_dir = options.runtime_dir.absolute() if options.runtime_dir else default_runtime_dir(state_dir)
    wanted = Ports()
    numbers = wanted.named().values()
    ports = choose_ports(wanted, taken_ports(numbers), free_ports(2 * len(numbers)))
    layout = checked(Layout(state_dir, runtime_dir, _node_name(options.node), ports))
    save_layout(layout)
    return layout


def ensure_directories(layout: Layout) -> None:
    """The cloud's directories: secrets for root only, guests' disks reachable for QEMU's user."""
    for path, mode in (
        (layout.state_dir, 0o755),
        (layout.runtime_dir, 0o755),
        (layout.log_dir, 0o750),
        (layout.etcd_dir, 0o700),
        (layout.controller_dir, 0o700),
        (layout.agent_dir, 0o755),
    ):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)


def ensure_supervisor(layout: Layout, progress: Progress) -> None:
    """Starts the supervisor in a session of its own unless one lives."""
    known = load_record(layout.record_path(SUPERVISOR))
    if known is not None and process.send_signal(known.process, RETRY_SIGNAL):
        progress.step("supervisor runs")
        return
    with layout.log_path(SUPERVISOR).open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "deploy.local.supervisor", str(layout.state_dir)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=supervised_environment(os.environ, layout.state_dir),
            start_new_session=True,
        )
    check = "no supervisor has taken its lock yet"
    wait_for(layout, SUPERVISOR, lambda: None if is_supervised(layout) else check, SUPERVISOR_TIMEOUT_S)
    progress.step(f"supervisor started, logs in {layout.log_dir}")


def is_supervised(layout: Layout) -> bool:
    record = load_record(layout.record_path(SUPERVISOR))
    return record is not None and process.is_alive(record.process)


def wait_until_healthy(layout: Layout, progress: Progress) -> None:
    """Waits for each part's real health, in the order in which they need each other."""
    waits: tuple[tuple[str, Callable[[], str | None], float, str], ...] = (
        ("libvirtd", health.check_libvirt, LIBVIRT_TIMEOUT_S, "libvirt answers"),
        ("etcd", lambda: health.check_etcd(layout), ETCD_TIMEOUT_S, "etcd is healthy"),
        ("controller", lambda: health.check_controller(layout), CONTROLLER_TIMEOUT_S, "controller serves"),
        ("agent", lambda: health.check_node(layout), NODE_TIMEOUT_S, f"node {layout.node} is Ready"),
    )
    for service, check, timeout_s, done in waits:
        wait_for(layout, service, check, timeout_s)
        progress.step(done)
    if not has_virtualization(Path("/proc/cpuinfo").read_text()):
        progress.note("warning: the CPU has neither vmx nor svm: guests are emulated (TCG), slowly")


def seed_cloud(layout: Layout, building: Future[BuiltImage] | None, progress: Progress) -> None:
    """Ensures what a fresh cloud starts with, the guest image once it is built. Raises SetupError."""
    with Client([layout.controller_target]) as cloud:
        try:
            made = list(seed(cloud))
            if building is not None:
                made.append(ensure_image(cloud, building.result()))
        except CumuletError as err:
            raise SetupError(f"seeding the cloud: {err.message}", explain_failure(err)) from err
        except ImageBuildError as err:
            raise SetupError(f"guest image: {err.what}", err.fix) from err
    names = [name for name in made if name]
    progress.step(f"seeded: {', '.join(names)}" if names else "project, flavors, network and image are there")


def _build_image(progress: Progress) -> BuiltImage:
    return build_image(report=progress.step)


def _unchanged(known: Layout, options: UpOptions) -> Layout:
    """The known layout; refuses wishes that would need another cloud."""
    wanted = replace(
        known,
        runtime_dir=options.runtime_dir.absolute() if options.runtime_dir else known.runtime_dir,
        node=options.node or known.node,
    )
    if wanted != known:
        raise SetupError(
            f"the cloud in {known.state_dir} has node {known.node} and runtime directory {known.runtime_dir}",
            "leave these options out, or `cumulet down` first",
        )
    return known


def _node_name(wanted: str | None) -> str:
    name = wanted or socket.gethostname().split(".")[0].lower() or "localhost"
    wrong = name_error(name)
    if wrong is not None:
        raise SetupError(f"node name {name!r} {wrong}", "give another one with --node")
    return name
