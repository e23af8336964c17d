"""The doctor's rules: every problem is told with its fix, and only real obstacles fail.

**Pure** but for the last two tests, which look at this machine.
"""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local import facts as host
from deploy.local import traces
from deploy.local.cpu import has_virtualization
from deploy.local.doctor import (
    SPACE_FAIL_MIB,
    Finding,
    Level,
    check_host,
    has_failure,
    render_findings,
    render_json,
)
from deploy.local.facts import ForwardChain, HostFacts, Space
from deploy.local.layout import Layout

GOOD = HostFacts(
    root=True,
    kvm_device_error="",
    cpu_virtualization=True,
    missing_programs=(),
    libvirt_version="9.0.0",
    libvirt_error="",
    qemu_version="7.2.0",
    etcd_version="3.4.23",
    etcd_error="",
    fdatasync_ms=1.0,
    nft_error="",
    kernel_errors=(),
    foreign_drops=(),
    ip_forward=True,
    spaces=(Space("/var/lib/cumulet", 50_000),),
    memory_available_mib=8000,
    ports_taken=(),
    clock_synchronised=True,
)
# One changed fact, the check that must speak, and how loud.
CASES: tuple[tuple[dict[str, object], str, Level], ...] = (
    ({"root": False}, "root", Level.FAIL),
    ({"missing_programs": ("etcd", "nft")}, "programs", Level.FAIL),
    ({"kvm_device_error": "Permission denied"}, "kvm", Level.WARN),
    ({"cpu_virtualization": False}, "kvm", Level.WARN),
    ({"libvirt_error": "no QEMU driver"}, "libvirt", Level.FAIL),
    ({"etcd_version": ""}, "etcd", Level.FAIL),
    ({"etcd_error": "no leader"}, "etcd", Level.FAIL),
    ({"fdatasync_ms": 80.0}, "disk latency", Level.WARN),
    ({"fdatasync_ms": None}, "disk latency", Level.WARN),
    ({"nft_error": "Operation not permitted"}, "nft", Level.FAIL),
    ({"kernel_errors": (("vxlan", "Operation not supported"),)}, "kernel", Level.FAIL),
    ({"foreign_drops": (ForwardChain("ip", "filter", "FORWARD"),)}, "firewall", Level.WARN),
    ({"spaces": (Space("/run/libvirt", SPACE_FAIL_MIB - 1),)}, "free space", Level.FAIL),
    ({"spaces": (Space("/var/lib/cumulet", 500),)}, "free space", Level.WARN),
    ({"memory_available_mib": 100}, "memory", Level.WARN),
    ({"ports_taken": (7440,)}, "ports", Level.WARN),
    ({"clock_synchronised": False}, "clock", Level.WARN),
)


def changed(change: dict[str, object]) -> HostFacts:
    return replace(GOOD, **change)  # type: ignore[arg-type]


def test_a_good_host_has_no_complaints() -> None:
    assert {finding.level for finding in check_host(GOOD)} == {Level.OK}


@pytest.mark.parametrize(("change", "check", "level"), CASES)
def test_each_problem_is_told_with_its_fix(change: dict[str, object], check: str, level: Level) -> None:
    complaints = [finding for finding in check_host(changed(change)) if finding.level is not Level.OK]
    assert [(finding.check, finding.level) for finding in complaints] == [(check, level)]
    assert complaints[0].fix
    assert has_failure(complaints) == (level is Level.FAIL)


def test_every_fact_is_judged() -> None:
    # Versions of what answers and the state of forwarding are shown, not judged.
    shown = {"libvirt_version", "qemu_version", "ip_forward"}
    assert {name for change, _, _ in CASES for name in change} == {f.name for f in fields(HostFacts)} - shown


@given(st.lists(st.sampled_from([change for change, _, _ in CASES])))
def test_problems_do_not_hide_each_other(changes: list[dict[str, object]]) -> None:
    merged = {name: value for change in changes for name, value in change.items()}
    told = {finding.check for finding in check_host(changed(merged)) if finding.level is not Level.OK}
    alone = {
        finding.check
        for name, value in merged.items()
        for finding in check_host(changed({name: value}))
        if finding.level is not Level.OK
    }
    assert told == alone


def test_a_device_that_opens_is_not_enough() -> None:
    kvm = next(
        finding for finding in check_host(changed({"cpu_virtualization": False})) if finding.check == "kvm"
    )
    assert "/dev/kvm opens, but guests would hang" in kvm.message


def test_the_report_for_people_and_for_programs() -> None:
    findings = (Finding("nft", Level.OK, "works"), Finding("memory", Level.WARN, "10 MiB", "stop something"))
    assert render_findings(findings) == (
        "OK    nft     works\nWARN  memory  10 MiB\n              fix: stop something"
    )
    assert json.loads(render_json(findings))["findings"][1] == {
        "check": "memory",
        "level": "WARN",
        "message": "10 MiB",
        "fix": "stop something",
    }


def test_cpu_flags_and_memory_are_read() -> None:
    assert has_virtualization("flags\t\t: fpu vme svm\n")
    assert not has_virtualization("flags\t: fpu vmxnet\nvmx flags\t: vnmi\n")
    assert host.parse_available_mib("MemTotal: 9 kB\nMemAvailable:    2048 kB\n") == 2


def test_foreign_chains_that_drop_are_found() -> None:
    base = {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}
    listing = [
        {"metainfo": {}},
        {"chain": base},
        {"chain": {**base, "policy": "accept"}},
        {"chain": {**base, "hook": "input"}},
        {"chain": {**base, "table": traces.TABLE_NAME}},
        {"chain": {"family": "ip", "table": "filter", "name": "plain"}},
    ]
    found = host.parse_forward_drops(json.dumps({"nftables": listing}))
    assert found == (ForwardChain("ip", "filter", "FORWARD"),)


def test_this_machine_is_fit_and_left_as_it_was(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "not" / "made", tmp_path / "run", "n1")
    found = host.observe_host(layout, ("etcd", "nft", "cumulet-no-such-program"))
    assert found.missing_programs == ("cumulet-no-such-program",)
    assert found.etcd_version.startswith("3.")
    assert found.nft_error == ""
    assert found.kernel_errors == ()
    assert found.fdatasync_ms is not None
    assert f"cumulet-doctor-{os.getpid()}" not in traces.list_namespaces()
    assert list(tmp_path.iterdir()) == []
