"""What a fresh cloud starts with: a project that can be reached, flavors, a network, the guest image.

**Edge**: gRPC calls. The contents are constants, pure. Every call is an ensure: what exists stays as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any, Final

from cumulet.client import Client
from cumulet.errors import AlreadyExistsError, CumuletError, NotFoundError
from cumulet.names import DEFAULT_PROJECT
from cumulet.v1 import (
    flavor_pb2,
    image_pb2,
    meta_pb2,
    network_pb2,
    project_pb2,
    securitygroup_pb2,
    subnet_pb2,
)
from deploy.images.image import BuiltImage
from deploy.images.recipe import NAME as GUEST_IMAGE

DEFAULT_NETWORK: Final = "default"
DEFAULT_GROUP: Final = "default"
SSH_PORT: Final = 22
DEFAULT_CIDR: Final = "10.42.0.0/24"


def _flavor(name: str, vcpu: int, memory_mib: int, disk_gib: int) -> flavor_pb2.Flavor:
    resources = meta_pb2.Resources(vcpu=vcpu, memory_mib=memory_mib, disk_gib=disk_gib)
    return flavor_pb2.Flavor(meta=meta_pb2.Meta(name=name), spec=flavor_pb2.FlavorSpec(resources=resources))


FLAVORS: Final = (
    _flavor("tiny", 1, 256, 1),
    _flavor("small", 1, 512, 5),
    _flavor("medium", 2, 2048, 20),
    _flavor("large", 4, 4096, 40),
)


def seed(cloud: Client) -> tuple[str, ...]:
    """Ensures project, flavors, network and subnet. Returns what was made now. Raises CumuletError."""
    scoped = meta_pb2.Meta(name=DEFAULT_NETWORK, project=DEFAULT_PROJECT)
    network = network_pb2.NetworkSpec(outbound_nat=True)
    subnet = subnet_pb2.SubnetSpec(network=DEFAULT_NETWORK, cidr=DEFAULT_CIDR)
    made = [ensure(cloud, "project", project_pb2.Project(meta=meta_pb2.Meta(name=DEFAULT_PROJECT)))]
    if made[0]:
        cloud.update("security-group", _first_group(), ["spec.rules"])
    made += [ensure(cloud, "flavor", flavor) for flavor in FLAVORS]
    made.append(ensure(cloud, "network", network_pb2.Network(meta=scoped, spec=network)))
    made.append(ensure(cloud, "subnet", subnet_pb2.Subnet(meta=scoped, spec=subnet)))
    return tuple(name for name in made if name)


def _first_group() -> securitygroup_pb2.SecurityGroup:
    """A default group lets in nobody from outside; a first trial is to be pinged and logged in to."""
    ingress = securitygroup_pb2.TRAFFIC_DIRECTION_INGRESS
    spec = securitygroup_pb2.SecurityGroupSpec()
    spec.rules.add(direction=securitygroup_pb2.TRAFFIC_DIRECTION_EGRESS)
    spec.rules.add(direction=ingress, remote_group=DEFAULT_GROUP)
    spec.rules.add(direction=ingress, protocol="icmp")
    spec.rules.add(direction=ingress, protocol="tcp", port_min=SSH_PORT, port_max=SSH_PORT)
    meta = meta_pb2.Meta(name=DEFAULT_GROUP, project=DEFAULT_PROJECT)
    return securitygroup_pb2.SecurityGroup(meta=meta, spec=spec)


def ensure(cloud: Client, noun: str, message: Any) -> str:
    """Creates the object unless it is there. `noun/name` when it was made, else the empty string."""
    with contextlib.suppress(NotFoundError):
        cloud.get(noun, message.meta.name)
        return ""
    with contextlib.suppress(AlreadyExistsError):  # somebody else was faster
        cloud.create(noun, message)
    return f"{noun}/{message.meta.name}"


def ensure_image(cloud: Client, built: BuiltImage) -> str:
    """Uploads the guest image unless the cloud has this very disk. `image/NAME` when it did, else empty."""
    present = _find_image(cloud)
    if present is not None and present.spec.disk.sha256 == _digest(built.disk):
        return ""
    image = image_pb2.Image(meta=meta_pb2.Meta(name=GUEST_IMAGE), spec=_upload_all(cloud, built))
    if present is None:
        cloud.create("image", image)
    else:
        cloud.update("image", image, ["spec"])
    return f"image/{GUEST_IMAGE}"


def explain_failure(error: CumuletError) -> str:
    """The next step for a refused seed."""
    return " or ".join(error.hints) or "see the controller's log, then run `cumulet up` again"


def _find_image(cloud: Client) -> image_pb2.Image | None:
    try:
        found: image_pb2.Image = cloud.get("image", GUEST_IMAGE)
    except NotFoundError:
        return None
    return found


def _upload_all(cloud: Client, built: BuiltImage) -> image_pb2.ImageSpec:
    return image_pb2.ImageSpec(
        disk=cloud.upload_file(built.disk, image_pb2.FILE_FORMAT_QCOW2),
        kernel=cloud.upload_file(built.vmlinuz, image_pb2.FILE_FORMAT_BLOB),
        initrd=cloud.upload_file(built.initrd, image_pb2.FILE_FORMAT_BLOB),
        kernel_args=built.cmdline,
        min_memory_mib=int(str(built.manifest["min_memory_mib"])),
        min_disk_gib=int(str(built.manifest["min_disk_gib"])),
        architecture=str(built.manifest["arch"]),
        description=f"Small Debian guest for trials, {built.manifest['version']}",
    )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
