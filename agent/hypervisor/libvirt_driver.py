"""The hypervisor driver over libvirt: QEMU domains, persistent, one per instance.

**Edge**: every call goes through LibvirtCalls (one pool, one call in flight per instance, deadlines). Nothing
is remembered about domains: each method looks at libvirt first. Domains without our mark are not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

import libvirt

from agent.errors import DriverError
from agent.hypervisor.cpu_level import host_capabilities
from agent.hypervisor.domain_xml import (
    METADATA_NAMESPACE,
    METADATA_PREFIX,
    Mark,
    domain_name,
    parse_mark,
    render_domain,
    render_mark,
)
from agent.hypervisor.driver import DomainSpec, DomainStats, HostFacts, ObservedDomain
from agent.hypervisor.host_xml import parse_devices, parse_host
from agent.hypervisor.kvm import probe_kvm
from agent.hypervisor.libvirt_calls import LibvirtCalls
from agent.hypervisor.libvirt_console import LibvirtConsole
from agent.hypervisor.libvirt_values import START_FAILED, read_state, read_stats, translate
from cumulet.v1 import agent_pb2

NAME_PREFIX: Final = domain_name("")
BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
CPUINFO: Final = "/proc/cpuinfo"
# A libvirt without its node device driver has no devices to give.
NO_DEVICE_DRIVER: Final = frozenset((libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_NO_CONNECT))
HOST_KEY: Final = "host"  # the key of calls that concern all domains and wait for no QEMU
# Statistics ask every QEMU. One that hangs keeps its call, and later calls skip its figures (NOWAIT):
# three that hang at different times are survived, and no more than three threads wait for them.
STATS_KEYS: Final = ("stats-1", "stats-2", "stats-3")

# BIOS domains have no NVRAM, and nothing of ours makes checkpoints; a person may have saved or snapshotted.
UNDEFINE_FLAGS: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
)
STATS: Final = (
    libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
    | libvirt.VIR_DOMAIN_STATS_BLOCK
)
STATS_FLAGS: Final = (
    libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
)

Result = TypeVar("Result")
Call = Callable[[libvirt.virConnect], Result]


@dataclass(frozen=True, slots=True)
class Deadlines:
    """After these an answer is overdue. They bound harm, they are not what is expected."""

    call_s: float = 30.0
    start_s: float = 120.0  # libvirt probes QEMU first where its cache is cold: 9-70 s were seen
    stop_s: float = 60.0  # libvirt gives QEMU 10 s to end and 30 s more after SIGKILL


class LibvirtHypervisor:
    """`run_dir` is where libvirtd keeps QEMU's pid files; `domain_type` is for libvirt's test driver only.

    `device_names`: what instances call a PCI device, by `vendor:product` in hex.
    """

    def __init__(
        self,
        uri: str = "qemu:///system",
        *,
        run_dir: str = "/run/libvirt/qemu",
        deadlines: Deadlines | None = None,
        domain_type: str = "",
        device_names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._device_names = device_names
        self._run_dir = Path(run_dir)
        self._deadlines = deadlines or Deadlines()
        self._domain_type = domain_type
        self._wakes: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []
        self._calls = LibvirtCalls(uri, opened=self._subscribe, closed=self._wake)

    async def host_facts(self) -> HostFacts:
        kvm_message = await asyncio.to_thread(probe_kvm)
        boot_id = await asyncio.to_thread(Path(BOOT_ID).read_text)
        cpuinfo = await asyncio.to_thread(Path(CPUINFO).read_text)
        vcpu, capabilities, devices = await self._on_host(
            "Read the host's capacity", _read_host, deadline_s=self._deadlines.start_s
        )
        host = parse_host(capabilities)
        # Not libvirt's figure: it sums NUMA nodes, which on a host with hot-plugged memory said 7 of 24 GiB.
        memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
        return HostFacts(
            vcpu,
            memory_mib,
            not kvm_message,
            kvm_message,
            boot_id.strip(),
            capabilities=host_capabilities(
                kvm=not kvm_message,
                architecture=host.architecture,
                cpuinfo=cpuinfo,
                machines=host.machines,
                iommu=host.iommu,
            ),
            cells=host.cells,
            devices=parse_devices(devices, host.cell_of, self._device_names),
        )

    async def observe_domains(self) -> tuple[ObservedDomain, ...]:
        return await self._on_host("List the domains", self._observe)

    async def ensure_running(self, spec: DomainSpec) -> None:
        def start(connection: libvirt.virConnect) -> None:
            domain = _find(connection, spec.uid)
            if domain is None or not domain.isActive():
                _start(_define(connection, spec, self._domain_type), spec)

        await self._on_domain(spec.uid, "Start", start, self._deadlines.start_s)

    async def request_shutdown(self, uid: str) -> None:
        def press(connection: libvirt.virConnect) -> None:
            domain = _find(connection, uid)
            if domain is None or not domain.isActive():
                return
            try:
                # The button only: the guest agent is the tenant's and may keep the call waiting for a minute.
                domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
            except libvirt.libvirtError as err:
                if domain.isActive():
                    raise translate(err, "ShutdownFailed", uid, "Shut down", "force it off") from err

        await self._on_domain(uid, "Shut down", press, self._deadlines.call_s)

    async def ensure_off(self, uid: str) -> None:
        def cut(connection: libvirt.virConnect) -> None:
            domain = _find(connection, uid)
            if domain is not None:
                _cut_power(domain, uid)

        await self._on_domain(uid, "Power off", cut, self._deadlines.stop_s)

    async def ensure_absent(self, uid: str) -> None:
        def remove(connection: libvirt.virConnect) -> None:
            domain = _find(connection, uid)
            if domain is not None:
                _cut_power(domain, uid)
                _undefine(domain, uid)

        await self._on_domain(uid, "Remove", remove, self._deadlines.stop_s)

    async def domain_stats(self) -> tuple[DomainStats, ...]:
        key = self._calls.first_free(STATS_KEYS)
        return await self._on_host("Read the domains' statistics", _read_all_stats, key)

    async def open_console(self, uid: str) -> LibvirtConsole:
        loop = asyncio.get_running_loop()

        def attach(_: libvirt.virConnect) -> LibvirtConsole:
            connection = self._calls.events_connection()  # the stream outlives this call
            domain = _find(connection, uid)
            if domain is None or not domain.isActive():
                raise DriverError("NotRunning", f"Instance {uid} does not run: start it, then attach.")
            stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
            try:
                domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
                console = LibvirtConsole(uid, stream, loop)
                console.start()
            except libvirt.libvirtError as err:
                raise translate(err, "ConsoleFailed", uid, "Attach to", "try again") from err
            return console

        return await self._on_domain(uid, "Attach to", attach, self._deadlines.call_s)

    def on_change(self, wake: Callable[[], None]) -> None:
        self._wakes.append((asyncio.get_running_loop(), wake))

    async def close(self) -> None:
        self._wakes.clear()
        await self._calls.close()

    async def _on_domain(self, uid: str, attempt: str, call: Call[Result], deadline_s: float) -> Result:
        try:
            return await self._calls.run(uid, f"{attempt} instance {uid}", call, deadline_s)
        except libvirt.libvirtError as err:
            raise translate(err, "LibvirtFailed", uid, attempt, "see libvirtd's log") from err

    async def _on_host(
        self, attempt: str, call: Call[Result], key: str = HOST_KEY, deadline_s: float = 0.0
    ) -> Result:
        try:
            return await self._calls.run(key, attempt, call, deadline_s or self._deadlines.call_s)
        except libvirt.libvirtError as err:
            raise DriverError("LibvirtFailed", f"{attempt}: {err}; see libvirtd's log.") from err

    def _observe(self, connection: libvirt.virConnect) -> tuple[ObservedDomain, ...]:
        seen = []
        for domain in connection.listAllDomains():
            mark = _read_mark(domain)
            if mark is not None:
                with contextlib.suppress(libvirt.libvirtError):  # removed since it was listed
                    seen.append(self._observe_one(domain, mark))
        return tuple(sorted(seen, key=lambda one: one.uid))

    def _observe_one(self, domain: libvirt.virDomain, mark: Mark) -> ObservedDomain:
        libvirt_state, libvirt_reason = domain.state()
        state, reason = read_state(libvirt_state, libvirt_reason, mark.off_reason)
        is_off = state in (agent_pb2.DOMAIN_STATE_OFF, agent_pb2.DOMAIN_STATE_CRASHED)
        if is_off and reason != mark.off_reason:
            _record_off_reason(domain, mark, reason)
        pid = 0 if is_off else self._read_pid(domain)
        return ObservedDomain(mark.uid, mark.epoch, mark.boots, state, reason, pid)

    def _read_pid(self, domain: libvirt.virDomain) -> int:
        try:
            return int((self._run_dir / f"{domain.name()}.pid").read_text())
        except (OSError, ValueError):
            return 0  # it ended meanwhile, or the hypervisor has no processes

    def _subscribe(self, connection: libvirt.virConnect) -> None:
        lifecycle = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        connection.domainEventRegisterAny(None, lifecycle, self._on_lifecycle, None)

    def _on_lifecycle(self, _connection: object, domain: libvirt.virDomain, *_event: object) -> None:
        # By name, because asking for the mark would block the event thread. A wrong wake-up costs one look.
        if domain.name().startswith(NAME_PREFIX):
            self._wake()

    def _wake(self) -> None:
        for loop, wake in list(self._wakes):
            with contextlib.suppress(RuntimeError):  # that event loop is closed
                loop.call_soon_threadsafe(wake)


def _read_host(connection: libvirt.virConnect) -> tuple[int, str, list[str]]:
    """CPUs, the capabilities document, and the documents of all PCI devices; libvirt probes QEMU for it."""
    return connection.getInfo()[2], connection.getCapabilities(), list(_read_devices(connection))


def _read_devices(connection: libvirt.virConnect) -> Iterator[str]:
    try:
        devices = connection.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV)
    except libvirt.libvirtError as err:
        if err.get_error_code() in NO_DEVICE_DRIVER:
            return
        raise
    for device in devices:
        with contextlib.suppress(libvirt.libvirtError):  # removed since it was listed
            yield device.XMLDesc()


def _find(connection: libvirt.virConnect, uid: str) -> libvirt.virDomain | None:
    """The instance's domain, if there is one and it is ours."""
    try:
        domain = connection.lookupByName(domain_name(uid))
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
    return domain if _read_mark(domain) else None


def _read_mark(domain: libvirt.virDomain) -> Mark | None:
    try:
        xml = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA_NAMESPACE)
    except libvirt.libvirtError as err:
        if err.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise
    return parse_mark(xml)


def _record_off_reason(domain: libvirt.virDomain, mark: Mark, reason: str) -> None:
    """Keep the reason in the definition: libvirtd forgets it when it restarts."""
    domain.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT,
        render_mark(replace(mark, off_reason=reason)),
        METADATA_PREFIX,
        METADATA_NAMESPACE,
        libvirt.VIR_DOMAIN_AFFECT_CONFIG,
    )


def _define(connection: libvirt.virConnect, spec: DomainSpec, domain_type: str) -> libvirt.virDomain:
    """Define, or define anew: so the start answers this spec, with a mark that holds no old reason."""
    try:
        return connection.defineXML(render_domain(spec, domain_type))
    except libvirt.libvirtError as err:
        advice = "see whether another domain has its uuid, and libvirtd's log"
        raise translate(err, "DefineFailed", spec.uid, "Define", advice) from err


def _start(domain: libvirt.virDomain, spec: DomainSpec) -> None:
    try:
        domain.create()
    except libvirt.libvirtError as err:
        if domain.isActive():
            return  # someone was faster
        _record_off_reason(domain, Mark(spec.uid, spec.epoch, spec.boots), START_FAILED)
        advice = f"see /var/log/libvirt/qemu/{domain_name(spec.uid)}.log"
        raise translate(err, "StartFailed", spec.uid, "Start", advice) from err


def _cut_power(domain: libvirt.virDomain, uid: str) -> None:
    if not domain.isActive():
        return
    try:
        domain.destroy()
    except libvirt.libvirtError as err:
        if domain.isActive():
            advice = "its QEMU may hang in the kernel: see the host's log"
            raise translate(err, "PowerOffFailed", uid, "Power off", advice) from err


def _undefine(domain: libvirt.virDomain, uid: str) -> None:
    try:
        domain.undefineFlags(UNDEFINE_FLAGS)
    except libvirt.libvirtError as err:
        if err.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise translate(err, "UndefineFailed", uid, "Forget", "see libvirtd's log") from err


def _read_all_stats(connection: libvirt.virConnect) -> tuple[DomainStats, ...]:
    found = []
    for domain, values in connection.getAllDomainStats(STATS, STATS_FLAGS):
        mark = _read_mark(domain)
        if mark is not None:
            found.append(read_stats(mark.uid, values))
    return tuple(sorted(found, key=lambda stats: stats.uid))
