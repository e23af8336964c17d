"""What an instance reads of itself at 169.254.169.254: the OpenStack and the EC2 tree.

**Pure**: a path in, a document out. Source: OpenStack Nova, "Metadata service"; Amazon EC2, "Instance
metadata"; cloud-init's data sources OpenStack and Ec2 read what is here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agent.intent import InstanceIntent
from agent.net.driver import NetworkIntent, PortIntent

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
# The newest of each tree whose contents we follow; readers choose the newest that they know.
OPENSTACK_VERSIONS: Final = ("2012-08-10", "2013-04-04", "2015-10-15", "2018-08-27", "latest")
EC2_VERSIONS: Final = ("1.0", "2007-01-19", "2009-04-04", "latest")
DOMAIN: Final = "cumulet.internal"


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: the port that the question arrived on, its instance and its network."""

    instance: InstanceIntent
    port: PortIntent
    networks: Mapping[str, NetworkIntent]  # by uid


@dataclass(frozen=True, slots=True)
class Document:
    body: bytes
    content_type: str


Content = Callable[[Asker], Document | None]


def find_document(asker: Asker, path: str) -> Document | None:
    """The document at a path, or a listing where the path is a directory; None when nothing is there."""
    words = [word for word in path.split("/") if word]
    if not words:
        return _listing([*EC2_VERSIONS, "openstack"])
    if words[0] == "openstack":
        return _openstack(asker, words[1:])
    if words[0] in EC2_VERSIONS:
        return _ec2(asker, words[1:])
    return None


# -- OpenStack --------------------------------------------------------------------------------------------


def _openstack(asker: Asker, words: list[str]) -> Document | None:
    if not words:
        return _listing(OPENSTACK_VERSIONS)
    if words[0] not in OPENSTACK_VERSIONS:
        return None
    if len(words) == 1:
        return _listing([name for name, content in _OPENSTACK.items() if content(asker) is not None])
    content = _OPENSTACK.get("/".join(words[1:]))
    return content(asker) if content is not None else None


def _meta_data(asker: Asker) -> Document:
    instance = asker.instance
    keys = {f"key-{number}": key for number, key in enumerate(instance.seed.authorized_keys)}
    return _json(
        {
            "uuid": instance.uid,
            "name": instance.name,
            "hostname": f"{instance.seed.hostname}.{DOMAIN}",
            "project_id": instance.project,
            "launch_index": 0,
            "availability_zone": "",
            "public_keys": keys,
            "keys": [{"name": name, "type": "ssh", "data": key} for name, key in keys.items()],
            "meta": {},
        }
    )


def _network_data(asker: Asker) -> Document:
    """Links by MAC; addresses come by DHCP and by router advertisements, as everywhere."""
    links, networks = [], []
    for number, port in enumerate(asker.instance.ports):
        network = asker.networks.get(port.network_uid)
        link = {"id": f"link{number}", "type": "phy", "ethernet_mac_address": port.mac, "vif_id": port.uid}
        links.append(link | ({"mtu": network.mtu} if network is not None else {}))
        for version in sorted({address.version for address in port.addresses}):
            kind = "ipv4_dhcp" if version == 4 else "ipv6_slaac"
            networks.append(
                {
                    "id": f"network{number}-{version}",
                    "link": f"link{number}",
                    "type": kind,
                    "network_id": port.network_uid,
                }
            )
    return _json({"links": links, "networks": networks, "services": []})


def _user_data(asker: Asker) -> Document | None:
    """Absent rather than empty, as in both trees."""
    data = asker.instance.seed.user_data
    return Document(data, BINARY) if data else None


_OPENSTACK: Final[Mapping[str, Content]] = {
    "meta_data.json": _meta_data,
    "network_data.json": _network_data,
    "user_data": _user_data,
    "vendor_data.json": lambda asker: _json({}),
    "vendor_data2.json": lambda asker: _json({}),
}


# -- EC2 --------------------------------------------------------------------------------------------------


def _ec2(asker: Asker, words: list[str]) -> Document | None:
    if not words:
        names = ["meta-data/", *(["user-data"] if _user_data(asker) is not None else [])]
        return _listing(names)
    if words == ["user-data"]:
        return _user_data(asker)
    if words[0] != "meta-data":
        return None
    node: Any = _ec2_tree(asker)
    for word in words[1:]:
        if not isinstance(node, dict) or word not in node:
            return None
        node = node[word]
    return _listing(_entry_names(node)) if isinstance(node, dict) else Document(node.encode(), TEXT)


def _ec2_tree(asker: Asker) -> dict[str, Any]:
    instance = asker.instance
    hostname = f"{instance.seed.hostname}.{DOMAIN}"
    addresses = [str(address) for address in asker.port.addresses]
    first_ipv4 = next((text for text in addresses if ":" not in text), "")
    keys = {str(number): {"openssh-key": key} for number, key in enumerate(instance.seed.authorized_keys)}
    return {
        "instance-id": instance.uid,
        "ami-id": instance.disk.base.sha256,
        "ami-launch-index": "0",
        "hostname": hostname,
        "local-hostname": hostname,
        "local-ipv4": first_ipv4,
        "mac": asker.port.mac,
        "instance-type": f"{instance.vcpu}x{instance.memory_mib}",
        "security-groups": "\n".join(asker.port.group_uids),
        "placement": {"availability-zone": ""},
        **({"public-keys": keys} if keys else {}),
    }


def _entry_names(node: Mapping[str, Any]) -> list[str]:
    """A directory's name ends in a slash; a key's shows the key's name after its number, as EC2 does."""
    return [
        f"{name}=key-{name}"
        if isinstance(value, dict) and "openssh-key" in value
        else f"{name}/"
        if isinstance(value, dict)
        else name
        for name, value in node.items()
    ]


def _listing(names: list[str] | tuple[str, ...]) -> Document:
    return Document("\n".join(names).encode(), TEXT)


def _json(value: object) -> Document:
    return Document(json.dumps(value, ensure_ascii=False).encode(), JSON)
