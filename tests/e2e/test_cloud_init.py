"""A full Debian with cloud-init is the judge: it takes its own from the metadata service, or from the seed.

**Edge**: real VMs on the lab. The guests boot together; each tells on its console what cloud-init has made
of it, and what cloud-init complains of.
"""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest

from cumulet.client import Client
from cumulet.v1 import image_pb2, instance_pb2, meta_pb2
from deploy.images.full.image import build_debian
from deploy.images.image import BuiltImage
from deploy.lab.lab import Lab
from tests.e2e.lab_cloud import phases
from tests.support.waiting import wait_until

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGp1ZGdlanVkZ2VqdWRnZWp1ZGdlanVkZ2VqdWRnZTEy judge@cumulet"
# By name of the instance: what the kernel's command line adds, and the data source that cloud-init must name.
# cloud-init 22.4 believes in OpenStack where the product, or a variable of process 1, has this name.
JUDGES = {
    "judge-seed": ("", "nocloud"),
    "judge-openstack": ('ci.ds=OpenStack "product_name=OpenStack Nova"', "openstack"),
}
# Each boot costs about a minute of two idle cores under emulation.
BOOT_TIMEOUT_S = 600.0
POLL_S = 1.0
# Short lines, for the kernel writes to the same console.
USER_DATA = b"""#cloud-config
runcmd:
  - |
    say() { echo "judge: $1 $2" > /dev/console; }
    say hostname "$(hostname -s)"
    say source "$(cloud-id)"
    say key "$(cut -d ' ' -f 2 /home/debian/.ssh/authorized_keys)"
    say route "$(ip -4 route get 169.254.169.254 | grep -o '^.* dev [^ ]*')"
    say complaints "$(grep -c -E 'WARNING|ERROR|Traceback' /var/log/cloud-init.log)"
    grep -E 'WARNING|ERROR|Traceback| 404 |imed out' /var/log/cloud-init.log | cut -c 1-300 > /dev/console
    say user-data ran
"""
_SAID = re.compile(r"judge: (\S+) ([^\r\n]*)")


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    return build_debian()


@pytest.fixture
def judges(lab: Lab, image: BuiltImage) -> Iterator[Client]:
    with lab.client(timeout_s=120.0) as cloud:
        _create(cloud, image)
        try:
            yield cloud
        finally:
            _remove(lab, cloud)


def _create(cloud: Client, image: BuiltImage) -> None:
    files = image_pb2.ImageSpec(
        disk=cloud.upload_file(image.disk, image_pb2.FILE_FORMAT_QCOW2),
        kernel=cloud.upload_file(image.vmlinuz, image_pb2.FILE_FORMAT_BLOB),
        initrd=cloud.upload_file(image.initrd, image_pb2.FILE_FORMAT_BLOB),
    )
    cloud.create("key-pair", {"meta": {"name": "judge"}, "spec": {"public_key": KEY}})
    resources = {"vcpu": 2, "memory_mib": 1024, "disk_gib": 3}
    cloud.create("flavor", {"meta": {"name": "judge"}, "spec": {"resources": resources}})
    for name, (arguments, _) in JUDGES.items():
        made = image_pb2.Image(meta=meta_pb2.Meta(name=name), spec=files)
        made.spec.kernel_args = f"{image.cmdline} {arguments}".strip()
        cloud.create("image", made)
        cloud.create("instance", {"meta": {"name": name}, "spec": _spec(name)})


def _spec(name: str) -> dict[str, Any]:
    return {
        "flavor": "judge",
        "image": name,
        "networks": [{"network": "default"}],
        "key_pairs": ["judge"],
        "user_data": b64encode(USER_DATA).decode(),
    }


def _remove(lab: Lab, cloud: Client) -> None:
    for name in JUDGES:
        cloud.delete("instance", name)
    wait_until(lambda: set(phases(lab)) & set(JUDGES))
    for name in JUDGES:
        cloud.delete("image", name)
    cloud.delete("flavor", "judge")
    cloud.delete("key-pair", "judge")


def test_a_full_debian_takes_its_own_from_the_service_or_the_seed(judges: Client) -> None:
    verdicts = {name: _verdict(judges, name) for name in JUDGES}
    wanted = {name: _wanted(name, source) for name, (_, source) in JUDGES.items()}
    assert {name: said for name, (said, _) in verdicts.items()} == wanted, [
        log for _, log in verdicts.values()
    ]


def _wanted(name: str, source: str) -> dict[str, str]:
    return {
        "hostname": name,
        "source": source,
        "key": KEY.split()[1],
        "route": "169.254.169.254 via 10.42.0.1 dev eth0",
        "complaints": "0",
        "user-data": "ran",
    }


def _verdict(cloud: Client, name: str) -> tuple[dict[str, str], str]:
    """What a judge said, by subject, once it has said everything; and the end of its console."""
    deadline_s = time.monotonic() + BOOT_TIMEOUT_S
    while True:
        log = cloud.console_log(name).decode(errors="replace")
        found = dict(_SAID.findall(log))
        if "user-data" in found:
            return found, log[-4000:]
        instance: instance_pb2.Instance = cloud.get("instance", name)
        assert time.monotonic() < deadline_s, f"{name}: {instance.status.conditions}: {log[-4000:]}"
        time.sleep(POLL_S)
