"""A trace: what is asked for when, and for how long.

**Pure**: columns that are not changed. Instances of one shape share one Request, so that a million of
them fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from cumulet.resources import Resources
from scheduler.model import Request
from scheduler.summary import CommonShape, weighed_shapes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
COPIES_MAX: Final = 1_000
STAYS: Final = math.inf  # a departure that never comes


class TraceError(ValueError):
    """A trace that cannot be. The message names the row and the field."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One instance; `departure_s` is `STAYS` for one that outlives the trace."""

    arrival_s: float
    departure_s: float
    request: Request


@dataclass(frozen=True)
class Trace:
    """Sorted by arrival. `shapes[shape[i]]` is instance i's request; its uid is that of the shape."""

    shapes: tuple[Request, ...]
    shape: Ints
    arrival_s: Floats
    departure_s: Floats

    @classmethod
    def of(cls, arrivals: Iterable[Arrival]) -> Trace:
        """The trace of single arrivals; those at one time keep their order. Raises TraceError."""
        index: dict[tuple[object, ...], int] = {}
        shapes: list[Request] = []
        rows: list[tuple[float, float, int]] = []
        for number, one in enumerate(arrivals):
            if not one.arrival_s <= one.departure_s or not math.isfinite(one.arrival_s):
                raise TraceError(
                    f"instance {number}: arrives at {one.arrival_s:g} s, departs at {one.departure_s:g} s"
                )
            found = index.setdefault(shape_key(one.request), len(shapes))
            if found == len(shapes):
                shapes.append(one.request)
            rows.append((one.arrival_s, one.departure_s, found))
        rows.sort(key=lambda row: row[0])
        return cls.columns(shapes, *(list(column) for column in zip(*rows, strict=True)))

    @classmethod
    def columns(
        cls,
        shapes: Sequence[Request],
        arrival_s: Sequence[float] = (),
        departure_s: Sequence[float] = (),
        shape: Sequence[int] = (),
    ) -> Trace:
        """The trace of columns that are sorted already."""
        return cls(
            tuple(shapes),
            np.asarray(shape, dtype=np.int64),
            np.asarray(arrival_s, dtype=np.float64),
            np.asarray(departure_s, dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.shape)

    def arrivals(self) -> Iterable[Arrival]:
        """The instances one by one."""
        for start, end, shape in zip(
            self.arrival_s.tolist(), self.departure_s.tolist(), self.shape.tolist(), strict=True
        ):
            yield Arrival(start, end, self.shapes[shape])

    @cached_property
    def end_s(self) -> float:
        """The last arrival or departure that comes."""
        finite = self.departure_s[np.isfinite(self.departure_s)]
        last = [*self.arrival_s[-1:].tolist(), *([float(finite.max())] if len(finite) else [])]
        return max(last, default=0.0)

    @cached_property
    def common(self) -> tuple[CommonShape, ...]:
        """The most common resource vectors, for fragmentation."""
        counts = np.bincount(self.shape, minlength=len(self.shapes)).tolist()
        weighed: dict[Resources, int] = {}
        for request, count in zip(self.shapes, counts, strict=True):
            weighed[request.resources] = weighed.get(request.resources, 0) + count
        return weighed_shapes(weighed)

    def first(self, count: int) -> Trace:
        """The first instances only."""
        return Trace(self.shapes, self.shape[:count], self.arrival_s[:count], self.departure_s[:count])

    def copies(self, count: int) -> Trace:
        """`count` copies of every instance, next to each other. Raises TraceError."""
        if not 1 <= count <= COPIES_MAX:
            raise TraceError(f"{count} copies of a trace are asked for, must be 1 to {COPIES_MAX}")
        return Trace(
            self.shapes,
            np.repeat(self.shape, count),
            np.repeat(self.arrival_s, count),
            np.repeat(self.departure_s, count),
        )


def shape_key(request: Request) -> tuple[object, ...]:
    """Requests of one key differ in uid and name only."""
    return (
        request.resources,
        request.constraints(),
        request.preferences,
        request.groups,
        request.numa_cells,
        request.devices,
        request.lifetime_s,
    )
