"""What libvirt says of its host, read: cells, machines, GPUs and accelerators.

**Pure.**
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.hypervisor.cpu_level import cpu_levels, host_capabilities
from agent.hypervisor.driver import DeviceClass, HostCell, HostDevice
from agent.hypervisor.host_xml import parse_devices, parse_host

CAPABILITIES = """
<capabilities><host><cpu><arch>x86_64</arch></cpu><iommu support='yes'/><topology><cells num='3'>
<cell id='0'><memory unit='KiB'>2097152</memory><cpus num='2'><cpu id='0'/><cpu id='1'/></cpus></cell>
<cell id='1'><memory unit='KiB'>8388608</memory><cpus num='0'/></cell>
<cell id='4'><memory unit='KiB'>4194304</memory><cpus num='1'><cpu id='2'/></cpus></cell>
</cells></topology></host>
<guest><arch name='i686'><machine canonical='x-1'>x</machine></arch></guest>
<guest><arch name='x86_64'><machine maxCpus='9'>pc-q35-7.2</machine>
<machine canonical='pc-q35-7.2'>q35</machine></arch></guest></capabilities>
"""
CPU_V3 = (
    "flags\t\t: fpu cx8 cmov mmx fxsr sse sse2 syscall cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 "
    "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave\n"
)


def pci(kind: str, vendor: str, product: str, bus: int = 59, numa: str = "<numa node='4'/>") -> str:
    return (
        f"<device><name>x</name><capability type='pci'><class>{kind}</class><domain>0</domain>"
        f"<bus>{bus}</bus><slot>0</slot><function>0</function><product id='{product}'>GA100 &amp; co"
        "</product>"
        f"<vendor id='{vendor}'>NVIDIA</vendor>{numa}</capability></device>"
    )


def test_cells_machines_and_architecture() -> None:
    host = parse_host(CAPABILITIES)
    assert host.cells == (HostCell(2, 2048), HostCell(1, 4096))  # the cell of memory alone is none
    assert host.cell_of == {0: 0, 4: 1}
    assert (host.architecture, host.machines, host.iommu) == ("x86_64", ("q35",), True)


def test_gpus_and_accelerators_are_found_and_named() -> None:
    documents = [
        pci("0x030200", "0x10de", "0x20b5"),
        pci("0x120000", "0x1da3", "0x1020", 9, ""),
        pci("0x030000", "0x1a03", "0x2000"),  # a service processor's console
        pci("0x020000", "0x8086", "0x1572"),
        "<device><name>net</name></device>",
        "not XML",
    ]
    found = parse_devices(documents, {0: 0, 4: 1}, {"10de:20b5": "gpu-a100"})
    assert found == (
        HostDevice("0000:09:00.0", "1da3-1020", DeviceClass.ACCELERATOR, None, "NVIDIA GA100 & co"),
        HostDevice("0000:3b:00.0", "gpu-a100", DeviceClass.GPU, 1, "NVIDIA GA100 & co"),
    )


@given(st.text())
def test_no_text_is_too_strange(text: str) -> None:
    assert parse_host(text).cells == ()
    assert parse_devices([text], {}, {}) == ()
    cpu_levels(text)


@pytest.mark.parametrize(
    ("kvm", "levels"), [(True, {"cpu:x86-64-v1", "cpu:x86-64-v2", "cpu:x86-64-v3"}), (False, None)]
)
def test_words_for_what_a_guest_gets(kvm: bool, levels: set[str] | None) -> None:
    words = host_capabilities(
        kvm=kvm, architecture="x86_64", cpuinfo=CPU_V3 if kvm else "", machines=("q35",), iommu=True
    )
    assert {"kvm" if kvm else "tcg", "arch:x86_64", "machine:q35", "iommu"} <= set(words)
    assert {word for word in words if word.startswith("cpu:")} == (
        levels or {"cpu:x86-64-v1", "cpu:x86-64-v2", "cpu:x86-64-v3"}
    )
