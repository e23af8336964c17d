"""Changes that would make a refused request fit: in the request or in the cluster, one type per kind.

**Pure**: immutable values. `scheduler.apply` gives the view and the request as they would be; the planner
itself then places it, or the change was not worth its name (`scheduler.suggest` finds them).

`size` orders changes of one kind, smaller is less; `step` orders kinds by what they cost who asks: first
what one command changes and takes nothing away, then giving up a wish, then getting less, then work on
the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from shlex import quote
from typing import ClassVar, Final

from cumulet.resources import BASE_NAMES, Resources
from scheduler.model import UPLINK, Request, Resident, Taint
from scheduler.topology import Choice, DeviceRequest

ONE_COMMAND: Final = 0
ONE_WISH_LESS: Final = 1
LESS_OF_IT: Final = 2
WORK: Final = 3
Size = int | Fraction


class Proposal:
    """What all kinds have in common: `word` names the kind, `command` does it if there is one that does."""

    __slots__ = ()
    word: ClassVar[str]
    step: ClassVar[int]

    @property
    def kind(self) -> str:
        return self.word

    @property
    def size(self) -> Size:
        return 0

    @property
    def command(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class AllowNode(Proposal):
    """The request no longer excludes the node."""

    node: str
    word: ClassVar = "allow-node"
    step: ClassVar = ONE_COMMAND

    def __str__(self) -> str:
        return f"no longer exclude node {self.node}"


@dataclass(frozen=True, slots=True)
class Tolerate(Proposal):
    """The request tolerates a taint."""

    taint: Taint
    word: ClassVar = "tolerate"
    step: ClassVar = ONE_COMMAND

    def __str__(self) -> str:
        return f"tolerate taint {self.taint}"


@dataclass(frozen=True, slots=True)
class Uncordon(Proposal):
    """The node takes new instances again."""

    node: str
    word: ClassVar = "uncordon"
    step: ClassVar = ONE_COMMAND

    @property
    def command(self) -> str:
        return f"cumulet node uncordon {quote(self.node)}"

    def __str__(self) -> str:
        return f"uncordon node {self.node}"


@dataclass(frozen=True, slots=True)
class Untaint(Proposal):
    """The node loses a taint."""

    node: str
    taint: Taint
    word: ClassVar = "untaint"
    step: ClassVar = ONE_COMMAND

    def __str__(self) -> str:
        return f"remove taint {self.taint} from node {self.node}"


@dataclass(frozen=True, slots=True)
class AddLabel(Proposal):
    """The node gets a label, or another value of one that it `had` (which is more: the size is 1)."""

    node: str
    key: str
    value: str
    had: str | None = None
    word: ClassVar = "label"
    step: ClassVar = ONE_COMMAND

    @property
    def size(self) -> Size:
        return int(self.had is not None)

    @property
    def command(self) -> str:
        return f"cumulet node update {quote(self.node)} --label {quote(f'{self.key}={self.value}')}"

    def __str__(self) -> str:
        was = "" if self.had is None else f" instead of {self.had}"
        return f"label node {self.node} with {self.key}={self.value}{was}"


@dataclass(frozen=True, slots=True)
class AdmitProject(Proposal):
    """The project may use a node that is kept for others."""

    node: str
    project: str
    word: ClassVar = "admit-project"
    step: ClassVar = ONE_COMMAND

    def __str__(self) -> str:
        return f"let project {self.project} use the dedicated node {self.node}"


@dataclass(frozen=True, slots=True)
class DropSelector(Proposal):
    """The request no longer asks for the label."""

    key: str
    value: str
    word: ClassVar = "drop-selector"
    step: ClassVar = ONE_WISH_LESS

    def __str__(self) -> str:
        return f"do without the node selector {self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class DropCapability(Proposal):
    """The request no longer asks for the capability."""

    name: str
    word: ClassVar = "drop-capability"
    step: ClassVar = ONE_WISH_LESS

    def __str__(self) -> str:
        if self.name.startswith(UPLINK):
            return f"attach it to no network of uplink {self.name.removeprefix(UPLINK)}"
        return f"do without capability {self.name}"


@dataclass(frozen=True, slots=True)
class DropGroup(Proposal):
    """The request leaves a placement group."""

    name: str
    word: ClassVar = "drop-group"
    step: ClassVar = ONE_WISH_LESS

    def __str__(self) -> str:
        return f"do without placement group {self.name}"


@dataclass(frozen=True, slots=True)
class DropCells(Proposal):
    """The request floats over the node instead of being pinned to NUMA cells."""

    cells: int
    word: ClassVar = "drop-numa"
    step: ClassVar = ONE_WISH_LESS

    def __str__(self) -> str:
        return f"do without {self.cells} NUMA cell(s) of its own"


@dataclass(frozen=True, slots=True)
class LowerSecurity(Proposal):
    """The request is content with a lower security level."""

    want: int
    to: int
    word: ClassVar = "security-level"
    step: ClassVar = ONE_WISH_LESS

    @property
    def size(self) -> Size:
        return self.want - self.to

    def __str__(self) -> str:
        return f"ask for security level {self.to} instead of {self.want}"


@dataclass(frozen=True, slots=True)
class RelaxDevice(Proposal):
    """Other, fewer or no devices instead of those that are wanted: one of model, count or share changes."""

    want: DeviceRequest
    to: DeviceRequest | None
    step: ClassVar = LESS_OF_IT

    @property
    def kind(self) -> str:
        if self.to is None:
            return "drop-device"
        if self.to.models != self.want.models:
            return "device-model"
        return "device-share" if self.to.count == self.want.count else "device-count"

    @property
    def size(self) -> Size:
        if self.to is None:
            return 0
        return self.want.count - self.to.count + self.want.share_milli - self.to.share_milli

    def __str__(self) -> str:
        return f"ask for {self.to} instead of {self.want}" if self.to else f"do without {self.want}"


@dataclass(frozen=True, slots=True)
class Reduce(Proposal):
    """Less of one resource."""

    resource: str
    want: int
    to: int
    step: ClassVar = LESS_OF_IT

    @property
    def kind(self) -> str:
        return f"reduce:{self.resource}"

    @property
    def size(self) -> Size:
        return Fraction(self.want - self.to, self.want)

    def __str__(self) -> str:
        return f"ask for {self.resource} {self.to} instead of {self.want}"


@dataclass(frozen=True, slots=True)
class ReduceAll(Proposal):
    """Less of several resources at once: of all ways the one that gives up the least share in sum."""

    want: Resources
    to: Resources
    word: ClassVar = "reduce"
    step: ClassVar = LESS_OF_IT

    @property
    def size(self) -> Size:
        return shortfall(self.want, self.to)

    def __str__(self) -> str:
        less = (
            f"{name} {self.to.get(name)} instead of {amount}"
            for name, amount in self.want.as_dict().items()
            if self.to.get(name) < amount
        )
        return f"ask for {', '.join(less)}"


@dataclass(frozen=True, slots=True)
class OtherFlavor(Proposal):
    """Another flavor: of those that fit, the one that gives up the least and then adds the least."""

    name: str
    want: Resources
    request: Request
    word: ClassVar = "flavor"
    step: ClassVar = LESS_OF_IT

    @property
    def size(self) -> Size:
        return shortfall(self.want, self.request.resources)

    @property
    def command(self) -> str:
        return f"cumulet flavor show {quote(self.name)}"

    def __str__(self) -> str:
        return f"take flavor {self.name} ({self.request.resources})"


@dataclass(frozen=True, slots=True)
class MakeReady(Proposal):
    """The node becomes ready; `why` it is not."""

    node: str
    why: str
    word: ClassVar = "make-ready"
    step: ClassVar = WORK

    @property
    def command(self) -> str:
        return f"cumulet node show {quote(self.node)}"

    def __str__(self) -> str:
        return (
            f"make node {self.node} ready again ({self.why})" if self.why else f"make node {self.node} ready"
        )


@dataclass(frozen=True, slots=True)
class Migrate(Proposal):
    """One instance, `resident`, moves from a node to another, where it gets `choice`; its size is its memory.

    The request then fits on the node that it left. Instances with devices stay: a device cannot be moved
    while it is in use.
    """

    resident: Resident
    source: str
    target: str
    choice: Choice
    word: ClassVar = "migrate"
    step: ClassVar = WORK

    @property
    def size(self) -> Size:
        return self.resident.request.resources.memory_mib

    def __str__(self) -> str:
        moved = self.resident.request
        return f"migrate instance {moved.project}/{moved.name} from node {self.source} to {self.target}"


@dataclass(frozen=True, slots=True)
class AddNodes(Proposal):
    """So many empty nodes more that are like one that is there."""

    like: str
    count: int
    word: ClassVar = "add-nodes"
    step: ClassVar = WORK

    @property
    def size(self) -> Size:
        return self.count

    def __str__(self) -> str:
        return f"add {self.count} node(s) like {self.like}"


Change = (
    AllowNode
    | Tolerate
    | Uncordon
    | Untaint
    | AddLabel
    | AdmitProject
    | DropSelector
    | DropCapability
    | DropGroup
    | DropCells
    | LowerSecurity
    | RelaxDevice
    | Reduce
    | ReduceAll
    | OtherFlavor
    | MakeReady
    | Migrate
    | AddNodes
)


def shortfall(want: Resources, got: Resources) -> Fraction:
    """The shares of what is wanted that `got` lacks, added up."""
    return sum(
        (
            Fraction(max(amount - got.get(name), 0), amount)
            for name, amount in want.as_dict().items()
            if amount
        ),
        Fraction(0),
    )


def least_amount(resource: str) -> int:
    """The least that a request may be reduced to: an instance has vcpus, memory and a disk."""
    return 1 if resource in BASE_NAMES else 0
