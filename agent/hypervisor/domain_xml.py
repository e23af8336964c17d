"""Renders an instance's libvirt domain, and reads our mark back from one.

**Pure**: the same spec gives the same text. The document is built as a tree, so that no value can become
markup, and values that XML cannot carry are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

from agent.errors import DriverError
from agent.hypervisor.driver import DomainSpec, Nic

METADATA_NAMESPACE: Final = "urn:cumulet:domain:1"
GUEST_AGENT_CHANNEL: Final = "org.qemu.guest_agent.0"
DISK_DEVICE: Final = "vda"  # the guest's root disk is /dev/vda
SEED_DEVICE: Final = "vdb"  # cloud-init finds it by its volume id, not by this name
TITLE_MAX: Final = 200  # characters; a title is for people

_MARK: Final = f"{{{METADATA_NAMESPACE}}}instance"
# Measured under TCG with cpu "maximum", CPU seconds to the test guest's user space: q35 6.1-7.0, pc 7.2-8.1.
MACHINE: Final = "q35"
METADATA_PREFIX: Final = "cumulet"
ET.register_namespace(METADATA_PREFIX, METADATA_NAMESPACE)


@dataclass(frozen=True, slots=True)
class Mark:
    """What a domain of ours says of itself. `off_reason` is why it went off, kept here because libvirtd
    forgets its own reason when it restarts; every start writes a fresh mark without one."""

    uid: str
    epoch: int
    boots: int
    off_reason: str = ""


def render_domain(spec: DomainSpec, domain_type: str = "") -> str:
    """The domain's XML. `domain_type` is for libvirt's test driver; by default the spec's `kvm` decides.

    DriverError(InvalidDomainSpec) if a field holds text that XML cannot carry.
    """
    _check_text(spec)
    domain = ET.Element("domain", type=domain_type or ("kvm" if spec.kvm else "qemu"))
    _add(domain, "name", domain_name(spec.uid))
    _add(domain, "uuid", spec.uid)
    _add(domain, "title", _title(spec.name))
    mark = Mark(spec.uid, spec.epoch, spec.boots)
    _add(domain, "metadata").append(_mark_element(mark))
    _add(domain, "memory", str(spec.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(spec.vcpu), placement="static")
    _add_boot(domain, spec)
    _add_machine(domain, spec)
    _add_devices(_add(domain, "devices"), spec)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def parse_metadata(xml: str) -> tuple[str, int, int] | None:
    """(uid, epoch, boots) of a domain of ours; None for anybody else's, and for text that is no domain."""
    try:
        element = ET.fromstring(xml).find(f"metadata/{_MARK}")
    except ET.ParseError:
        return None
    mark = _mark_of(element)
    return (mark.uid, mark.epoch, mark.boots) if mark else None


def parse_mark(xml: str) -> Mark | None:
    """Our mark from the metadata element alone, as libvirt's metadata call returns it."""
    try:
        return _mark_of(ET.fromstring(xml))
    except ET.ParseError:
        return None


def render_mark(mark: Mark) -> str:
    """The metadata element for libvirt's call that replaces it; libvirt adds the namespace by itself."""
    element = ET.Element("instance", _mark_element(mark).attrib)
    return ET.tostring(element, encoding="unicode")


def domain_name(uid: str) -> str:
    """libvirt's name of an instance's domain: unique, and made of nothing that a tenant chose."""
    return f"cumulet-{uid}"


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    child = ET.SubElement(parent, tag, attributes)
    child.text = text
    return child


def _title(name: str) -> str:
    # libvirt refuses line breaks in a title, XML refuses control characters.
    printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
    return printable[:TITLE_MAX]


def _check_text(spec: DomainSpec) -> None:
    fields = {
        "uid": spec.uid,
        "disk_path": spec.disk_path,
        "seed_path": spec.seed_path,
        "console_log_path": spec.console_log_path,
    }
    for index, nic in enumerate(spec.nics):
        fields |= {f"nics[{index}].tap": nic.tap, f"nics[{index}].mac": nic.mac}
    if spec.boot:
        boot = spec.boot
        fields |= {"boot.kernel_path": boot.kernel_path, "boot.initrd_path": boot.initrd_path}
        fields |= {"boot.kernel_args": boot.kernel_args}
    for field, value in fields.items():
        if not value.isprintable():  # implies: legal in XML, and nothing that XML normalises
            message = f"Instance {spec.uid!a}: {field} holds control characters, leave them out: {value!a}"
            raise DriverError("InvalidDomainSpec", message, permanent=True)


def _mark_element(mark: Mark) -> ET.Element:
    values = {"uid": mark.uid, "epoch": str(mark.epoch), "boots": str(mark.boots)}
    if mark.off_reason:
        values["off_reason"] = mark.off_reason
    return ET.Element(_MARK, values)


def _mark_of(element: ET.Element | None) -> Mark | None:
    # libvirt's metadata call finds the element by its namespace and returns it without.
    if element is None or element.tag not in (_MARK, "instance"):
        return None
    values = element.attrib
    try:
        return Mark(values["uid"], int(values["epoch"]), int(values["boots"]), values.get("off_reason", ""))
    except (KeyError, ValueError):
        return None


def _add_boot(domain: ET.Element, spec: DomainSpec) -> None:
    os = _add(domain, "os")
    _add(os, "type", "hvm", arch="x86_64", machine=MACHINE)
    if spec.boot:
        _add(os, "kernel", spec.boot.kernel_path)
        _add(os, "initrd", spec.boot.initrd_path)
        _add(os, "cmdline", spec.boot.kernel_args)
    else:
        _add(os, "boot", dev="hd")


def _add_machine(domain: ET.Element, spec: DomainSpec) -> None:
    features = _add(domain, "features")
    _add(features, "acpi")  # the power button
    _add(features, "apic")
    if spec.kvm:
        _add(domain, "cpu", mode="host-model", check="partial")  # unlike passthrough it can be migrated
    else:
        _add(domain, "cpu", mode="maximum")  # what TCG has: guests built for x86-64-v2 and v3 boot
    clock = _add(domain, "clock", offset="utc")
    _add(clock, "timer", name="hpet", present="no")  # ticks without end; costs CPU on an idle host
    # A guest's `poweroff` and a dead emulator end the domain; the controller decides what follows.
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    _add(domain, "on_crash", "destroy")


def _add_devices(devices: ET.Element, spec: DomainSpec) -> None:
    _add_disk(devices, spec)
    _add_seed(devices, spec)
    _add(devices, "controller", type="usb", model="none")
    for nic in spec.nics:
        _add_nic(devices, nic)
    serial = _add(devices, "serial", type="pty")
    _add(serial, "log", file=spec.console_log_path, append="on")  # virtlogd rotates it
    _add(serial, "target", type="isa-serial", port="0")
    channel = _add(devices, "channel", type="unix")
    _add(channel, "target", type="virtio", name=GUEST_AGENT_CHANNEL)
    _add(devices, "memballoon", model="virtio")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")


def _add_disk(devices: ET.Element, spec: DomainSpec) -> None:
    disk = _add(devices, "disk", type="file", device="disk")
    # cache none: no second copy of guest pages in host memory, and the only mode that can be migrated.
    _add(disk, "driver", name="qemu", type="qcow2", cache="none", discard="unmap")
    _add(disk, "source", file=spec.disk_path)
    _add(disk, "target", dev=DISK_DEVICE, bus="virtio")


def _add_seed(devices: ET.Element, spec: DomainSpec) -> None:
    disk = _add(devices, "disk", type="file", device="disk")
    _add(disk, "driver", name="qemu", type="raw")  # the format is fixed, so nothing is probed
    _add(disk, "source", file=spec.seed_path)
    _add(disk, "target", dev=SEED_DEVICE, bus="virtio")
    _add(disk, "readonly")


def _add_nic(devices: ET.Element, nic: Nic) -> None:
    interface = _add(devices, "interface", type="ethernet")
    _add(interface, "mac", address=nic.mac)
    _add(interface, "target", dev=nic.tap, managed="no")  # the network driver made the tap
    _add(interface, "model", type="virtio")
    _add(interface, "rom", enabled="no")  # nobody boots from the network; the ROM costs boot time
