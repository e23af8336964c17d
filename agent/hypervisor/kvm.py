"""Decides whether guests run under KVM or are emulated.

**Pure** but for `probe_kvm`, which asks /dev/kvm and reads /proc/cpuinfo. That /dev/kvm opens proves nothing:
in a paravirtual VM without vmx/svm its API answers and every guest hangs.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import Final

# Source: linux/kvm.h, KVM_GET_API_VERSION = _IO(0xAE, 0); the version is 12 since Linux 2.6.22.
KVM_GET_API_VERSION: Final = 0xAE00
KVM_API_VERSION: Final = 12

_VIRTUALIZATION_FLAG: Final = re.compile(r"^flags\s*:.*\b(vmx|svm)\b", re.MULTILINE)


def probe_kvm(device: str = "/dev/kvm", cpuinfo: str = "/proc/cpuinfo") -> str:
    """Why KVM cannot be used on this host, for people; empty if it can."""
    return judge_kvm(Path(cpuinfo).read_text(), _open_error(device))


def judge_kvm(cpuinfo: str, open_error: str) -> str:
    """The verdict from /proc/cpuinfo's text and what opening /dev/kvm said (empty: it is usable)."""
    if not _VIRTUALIZATION_FLAG.search(cpuinfo):
        return (
            "The CPU shows neither vmx nor svm, so guests are emulated (TCG) and slow: enable virtualization "
            "in the firmware, or nested virtualization on this machine's own host."
        )
    if open_error:
        return f"{open_error}, so guests are emulated (TCG) and slow: load kvm_intel or kvm_amd."
    return ""


def _open_error(device: str) -> str:
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        return f"{device} cannot be opened ({err.strerror})"
    try:
        version = fcntl.ioctl(fd, KVM_GET_API_VERSION)
    except OSError as err:
        return f"{device} does not answer ({err.strerror})"
    finally:
        os.close(fd)
    return "" if version == KVM_API_VERSION else f"{device} speaks version {version}, not {KVM_API_VERSION}"
