"""Fleets and batches for the scheduler's tests: small, contended, with every kind of obstacle.

**Pure.** Each node and request is decoded from a few bytes; drawn field by field, an example cost 60 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from hypothesis import strategies as st

from cumulet.resources import Resources
from scheduler.model import NodeView, Request, View

BYTES: Final = 24  # more than one node or request decodes
T = TypeVar("T")


class Choices:
    """Choices decoded from bytes; zero bytes are the simplest ones, to which Hypothesis shrinks."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def below(self, bound: int) -> int:
        return next(self._data) % bound

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def vector(self, bound: int) -> Resources:
        """Small amounts, so that ties, exact fits and zeros are common."""
        gpu = self.below(bound) if self.below(3) == 2 else 0
        fpga = self.below(bound) if self.below(4) == 3 else 0
        extended = (("gpu", gpu), ("fpga", fpga))
        return Resources(self.below(bound), self.below(bound), self.below(bound), extended)

    def labels(self) -> dict[str, str]:
        drawn = {"disk": self.one_of(("", "", "a")), "zone": self.one_of(("", "a", "b"))}
        return {key: value for key, value in drawn.items() if value}


def _node(name: str, choices: Choices) -> NodeView:
    obstacle = choices.one_of(("", "", "", "", "", "", "cordoned", "not ready", "both"))
    ready = obstacle in ("", "cordoned")
    return NodeView(
        name=name,
        schedulable=obstacle in ("", "not ready"),
        ready=ready,
        not_ready_reason="" if ready else "the agent is silent",
        capacity=choices.vector(23),
        allocation_ratio={
            "vcpu": choices.one_of((1.0, 4.0, 1.1)),
            "memory_mib": choices.one_of((1.0, 2.0, 1.0, 0.29)),
        },
        allocated=choices.vector(4),
        reserved=Resources(choices.below(3), choices.below(3)),
        security_level=choices.below(3),
        labels=choices.labels(),
    )


def _request(uid: str, choices: Choices) -> Request:
    return Request(
        uid=uid,
        project="default",
        name=f"vm-{uid}",
        resources=choices.vector(4),
        security_level=choices.one_of((0, 0, 0, 0, 1, 2)),
        node_selector=choices.labels() if choices.below(5) == 4 else {},
        excluded_nodes=frozenset(choices.one_of(((), (), (), ("n0",), ("n1",)))),
    )


def _many(count_max: int) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.binary(min_size=BYTES, max_size=BYTES), max_size=count_max)


def views() -> st.SearchStrategy[View]:
    """A fleet of up to 6 nodes n0, n1, ..."""
    return st.builds(
        View,
        st.integers(1, 9),
        _many(6).map(lambda rows: tuple(_node(f"n{i}", Choices(row)) for i, row in enumerate(rows))),
    )


def batches() -> st.SearchStrategy[tuple[Request, ...]]:
    """Up to 8 requests u0, u1, ..."""
    return _many(8).map(lambda rows: tuple(_request(f"u{i}", Choices(row)) for i, row in enumerate(rows)))


def node(name: str, vcpu: int = 8, memory_mib: int = 8192, **fields: object) -> NodeView:
    """A plain node for examples."""
    return NodeView(name, Resources(vcpu, memory_mib, 100), **fields)  # type: ignore[arg-type]


def request(uid: str, vcpu: int = 1, memory_mib: int = 1024, **fields: object) -> Request:
    """A plain request for examples."""
    return Request(uid, "default", f"vm-{uid}", Resources(vcpu, memory_mib), **fields)  # type: ignore[arg-type]
