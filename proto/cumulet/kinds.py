"""The registry of kinds: one entry drives the API's standard methods, the CLI's verbs and the docs.

**Pure.** Imports no protobuf: modules and messages are named and loaded on first use, so that
`cumulet --help` stays fast; for the same reason these are named tuples, since a dataclass takes 2 ms.
A new kind is a new entry here, a `.proto` file and its validator (docs/howto/add-a-kind.md).
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from google.protobuf.message import Message


class Column(NamedTuple):
    """One column of a list: title, path in the message, and whether `-o table` shows it."""

    title: str
    path: str
    wide_only: bool = False


class Shape(StrEnum):
    """How a person writes a flag's value, and so what the field holds."""

    TEXT = "text"
    COUNT = "count"
    MEMORY = "memory"  # 512MiB; the field is in MiB
    DISK = "disk"  # 10GiB; the field is in GiB
    YES_NO = "yes-no"
    WORDS = "words"  # may be repeated
    PAIRS = "pairs"  # KEY=TEXT, may be repeated
    AMOUNTS = "amounts"  # NAME=COUNT, may be repeated
    RATIOS = "ratios"  # NAME=NUMBER, may be repeated
    FILE = "file"  # the bytes of a file, - for stdin
    ATTACHMENTS = "attachments"  # NETWORK[=ADDRESS], may be repeated


class Flag(NamedTuple):
    """One flag of create and update: the field that it fills and how its value is written."""

    name: str
    path: str
    help: str
    shape: Shape = Shape.TEXT
    required: bool = False  # by create
    fixed: bool = False  # given at creation, never changed


class Kind(NamedTuple):
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
    flags: tuple[Flag, ...]
    example: str  # what follows `cumulet NOUN create NAME` in the help's example
    create_verb: str  # create, or import where the object comes with a file

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
    name: str,
    noun: str,
    scoped: bool,
    *columns: Column,
    verbs: frozenset[str] = _ALL,
    plural: str = "",
    flags: tuple[Flag, ...] = (),
    example: str = "",
    create_verb: str = "create",
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
        flags=flags,
        example=example,
        create_verb=create_verb,
    )


def _amounts(prefix: str, path: str, what: str, *, required: bool = False) -> tuple[Flag, ...]:
    """The flags of a resource vector, such as --vcpu or --quota-vcpu."""
    return (
        Flag(f"{prefix}vcpu", f"{path}.vcpu", f"Virtual CPUs {what}.", Shape.COUNT, required),
        Flag(f"{prefix}memory", f"{path}.memory_mib", f"Memory {what}, as in 2GiB.", Shape.MEMORY, required),
        Flag(f"{prefix}disk", f"{path}.disk_gib", f"Disk {what}, as in 10GiB.", Shape.DISK, required),
        Flag(f"{prefix}extended", f"{path}.extended", f"Named resource {what}, as in gpu=1.", Shape.AMOUNTS),
    )


_DESCRIPTION: Final = Flag("description", "spec.description", "A sentence for people.")
_SECURITY_LEVEL: Final = Flag("security-level", "spec.security_level", "From 0 (lowest) to 5.", Shape.COUNT)

PROJECT: Final = _kind(
    "Project",
    "project",
    False,
    Column("INSTANCES", "status.instances"),
    Column("VCPU", "status.used.vcpu"),
    Column("MEMORY", "status.used.memory_mib"),
    Column("DESCRIPTION", "spec.description", wide_only=True),
    flags=(
        _DESCRIPTION,
        _SECURITY_LEVEL,
        Flag("quota-instances", "spec.quota.instances", "Instances that it may hold.", Shape.COUNT),
        Flag("quota-networks", "spec.quota.networks", "Networks that it may hold.", Shape.COUNT),
        *_amounts("quota-", "spec.quota.resources", "over all its instances"),
    ),
    example="--quota-instances 10 --quota-memory 16GiB",
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
    flags=(
        *_amounts("reserved-", "spec.reserved", "kept back for the host"),
        Flag("ratio", "spec.allocation_ratio", "How often it may be promised, as in vcpu=4.", Shape.RATIOS),
        _SECURITY_LEVEL,
    ),
)
FLAVOR: Final = _kind(
    "Flavor",
    "flavor",
    False,
    Column("VCPU", "spec.resources.vcpu"),
    Column("MEMORY", "spec.resources.memory_mib"),
    Column("DISK", "spec.resources.disk_gib"),
    Column("EXTENDED", "spec.resources.extended", wide_only=True),
    flags=(*_amounts("", "spec.resources", "of an instance", required=True), _DESCRIPTION),
    example="--vcpu 2 --memory 2GiB --disk 10GiB",
)
IMAGE: Final = _kind(
    "Image",
    "image",
    False,
    Column("FORMAT", "spec.disk.format"),
    Column("SIZE", "spec.disk.size_bytes"),
    Column("MIN_MEMORY", "spec.min_memory_mib"),
    Column("SHA256", "spec.disk.sha256", wide_only=True),
    flags=(
        Flag("kernel-args", "spec.kernel_args", "The kernel's command line, for direct kernel boot."),
        Flag("min-memory", "spec.min_memory_mib", "Least memory that it boots with.", Shape.MEMORY),
        Flag("min-disk", "spec.min_disk_gib", "Least disk that it needs.", Shape.DISK),
        Flag("architecture", "spec.architecture", "CPU architecture as in `uname -m`.", fixed=True),
        _DESCRIPTION,
    ),
    example="debian-12.qcow2 --min-memory 512MiB",
    create_verb="import",
)
KEY_PAIR: Final = _kind(
    "KeyPair",
    "key-pair",
    True,
    Column("PUBLIC_KEY", "spec.public_key", wide_only=True),
    flags=(
        Flag("public-key", "spec.public_key", "One line in OpenSSH's format.", required=True, fixed=True),
    ),
    example='--public-key "ssh-ed25519 AAAA... me@laptop"',
)
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
    flags=(
        Flag("flavor", "spec.flavor", "Its size: see `cumulet flavor list`.", required=True, fixed=True),
        Flag("image", "spec.image", "Its disk: see `cumulet image list`.", required=True, fixed=True),
        Flag(
            "network",
            "spec.networks",
            "Network, with =ADDRESS to wish for one; the first is the primary. May be repeated.",
            Shape.ATTACHMENTS,
            required=True,
            fixed=True,
        ),
        Flag(
            "key-pair",
            "spec.key_pairs",
            "Key that the guest accepts. May be repeated.",
            Shape.WORDS,
            fixed=True,
        ),
        Flag(
            "user-data", "spec.user_data", "cloud-init user-data file, - for stdin.", Shape.FILE, fixed=True
        ),
        Flag(
            "node-selector",
            "spec.node_selector",
            "Only nodes with this label, KEY=VALUE.",
            Shape.PAIRS,
            fixed=True,
        ),
        Flag("stop-timeout", "spec.stop_timeout_s", "Seconds to shut down before it is forced.", Shape.COUNT),
        Flag("deletion-protection", "spec.deletion_protection", "Refuse to delete it.", Shape.YES_NO),
    ),
    example="--flavor small --image cumulet-guest --network default",
)
NETWORK: Final = _kind(
    "Network",
    "network",
    True,
    Column("VNI", "status.vni"),
    Column("PORTS", "status.ports"),
    Column("OUTBOUND_NAT", "spec.outbound_nat"),
    flags=(
        Flag("outbound-nat", "spec.outbound_nat", "Let guests reach the outside.", Shape.YES_NO),
        _DESCRIPTION,
    ),
    example="--outbound-nat",
)
SUBNET: Final = _kind(
    "Subnet",
    "subnet",
    True,
    Column("NETWORK", "spec.network"),
    Column("CIDR", "spec.cidr"),
    Column("GATEWAY", "spec.gateway"),
    Column("USED", "status.addresses_used/status.addresses_total"),
    flags=(
        Flag("network", "spec.network", "The network that it belongs to.", required=True, fixed=True),
        Flag("cidr", "spec.cidr", "Its range, as in 10.0.0.0/24.", required=True, fixed=True),
        Flag("gateway", "spec.gateway", "The router's address; the range's first by default.", fixed=True),
        Flag("dns-server", "spec.dns_servers", "For its guests. May be repeated.", Shape.WORDS),
    ),
    example="--network default --cidr 10.0.0.0/24",
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
