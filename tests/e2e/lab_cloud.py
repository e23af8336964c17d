"""What tests ask of a lab's cloud: nodes, guests, their processes, packets between nodes.

**Edge**: gRPC, /proc, `ping` in the nodes' namespaces.
"""

from __future__ import annotations

import re
from pathlib import Path

from cumulet.client import Client
from cumulet.errors import NotFoundError
from cumulet.v1 import instance_pb2, meta_pb2, node_pb2
from deploy.lab.lab import Lab
from deploy.lab.namespaces import list_inside
from deploy.local import process
from deploy.local.process import ProcessId


def ready(lab: Lab) -> dict[str, str]:
    """The condition Ready by node."""
    with lab.client() as cloud:
        nodes: list[node_pb2.Node] = cloud.list("node")
    status = {node.meta.name: {one.type: one.status for one in node.status.conditions} for node in nodes}
    return {name: meta_pb2.ConditionStatus.Name(found["Ready"])[17:] for name, found in status.items()}


def guests(lab: Lab) -> dict[str, instance_pb2.Instance]:
    with lab.client() as cloud:
        return {one.meta.name: one for one in cloud.list("instance")}


def phases(lab: Lab) -> dict[str, str]:
    """Without the prefix of the enumeration."""
    return {name: instance_pb2.InstancePhase.Name(one.status.phase)[15:] for name, one in guests(lab).items()}


def ailment(lab: Lab, guest: str) -> str:
    """Why a guest is not well: it runs, has taken its address, and says that it is ready."""
    with lab.client() as cloud:
        status = cloud.get("instance", guest).status
        said = cloud.console_log(guest)
    leased = {one.type: one.status for one in status.conditions}.get("AddressReady")
    if status.phase != instance_pb2.INSTANCE_PHASE_RUNNING or leased != meta_pb2.CONDITION_STATUS_TRUE:
        return str(status.conditions)
    return "" if b"cumulet-guest: ready" in said else said.decode(errors="replace")[-400:]


def differences(lab: Lab) -> str:
    """What `cumulet verify` would say of nodes that are not as intended."""
    with lab.client() as cloud:
        found = cloud.verify()
    return str(found) if found.differences or found.silent_nodes else ""


def emulators(lab: Lab, node: str) -> set[ProcessId]:
    """QEMU's processes on a node; number and start time say whether it is still the same."""
    inside = list_inside(lab.running()[node])
    return {
        one for one in inside if Path(process.command_line(one).split(" ")[0]).name.startswith("qemu-system")
    }


def address(lab: Lab, machine: str) -> str:
    underlay = lab.layout.machine(machine).underlay
    assert underlay is not None
    return str(underlay.ip)


def pings(lab: Lab, source: str, target: str, count: int = 1) -> int:
    """How many of the requests are answered."""
    patience = ("-c", str(count), "-i", "0.002", "-W", "0.5", "-q", address(lab, target))
    done = lab.call(source, ["ping", *patience])
    found = re.search(r"(\d+) received", done.stdout)
    assert found, done.stdout + done.stderr
    return int(found[1])


def name_nodes(cloud: Client) -> None:
    """A label that instances can select their node by."""
    for node in cloud.list("node"):
        node.meta.labels["name"] = node.meta.name
        cloud.update("node", node, ["meta.labels"])


def delete(cloud: Client, noun: str, name: str) -> None:
    """What a test that ended early has not made is no error."""
    try:
        cloud.delete(noun, name)
    except NotFoundError:
        return


def page(lab: Lab, machine: str, host: str, port: int) -> str:
    """What the small guest's server says to a machine: its name; empty when nobody answers."""
    url = f"http://{host}:{port}/"
    return lab.call(machine, ["curl", "-s", "-m", "3", "--retry", "2", url]).stdout.strip()
