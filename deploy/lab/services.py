"""Which processes run on which machine of a lab, as the single-machine set-up describes them.

**Pure**.
"""

from __future__ import annotations

from typing import Final

from deploy.lab import echo
from deploy.lab.hypervisor_config import LIBVIRTD_OPTIONS
from deploy.lab.layout import LabLayout, Machine, Role
from deploy.lab.wiring import UNDERLAY_LINK, UPLINK, outside_addresses
from deploy.local.services import (
    Service,
    agent_service,
    controller_service,
    etcd_service,
    hypervisor_services,
)

EXTERNAL_NETWORK: Final = "internet"  # what the agents call their way to the outside
FABRIC_NETWORK: Final = "fabric"  # and their way to each other and to the controller
ECHO_PORT: Final = 7  # RFC 862's number; what is sent back is not the request but who has sent it


def machine_services(lab: LabLayout, machine: Machine, python: str) -> tuple[Service, ...]:
    """All services of a machine in the order of starting."""
    match machine.role:
        case Role.CONTROL:
            return (etcd_service(machine.layout), _controller(lab, machine, python))
        case Role.NODE:
            return (*hypervisor_services(*LIBVIRTD_OPTIONS), _agent(lab, machine, python))
        case Role.OUTSIDE:
            addresses = outside_addresses(lab)
            argv = (python, "-m", echo.__name__, str(ECHO_PORT), *addresses)
            return (Service("echo", argv, f"{addresses[0]}:{ECHO_PORT}"),)
        case Role.FABRIC:
            return ()


def _controller(lab: LabLayout, machine: Machine, python: str) -> Service:
    # The underlay of a lab is no network: it ends in this machine. So TLS may be missing.
    options = ("--listen", lab.api_address, "--insecure")
    return controller_service(machine.layout, python, lab.api_address, *options)


def _agent(lab: LabLayout, machine: Machine, python: str) -> Service:
    assert machine.underlay is not None  # by construction of LabLayout.nodes
    address = str(machine.underlay.ip)
    options = ("--address", address, "--underlay-address", address, "--label", f"node={machine.name}")
    links = {EXTERNAL_NETWORK: UPLINK, FABRIC_NETWORK: UNDERLAY_LINK}
    uplinks = (word for name, link in links.items() for word in ("--uplink", f"{name}={link}"))
    return agent_service(machine.layout, python, lab.api_address, *options, *uplinks)
