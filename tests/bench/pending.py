"""Pending instances as the API writes them, made by the thousand.

**Pure**: what admission made once, over and over with other names, uids and addresses.
"""

from __future__ import annotations

import random
from typing import Any, Final

from controller.admit import project
from controller.store import keys
from cumulet.names import new_uid
from cumulet.v1 import store_pb2
from tests.unit.controller.cloud import Paper, project_message

VCPU, MEMORY_MIB, DISK_GIB = 64, 196_608, 8_192  # a node, as in the traces: 64 vCPU and 192 GB
FLAVORS: Final = ((1, 1_024), (1, 2_048), (2, 2_048), (2, 4_096))  # vCPU, MiB
PROJECTS: Final = 8


class Maker:
    """Pending instances as the API writes them: what admission made once, over and over with other names."""

    def __init__(self, seed: int = 1) -> None:
        self._rng = random.Random(f"instances {seed}")  # not the Paper's own uids
        self._paper = paper = Paper().seed()
        for index in range(2, PROJECTS + 1):
            paper.do(project.create(paper.state, paper.context, "", project_message(f"p{index}")))
        self._base = _stored(paper)
        self._instance = paper.add_instance("template")
        self._port = next(iter(paper.state.rows(keys.PORTS).values())).message
        self._operation = next(iter(paper.state.rows(keys.OPERATIONS).values())).message
        network = paper.state.find(keys.NETWORKS, "p1", "lan")
        assert network is not None
        self._network_uid = network.message.meta.uid
        self._made = 0

    def base(self, nodes: int) -> dict[bytes, bytes]:
        """Projects, flavor, image, network, subnet; nodes with their status as the leader writes it."""
        fleet = Paper()
        for index in range(nodes):
            fleet.add_node(f"n-{index:05d}", vcpu=VCPU, memory_mib=MEMORY_MIB, disk_gib=DISK_GIB)
        return self._base | _stored(fleet)

    def instance(self) -> tuple[str, dict[bytes, bytes]]:
        """Uid and all keys of one more instance; the instance's own is the first."""
        index = self._made
        self._made += 1
        name, where = f"vm-{index:07d}", f"p{1 + index % PROJECTS}"
        made, port, operation = map(_copy, (self._instance, self._port, self._operation))
        uid, port_uid, operation_uid = (new_uid(self._rng) for _ in range(3))
        high, middle, low = index >> 16 & 255, index >> 8 & 255, index & 255
        address, mac = f"10.{high}.{middle}.{low}", f"02:00:00:{high:02x}:{middle:02x}:{low:02x}"
        made.meta.uid, made.meta.name, made.meta.project = uid, name, where
        made.spec.resources.vcpu, made.spec.resources.memory_mib = FLAVORS[index % len(FLAVORS)]
        made.spec.networks[0].address, made.spec.networks[0].port_uid = address, port_uid
        port.meta.uid, port.meta.name, port.meta.project = port_uid, f"{name}-{port_uid[:8]}", where
        port.spec.instance, port.spec.mac, port.spec.addresses[0].address = name, mac, address
        operation.meta.uid, operation.meta.name = operation_uid, f"op-{operation_uid[:13]}"
        operation.meta.project = operation.target.project = where
        operation.target.name, operation.target.uid = name, uid
        record = store_pb2.RequestRecord(method="CreateInstance", digest=bytes(32), uid=uid)
        return uid, {
            keys.INSTANCES.key(where, name): made.SerializeToString(),
            keys.PORTS.key(where, port.meta.name): port.SerializeToString(),
            keys.ADDRESSES.key(self._network_uid, address): port_uid.encode(),
            keys.MACS.key(self._network_uid, mac): port_uid.encode(),
            keys.OPERATIONS.key(where, operation.meta.name): operation.SerializeToString(),
            keys.REQUESTS.key("0", where, f"bench-{index}"): record.SerializeToString(),
        }


def _stored(paper: Paper) -> dict[bytes, bytes]:
    """Everything but events."""
    items = paper.mvcc.list_prefix(keys.PREFIX, 0, b"", 0).items
    return {item.key: item.value for item in items if not item.key.startswith(keys.JOURNAL.prefix())}


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made
