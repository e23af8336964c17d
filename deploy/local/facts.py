"""Measures this host for the doctor: CPU, hypervisor, etcd, kernel features, firewalls, space, ports, time.

**Edge**: reads /proc, opens devices, runs `nft` and `etcd --version`, writes a probe file, makes and removes
a network namespace. What fails becomes a fact, never an exception.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import libvirt
from pyroute2 import NetlinkError, NetNS, netns

from deploy.local import health, process, traces
from deploy.local.address import answers, taken_ports
from deploy.local.cpu import has_virtualization
from deploy.local.environment import with_sbin
from deploy.local.layout import Layout
from deploy.local.record import load_record
from deploy.local.services import LIBVIRT_RUN, LIBVIRT_SOCKET, build_services

SYNC_PROBES: Final = 20
_PROGRAM_TIMEOUT_S: Final = 10
_TIMEX_BYTES: Final = 256  # struct timex in linux/timex.h has 208
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised


@dataclass(frozen=True, slots=True)
class ForwardChain:
    """A chain of somebody else's that may drop what guests send."""

    family: str
    table: str
    chain: str


@dataclass(frozen=True, slots=True)
class Space:
    """Free space where something of ours grows."""

    path: str
    free_mib: int


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What was measured. An error text is empty where all is well."""

    root: bool
    kvm_device_error: str
    cpu_virtualization: bool  # vmx or svm
    missing_programs: tuple[str, ...]
    libvirt_version: str  # empty: nobody answers
    libvirt_error: str
    qemu_version: str
    etcd_version: str
    etcd_error: str  # of the running cloud; empty when it is healthy or not started
    fdatasync_ms: float | None
    nft_error: str
    kernel_errors: tuple[tuple[str, str], ...]  # feature, error
    foreign_drops: tuple[ForwardChain, ...]
    ip_forward: bool
    spaces: tuple[Space, ...]
    memory_available_mib: int
    ports_taken: tuple[int, ...]  # by others than this cloud
    clock_synchronised: bool


def observe_host(layout: Layout, programs: tuple[str, ...]) -> HostFacts:
    """Everything, in a second or two."""
    path = with_sbin(os.environ)["PATH"]
    libvirt_version, qemu_version, libvirt_error = _observe_libvirt()
    return HostFacts(
        root=os.geteuid() == 0,
        kvm_device_error=_observe_kvm_device(),
        cpu_virtualization=has_virtualization(Path("/proc/cpuinfo").read_text()),
        missing_programs=tuple(name for name in programs if shutil.which(name, path=path) is None),
        libvirt_version=libvirt_version,
        libvirt_error=libvirt_error,
        qemu_version=qemu_version,
        etcd_version=_etcd_version(path),
        etcd_error=(health.check_etcd(layout) or "") if answers(layout.etcd_address) else "",
        fdatasync_ms=_measure_fdatasync_ms(_existing(layout.state_dir)),
        nft_error=_observe_nft(),
        kernel_errors=_observe_kernel(),
        foreign_drops=_observe_foreign_drops(),
        ip_forward=Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1",
        spaces=tuple(_space(place) for place in (layout.state_dir, LIBVIRT_RUN, Path("/var/cache/cumulet"))),
        memory_available_mib=parse_available_mib(Path("/proc/meminfo").read_text()),
        ports_taken=_observe_ports(layout),
        clock_synchronised=_is_clock_synchronised(),
    )


def parse_available_mib(meminfo: str) -> int:
    """MemAvailable of /proc/meminfo."""
    line = next(line for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) // 1024


def parse_forward_drops(output: str) -> tuple[ForwardChain, ...]:
    """Foreign base chains at the forward hook with policy drop, in the JSON of `nft -j list chains`."""
    chains = [entry["chain"] for entry in json.loads(output)["nftables"] if "chain" in entry]
    return tuple(
        ForwardChain(chain["family"], chain["table"], chain["name"])
        for chain in chains
        if chain.get("hook") == "forward"
        and chain.get("policy") == "drop"
        and not traces.is_ours(chain["table"])
    )


def _observe_kvm_device() -> str:
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as err:
        return err.strerror or str(err)
    return ""


def _observe_libvirt() -> tuple[str, str, str]:
    """(libvirt's version, QEMU's version, error)."""
    if not answers(LIBVIRT_SOCKET):
        return "", "", ""
    try:
        connection = libvirt.open(health.LIBVIRT_URI)
        try:
            return _version(connection.getLibVersion()), _version(connection.getVersion()), ""
        finally:
            connection.close()
    except libvirt.libvirtError as err:
        return "", "", str(err)


def _version(number: int) -> str:
    """libvirt's encoding: major * 1,000,000 + minor * 1,000 + release."""
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"


def _etcd_version(path: str) -> str:
    try:
        done = subprocess.run(
            ["etcd", "--version"],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=_PROGRAM_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    first = done.stdout.splitlines()[0] if done.stdout else ""
    return first.removeprefix("etcd Version: ").strip()


def _measure_fdatasync_ms(directory: Path) -> float | None:
    """Median time of a small synchronous append, as etcd makes them; None where none can be made."""
    taken_ms = []
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as stream:
            for _ in range(SYNC_PROBES):
                started_s = time.perf_counter()
                stream.write(b"\0" * 2048)
                os.fdatasync(stream.fileno())
                taken_ms.append((time.perf_counter() - started_s) * 1000)
    except OSError:
        return None
    return statistics.median(taken_ms)


def _observe_nft() -> str:
    try:
        traces.run_nft(["list", "tables"])
    except FileNotFoundError:
        return "nft is not installed"
    except subprocess.SubprocessError as err:
        return str(getattr(err, "stderr", "") or err).strip()
    return ""


def _observe_kernel() -> tuple[tuple[str, str], ...]:
    """Tries each kind of link that is needed, in a namespace of its own. Features that are missing."""
    name = f"{traces.NAMESPACE_PREFIX}doctor-{os.getpid()}"
    try:
        namespace = NetNS(name, flags=os.O_CREAT)
    except (OSError, NetlinkError) as err:
        return (("network namespaces", str(err)),)
    try:
        tries: tuple[tuple[str, dict[str, Any]], ...] = (
            ("bridge", {"ifname": "b0", "kind": "bridge"}),
            ("bridge with netfilter", {"ifname": "b1", "kind": "bridge", "br_nf_call_iptables": 1}),
            ("veth", {"ifname": "v0", "kind": "veth", "peer": {"ifname": "v1"}}),
            ("vxlan", {"ifname": "x0", "kind": "vxlan", "vxlan_id": 1, "vxlan_port": 4789}),
            ("tun", {"ifname": "t0", "kind": "tuntap", "mode": "tap"}),
        )
        failed = ((feature, _error_of(lambda: namespace.link("add", **link))) for feature, link in tries)  # noqa: B023
        return tuple((feature, error) for feature, error in failed if error)
    finally:
        namespace.close()
        with contextlib.suppress(OSError):
            netns.remove(name)


def _error_of(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (OSError, NetlinkError) as err:
        return str(err)
    return ""


def _observe_foreign_drops() -> tuple[ForwardChain, ...]:
    try:
        return parse_forward_drops(traces.run_nft(["list", "chains"]))
    except (OSError, subprocess.SubprocessError):
        return ()  # the finding about nft says it


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return path if path.exists() else _existing(path.parent)


def _space(path: Path) -> Space:
    return Space(str(path), shutil.disk_usage(_existing(path)).free >> 20)


def _observe_ports(layout: Layout) -> tuple[int, ...]:
    """Ports of this cloud that somebody else has: none while our own process for it lives."""
    running = {
        service.name
        for service in build_services(layout, "python")
        if (record := load_record(layout.record_path(service.name))) and process.is_alive(record.process)
    }
    users = {
        "api": "controller",
        "controller_metrics": "controller",
        "agent_metrics": "agent",
        "etcd_client": "etcd",
        "etcd_peer": "etcd",
    }
    wanted = [port for name, port in layout.ports.named().items() if users[name] not in running]
    return tuple(sorted(taken_ports(wanted)))


def _is_clock_synchronised() -> bool:
    """The kernel's own word, adjtimex(2)."""
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    return int(state) not in (-1, _TIME_ERROR)
