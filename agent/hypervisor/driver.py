"""The hypervisor driver's protocol and values.

**Pure**: types only. `libvirt_driver.py` and `fake.py` implement it and pass
`tests/contract/test_hypervisor.py`. Domains without our metadata mark are invisible to every method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cumulet.v1 import agent_pb2


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """Kernel, initial ram disk and arguments, as host paths."""

    kernel_path: str
    initrd_path: str
    kernel_args: str


@dataclass(frozen=True, slots=True)
class Nic:
    """One interface: a tap that exists already, and the guest's MAC."""

    tap: str
    mac: str


@dataclass(frozen=True, slots=True)
class DomainSpec:
    """Everything a domain is made from. Same spec, same XML (agent/hypervisor/domain_xml.py)."""

    uid: str  # instance uid = libvirt uuid
    name: str  # for people: libvirt title
    epoch: int
    boots: int  # the boot that this start answers
    vcpu: int
    memory_mib: int
    kvm: bool  # else TCG
    disk_path: str  # qcow2 overlay
    seed_path: str  # NoCloud ISO, read only
    nics: tuple[Nic, ...]
    console_log_path: str
    boot: DirectBoot | None


@dataclass(frozen=True, slots=True)
class ObservedDomain:
    """One domain of ours as libvirt tells it."""

    uid: str
    epoch: int
    boots: int
    state: agent_pb2.DomainState.ValueType  # RUNNING, PAUSED, SHUTTING_DOWN, OFF or CRASHED
    reason: str  # for OFF: GuestPoweredOff, ForcedOff, HostDown, StartFailed; for CRASHED: EmulatorDied
    pid: int  # emulator process, 0 when off


@dataclass(frozen=True, slots=True)
class DiskStats:
    device: str
    read_bytes: int
    written_bytes: int
    reads: int
    writes: int


@dataclass(frozen=True, slots=True)
class NicStats:
    device: str
    received_bytes: int
    transmitted_bytes: int
    received_packets: int
    transmitted_packets: int


@dataclass(frozen=True, slots=True)
class DomainStats:
    """Counters since the domain's start, for metrics."""

    uid: str
    cpu_time_s: float
    vcpus: int
    memory_maximum_bytes: int
    memory_rss_bytes: int
    disks: tuple[DiskStats, ...]
    nics: tuple[NicStats, ...]


class DeviceClass(StrEnum):
    """What a device is for."""

    GPU = "gpu"
    ACCELERATOR = "accelerator"


@dataclass(frozen=True, slots=True)
class HostCell:
    """One NUMA cell of the host."""

    vcpu: int
    memory_mib: int


@dataclass(frozen=True, slots=True)
class HostDevice:
    """One PCI device for guests. `cell`: index of its cell in HostFacts, None where it has none."""

    address: str
    model: str
    kind: DeviceClass
    cell: int | None = None
    product: str = ""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the host offers: capacity, capabilities, cells and devices for the node's hello."""

    vcpu: int
    memory_mib: int
    kvm: bool
    kvm_message: str  # why TCG is used, for people; empty with KVM
    boot_id: str
    capabilities: tuple[str, ...] = ()
    cells: tuple[HostCell, ...] = ()
    devices: tuple[HostDevice, ...] = ()


class Console(Protocol):
    """An attached serial console."""

    async def read(self) -> bytes:
        """Some output; empty at the end."""

    async def write(self, data: bytes) -> None: ...

    async def close(self) -> None: ...


class Hypervisor(Protocol):
    """All methods may raise DriverUnavailableError; those for one domain DriverError."""

    async def host_facts(self) -> HostFacts: ...

    async def observe_domains(self) -> tuple[ObservedDomain, ...]: ...

    async def ensure_running(self, spec: DomainSpec) -> None:
        """Define as specified and start; a domain that runs already is left alone."""

    async def request_shutdown(self, uid: str) -> None:
        """Press the power button; returns at once. Nothing happens to a domain that is off."""

    async def ensure_off(self, uid: str) -> None:
        """Cut the power."""

    async def ensure_absent(self, uid: str) -> None:
        """Cut the power and forget the domain. Its files are the storage driver's."""

    async def domain_stats(self) -> tuple[DomainStats, ...]: ...

    async def open_console(self, uid: str) -> Console:
        """Attach to the serial console; a second attach takes it over."""

    def on_change(self, wake: Callable[[], None]) -> None:
        """Call `wake` (in the event loop) whenever a domain of ours changed by itself."""

    async def close(self) -> None: ...
