"""The table of keys: every key of the store, its value, and its single writer.

**Pure.** `docs/reference/keys.md` is generated from `TABLES` (`python -m controller.store.keys`).
Keys are paths below `PREFIX`; a path's variable parts never contain a slash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cumulet.v1 import (
    externalnetwork_pb2,
    flavor_pb2,
    floatingip_pb2,
    image_pb2,
    instance_pb2,
    keypair_pb2,
    loadbalancer_pb2,
    network_pb2,
    node_pb2,
    operation_pb2,
    placementgroup_pb2,
    port_pb2,
    project_pb2,
    router_pb2,
    securitygroup_pb2,
    store_pb2,
    subnet_pb2,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

PREFIX: Final = b"/cumulet/"
_ROOT: Final = PREFIX[:-1].decode()


@dataclass(frozen=True, slots=True, eq=False)  # there is one of each: compared and hashed by identity
class Table:
    """Keys of one shape. `parts` names the variable path elements; `message` is None for plain text."""

    path: str
    parts: tuple[str, ...]
    message: type[Message] | None
    writer: str
    purpose: str

    def key(self, *parts: str) -> bytes:
        """The key with these parts, in the table's order."""
        if len(parts) != len(self.parts):
            raise ValueError(f"{self.path} takes {self.parts}, got {parts}")
        return "/".join((_ROOT, self.path, *parts)).encode()

    def prefix(self, *parts: str) -> bytes:
        """What all keys that start with these parts have in common, with a final slash."""
        return "/".join((_ROOT, self.path, *parts, "")).encode()


API: Final = "api"
LEADER: Final = "leader"

CLOUD: Final = Table(
    "cloud",
    (),
    store_pb2.CloudRecord,
    "the first controller; a restore",
    "the cloud's identity and restore generation",
)
LEADER_KEY: Final = Table(
    "leader", (), store_pb2.LeaderRecord, "election", "who leads; create_revision is the epoch; has a lease"
)
PROJECTS: Final = Table("projects", ("name",), project_pb2.Project, API, "meta and spec")
NODES: Final = Table(
    "nodes", ("name",), node_pb2.Node, API, "meta and spec; made when an agent first says hello"
)
FLAVORS: Final = Table("flavors", ("name",), flavor_pb2.Flavor, API, "meta and spec")
IMAGES: Final = Table("images", ("name",), image_pb2.Image, API, "meta and spec")
KEY_PAIRS: Final = Table("key-pairs", ("project", "name"), keypair_pb2.KeyPair, API, "meta and spec")
NETWORKS: Final = Table(
    "networks", ("project", "name"), network_pb2.Network, API, "meta, spec and the assigned VNI"
)
SUBNETS: Final = Table("subnets", ("project", "name"), subnet_pb2.Subnet, API, "meta and spec")
PORTS: Final = Table("ports", ("project", "name"), port_pb2.Port, API, "meta and spec; with its instance")
PLACEMENT_GROUPS: Final = Table(
    "placement-groups", ("project", "name"), placementgroup_pb2.PlacementGroup, API, "meta and spec"
)
ROUTERS: Final = Table(
    "routers", ("project", "name"), router_pb2.Router, API, "meta, spec and the assigned VNI"
)
EXTERNAL_NETWORKS: Final = Table(
    "external-networks", ("name",), externalnetwork_pb2.ExternalNetwork, API, "meta and spec"
)
FLOATING_IPS: Final = Table(
    "floating-ips", ("project", "name"), floatingip_pb2.FloatingIP, API, "meta and spec"
)
LOAD_BALANCERS: Final = Table(
    "load-balancers",
    ("project", "name"),
    loadbalancer_pb2.LoadBalancer,
    API,
    "meta and spec, with the address that was chosen",
)
SECURITY_GROUPS: Final = Table(
    "security-groups", ("project", "name"), securitygroup_pb2.SecurityGroup, API, "meta and spec"
)
INSTANCES: Final = Table("instances", ("project", "name"), instance_pb2.Instance, API, "meta and spec")
OPERATIONS: Final = Table(
    "operations",
    ("project", "name"),
    operation_pb2.Operation,
    "api, until it runs; then the leader",
    "work that goes on after the reply",
)
ADDRESSES: Final = Table(
    "addresses",
    ("network_uid", "address"),
    None,
    API,
    "uid of the port or load balancer, or in an external network of the floating IP, that holds an address",
)
MACS: Final = Table("macs", ("network_uid", "mac"), None, API, "uid of the port that holds a MAC")
VNIS: Final = Table("vnis", ("vni",), None, API, "uid of the network or router that holds a VNI")
SEGMENTS: Final = Table(
    "segments", ("uplink", "vlan"), None, API, "uid of the provider network that is this segment of an uplink"
)
PLACEMENTS: Final = Table(
    "placements",
    ("node", "uid"),
    store_pb2.PlacementRecord,
    "leader: commit gate",
    "where an instance is; usage is derived from these",
)
TOMBSTONES: Final = Table(
    "tombstones",
    ("node", "uid"),
    store_pb2.PlacementRecord,
    "leader: sessions",
    "copies on a node that was declared off: to be destroyed there, should it come back",
)
INSTANCE_STATUS: Final = Table(
    "status/instances",
    ("uid",),
    instance_pb2.InstanceStatus,
    "leader: status",
    "last transition of an instance",
)
NODE_STATUS: Final = Table(
    "status/nodes", ("name",), node_pb2.NodeStatus, "leader: status", "last transition of a node"
)
ANNOUNCEMENTS: Final = Table(
    "status/floating-ips",
    ("uid",),
    store_pb2.AnnouncementRecord,
    "leader: announcer",
    "the one node that may announce a floating IP",
)
SESSIONS: Final = Table(
    "sessions", ("node",), store_pb2.SessionRecord, "leader: sessions", "nonce of the agent's session"
)
REQUESTS: Final = Table(
    "requests",
    ("hour", "project", "request_id"),
    store_pb2.RequestRecord,
    API,
    "answers to repeated requests; expire by the hour",
)
COMMITS: Final = Table(
    "commits",
    ("hour", "uid"),
    None,
    "whoever commits",
    "one per transaction: tells whether an unanswered one happened; expire by the hour",
)
JOURNAL: Final = Table(
    "journal",
    ("uid",),
    store_pb2.EventBatch,
    "whoever makes the change",
    "a transaction's events on their way to the journal; the leader exports and deletes them",
)
JOURNAL_HEAD: Final = Table(
    "journal-head", (), store_pb2.JournalHead, "leader: journal", "sequence and hash of the last entry"
)

TABLES: Final = (
    CLOUD,
    LEADER_KEY,
    PROJECTS,
    NODES,
    FLAVORS,
    IMAGES,
    KEY_PAIRS,
    NETWORKS,
    SUBNETS,
    PORTS,
    PLACEMENT_GROUPS,
    ROUTERS,
    EXTERNAL_NETWORKS,
    FLOATING_IPS,
    LOAD_BALANCERS,
    SECURITY_GROUPS,
    INSTANCES,
    OPERATIONS,
    ADDRESSES,
    MACS,
    VNIS,
    SEGMENTS,
    PLACEMENTS,
    TOMBSTONES,
    INSTANCE_STATUS,
    NODE_STATUS,
    ANNOUNCEMENTS,
    SESSIONS,
    REQUESTS,
    COMMITS,
    JOURNAL,
    JOURNAL_HEAD,
)
_BY_PATH: Final = {table.path: table for table in TABLES}


def parse_key(key: bytes) -> tuple[Table, tuple[str, ...]] | None:
    """The table and parts of a key, or None for a key that no table knows (a newer version's)."""
    elements = key.removeprefix(PREFIX).decode().split("/")
    table, depth = _BY_PATH.get(elements[0]), 1
    if table is None:
        table, depth = _BY_PATH.get("/".join(elements[:2])), 2
    if table is None or len(elements) - depth != len(table.parts):
        return None
    return table, tuple(elements[depth:])


def render_reference() -> str:
    """The text of docs/reference/keys.md."""
    rows = [
        f"| `{table.key(*(f'{{{part}}}' for part in table.parts)).decode()}` "
        f"| {table.message.DESCRIPTOR.name if table.message else 'text'} | {table.writer} | {table.purpose} |"
        for table in TABLES
    ]
    return "\n".join(
        [
            "# Keys in etcd",
            "",
            "Generated from `controller/store/keys.py` by `make docs`. One writer per key; every write is a",
            "compare-guarded transaction.",
            "",
            "| key | value | writer | purpose |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    print(render_reference(), end="")
