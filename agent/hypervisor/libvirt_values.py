"""Reads libvirt's numbers: domain states with their reasons, statistics, errors.

**Pure**: no calls to libvirt, only its constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

import libvirt

from agent.errors import DriverError
from agent.hypervisor.driver import DiskStats, DomainStats, NicStats
from cumulet.v1 import agent_pb2

GUEST_POWERED_OFF: Final = "GuestPoweredOff"
FORCED_OFF: Final = "ForcedOff"
HOST_DOWN: Final = "HostDown"
START_FAILED: Final = "StartFailed"
EMULATOR_DIED: Final = "EmulatorDied"

State: TypeAlias = agent_pb2.DomainState.ValueType

_STATES: Final[dict[int, State]] = {
    libvirt.VIR_DOMAIN_RUNNING: agent_pb2.DOMAIN_STATE_RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: agent_pb2.DOMAIN_STATE_RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: agent_pb2.DOMAIN_STATE_PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: agent_pb2.DOMAIN_STATE_PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: agent_pb2.DOMAIN_STATE_SHUTTING_DOWN,
    libvirt.VIR_DOMAIN_CRASHED: agent_pb2.DOMAIN_STATE_CRASHED,
}
_PAUSED: Final = {
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: "Starting",
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "DiskError",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "GuestCrashed",
}
_OFF: Final = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: GUEST_POWERED_OFF,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: FORCED_OFF,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: EMULATOR_DIED,  # QEMU was killed, also while libvirtd was away
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: EMULATOR_DIED,  # QEMU ended while it started
    libvirt.VIR_DOMAIN_SHUTOFF_DAEMON: EMULATOR_DIED,  # libvirtd lost its monitor and killed it
}
_NOT_SUPPORTED: Final = frozenset(
    (libvirt.VIR_ERR_XML_ERROR, libvirt.VIR_ERR_XML_DETAIL, libvirt.VIR_ERR_CONFIG_UNSUPPORTED)
)


def read_state(state: int, reason: int, recorded_off_reason: str) -> tuple[State, str]:
    """Our state and reason for libvirt's pair. `recorded_off_reason` is the mark's.

    libvirt says "unknown" of every domain that is off when libvirtd starts, and "failed" or "unknown" of a
    start that failed: there the recorded reason decides. Nothing recorded and unknown means that nobody saw
    it go off, which is what a crash of the host looks like.
    """
    if state == libvirt.VIR_DOMAIN_SHUTOFF:
        return _read_off(reason, recorded_off_reason)
    if state == libvirt.VIR_DOMAIN_PAUSED:
        return agent_pb2.DOMAIN_STATE_PAUSED, _PAUSED.get(reason, "Paused")
    ours = _STATES.get(state, agent_pb2.DOMAIN_STATE_UNSPECIFIED)
    return ours, EMULATOR_DIED if ours == agent_pb2.DOMAIN_STATE_CRASHED else ""


def _read_off(reason: int, recorded: str) -> tuple[State, str]:
    if reason == libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN:
        ours = recorded or HOST_DOWN
    elif reason == libvirt.VIR_DOMAIN_SHUTOFF_FAILED and recorded == START_FAILED:
        ours = START_FAILED
    else:
        ours = _OFF.get(reason, FORCED_OFF)  # saved, migrated, from a snapshot: a person did it
    crashed = ours == EMULATOR_DIED
    return agent_pb2.DOMAIN_STATE_CRASHED if crashed else agent_pb2.DOMAIN_STATE_OFF, ours


def read_stats(uid: str, values: Mapping[str, Any]) -> DomainStats:
    """One domain's counters from libvirt's flat names; what a hypervisor does not count is 0."""
    return DomainStats(
        uid=uid,
        cpu_time_s=values.get("cpu.time", 0) / 1e9,
        vcpus=values.get("vcpu.current", 0),
        memory_maximum_bytes=values.get("balloon.maximum", 0) << 10,
        memory_rss_bytes=values.get("balloon.rss", 0) << 10,
        disks=tuple(_read_disks(values)),
        nics=tuple(_read_nics(values)),
    )


def _read_disks(values: Mapping[str, Any]) -> Iterator[DiskStats]:
    for index in range(values.get("block.count", 0)):
        block = f"block.{index}"
        yield DiskStats(
            device=values[f"{block}.name"],
            read_bytes=values.get(f"{block}.rd.bytes", 0),
            written_bytes=values.get(f"{block}.wr.bytes", 0),
            reads=values.get(f"{block}.rd.reqs", 0),
            writes=values.get(f"{block}.wr.reqs", 0),
        )


def _read_nics(values: Mapping[str, Any]) -> Iterator[NicStats]:
    for index in range(values.get("net.count", 0)):
        net = f"net.{index}"
        yield NicStats(
            device=values[f"{net}.name"],
            received_bytes=values.get(f"{net}.rx.bytes", 0),
            transmitted_bytes=values.get(f"{net}.tx.bytes", 0),
            received_packets=values.get(f"{net}.rx.pkts", 0),
            transmitted_packets=values.get(f"{net}.tx.pkts", 0),
        )


def translate(err: libvirt.libvirtError, reason: str, uid: str, attempt: str, advice: str) -> DriverError:
    """libvirt's error as ours: what was attempted on which instance, what libvirt said, what to do."""
    message = f"{attempt} instance {uid}: {err}; {advice}."
    return DriverError(reason, message, permanent=err.get_error_code() in _NOT_SUPPORTED)
