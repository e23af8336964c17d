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
    CHOICE = "choice"  # one of the flag's choices, a value of the field's enum
    THOUSANDTHS = "thousandths"  # 0.25; the field is in 1/1000
    SECONDS = "seconds"  # 90s, 12h, 30d
    TAINTS = "taints"  # KEY[=VALUE][:EFFECT], may be repeated
    TOLERATIONS = "tolerations"  # KEY[=VALUE], may be repeated
    PREFERENCES = "preferences"  # KEY=VALUE[:WEIGHT], may be repeated
    RULES = "rules"  # DIRECTION PROTOCOL[:PORTS] [REMOTE], may be repeated
    ADDRESS_PAIRS = "address-pairs"  # CIDR[@MAC], may be repeated
    ROUTES = "routes"  # CIDR=ADDRESS, may be repeated
    FORWARDS = "forwards"  # PROTOCOL:PORT=TARGET[:PORT], may be repeated
    LISTENERS = "listeners"  # PROTOCOL:PORT, may be repeated
    MEMBERS = "members"  # instance:NAME[:PORT], label:SELECTOR[:PORT], ADDRESS[:PORT], may be repeated
    HEALTH = "health"  # tcp[:PORT] or http[:PORT][/PATH], then ,interval=5 and so on
    RATE = "rate"  # 10Mbit; the field is in bits per second
    DEVICES = "devices"  # MODEL[,MODEL][:COUNT|:SHARE], may be repeated


class Flag(NamedTuple):
    """One flag of create and update: the field that it fills and how its value is written."""

    name: str
    path: str
    help: str
    shape: Shape = Shape.TEXT
    required: bool = False  # by create
    fixed: bool = False  # given at creation, never changed
    choices: tuple[str, ...] = ()  # of a CHOICE


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


def _requirements(*, fixed: bool) -> tuple[Flag, ...]:
    """The flags of what a flavor or an instance asks of its node."""
    return (
        Flag(
            "node-selector",
            "spec.node_selector",
            "Only nodes with this label, KEY=VALUE.",
            Shape.PAIRS,
            fixed=fixed,
        ),
        Flag(
            "capability",
            "spec.capabilities",
            "Only nodes that offer it, such as kvm or cpu:x86-64-v3. May be repeated.",
            Shape.WORDS,
            fixed=fixed,
        ),
        Flag(
            "tolerate",
            "spec.tolerations",
            "Go to nodes with this taint too; without =VALUE whatever its value. May be repeated.",
            Shape.TOLERATIONS,
            fixed=fixed,
        ),
        Flag(
            "prefer",
            "spec.preferences",
            "Rather nodes with this label; weight 1 to 100. May be repeated.",
            Shape.PREFERENCES,
            fixed=fixed,
        ),
        Flag(
            "numa-cells",
            "spec.numa_cells",
            "NUMA cells to divide vcpus and memory over; 0 floats.",
            Shape.COUNT,
            fixed=fixed,
        ),
        Flag(
            "device",
            "spec.devices",
            "Devices of a model, as gpu-a100:2, or a share of one, as gpu-a100:0.25. May be repeated.",
            Shape.DEVICES,
            fixed=fixed,
        ),
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
        Flag("quota-floating-ips", "spec.quota.floating_ips", "Floating IPs that it may hold.", Shape.COUNT),
        Flag(
            "quota-external-subnets",
            "spec.quota.external_subnets",
            "IPv6 subnets of external networks that it may hold.",
            Shape.COUNT,
        ),
        *_amounts("quota-", "spec.quota.resources", "over all its instances"),
        Flag(
            "quota-devices",
            "spec.quota.devices_milli",
            "Devices of its instances together, as in 4 or 0.5.",
            Shape.THOUSANDTHS,
        ),
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
    Column("TAINTS", "spec.taints", wide_only=True),
    Column("DEDICATED", "spec.dedicated_projects", wide_only=True),
    Column("CELLS", "status.numa_cells", wide_only=True),
    Column("DEVICES", "status.devices", wide_only=True),
    Column("OFFERS", "status.capabilities", wide_only=True),
    Column("UPLINKS", "status.uplinks", wide_only=True),
    verbs=_ALL - {"create"},
    flags=(
        *_amounts("reserved-", "spec.reserved", "kept back for the host"),
        Flag("ratio", "spec.allocation_ratio", "How often it may be promised, as in vcpu=4.", Shape.RATIOS),
        _SECURITY_LEVEL,
        Flag(
            "taint",
            "spec.taints",
            "Keep off what does not tolerate it; EFFECT: no-schedule, prefer-no-schedule. May be repeated.",
            Shape.TAINTS,
        ),
        Flag(
            "dedicated-project",
            "spec.dedicated_projects",
            "Only this project's instances. May be repeated.",
            Shape.WORDS,
        ),
        Flag("idle-watts", "spec.idle_watts", "Power that it takes with nothing to do.", Shape.COUNT),
        Flag("full-watts", "spec.full_watts", "Power that it takes with all to do.", Shape.COUNT),
        Flag("cost", "spec.cost_milli", "What an hour of it costs, as in 0.35.", Shape.THOUSANDTHS),
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
    Column("DEVICES", "spec.devices", wide_only=True),
    Column("NUMA_CELLS", "spec.numa_cells", wide_only=True),
    Column("CAPABILITIES", "spec.capabilities", wide_only=True),
    Column("NODE_SELECTOR", "spec.node_selector", wide_only=True),
    flags=(
        *_amounts("", "spec.resources", "of an instance", required=True),
        *_requirements(fixed=False),
        _DESCRIPTION,
    ),
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
        Flag(
            "capability",
            "spec.capabilities",
            "Only on nodes that offer it, such as cpu:x86-64-v2. May be repeated.",
            Shape.WORDS,
        ),
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
    Column("GROUPS", "spec.placement_groups", wide_only=True),
    Column("CELLS", "status.numa_cells", wide_only=True),
    Column("DEVICES", "status.devices", wide_only=True),
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
        *_requirements(fixed=True),
        Flag(
            "group",
            "spec.placement_groups",
            "Placement group that it is a member of. May be repeated.",
            Shape.WORDS,
            fixed=True,
        ),
        Flag(
            "security-group",
            "spec.security_groups",
            "Security group of its ports. Default: the project's group default. May be repeated.",
            Shape.WORDS,
            fixed=True,
        ),
        Flag(
            "lifetime",
            "spec.expected_lifetime_s",
            "How long it is expected to live, as in 12h; the placement policy lifetime packs by it.",
            Shape.SECONDS,
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
    Column("PROVIDER", "spec.provider"),
    flags=(
        Flag("outbound-nat", "spec.outbound_nat", "Let guests reach the outside.", Shape.YES_NO),
        Flag(
            "uplink",
            "spec.provider.uplink",
            "Make it the operator's network that agents have a link to: their --uplink NAME=LINK.",
            fixed=True,
        ),
        Flag(
            "vlan",
            "spec.provider.vlan",
            "802.1Q identifier of its frames on the uplink; without one they are untagged.",
            Shape.COUNT,
            fixed=True,
        ),
        Flag(
            "mtu",
            "spec.provider.mtu",
            "Largest IP packet on the uplink, in bytes; 1500 by default.",
            Shape.COUNT,
            fixed=True,
        ),
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
    Column("RANGES", "spec.ranges", wide_only=True),
    Column("USED", "status.addresses_used/status.addresses_total"),
    Column("EXTERNAL_NETWORK", "spec.external_network", wide_only=True),
    flags=(
        Flag("network", "spec.network", "The network that it belongs to.", required=True, fixed=True),
        Flag("cidr", "spec.cidr", "Its range, as in 10.0.0.0/24 or fd00:1::/64.", fixed=True),
        Flag(
            "external-network",
            "spec.external_network",
            "Take an IPv6 range of this one: the outside reaches it. A free one, without --cidr.",
            fixed=True,
        ),
        Flag("gateway", "spec.gateway", "The router's address; the range's first by default.", fixed=True),
        Flag(
            "range",
            "spec.ranges",
            "What ports are given IPv4 addresses from, as 10.0.0.100-10.0.0.199. May be repeated.",
            Shape.WORDS,
        ),
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
    Column("ADDRESSES", "status.addresses"),
    Column("SECURITY_GROUPS", "spec.security_groups", wide_only=True),
    Column("ALLOWED_ADDRESSES", "spec.allowed_pairs", wide_only=True),
    Column("INGRESS_RATE", "spec.ingress_bps", wide_only=True),
    Column("EGRESS_RATE", "spec.egress_bps", wide_only=True),
    Column("NODE", "status.node", wide_only=True),
    verbs=frozenset({"list", "get", "update", "watch"}),
    flags=(
        Flag(
            "security-group",
            "spec.security_groups",
            "Security group that it is in, instead of those before. May be repeated.",
            Shape.WORDS,
        ),
        Flag(
            "allow-address",
            "spec.allowed_pairs",
            "What it may use besides its own addresses, as 10.0.0.5 or 10.0.0.5@02:00:00:00:00:05. "
            "May be repeated.",
            Shape.ADDRESS_PAIRS,
        ),
        Flag("ingress-rate", "spec.ingress_bps", "Limit towards the instance; 0 is none.", Shape.RATE),
        Flag("egress-rate", "spec.egress_bps", "Limit from the instance; 0 is none.", Shape.RATE),
    ),
)
ROUTER: Final = _kind(
    "Router",
    "router",
    True,
    Column("VNI", "status.vni"),
    Column("NETWORKS", "spec.networks"),
    Column("ROUTES", "spec.routes", wide_only=True),
    Column("OUTBOUND_NAT", "spec.outbound_nat"),
    flags=(
        Flag(
            "network",
            "spec.networks",
            "Network whose gateways it holds, instead of those before. May be repeated.",
            Shape.WORDS,
        ),
        Flag(
            "route",
            "spec.routes",
            "Range behind an address of its networks, as 192.168.0.0/16=10.0.0.7. May be repeated.",
            Shape.ROUTES,
        ),
        Flag("outbound-nat", "spec.outbound_nat", "Let guests reach the outside.", Shape.YES_NO),
        _DESCRIPTION,
    ),
    example="--network web --network db --outbound-nat",
)
EXTERNAL_NETWORK: Final = _kind(
    "ExternalNetwork",
    "external-network",
    False,
    Column("UPLINK", "spec.uplink"),
    Column("CIDR", "spec.cidr"),
    Column("GATEWAY", "spec.gateway"),
    Column("USED", "status.addresses_used/status.addresses_total"),
    Column("CIDR6", "spec.cidr6"),
    Column("GATEWAY6", "spec.gateway6", wide_only=True),
    Column("USED6", "status.subnets_used/status.subnets_total", wide_only=True),
    Column("NODES", "status.nodes", wide_only=True),
    flags=(
        Flag(
            "uplink",
            "spec.uplink",
            "What agents call their link to it: their --uplink NAME=LINK.",
            required=True,
            fixed=True,
        ),
        Flag("cidr", "spec.cidr", "Its range, as in 203.0.113.0/24.", required=True, fixed=True),
        Flag("gateway", "spec.gateway", "Its way to the world; without one the nodes' own routes are used."),
        Flag(
            "range",
            "spec.ranges",
            "What floating IPs are taken from, as 203.0.113.64-203.0.113.127. May be repeated.",
            Shape.WORDS,
        ),
        Flag("cidr6", "spec.cidr6", "Its IPv6 range, as in 2001:db8:100::/48: subnets are taken from it."),
        Flag("gateway6", "spec.gateway6", "As --gateway, of IPv6: in the range, or link-local."),
        _DESCRIPTION,
    ),
    example="--uplink internet --cidr 203.0.113.0/24 --gateway 203.0.113.1",
)
FLOATING_IP: Final = _kind(
    "FloatingIP",
    "floating-ip",
    True,
    Column("ADDRESS", "spec.address"),
    Column("TARGET", "spec.target"),
    Column("FORWARDS", "spec.forwards"),
    Column("ACTIVE", "status.conditions[Active]"),
    Column("NODE", "status.node"),
    Column("EXTERNAL_NETWORK", "spec.external_network", wide_only=True),
    flags=(
        Flag(
            "external-network",
            "spec.external_network",
            "Whose address it is: see `cumulet external-network list`.",
            required=True,
            fixed=True,
        ),
        Flag("address", "spec.address", "A wish; one that is free by default.", fixed=True),
        Flag("target", "spec.target", 'Instance, port or load balancer that packets go to; "" for none.'),
        Flag(
            "forward",
            "spec.forwards",
            "In place of a target: one port, as tcp:2222=web-1:22 or udp:53=dns. May be repeated.",
            Shape.FORWARDS,
        ),
        _DESCRIPTION,
    ),
    example="--external-network internet --target web-1",
)
LOAD_BALANCER: Final = _kind(
    "LoadBalancer",
    "load-balancer",
    True,
    Column("ADDRESS", "spec.address"),
    Column("LISTENERS", "spec.listeners"),
    Column("MEMBERS", "spec.members"),
    Column("ALGORITHM", "spec.algorithm", wide_only=True),
    Column("HEALTH_CHECK", "spec.health_check", wide_only=True),
    Column("SERVED_BY", "status.members", wide_only=True),
    flags=(
        Flag("network", "spec.network", "Network that its address is in.", required=True, fixed=True),
        Flag("address", "spec.address", "The address, IPv4 or IPv6; default: a free one.", fixed=True),
        Flag(
            "ip-version",
            "spec.ip_version",
            "4 or 6: of the free address; default: 4 where the network has IPv4.",
            Shape.COUNT,
            fixed=True,
        ),
        Flag(
            "listen",
            "spec.listeners",
            "What it listens to, as tcp:80, instead of those before. May be repeated.",
            Shape.LISTENERS,
        ),
        Flag(
            "member",
            "spec.members",
            'Where connections go: "instance:web-1", "label:app=web:8080", "10.1.0.7 drain" (no new ones), '
            '"[fd00:a::7]:8080". '
            "May be repeated.",
            Shape.MEMBERS,
        ),
        Flag(
            "algorithm",
            "spec.algorithm",
            "One after the other, or by the client's address. Default: round-robin.",
            Shape.CHOICE,
            choices=("round-robin", "source-hash"),
        ),
        Flag(
            "health",
            "spec.health_check",
            'How members are asked whether they live: "tcp", "http:8080/ready", "http:/ready interval=2".',
            Shape.HEALTH,
        ),
        _DESCRIPTION,
    ),
    example="--network web --listen tcp:80 --member label:app=web:8080 --health http:/ready",
)
SECURITY_GROUP: Final = _kind(
    "SecurityGroup",
    "security-group",
    True,
    Column("PORTS", "status.ports"),
    Column("RULES", "spec.rules"),
    Column("DESCRIPTION", "spec.description", wide_only=True),
    flags=(
        Flag(
            "rule",
            "spec.rules",
            'What it allows, as "in tcp:22 10.0.0.0/8", "in any group:web", "out any". May be repeated.',
            Shape.RULES,
        ),
        _DESCRIPTION,
    ),
    example='--rule "in tcp:22 0.0.0.0/0" --rule "out any"',
)
PLACEMENT_GROUP: Final = _kind(
    "PlacementGroup",
    "placement-group",
    True,
    Column("RULE", "spec.rule"),
    Column("SCOPE", "spec.scope"),
    Column("ENFORCEMENT", "spec.enforcement"),
    Column("MAX_PER_DOMAIN", "spec.max_per_domain", wide_only=True),
    Column("INSTANCES", "status.instances"),
    Column("MEMBERS", "status.members"),
    flags=(
        Flag(
            "rule",
            "spec.rule",
            "Together in one domain, or spread over domains.",
            Shape.CHOICE,
            required=True,
            fixed=True,
            choices=("affinity", "anti-affinity"),
        ),
        Flag(
            "scope",
            "spec.scope",
            "What a domain is; racks and zones are labels of nodes. Default: node.",
            Shape.CHOICE,
            fixed=True,
            choices=("node", "rack", "zone"),
        ),
        Flag(
            "enforcement",
            "spec.enforcement",
            "Whether an instance waits rather than break the rule. Default: hard.",
            Shape.CHOICE,
            choices=("hard", "soft"),
        ),
        Flag(
            "max-per-domain",
            "spec.max_per_domain",
            "Members that a domain may hold; 0: 1 with anti-affinity, any number with affinity.",
            Shape.COUNT,
        ),
        _DESCRIPTION,
    ),
    example="--rule anti-affinity --scope rack",
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

KINDS: Final = (
    PROJECT,
    NODE,
    FLAVOR,
    IMAGE,
    KEY_PAIR,
    INSTANCE,
    PLACEMENT_GROUP,
    SECURITY_GROUP,
    NETWORK,
    SUBNET,
    ROUTER,
    EXTERNAL_NETWORK,
    FLOATING_IP,
    LOAD_BALANCER,
    PORT,
    OPERATION,
)
BY_NOUN: Final = {kind.noun: kind for kind in KINDS}
BY_NAME: Final = {kind.name: kind for kind in KINDS}
