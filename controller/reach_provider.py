"""Whether what comes from an operator's network arrives at a port of the provider network that it is.

**Pure.** Who sends is judged by the address it sends from: others on the segment may forge that.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from controller.admit.provider import find_provider
from controller.admit.subnet import Address, addresses_of
from controller.reach import METADATA, enter
from controller.reach_steps import OUTSIDE, Path, Step, Traffic, until_stopped
from controller.state import State
from controller.store import keys
from cumulet.addresses import is_of_part
from cumulet.v1 import port_pb2


def find_on_segments(state: State, project: str, address: Address) -> port_pb2.Port | None:
    """The port of a provider network of the project that has an address; of several, of the first network."""
    for _, name in sorted(state.rows(keys.NETWORKS, project)):
        if find_provider(state, project, name) is None:
            continue
        for row in state.ports_in(project, name):
            if str(address) in addresses_of(state, row.message):
                found: port_pb2.Port = row.message
                return found
    return None


def is_on_segment(state: State, port: port_pb2.Port) -> bool:
    """Whether what is outside may reach a port without a floating IP."""
    return find_provider(state, port.meta.project, port.spec.network) is not None


def address_for(state: State, port: port_pb2.Port, source: Address) -> Address | None:
    """The port's address that a sender means: of its own subnet, or else the first of its version."""
    found = [ip_address(text) for text in addresses_of(state, port)]
    theirs = [one for one in found if one.version == source.version]
    rows = state.subnets_of(port.meta.project, port.spec.network)
    cidrs = [cidr for row in rows if source in (cidr := ip_network(row.message.spec.cidr))]
    return next((one for one in theirs if any(one in cidr for cidr in cidrs)), next(iter(theirs), None))


def reach_from_segment(
    state: State, source: Address, target: port_pb2.Port, address: Address, traffic: Traffic
) -> Path:
    """From an address that is not the cloud's to a port of a provider network."""
    if source == METADATA or is_of_part(source):
        text = f"{source} is the nodes' own: what comes from there by the operator's network is dropped"
        refused = Step(OUTSIDE, str(source), "", False, text)
        return Path(traffic.ip_version, str(source), str(address), (refused,))
    begin = Step(OUTSIDE, str(source), "", True, f"{source} is outside: that it sends is not the cloud's")
    way = enter(state, target, source, address, "", traffic)
    return replace(way, steps=until_stopped((begin, *way.steps)))
