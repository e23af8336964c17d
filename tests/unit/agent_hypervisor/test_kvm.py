"""The choice between KVM and emulation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.hypervisor.kvm import judge_kvm, probe_kvm

PLAIN = "processor\t: 0\nflags\t\t: fpu vme de svme_not vmx2\nbugs\t\t: svm\n"


def with_flag(flag: str) -> str:
    return PLAIN.replace("fpu", f"fpu {flag}")


@pytest.mark.parametrize("flag", ["vmx", "svm"])
def test_kvm_needs_the_cpus_flag_and_the_device(flag: str) -> None:
    assert judge_kvm(with_flag(flag), "") == ""
    assert "cannot be opened" in judge_kvm(with_flag(flag), "/dev/kvm cannot be opened (Permission denied)")


def test_a_device_without_the_flag_is_not_enough() -> None:
    assert "neither vmx nor svm" in judge_kvm(PLAIN, "")


def test_a_missing_device_is_named(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(with_flag("svm"))
    assert str(tmp_path / "kvm") in probe_kvm(str(tmp_path / "kvm"), str(cpuinfo))


def test_a_device_that_is_not_kvm_is_refused(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(with_flag("vmx"))
    assert "does not answer" in probe_kvm("/dev/null", str(cpuinfo))


def test_this_machine_gets_a_verdict() -> None:
    has_flag = re.search(r"^flags.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert bool(probe_kvm()) or has_flag
