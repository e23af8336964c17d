"""Reads what libvirt says of its host: architecture, machines, NUMA cells, and PCI devices for guests.

**Pure**: XML in, values out. Source: formatcaps.html and formatnode.html of libvirt's documentation; PCI Code
and ID Assignment Specification, base classes 03 (display controller) and 12 (processing accelerator).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from agent.hypervisor.driver import DeviceClass, HostCell, HostDevice

CELLS_MAX: Final = 16  # as many as the controller takes; larger machines float over all their cells
DEVICES_MAX: Final = 256
PRODUCT_MAX: Final = 128  # characters of a product's name
_CLASSES: Final = {0x03: DeviceClass.GPU, 0x12: DeviceClass.ACCELERATOR}
# Consoles of servers and of virtual machines: no tenant wants one, and the host needs its own.
_CONSOLE_VENDORS: Final = frozenset(
    {
        "1013",  # Cirrus Logic, as QEMU emulates it
        "102b",  # Matrox G200 of service processors
        "1234",  # QEMU's standard VGA
        "15ad",  # VMware SVGA
        "1a03",  # ASPEED of service processors
        "1af4",  # virtio GPU
        "1b36",  # Red Hat QXL
    }
)
_ID: Final = re.compile(r"0x[0-9a-f]{1,8}")


@dataclass(frozen=True, slots=True)
class HostXml:
    """What the capabilities say. `cell_of`: index in `cells` by libvirt's id of the NUMA node."""

    architecture: str
    machines: tuple[str, ...]
    iommu: bool
    cells: tuple[HostCell, ...]
    cell_of: Mapping[int, int]


def parse_host(xml: str) -> HostXml:
    """The capabilities document. What is absent or malformed is not there: a host without it has none."""
    try:
        root = ET.fromstring(xml)
    except ET.ParseError:
        root = ET.Element("capabilities")
    architecture = (root.findtext("host/cpu/arch") or "").strip()
    iommu = root.find("host/iommu")
    cells, cell_of = _parse_cells(root)
    return HostXml(
        architecture=architecture,
        machines=_parse_machines(root, architecture),
        iommu=iommu is not None and iommu.get("support") == "yes",
        cells=cells,
        cell_of=cell_of,
    )


def _parse_machines(root: ET.Element, architecture: str) -> tuple[str, ...]:
    """Names that stand for the newest version of a machine type, such as q35."""
    found = {
        machine.text.strip()
        for arch in root.iterfind("guest/arch")
        if arch.get("name") == architecture
        for machine in arch.iterfind("machine")
        if machine.get("canonical") and machine.text
    }
    return tuple(sorted(found))


def _parse_cells(root: ET.Element) -> tuple[tuple[HostCell, ...], Mapping[int, int]]:
    """Cells with CPUs; one that is only memory takes no vcpu. Too many are none."""
    cells: list[HostCell] = []
    cell_of: dict[int, int] = {}
    for cell in root.iterfind("host/topology/cells/cell"):
        number, vcpu = _decimal(cell.get("id")), len(cell.findall("cpus/cpu"))
        memory_kib = _decimal(cell.findtext("memory"))
        if vcpu and number is not None and memory_kib is not None:
            cell_of[number] = len(cells)
            cells.append(HostCell(vcpu, memory_kib >> 10))
    return (tuple(cells), cell_of) if len(cells) <= CELLS_MAX else ((), {})


def parse_devices(
    documents: Iterable[str], cell_of: Mapping[int, int], names: Mapping[str, str]
) -> tuple[HostDevice, ...]:
    """GPUs and accelerators among PCI devices, by address. `names`: model by `vendor:product` in hex."""
    found = [device for xml in documents if (device := _parse_device(xml, cell_of, names)) is not None]
    return tuple(sorted(found, key=lambda device: device.address)[:DEVICES_MAX])


def _parse_device(xml: str, cell_of: Mapping[int, int], names: Mapping[str, str]) -> HostDevice | None:
    """None for what is not for guests, and for what is no PCI device."""
    try:
        pci = ET.fromstring(xml).find("capability[@type='pci']")
    except ET.ParseError:
        return None
    if pci is None:
        return None
    kind = _CLASSES.get((_hexadecimal(pci.findtext("class")) or 0) >> 16)
    vendor, product = _hexadecimal(_id(pci, "vendor")), _hexadecimal(_id(pci, "product"))
    place = [_decimal(pci.findtext(name)) for name in ("domain", "bus", "slot", "function")]
    numbers = [number for number in place if number is not None]
    if kind is None or vendor is None or product is None or len(numbers) < len(place):
        return None
    if kind is DeviceClass.GPU and f"{vendor:04x}" in _CONSOLE_VENDORS:
        return None
    domain, bus, slot, function = numbers
    numa = pci.find("numa")
    return HostDevice(
        address=f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}",
        model=names.get(f"{vendor:04x}:{product:04x}", f"{vendor:04x}-{product:04x}"),
        kind=kind,
        cell=cell_of.get(_decimal(numa.get("node")) or 0) if numa is not None else None,
        product=_product(pci),
    )


def _product(pci: ET.Element) -> str:
    text = " ".join((pci.findtext("vendor") or "", pci.findtext("product") or ""))
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())[:PRODUCT_MAX]


def _id(pci: ET.Element, tag: str) -> str | None:
    element = pci.find(tag)
    return element.get("id") if element is not None else None


def _decimal(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _hexadecimal(text: str | None) -> int | None:
    text = (text or "").strip().lower()
    return int(text, 16) if _ID.fullmatch(text) else None
