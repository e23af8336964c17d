"""Why a node does not take an instance: one type per constraint, each a short sentence.

**Pure**: immutable values. `kind` is the stable key by which refusals are counted; it names the
resource or label too, since "memory_mib on 3 nodes" helps and "resources on 3 nodes" does not.
"""

from __future__ import annotations

from dataclasses import dataclass


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


Reason = Cordoned | NotReady | Excluded | SecurityLevelTooLow | LabelMismatch | NotEnough
