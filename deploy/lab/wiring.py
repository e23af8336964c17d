"""How the machines of a lab are connected: bridges, cables, addresses, as argument lists of `ip`.

**Pure**.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, ip_interface
from typing import Final

from deploy.lab.layout import CONTROL, FABRIC, OUTSIDE, LabLayout, Machine, Role

UNDERLAY_LINK: Final = "underlay0"  # of a node and of the control machine: to the fabric
UPLINK: Final = "uplink0"  # of a node: to the outside
FABRIC_BRIDGE: Final = "fabric0"
OUTSIDE_BRIDGE: Final = "outside0"
# Addresses of the outside. Its gateway has the first of the range, and this one (RFC 3849). All of its range
# is on the wire: the cloud's IPv6 subnets are taken from it.
GATEWAY_IPV6: Final = "2001:db8:ffff::1/48"
# Somebody on the internet, behind the gateway (RFC 5737, TEST-NET-2; RFC 3849).
HOST_ADDRESSES: Final = ("198.51.100.1/32", "2001:db8:fffe::1/128")

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cable:
    """A veth pair from a machine to a switch."""

    machine: str
    link: str
    switch: str
    bridge: str
    mac: str

    @property
    def port(self) -> str:
        """Its end in the switch, which is what faults are told of."""
        return self.machine


def plan_cables(machine: Machine) -> tuple[Cable, ...]:
    """Of one machine; switches have none."""
    if machine.underlay is None:
        return ()
    # Of the machine, as a card's: others' neighbour tables stay right when it is started again.
    tail = machine.underlay.ip.packed.hex(":")
    underlay = Cable(machine.name, UNDERLAY_LINK, FABRIC, FABRIC_BRIDGE, f"02:00:{tail}")
    uplink = Cable(machine.name, UPLINK, OUTSIDE, OUTSIDE_BRIDGE, f"06:00:{tail}")
    return (underlay, uplink) if machine.role is Role.NODE else (underlay,)


def plug(cable: Cable, machine_pid: int, mtu: int) -> tuple[Words, ...]:
    """Commands that lay the cable, run in the switch's namespace. `machine_pid`: a process of the machine."""
    size = ("mtu", str(mtu))
    ends = ("ip", "link", "add", cable.port, *size, "type", "veth", "peer", "name", cable.link, *size)
    return (
        (*ends, "address", cable.mac, "netns", str(machine_pid)),
        ("ip", "link", "set", cable.port, "master", cable.bridge, "up"),
    )


def unplug(cable: Cable) -> Words:
    """The command that takes the cable away, run in the switch's namespace."""
    return ("ip", "link", "delete", cable.port)


def plan_links(lab: LabLayout, machine: Machine) -> tuple[Words, ...]:
    """Commands that a machine runs once its cables are there."""
    loopback = ("ip", "link", "set", "lo", "up")
    match machine.role:
        case Role.FABRIC:
            return (loopback, *_bridge(FABRIC_BRIDGE, lab.settings.mtu))
        case Role.OUTSIDE:
            return (loopback, *_outside(lab))
        case Role.CONTROL:
            return (loopback, *_underlay(machine))
        case Role.NODE:
            return (loopback, *_underlay(machine), *_uplink(lab, machine))


def outside_gateway(lab: LabLayout) -> IPv4Interface:
    """The outside's address on the wire of the uplinks."""
    network = IPv4Network(lab.settings.outside)
    return IPv4Interface(f"{network[1]}/{network.prefixlen}")


def outside_addresses(lab: LabLayout) -> tuple[str, ...]:
    """Where the outside's host answers: the gateway's own addresses and those behind it."""
    return tuple(
        str(ip_interface(text).ip) for text in (str(outside_gateway(lab)), GATEWAY_IPV6, *HOST_ADDRESSES)
    )


def _bridge(name: str, mtu: int) -> tuple[Words, ...]:
    return (
        ("ip", "link", "add", name, "mtu", str(mtu), "type", "bridge"),
        ("ip", "link", "set", name, "up"),
    )


def _outside(lab: LabLayout) -> tuple[Words, ...]:
    # A fresh IPv6 address waits for a second to see whether somebody else has it (nodad: not here).
    def address(text: str, link: str) -> Words:
        return ("ip", "address", "add", text, "dev", link, *(("nodad",) if ":" in text else ()))

    return (
        *_bridge(OUTSIDE_BRIDGE, lab.settings.mtu),
        address(str(outside_gateway(lab)), OUTSIDE_BRIDGE),
        address(GATEWAY_IPV6, OUTSIDE_BRIDGE),
        *(address(text, "lo") for text in HOST_ADDRESSES),
    )


def _underlay(machine: Machine) -> tuple[Words, ...]:
    return (
        ("ip", "address", "add", str(machine.underlay), "dev", UNDERLAY_LINK),
        ("ip", "link", "set", UNDERLAY_LINK, "up"),
    )


def uplink_address(lab: LabLayout, machine: Machine) -> IPv4Interface:
    """A node's address at the outside; its last part is that of its underlay address."""
    assert machine.underlay is not None  # every node has one
    network = IPv4Network(lab.settings.outside)
    number = int(machine.underlay.ip) - int(machine.underlay.network.network_address)
    return IPv4Interface(f"{network[number]}/{network.prefixlen}")


def _uplink(lab: LabLayout, machine: Machine) -> tuple[Words, ...]:
    """The node's way to the outside, which guests with outbound NAT take too."""
    return (
        ("ip", "address", "add", str(uplink_address(lab, machine)), "dev", UPLINK),
        ("ip", "link", "set", UPLINK, "up"),
        ("ip", "route", "add", "default", "via", str(outside_gateway(lab).ip)),
    )


def is_cuttable(machine: Machine) -> bool:
    """True for those at the fabric."""
    return machine.name == CONTROL or machine.role is Role.NODE
