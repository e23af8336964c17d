"""libvirt's states and counters as ours."""

from __future__ import annotations

import libvirt
import pytest

from agent.hypervisor.driver import DiskStats, DomainStats, NicStats
from agent.hypervisor.libvirt_values import read_state, read_stats
from cumulet.v1 import agent_pb2

OFF, CRASHED = agent_pb2.DOMAIN_STATE_OFF, agent_pb2.DOMAIN_STATE_CRASHED


@pytest.mark.parametrize(
    ("reason", "recorded", "expected"),
    [
        (libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, "", (OFF, "GuestPoweredOff")),
        (libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, "ForcedOff", (OFF, "GuestPoweredOff")),
        (libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED, "", (OFF, "ForcedOff")),
        (libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, "", (CRASHED, "EmulatorDied")),
        (libvirt.VIR_DOMAIN_SHUTOFF_FAILED, "", (CRASHED, "EmulatorDied")),
        (libvirt.VIR_DOMAIN_SHUTOFF_FAILED, "StartFailed", (OFF, "StartFailed")),
        (libvirt.VIR_DOMAIN_SHUTOFF_DAEMON, "", (CRASHED, "EmulatorDied")),
        (libvirt.VIR_DOMAIN_SHUTOFF_SAVED, "", (OFF, "ForcedOff")),
        (libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN, "", (OFF, "HostDown")),
        (libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN, "GuestPoweredOff", (OFF, "GuestPoweredOff")),
        (libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN, "EmulatorDied", (CRASHED, "EmulatorDied")),
    ],
)
def test_why_it_is_off(reason: int, recorded: str, expected: tuple[int, str]) -> None:
    assert read_state(libvirt.VIR_DOMAIN_SHUTOFF, reason, recorded) == expected


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (libvirt.VIR_DOMAIN_RUNNING, 1, (agent_pb2.DOMAIN_STATE_RUNNING, "")),
        (libvirt.VIR_DOMAIN_SHUTDOWN, 1, (agent_pb2.DOMAIN_STATE_SHUTTING_DOWN, "")),
        (libvirt.VIR_DOMAIN_CRASHED, 1, (CRASHED, "EmulatorDied")),
        (
            libvirt.VIR_DOMAIN_PAUSED,
            libvirt.VIR_DOMAIN_PAUSED_IOERROR,
            (agent_pb2.DOMAIN_STATE_PAUSED, "DiskError"),
        ),
        (99, 0, (agent_pb2.DOMAIN_STATE_UNSPECIFIED, "")),
    ],
)
def test_other_states(state: int, reason: int, expected: tuple[int, str]) -> None:
    assert read_state(state, reason, "ForcedOff") == expected


def test_stats_are_read_from_flat_names() -> None:
    told = {
        "cpu.time": 2_500_000_000,
        "vcpu.current": 2,
        "balloon.maximum": 524288,
        "balloon.rss": 1024,
        "block.count": 1,
        "block.0.name": "vda",
        "block.0.rd.bytes": 10,
        "block.0.rd.reqs": 1,
        "net.count": 1,
        "net.0.name": "tap-1",
        "net.0.tx.bytes": 7,
        "net.0.tx.pkts": 1,
    }
    assert read_stats("u", told) == DomainStats(
        uid="u",
        cpu_time_s=2.5,
        vcpus=2,
        memory_maximum_bytes=512 << 20,
        memory_rss_bytes=1 << 20,
        disks=(DiskStats("vda", 10, 0, 1, 0),),
        nics=(NicStats("tap-1", 0, 7, 0, 1),),
    )
    assert read_stats("u", {}) == DomainStats("u", 0.0, 0, 0, 0, (), ())
