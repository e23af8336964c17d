"""What nodes offer and whom they keep off, checked: what an operator writes and what an agent reports.

**Pure.** An agent's report is checked like any other input: the scheduler computes with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from controller.admit import common
from controller.admit.common import Violations
from controller.admit.requirements import MODEL
from controller.state import State
from controller.store import keys
from cumulet.addresses import part_address
from cumulet.names import label_error, name_error
from cumulet.resources import MEMORY_MIB_MAX, VCPU_MAX
from cumulet.v1 import agent_pb2, node_pb2, placement_pb2
from scheduler.topology import NODE_CELLS_MAX, NODE_DEVICES_MAX

TAINTS_MAX: Final = 64  # each is looked at for every request
DEDICATED_MAX: Final = 64
WATTS_MAX: Final = 1_000_000  # the largest single machines take some tens of kilowatts
COST_MILLI_MAX: Final = 10**12  # room for any currency
CAPABILITIES_MAX: Final = 128  # a host reports about twenty
UNDERLAY_MTU_MIN: Final = 1350  # guests need 1280 for IPv6 (RFC 8200, section 5), tunnels up to 70
UNDERLAY_MTU_MAX: Final = 65_535
UPLINKS_MAX: Final = 16  # a machine rarely has more ports
WORD_MAX: Final = 128  # of a capability, an address or a product's name


def check_offers(state: State, spec: node_pb2.NodeSpec, violations: Violations) -> None:
    """Taints, dedication, power and price of a node."""
    _check_taints(spec.taints, violations)
    _check_dedicated(state, spec.dedicated_projects, violations)
    for name, bound in (("idle_watts", WATTS_MAX), ("full_watts", WATTS_MAX), ("cost_milli", COST_MILLI_MAX)):
        amount = getattr(spec, name)
        if not 0 <= amount <= bound:
            violations.add(f"spec.{name}", f"is {amount}, must be 0 to {bound}")
    if spec.full_watts and spec.full_watts < spec.idle_watts:
        text = f"is {spec.full_watts}, less than the {spec.idle_watts} at no load"
        violations.add("spec.full_watts", text)


def _check_taints(taints: Iterable[placement_pb2.Taint], violations: Violations) -> None:
    found = list(taints)
    if len(found) > TAINTS_MAX:
        violations.add("spec.taints", f"{len(found)} taints, at most {TAINTS_MAX}")
    seen: Counter[tuple[str, str]] = Counter()
    for index, taint in enumerate(found):
        field = f"spec.taints[{index}]"
        violations.add(field, label_error(taint.key, taint.value))
        if taint.effect not in placement_pb2.TaintEffect.values():
            violations.add(f"{field}.effect", "must be NO_SCHEDULE or PREFER_NO_SCHEDULE")
        seen[taint.key, taint.value] += 1
        if seen[taint.key, taint.value] == 2:
            violations.add(field, f"{taint.key}={taint.value} is there twice")


def _check_dedicated(state: State, projects: Iterable[str], violations: Violations) -> None:
    found = list(projects)
    if len(found) > DEDICATED_MAX:
        violations.add("spec.dedicated_projects", f"{len(found)} projects, at most {DEDICATED_MAX}")
    for index, name in enumerate(found):
        field = f"spec.dedicated_projects[{index}]"
        if state.find(keys.PROJECTS, name) is None:
            violations.add(field, common.unknown("project", name, state.rows(keys.PROJECTS)))
        elif name in found[:index]:
            violations.add(field, f"{name} is there twice")


def check_hello(state: State, hello: agent_pb2.AgentHello) -> None:
    """What an agent says its machine has. Raises InvalidArgumentError naming the node and each field."""
    violations = Violations()
    common.check_resources(hello.capacity, "capacity", violations)
    if len(hello.capabilities) > CAPABILITIES_MAX:
        count = len(hello.capabilities)
        violations.add("capabilities", f"{count} capabilities, at most {CAPABILITIES_MAX}")
    for index, word in enumerate(hello.capabilities):
        violations.add(f"capabilities[{index}]", _word_error(word))
    _check_cells(hello, violations)
    _check_devices(hello, violations)
    _check_underlay(state, hello, violations)
    if len(hello.uplinks) > UPLINKS_MAX:
        violations.add("uplinks", f"{len(hello.uplinks)} uplinks, at most {UPLINKS_MAX}")
    for index, name in enumerate(hello.uplinks):
        violations.add(f"uplinks[{index}]", name_error(name))
    violations.raise_any(f"the agent of {hello.node!r} was not accepted")


def _check_underlay(state: State, hello: agent_pb2.AgentHello, violations: Violations) -> None:
    if not hello.underlay_address:
        return
    try:
        address = ip_address(hello.underlay_address)
    except ValueError:
        violations.add("underlay_address", f"{hello.underlay_address!r} is not an IP address")
        return
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        violations.add("underlay_address", f"no other node reaches {address}")
    for node, underlay in state.underlays.items():
        other = ip_address(underlay.address)
        if node != hello.node and part_address(other) == part_address(address):
            problem = (
                f"{address} and {other} of node {node} have the same low 17 bits; give one another address"
            )
            violations.add("underlay_address", problem)
    if hello.underlay_mtu and not UNDERLAY_MTU_MIN <= hello.underlay_mtu <= UNDERLAY_MTU_MAX:
        text = f"{hello.underlay_mtu} is not between {UNDERLAY_MTU_MIN} and {UNDERLAY_MTU_MAX}"
        violations.add("underlay_mtu", text)


def _check_cells(hello: agent_pb2.AgentHello, violations: Violations) -> None:
    if len(hello.numa_cells) > NODE_CELLS_MAX:
        violations.add("numa_cells", f"{len(hello.numa_cells)} cells, at most {NODE_CELLS_MAX}")
    for index, cell in enumerate(hello.numa_cells):
        if not 0 <= cell.vcpu <= VCPU_MAX or not 0 <= cell.memory_mib <= MEMORY_MIB_MAX:
            text = f"{cell.vcpu} vcpu and {cell.memory_mib} MiB of memory is no cell of a machine"
            violations.add(f"numa_cells[{index}]", text)


def _check_devices(hello: agent_pb2.AgentHello, violations: Violations) -> None:
    if len(hello.devices) > NODE_DEVICES_MAX:
        violations.add("devices", f"{len(hello.devices)} devices, at most {NODE_DEVICES_MAX}")
    addresses: set[str] = set()
    for index, device in enumerate(hello.devices):
        field = f"devices[{index}]"
        violations.add(f"{field}.address", _word_error(device.address))
        if device.address in addresses:
            violations.add(f"{field}.address", f"{device.address} is another device's too")
        addresses.add(device.address)
        if not MODEL.fullmatch(device.model):
            violations.add(f"{field}.model", f"{device.model!r} is not a device's model, such as gpu-a100")
        if device.HasField("cell") and not 0 <= device.cell < max(len(hello.numa_cells), 1):
            violations.add(f"{field}.cell", f"is {device.cell}, which is not among the cells")
        if len(device.product) > WORD_MAX:
            violations.add(f"{field}.product", f"has more than {WORD_MAX} characters")


def _word_error(word: str) -> str | None:
    if not word or len(word) > WORD_MAX or not word.isprintable():
        return f"must be 1 to {WORD_MAX} printable characters"
    return None
