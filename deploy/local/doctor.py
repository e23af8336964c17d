"""Judges the facts of a host: what is well, what is odd, what will fail, and the line that mends it.

**Pure.** `facts.py` measures; every rule here is a function of its result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from deploy.local.facts import HostFacts, Space

# etcd's own advice is 10 ms at the 99th percentile; at this median elections begin to time out under load.
FDATASYNC_SLOW_MS: Final = 20.0
# A guest's status file takes 20 KiB; a full runtime directory makes a libvirtd restart kill guests.
SPACE_FAIL_MIB: Final = 64
SPACE_WARN_MIB: Final = 2048
MEMORY_WARN_MIB: Final = 1024  # the cloud's own processes take a third of it


class Level(StrEnum):
    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One judgement. `fix` is empty where nothing needs mending."""

    check: str
    level: Level
    message: str
    fix: str = ""


def check_host(facts: HostFacts) -> tuple[Finding, ...]:
    """All findings, in the order in which a person would mend them."""
    return tuple(finding for rule in _RULES for finding in rule(facts))


def has_failure(findings: Iterable[Finding]) -> bool:
    return any(finding.level is Level.FAIL for finding in findings)


def render_findings(findings: Sequence[Finding]) -> str:
    """For people: a line each, and the fix below what needs one."""
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<4}  {finding.check:<{width}}  {finding.message}")
        if finding.fix:
            lines.append(f"      {'':<{width}}  fix: {finding.fix}")
    return "\n".join(lines)


def render_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2)


def _check_root(facts: HostFacts) -> Iterable[Finding]:
    if facts.root:
        yield Finding("root", Level.OK, "running as root")
    else:
        yield Finding("root", Level.FAIL, "not root: bridges and guests cannot be made", "run it with sudo")


def _check_programs(facts: HostFacts) -> Iterable[Finding]:
    if facts.missing_programs:
        names = ", ".join(facts.missing_programs)
        yield Finding("programs", Level.FAIL, f"not installed: {names}", "deploy/install")
    else:
        yield Finding("programs", Level.OK, "all installed")


def _check_kvm(facts: HostFacts) -> Iterable[Finding]:
    if facts.cpu_virtualization and not facts.kvm_device_error:
        yield Finding("kvm", Level.OK, "/dev/kvm opens and the CPU has vmx or svm")
    elif not facts.cpu_virtualization:
        also = "" if facts.kvm_device_error else "; /dev/kvm opens, but guests would hang under it"
        message = f"the CPU has neither vmx nor svm{also}: guests run in software emulation (TCG), slowly"
        fix = "enable VT-x/AMD-V in the firmware, or nested virtualization on the host of this machine"
        yield Finding("kvm", Level.WARN, message, fix)
    else:
        message = f"/dev/kvm: {facts.kvm_device_error}: guests run in software emulation (TCG), slowly"
        yield Finding("kvm", Level.WARN, message, "modprobe kvm_intel (or kvm_amd)")


def _check_libvirt(facts: HostFacts) -> Iterable[Finding]:
    if facts.libvirt_error:
        yield Finding(
            "libvirt", Level.FAIL, facts.libvirt_error, "journalctl -u libvirtd, or STATE/log/libvirtd.log"
        )
    elif facts.libvirt_version:
        message = f"libvirt {facts.libvirt_version} answers, QEMU {facts.qemu_version}"
        yield Finding("libvirt", Level.OK, message)
    else:
        yield Finding("libvirt", Level.OK, "not running; `cumulet up` starts it")


def _check_etcd(facts: HostFacts) -> Iterable[Finding]:
    if facts.etcd_error:
        yield Finding(
            "etcd", Level.FAIL, facts.etcd_error, "see STATE/log/etcd.log; `cumulet up` restarts it"
        )
    elif facts.etcd_version:
        yield Finding("etcd", Level.OK, f"version {facts.etcd_version}")
    else:
        yield Finding("etcd", Level.FAIL, "etcd does not run", "deploy/install")


def _check_disk_latency(facts: HostFacts) -> Iterable[Finding]:
    taken_ms = facts.fdatasync_ms
    if taken_ms is None:
        yield Finding("disk latency", Level.WARN, "the state directory cannot be written", "run it as root")
    elif taken_ms > FDATASYNC_SLOW_MS:
        message = f"fdatasync takes {taken_ms:.1f} ms (median): etcd will be slow and may lose its leader"
        yield Finding("disk latency", Level.WARN, message, "put the state directory on an SSD (--state-dir)")
    else:
        yield Finding("disk latency", Level.OK, f"fdatasync takes {taken_ms:.1f} ms (median)")


def _check_nft(facts: HostFacts) -> Iterable[Finding]:
    if facts.nft_error:
        yield Finding("nft", Level.FAIL, facts.nft_error, "deploy/install, and a kernel with nf_tables")
    else:
        yield Finding("nft", Level.OK, "nft speaks JSON")


def _check_kernel(facts: HostFacts) -> Iterable[Finding]:
    for feature, error in facts.kernel_errors:
        module = "br_netfilter" if feature == "bridge with netfilter" else feature.split()[0]
        yield Finding("kernel", Level.FAIL, f"{feature}: {error}", f"modprobe {module}")
    if not facts.kernel_errors:
        yield Finding("kernel", Level.OK, "namespaces, bridge with netfilter, veth, vxlan and tap work")


def _check_firewalls(facts: HostFacts) -> Iterable[Finding]:
    for chain in facts.foreign_drops:
        name = f"{chain.family} {chain.table} {chain.chain}"
        message = (
            f"nft chain {name} (Docker or firewalld?) drops what it does not know, so guests' traffic too"
        )
        # Docker keeps the chain DOCKER-USER for rules of others; firewalld has zones.
        fix = f"nft insert rule {name} iifname cup* accept, and the same for oifname"
        yield Finding("firewall", Level.WARN, message, fix)
    if not facts.foreign_drops:
        yield Finding("firewall", Level.OK, "no foreign chain drops forwarded traffic")


def _check_forwarding(facts: HostFacts) -> Iterable[Finding]:
    state = (
        "on"
        if facts.ip_forward
        else "off; the agent turns it on with the first network that has outbound NAT"
    )
    yield Finding("ip forwarding", Level.OK, state)


def _check_space(facts: HostFacts) -> Iterable[Finding]:
    for space in facts.spaces:
        yield Finding("free space", *_judge_space(space))


def _judge_space(space: Space) -> tuple[Level, str, str]:
    message = f"{space.path}: {space.free_mib} MiB free"
    if space.free_mib < SPACE_FAIL_MIB:
        return Level.FAIL, f"{message}: a restart of libvirtd would kill guests, etcd would stop", "make room"
    # Runtime directories are small by nature.
    if space.free_mib < SPACE_WARN_MIB and not space.path.startswith("/run"):
        return Level.WARN, f"{message}: little for images and guests' disks", "make room"
    return Level.OK, message, ""


def _check_memory(facts: HostFacts) -> Iterable[Finding]:
    message = f"{facts.memory_available_mib} MiB available"
    if facts.memory_available_mib < MEMORY_WARN_MIB:
        yield Finding("memory", Level.WARN, f"{message}: room for hardly any guest", "stop something")
    else:
        yield Finding("memory", Level.OK, message)


def _check_ports(facts: HostFacts) -> Iterable[Finding]:
    for port in facts.ports_taken:
        message = f"port {port} on the loopback address is used by another process"
        yield Finding(
            "ports", Level.WARN, message, f"ss -ltnp sport = :{port}; a new cloud takes another port"
        )
    if not facts.ports_taken:
        yield Finding("ports", Level.OK, "free, or used by this cloud")


def _check_clock(facts: HostFacts) -> Iterable[Finding]:
    if facts.clock_synchronised:
        yield Finding("clock", Level.OK, "synchronised")
    else:
        message = "the kernel says that the clock is not synchronised: times in events and logs may be off"
        yield Finding("clock", Level.WARN, message, "apt-get install chrony")


_RULES: Final[tuple[Callable[[HostFacts], Iterable[Finding]], ...]] = (
    _check_root,
    _check_programs,
    _check_kvm,
    _check_libvirt,
    _check_etcd,
    _check_disk_latency,
    _check_nft,
    _check_kernel,
    _check_firewalls,
    _check_forwarding,
    _check_space,
    _check_memory,
    _check_ports,
    _check_clock,
)
