"""Steps of a what-if: what happens to the fleet, as values and as short texts.

**Pure**: `parse_step` and `str` are inverse to each other; nothing here changes a fleet.

The texts are `add=50xsmall`, `lose-node=n1,n2`, `lose-rack=r1`, `lose-zone=a`, `drain=n1`,
`add-nodes=3x64x196608`, `add-like=3xn1`, `policy=spread`, `place-anew`, `n-plus=1`, `n-plus=2/rack`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cumulet.resources import BASE_NAMES, QuantityError, Resources, parse_extended, validate_resources
from scheduler.group import Scope
from scheduler.policy import Policy, PolicyError, policy_named

COUNT_MAX: Final = 100_000  # instances or nodes of one step; a larger fleet is more than one cloud
FAILURES_AT_ONCE_MAX: Final = 4  # beyond it the sets of nodes are too many to look at
SHAPE_HELP: Final = "VCPUxMEMORY_MIB[xDISK_GIB][+NAME=AMOUNT...], as in 64x196608 or 64x196608x2000+gpu=4"
_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


class StepError(ValueError):
    """A step that cannot be read or cannot be taken. The message says what helps.

    `number`: of the step among those of a what-if, counted from 0; None where there is only one.
    """

    number: int | None = None


class UnknownNameError(StepError):
    """A step names what the fleet does not have. `kind`: node, rack, zone or flavor."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Shape:
    """So many equal nodes. `labels` as in `@rack=r9,zone=a`."""

    count: int
    capacity: Resources
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)

    def __str__(self) -> str:
        return f"{self.count}x{render_capacity(self.capacity)}{_render_labels(self.labels)}"


@dataclass(frozen=True, slots=True)
class AddInstances:
    """`count` new instances of a flavor are asked for."""

    count: int
    flavor: str

    def __str__(self) -> str:
        return f"add={self.count}x{self.flavor}"


@dataclass(frozen=True, slots=True)
class LoseNodes:
    """The nodes fail; what ran there is placed again."""

    nodes: tuple[str, ...]

    def __str__(self) -> str:
        return f"lose-node={','.join(self.nodes)}"


@dataclass(frozen=True, slots=True)
class LoseDomain:
    """Every node of a rack or zone fails."""

    scope: Scope
    name: str

    def __str__(self) -> str:
        return f"lose-{self.scope.value}={self.name}"


@dataclass(frozen=True, slots=True)
class DrainNode:
    """The node is cordoned and what runs there is placed elsewhere."""

    node: str

    def __str__(self) -> str:
        return f"drain={self.node}"


@dataclass(frozen=True, slots=True)
class AddNodes:
    """New nodes join; what waits is placed on them."""

    shape: Shape

    def __str__(self) -> str:
        return f"add-nodes={self.shape}"


@dataclass(frozen=True, slots=True)
class AddNodesLike:
    """New nodes join that are as one that is there, but empty; `labels` of their own come on top of its."""

    count: int
    node: str
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)

    def __str__(self) -> str:
        return f"add-like={self.count}x{self.node}{_render_labels(self.labels)}"


@dataclass(frozen=True, slots=True)
class ChangePolicy:
    """Decisions from here on follow another policy; what runs stays."""

    policy: Policy

    def __str__(self) -> str:
        return f"policy={self.policy.name}"


@dataclass(frozen=True, slots=True)
class PlaceAnew:
    """Every instance is placed again from an empty fleet: what the policy would have made of it."""

    def __str__(self) -> str:
        return "place-anew"


@dataclass(frozen=True, slots=True)
class CheckFailures:
    """Which failures of `count` nodes, racks or zones at once the fleet cannot absorb. Changes nothing."""

    count: int
    scope: Scope = Scope.NODE

    def __str__(self) -> str:
        return f"n-plus={self.count}" + ("" if self.scope is Scope.NODE else f"/{self.scope.value}")


Step = (
    AddInstances
    | LoseNodes
    | LoseDomain
    | DrainNode
    | AddNodes
    | AddNodesLike
    | ChangePolicy
    | PlaceAnew
    | CheckFailures
)


def parse_step(text: str) -> Step:
    """The step of a text. Raises StepError."""
    verb, _, value = text.strip().partition("=")
    parse = _PARSERS.get(verb)
    if parse is None:
        raise StepError(f"step {text!r}: there is no {verb!r}; there are {', '.join(_PARSERS)}")
    try:
        return parse(value)
    except (QuantityError, PolicyError, ValueError) as error:
        raise StepError(f"step {text!r}: {error}") from None


def parse_capacity(text: str) -> Resources:
    """Raises ValueError or QuantityError."""
    base, *extended = text.split("+")
    amounts = base.split("x")
    if not 2 <= len(amounts) <= len(BASE_NAMES) or not all(_is_number(one) for one in amounts):
        raise ValueError(f"{text!r} is no shape of a node: {SHAPE_HELP}")
    named = tuple(parse_extended(one) for one in extended)
    vcpu, memory_mib, disk_gib = (*map(int, amounts), 0)[:3]
    capacity = Resources(vcpu, memory_mib, disk_gib, named)
    for error in validate_resources(capacity):
        raise error
    return capacity


def render_capacity(capacity: Resources) -> str:
    """The inverse of `parse_capacity`."""
    disk = f"x{capacity.disk_gib}" if capacity.disk_gib else ""
    extended = "".join(f"+{name}={amount}" for name, amount in capacity.extended)
    return f"{capacity.vcpu}x{capacity.memory_mib}{disk}{extended}"


def parse_shape(text: str) -> Shape:
    """`SHAPE:COUNT`, as `--nodes` has it. Raises StepError."""
    shape, colon, count = text.partition(":")
    try:
        return Shape(_count(count if colon else "1"), parse_capacity(shape))
    except (QuantityError, ValueError) as error:
        raise StepError(f"nodes {text!r}: {error}; SHAPE:COUNT as in 64x196608:720") from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _count(text: str, largest: int = COUNT_MAX) -> int:
    if not _is_number(text) or not 1 <= int(text) <= largest:
        raise ValueError(f"{text!r} is no number from 1 to {largest}")
    return int(text)


def _parse_add(value: str) -> AddInstances:
    count, x, flavor = value.partition("x")
    if not x or not flavor:
        raise ValueError("COUNTxFLAVOR is wanted, as in add=50xsmall")
    return AddInstances(_count(count), flavor)


def _parse_add_nodes(value: str) -> AddNodes:
    shape, _, labels = value.partition("@")
    count, x, capacity = shape.partition("x")
    if not x:
        raise ValueError(f"COUNTxSHAPE is wanted, as in add-nodes=3x64x196608; SHAPE is {SHAPE_HELP}")
    return AddNodes(Shape(_count(count), parse_capacity(capacity), _parse_labels(labels)))


def _parse_add_like(value: str) -> AddNodesLike:
    counted, _, labels = value.partition("@")
    count, x, node = counted.partition("x")
    if not x or not node:
        raise ValueError("COUNTxNODE is wanted, as in add-like=3xn1")
    return AddNodesLike(_count(count), node, _parse_labels(labels))


def _parse_labels(text: str) -> Mapping[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if not all(equals and key for key, equals, _ in pairs):
        raise ValueError(f"{text!r} are no labels: KEY=VALUE,... as in @rack=r9,zone=a")
    return MappingProxyType({key: value for key, _, value in pairs})


def _render_labels(labels: Mapping[str, str]) -> str:
    return f"@{','.join(f'{key}={value}' for key, value in sorted(labels.items()))}" if labels else ""


def _name(value: str) -> str:
    if not value:
        raise ValueError("a name is wanted after the equals sign")
    return value


def _parse_check(value: str) -> CheckFailures:
    count, slash, scope = value.partition("/")
    known = [one.value for one in Scope]
    if slash and scope not in known:
        raise ValueError(f"{scope!r} is none of {', '.join(known)}")
    return CheckFailures(_count(count, FAILURES_AT_ONCE_MAX), Scope(scope) if slash else Scope.NODE)


def _parse_anew(value: str) -> PlaceAnew:
    if value:
        raise ValueError("place-anew takes no value")
    return PlaceAnew()


_PARSERS: Final[dict[str, Callable[[str], Step]]] = {
    "add": _parse_add,
    "lose-node": lambda value: LoseNodes(tuple(map(_name, value.split(",")))),
    "lose-rack": lambda value: LoseDomain(Scope.RACK, _name(value)),
    "lose-zone": lambda value: LoseDomain(Scope.ZONE, _name(value)),
    "drain": lambda value: DrainNode(_name(value)),
    "add-nodes": _parse_add_nodes,
    "add-like": _parse_add_like,
    "policy": lambda value: ChangePolicy(policy_named(_name(value))),
    "place-anew": _parse_anew,
    "n-plus": _parse_check,
}
