"""Takes a cloud away, or half a one: processes, domains, links, namespaces, nft tables, sockets, state.

**Edge**: signals, libvirt, netlink, nft, the file system. Each step can be repeated; the order sees to it
that nothing puts back what was taken away: first who decides, then who acts, then what they made.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import libvirt
from pyroute2 import IPRoute, NetlinkError, netns

from deploy.images.image import DEFAULT_CACHE
from deploy.local import process, traces
from deploy.local.address import answers
from deploy.local.context import forget_context
from deploy.local.environment import supervised_environment
from deploy.local.errors import SetupError
from deploy.local.health import LIBVIRT_URI
from deploy.local.layout import CONTEXT_NAME, SETTINGS_FILE, Layout
from deploy.local.process import ProcessId
from deploy.local.progress import Progress
from deploy.local.record import load_record
from deploy.local.services import (
    LIBVIRT_SOCKET,
    STOP_GRACE_S,
    SUPERVISOR,
    VIRTLOGD_SOCKET,
    build_services,
)

LIBVIRT_START_TIMEOUT_S: Final = 20.0
# By what the agent's host record says of it, when it was off before.
FORWARDING: Final = {
    "forwarding_was_off": Path("/proc/sys/net/ipv4/ip_forward"),
    "opened_ipv6": Path("/proc/sys/net/ipv6/conf/all/forwarding"),
}
_GUEST_LOGS: Final = Path("/var/log/libvirt/qemu")
# QEMU's output, kept by libvirt also for domains that are gone. Ours are named by the instance's uid.
_GUEST_LOG_PATTERN: Final = "cumulet-????????-????-????-????-????????????.log*"
_UNDEFINE_FLAGS: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
)
_SOCKET_POLL_S: Final = 0.05
# What `up` and its processes make below the state directory; anything else there is not ours.
_STATE_PARTS: Final = ("etcd", "controller", "agent", "log", "run")


def take_down(layout: Layout, progress: Progress) -> None:
    """Removes every trace of the cloud from this host. Raises SetupError when something stays."""
    services = build_services(layout, sys.executable)
    hypervisor = [service.name for service in services if service.shared]
    stop_services(layout, [SUPERVISOR, "agent", "controller"])
    progress.step("supervisor, agent and controller have stopped")
    with libvirt_for_removal(layout):
        removed = remove_domains()
    stop_services(layout, [*reversed(hypervisor), "etcd"])
    left = traces.list_processes(layout, traces.list_namespaces())
    stop_processes(left)
    progress.step(f"{len(removed)} instances, libvirt (where it is ours) and etcd have stopped")
    found = traces.observe_traces(layout)
    remove_network(found)
    restore_forwarding(layout)
    progress.step(
        f"{len(found.links)} links, {len(found.namespaces)} namespaces, {len(found.tables)} nft tables gone"
    )
    remove_files(layout)
    forget_context(CONTEXT_NAME, layout.controller_target)
    progress.step(f"{layout.state_dir} and {layout.runtime_dir} are gone")
    _check_gone(layout)


def stop_services(layout: Layout, names: Iterable[str]) -> None:
    """Stops supervised processes by their records, in this order. Nothing happens to one that is gone."""
    for name in names:
        record = load_record(layout.record_path(name))
        if record is not None:
            # A stopped one (SIGSTOP) would not hear the polite word.
            process.send_signal(record.process, signal.SIGCONT)
            process.stop(record.process, STOP_GRACE_S)


def stop_processes(processes: Iterable[ProcessId]) -> None:
    """Stops processes together: the polite word to all, then a wait, then force."""
    remaining = list(processes)
    for entry in remaining:
        process.send_signal(entry, signal.SIGTERM)
    deadline_s = time.monotonic() + STOP_GRACE_S
    for entry in remaining:
        if not process.wait_for_end(entry, max(0.0, deadline_s - time.monotonic())):
            process.send_signal(entry, signal.SIGKILL)
            process.wait_for_end(entry, STOP_GRACE_S)


@contextlib.contextmanager
def libvirt_for_removal(layout: Layout) -> Iterator[None]:
    """Runs libvirt for a moment when it is down but knows domains of ours; else leaves it as it is."""
    if answers(LIBVIRT_SOCKET) or not traces.has_domain_files():
        yield
        return
    environment = supervised_environment(os.environ, layout.state_dir)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for program, socket in (("virtlogd", VIRTLOGD_SOCKET), ("libvirtd", LIBVIRT_SOCKET)):
            if not answers(socket):
                started.append(_start_quietly(program, environment))
                _wait_for_socket(program, socket)
        yield
    finally:
        for child in reversed(started):
            child.terminate()
            child.wait()


def remove_domains() -> tuple[str, ...]:
    """Cuts the power of our domains and forgets them. Names of those removed."""
    if not answers(LIBVIRT_SOCKET):
        return ()
    connection = libvirt.open(LIBVIRT_URI)
    try:
        ours = [domain for domain in connection.listAllDomains() if traces.has_mark(domain)]
        return tuple(_remove_domain(domain) for domain in ours)
    finally:
        connection.close()


def remove_network(found: traces.Traces) -> None:
    """Deletes links, namespaces and tables; what went away meanwhile is fine."""
    with IPRoute() as netlink:
        for name in found.links:
            with contextlib.suppress(NetlinkError):
                for index in netlink.link_lookup(ifname=name):
                    netlink.link("del", index=index)
    for name in found.namespaces:
        with contextlib.suppress(OSError):
            netns.remove(name)
    if found.tables:
        with contextlib.suppress(subprocess.CalledProcessError):
            traces.run_nft(["-f", "-"], render_deletion(found.tables))


def restore_forwarding(layout: Layout) -> None:
    """Turns forwarding off again where the agent has recorded that it was off before."""
    files = (*layout.agent_dir.glob("host.json"), *layout.agent_dir.glob("*/host.json"))
    records = [path.read_text() for path in files]
    for field, setting in FORWARDING.items():
        if any(was_off(text, field) for text in records):
            with contextlib.suppress(OSError):  # a read-only /proc/sys: then it was not turned on
                setting.write_text("0")


def was_off(text: str, field: str) -> bool:
    """Reads the agent's host record; anything else says nothing."""
    try:
        return json.loads(text)[field] is True
    except (ValueError, KeyError, TypeError):
        return False


def render_deletion(tables: Iterable[traces.Table]) -> str:
    """nft's JSON that deletes the tables in one transaction."""
    commands = [{"delete": {"table": {"family": table.family, "name": table.name}}} for table in tables]
    return json.dumps({"nftables": commands})


def remove_files(layout: Layout) -> None:
    """Removes the runtime directory and our parts of the state directory; the settings file last.

    A state directory without the settings file is not a cloud's: nothing is touched there.
    """
    settings = layout.state_dir / SETTINGS_FILE
    if not settings.exists():
        return
    for log in _GUEST_LOGS.glob(_GUEST_LOG_PATTERN):
        log.unlink(missing_ok=True)
    shutil.rmtree(layout.runtime_dir, ignore_errors=True)
    for part in _STATE_PARTS:
        shutil.rmtree(layout.state_dir / part, ignore_errors=True)
    settings.unlink()
    with contextlib.suppress(OSError):
        layout.state_dir.rmdir()  # stays when somebody keeps other things there


def remove_image_cache(progress: Progress) -> None:
    """Removes the built guest images and the packages that they were made from."""
    shutil.rmtree(DEFAULT_CACHE, ignore_errors=True)
    progress.step(f"{DEFAULT_CACHE} is gone")


def _remove_domain(domain: libvirt.virDomain) -> str:
    name = str(domain.name())
    with contextlib.suppress(libvirt.libvirtError):
        domain.destroy()  # fails for one that is off
    with contextlib.suppress(libvirt.libvirtError):
        domain.undefineFlags(_UNDEFINE_FLAGS)  # fails for one that was transient and is gone
    return name


def _start_quietly(program: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [program],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as err:
        raise SetupError(
            f"{program}: {err.strerror}; it is needed to remove guests", "run deploy/install"
        ) from err


def _wait_for_socket(program: str, address: str) -> None:
    deadline_s = time.monotonic() + LIBVIRT_START_TIMEOUT_S
    while not answers(address):
        if time.monotonic() > deadline_s:
            raise SetupError(
                f"{program}: does not listen after {LIBVIRT_START_TIMEOUT_S:.0f} s; guests cannot be removed",
                f"start {program} by hand to see why, then run `cumulet down` again",
            )
        time.sleep(_SOCKET_POLL_S)


def _check_gone(layout: Layout) -> None:
    left = traces.observe_traces(layout).describe()
    if left:
        raise SetupError(
            f"still there: {', '.join(left)}", "run `cumulet down` again, then remove them by hand"
        )
