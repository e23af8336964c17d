"""Why a node does not take an instance: one type per constraint, each a short sentence.

**Pure**: immutable values. `kind` is the stable key by which refusals are counted; it names the
resource or label too, since "memory_mib on 3 nodes" helps and "resources on 3 nodes" does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.model import UPLINK


@dataclass(frozen=True, slots=True)
class Cordoned:
    """An operator keeps new instances off the node; `why` is the operator's word for it, if any."""

    why: str = ""

    @property
    def kind(self) -> str:
        return "cordoned"

    def __str__(self) -> str:
        return f"the node is cordoned: {self.why}" if self.why else "the node is cordoned"


@dataclass(frozen=True, slots=True)
class NotReady:
    """The node cannot start instances now; `why` is its readiness condition's text."""

    why: str

    @property
    def kind(self) -> str:
        return "not-ready"

    def __str__(self) -> str:
        return f"the node is not ready: {self.why}"


@dataclass(frozen=True, slots=True)
class Excluded:
    """The request itself rules the node out, for example after a failed start there."""

    @property
    def kind(self) -> str:
        return "excluded"

    def __str__(self) -> str:
        return "the request excludes the node"


@dataclass(frozen=True, slots=True)
class SecurityLevelTooLow:
    """The node is trusted with less than the instance wants."""

    want: int
    have: int

    @property
    def kind(self) -> str:
        return "security-level"

    def __str__(self) -> str:
        return f"security level {self.want} is wanted, the node has {self.have}"


@dataclass(frozen=True, slots=True)
class LabelMismatch:
    """The node's label has another value than the selector's; `have` is None if it is absent."""

    key: str
    want: str
    have: str | None

    @property
    def kind(self) -> str:
        return f"label:{self.key}"

    def __str__(self) -> str:
        have = "has no such label" if self.have is None else f"has {self.have!r}"
        return f"label {self.key}={self.want!r} is wanted, the node {have}"


@dataclass(frozen=True, slots=True)
class NotEnough:
    """Too little of a resource is free. `have` is negative on a node that is overcommitted."""

    resource: str
    want: int
    have: int

    @property
    def kind(self) -> str:
        return f"resource:{self.resource}"

    def __str__(self) -> str:
        return f"{self.resource} {self.want} is wanted, {self.have} is free"


@dataclass(frozen=True, slots=True)
class Tainted:
    """The node's taint is not tolerated."""

    taint: str

    @property
    def kind(self) -> str:
        return f"taint:{self.taint}"

    def __str__(self) -> str:
        return f"taint {self.taint} is not tolerated"


@dataclass(frozen=True, slots=True)
class Dedicated:
    """The node is kept for other projects."""

    projects: tuple[str, ...]

    @property
    def kind(self) -> str:
        return "dedicated"

    def __str__(self) -> str:
        return f"the node is dedicated to {', '.join(self.projects)}"


def capability_kind(capability: str) -> str:
    """By which refusals for a capability are counted; an uplink's says itself what it is."""
    return capability if capability.startswith(UPLINK) else f"capability:{capability}"


@dataclass(frozen=True, slots=True)
class NoCapability:
    """Host or node do not offer it."""

    capability: str

    @property
    def kind(self) -> str:
        return capability_kind(self.capability)

    def __str__(self) -> str:
        if self.capability.startswith(UPLINK):
            name = self.capability.removeprefix(UPLINK)
            return f"no uplink {name}: its agent has no --uplink {name}=LINK"
        return f"capability {self.capability} is wanted, the node does not have it"


@dataclass(frozen=True, slots=True)
class NotEnoughCells:
    """Too few NUMA cells have room for their part; `have` of the node's `total` have."""

    want: int
    have: int
    total: int
    vcpu: int
    memory_mib: int

    @property
    def kind(self) -> str:
        return "numa"

    def __str__(self) -> str:
        return (
            f"{self.want} NUMA cell(s) with {self.vcpu} vcpu and {self.memory_mib} memory_mib free are"
            f" wanted, {self.have} of {self.total} have that"
        )


@dataclass(frozen=True, slots=True)
class NotEnoughDevices:
    """The devices that are wanted are not free, or not free together (on the cells)."""

    want: str
    have: int

    @property
    def kind(self) -> str:
        return "devices"

    def __str__(self) -> str:
        return f"{self.want} is wanted, {self.have} such device(s) have room"


@dataclass(frozen=True, slots=True)
class GroupMissing:
    """The request names a placement group that is not there (any more)."""

    group: str

    @property
    def kind(self) -> str:
        return f"group-missing:{self.group}"

    def __str__(self) -> str:
        return f"placement group {self.group} does not exist"


@dataclass(frozen=True, slots=True)
class NoDomain:
    """The node has no label that says which rack or zone it is in, and the group needs one."""

    group: str
    scope: str

    @property
    def kind(self) -> str:
        return f"group:{self.group}"

    def __str__(self) -> str:
        return f"placement group {self.group} goes by {self.scope}, the node has no label {self.scope}"


@dataclass(frozen=True, slots=True)
class DomainFull:
    """The node's domain holds as many of the group as it may."""

    group: str
    domain: str
    members: int
    limit: int

    @property
    def kind(self) -> str:
        return f"group:{self.group}"

    def __str__(self) -> str:
        return f"placement group {self.group}: {self.domain} holds {self.members} of at most {self.limit}"


@dataclass(frozen=True, slots=True)
class AwayFromGroup:
    """The group's members are elsewhere and it wants them together."""

    group: str
    domains: tuple[str, ...]

    @property
    def kind(self) -> str:
        return f"group:{self.group}"

    def __str__(self) -> str:
        return f"placement group {self.group} is on {', '.join(self.domains)}"


Reason = (
    Cordoned
    | NotReady
    | Excluded
    | SecurityLevelTooLow
    | LabelMismatch
    | Tainted
    | Dedicated
    | NoCapability
    | GroupMissing
    | NoDomain
    | DomainFull
    | AwayFromGroup
    | NotEnough
    | NotEnoughCells
    | NotEnoughDevices
)
