"""The registry of kinds: one entry drives the API's standard methods, the CLI's verbs and the docs.

**Pure.** Imports no protobuf: modules and messages are named and loaded on first use, so that
`cumulet --help` stays fast. A new kind is a new entry here, a `.proto` file and its validator
(docs/howto/add-a-kind.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a list: title, path in the message, and whether `-o table` shows it."""

    title: str
    path: str
    wide_only: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """What every room needs to know of a kind."""

    name: str  # KeyPair: message, service prefix
    noun: str  # key-pair: the CLI's noun and the word in KIND/NAME
    field: str  # key_pair: the field in requests
    plural: str  # KeyPairs: in method names
    fields: str  # key_pairs: the field in list responses
    module: str  # keypair_pb2
    scoped: bool  # lives in a project
    verbs: frozenset[str]  # of list, get, create, update, delete, watch
    columns: tuple[Column, ...]

    def message(self, suffix: str = "{}") -> type[Message]:
        """The kind's message, or one named after it: `message("Get{}Request")`."""
        found: type[Message] = getattr(_module(self.module), suffix.format(self.name))
        return found

    def stub(self, channel: Any) -> Any:
        """The generated client stub of the kind's service on a channel."""
        return getattr(_module(f"{self.module}_grpc"), f"{self.name}ServiceStub")(channel)


@cache
def _module(name: str) -> Any:
    return import_module(f"cumulet.v1.{name}")


_ALL: Final = frozenset({"list", "get", "create", "update", "delete", "watch"})
_NAME: Final = Column("NAME", "meta.name")
_AGE: Final = Column("AGE", "meta.created_at")
_UID: Final = Column("UID", "meta.uid", wide_only=True)
_LABELS: Final = Column("LABELS", "meta.labels", wide_only=True)


def _kind(
    name: str, noun: str, scoped: bool, *columns: Column, verbs: frozenset[str] = _ALL, plural: str = ""
) -> Kind:
    field = noun.replace("-", "_")
    return Kind(
        name=name,
        noun=noun,
        field=field,
        plural=plural or f"{name}s",
        fields=f"{field}s",
        module=f"{name.lower()}_pb2",
        scoped=scoped,
        verbs=verbs,
        columns=(_NAME, *columns, _AGE, _UID, _LABELS),
    )


PROJECT: Final = _kind(
    "Project",
    "project",
    False,
    Column("INSTANCES", "status.instances"),
    Column("VCPU", "status.used.vcpu"),
    Column("MEMORY", "status.used.memory_mib"),
    Column("DESCRIPTION", "spec.description", wide_only=True),
)
NODE: Final = _kind(
    "Node",
    "node",
    False,
    Column("READY", "status.conditions[Ready]"),
    Column("CORDONED", "spec.cordoned"),
    Column("INSTANCES", "status.instances"),
    Column("VCPU", "status.allocated.vcpu/status.allocatable.vcpu"),
    Column("MEMORY", "status.allocated.memory_mib/status.allocatable.memory_mib"),
    Column("DISK", "status.allocated.disk_gib/status.allocatable.disk_gib", wide_only=True),
    Column("VIRT", "status.virt_type"),
    Column("ADDRESS", "status.address", wide_only=True),
    verbs=_ALL - {"create"},
)
FLAVOR: Final = _kind(
    "Flavor",
    "flavor",
    False,
    Column("VCPU", "spec.resources.vcpu"),
    Column("MEMORY", "spec.resources.memory_mib"),
    Column("DISK", "spec.resources.disk_gib"),
    Column("EXTENDED", "spec.resources.extended", wide_only=True),
)
IMAGE: Final = _kind(
    "Image",
    "image",
    False,
    Column("FORMAT", "spec.disk.format"),
    Column("SIZE", "spec.disk.size_bytes"),
    Column("MIN_MEMORY", "spec.min_memory_mib"),
    Column("SHA256", "spec.disk.sha256", wide_only=True),
)
KEY_PAIR: Final = _kind("KeyPair", "key-pair", True, Column("PUBLIC_KEY", "spec.public_key", wide_only=True))
INSTANCE: Final = _kind(
    "Instance",
    "instance",
    True,
    Column("PHASE", "status.phase"),
    Column("NODE", "status.node"),
    Column("ADDRESSES", "status.addresses"),
    Column("FLAVOR", "spec.flavor"),
    Column("IMAGE", "spec.image", wide_only=True),
    Column("RESTARTS", "status.restarts", wide_only=True),
)
NETWORK: Final = _kind(
    "Network",
    "network",
    True,
    Column("VNI", "status.vni"),
    Column("PORTS", "status.ports"),
    Column("OUTBOUND_NAT", "spec.outbound_nat"),
)
SUBNET: Final = _kind(
    "Subnet",
    "subnet",
    True,
    Column("NETWORK", "spec.network"),
    Column("CIDR", "spec.cidr"),
    Column("GATEWAY", "spec.gateway"),
    Column("USED", "status.addresses_used/status.addresses_total"),
)
PORT: Final = _kind(
    "Port",
    "port",
    True,
    Column("NETWORK", "spec.network"),
    Column("INSTANCE", "spec.instance"),
    Column("MAC", "spec.mac"),
    Column("ADDRESSES", "spec.addresses"),
    Column("NODE", "status.node", wide_only=True),
    verbs=frozenset({"list", "get", "watch"}),
)
OPERATION: Final = _kind(
    "Operation",
    "operation",
    True,
    Column("VERB", "verb"),
    Column("TARGET", "target.name"),
    Column("DONE", "done"),
    Column("ERROR", "error.reason"),
    verbs=frozenset({"list", "get", "watch"}),
)

KINDS: Final = (PROJECT, NODE, FLAVOR, IMAGE, KEY_PAIR, INSTANCE, NETWORK, SUBNET, PORT, OPERATION)
BY_NOUN: Final = {kind.noun: kind for kind in KINDS}
BY_NAME: Final = {kind.name: kind for kind in KINDS}
