"""Which x86-64 levels a CPU has, and the capability words of a host.

**Pure.** Source: System V ABI, AMD64 Architecture Processor Supplement, section 3.1.1 (micro-architecture
levels), with the names of /proc/cpuinfo: pni is SSE3, abm is LZCNT.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

X86_64: Final = "x86_64"
_LEVELS: Final[tuple[tuple[str, frozenset[str]], ...]] = (
    ("x86-64-v1", frozenset({"cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse", "sse2"})),
    ("x86-64-v2", frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"})),
    (
        "x86-64-v3",
        frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}),
    ),
    ("x86-64-v4", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})),
)
# What guests without KVM get is QEMU's `maximum`, whatever the host has: AVX2 since QEMU 7.2, no AVX-512.
_EMULATED: Final = ("x86-64-v1", "x86-64-v2", "x86-64-v3")
_FLAGS: Final = re.compile(r"^flags\s*:(.*)$", re.MULTILINE)


def cpu_levels(cpuinfo: str) -> tuple[str, ...]:
    """All levels that the first CPU of /proc/cpuinfo's text has, lowest first."""
    match = _FLAGS.search(cpuinfo)
    flags = frozenset(match[1].split()) if match else frozenset()
    found: list[str] = []
    for name, needed in _LEVELS:
        if not needed <= flags:
            break
        found.append(name)
    return tuple(found)


def host_capabilities(
    *, kvm: bool, architecture: str, cpuinfo: str, machines: Iterable[str], iommu: bool
) -> tuple[str, ...]:
    """What guests of the host can rely on, as words: kvm, arch:x86_64, cpu:x86-64-v3, machine:q35, iommu."""
    words = ["kvm" if kvm else "tcg"]
    if architecture:
        words.append(f"arch:{architecture}")
    if architecture == X86_64:
        words += [f"cpu:{level}" for level in (cpu_levels(cpuinfo) if kvm else _EMULATED)]
    words += [f"machine:{machine}" for machine in machines]
    if iommu:
        words.append("iommu")
    return tuple(sorted(words))
