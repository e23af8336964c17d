"""Plans, uids and images for the agent's tests.

**Pure.**
"""

from __future__ import annotations

import hashlib
from uuid import UUID

from cumulet.v1 import agent_pb2 as pb
from cumulet.v1 import image_pb2, instance_pb2, meta_pb2

NODE = "n1"
IMAGE_BYTES = b"QFI\xfb" + b"disk" * 64
KERNEL_BYTES = b"kernel" * 16


def uid(kind: int, number: int) -> str:
    """A readable UUID: kind 1 instance, 2 network, 3 port, 4 subnet, 6 router."""
    return str(UUID(int=(kind << 96) | number))


def image_file(data: bytes, form: image_pb2.FileFormat.ValueType) -> image_pb2.ImageFile:
    return image_pb2.ImageFile(
        sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), format=form, virtual_size_bytes=2**20
    )


DISK = image_file(IMAGE_BYTES, image_pb2.FILE_FORMAT_QCOW2)
KERNEL = image_file(KERNEL_BYTES, image_pb2.FILE_FORMAT_BLOB)
FILES = {DISK.sha256: IMAGE_BYTES, KERNEL.sha256: KERNEL_BYTES}


def port(number: int, network: int) -> pb.PlannedPort:
    return pb.PlannedPort(
        uid=uid(3, number),
        network_uid=uid(2, network),
        mac=f"02:00:00:00:00:{number:02x}",
        addresses=[f"10.{network}.0.{number + 10}"],
    )


def instance(
    number: int,
    *,
    networks: tuple[int, ...] = (1,),
    on: bool = True,
    boots: int = 1,
    epoch: int = 1,
    stop_timeout_s: int = 60,
) -> pb.PlannedInstance:
    """Instance `number`; its port in network n is number 8 * number + n."""
    return pb.PlannedInstance(
        uid=uid(1, number),
        name=f"vm-{number}",
        project="default",
        epoch=epoch,
        generation=1,
        resources=meta_pb2.Resources(vcpu=1, memory_mib=256, disk_gib=1),
        image=image_pb2.ImageSpec(disk=DISK, kernel=KERNEL, kernel_args="console=ttyS0"),
        power=instance_pb2.POWER_STATE_ON if on else instance_pb2.POWER_STATE_OFF,
        boots=boots,
        stop_timeout_s=stop_timeout_s,
        ports=[port(8 * number + n, n) for n in networks],
        hostname=f"vm-{number}",
    )


def network(number: int) -> pb.PlannedNetwork:
    return pb.PlannedNetwork(
        uid=uid(2, number),
        vni=100 + number,
        name=f"net-{number}",
        subnets=[
            pb.PlannedSubnet(uid=uid(4, number), cidr=f"10.{number}.0.0/16", gateway=f"10.{number}.0.1")
        ],
        outbound_nat=True,
    )


def plan(
    *instances: pb.PlannedInstance,
    networks: tuple[int, ...] | None = None,
    tombstones: dict[int, int] | None = None,
    routers: dict[int, tuple[int, ...]] | None = None,
    revision: int = 1,
    nonce: str = "",
    node: str = NODE,
) -> pb.NodePlan:
    """A plan with the networks that its instances use, unless told otherwise; `routers` join networks."""
    if networks is None:
        networks = tuple(
            n for n in range(8) if any(p.network_uid == uid(2, n) for i in instances for p in i.ports)
        )
    made = pb.NodePlan(
        version=pb.PlanVersion(restore_generation=0, leader_epoch=1, revision=revision),
        session_nonce=nonce,
        node=node,
        instances=instances,
        networks=[network(n) for n in networks],
        tombstones=[pb.Tombstone(uid=uid(1, n), epoch=epoch) for n, epoch in (tombstones or {}).items()],
    )
    for number, joined in (routers or {}).items():
        _join(made, number, joined)
    return made


def _join(made: pb.NodePlan, number: int, joined: tuple[int, ...]) -> None:
    """A router over networks; of those that the node does not have, their ranges are named."""
    uids = [uid(2, n) for n in joined]
    here = [one for one in made.networks if one.uid in uids]
    elsewhere = [f"10.{n}.0.0/16" for n in joined if uid(2, n) not in {one.uid for one in here}]
    for one in here:
        one.router_uid = uid(6, number)
    made.routers.add(uid=uid(6, number), vni=200 + number, network_uids=uids, cidrs_elsewhere=elsewhere)
