"""What the CPU offers to guests.

**Pure**.
"""

from __future__ import annotations


def has_virtualization(cpuinfo: str) -> bool:
    """True when the CPU offers vmx (Intel) or svm (AMD): without, guests hang although /dev/kvm opens."""
    flags = {word for line in cpuinfo.splitlines() if line.startswith("flags") for word in line.split()}
    return bool(flags & {"vmx", "svm"})
