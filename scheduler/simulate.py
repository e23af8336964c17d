"""Replay a trace on a fleet: what a policy makes of it over time.

**Pure**: the same view, trace, policy and seed give the same result. Every decision is the planner's, through
`scheduler.seats`; the books here are kept apart from it.

Departures come before arrivals at equal times. An instance that fits nowhere is refused and does not come
back. The *bound* is the least number of nodes that could hold what is there: the maximum over resources of
the fewest nodes, largest first, whose allocatable amounts add up to the demand; no packing needs fewer.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from scheduler.answer import Placement
from scheduler.model import Request, View
from scheduler.policy import Policy
from scheduler.seats import Seats, open_seats
from scheduler.summary import demand_rows, fragmentation, is_open, shares_of
from scheduler.trace import Trace

SAMPLES_DEFAULT: Final = 400  # points of a curve; a picture is some 800 pixels wide
SAMPLES_MAX: Final = 100_000

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """Curves over `time_s`, each float64[n_sample] or [n_resource, n_sample]. Shares are 0..1.

    `rejected` counts from the beginning on; `bound` is of what is placed.
    """

    time_s: Floats
    resources: tuple[str, ...]
    utilisation: Floats
    fragmentation: Floats
    instances: Floats
    nodes_in_use: Floats
    bound: Floats
    rejected: Floats


@dataclass(frozen=True, slots=True)
class FirstFailure:
    """When the first instance was refused, and how full the fleet was then, by resource (0..1)."""

    time_s: float
    placed: int
    utilisation: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Result:
    """`average_*` are means over time. `offered_bound_peak`: the bound's peak had nothing been refused."""

    policy: str
    nodes: int
    arrivals: int
    rejected: int
    rejected_vcpu_hours: float
    peak_nodes: int
    peak_bound: int
    offered_bound_peak: int
    average_nodes: float
    average_bound: float
    average_utilisation: tuple[tuple[str, float], ...]
    average_fragmentation: tuple[tuple[str, float], ...]
    first_failure: FirstFailure | None

    @property
    def peak_over_bound(self) -> float:
        return self.peak_nodes / self.peak_bound if self.peak_bound else 0.0

    @property
    def average_over_bound(self) -> float:
        return self.average_nodes / self.average_bound if self.average_bound else 0.0


class Bound:
    """The fewest nodes that could hold a demand."""

    def __init__(self, capacity: Ints) -> None:
        """`capacity` int64[n_resource, n_node]."""
        ordered = -np.sort(-capacity, axis=1)
        self._sums: list[list[int]] = np.cumsum(ordered, axis=1).tolist()

    def of(self, demand: Sequence[int]) -> int:
        """One more than there are nodes where all of them are too few."""
        return max(
            (bisect_left(sums, want) + 1 for sums, want in zip(self._sums, demand, strict=True) if want > 0),
            default=0,
        )


class _Books:
    """What is where, counted event by event."""

    def __init__(self, view: View, trace: Trace) -> None:
        names: dict[str, None] = {}
        for vector in (*(node.allocatable for node in view.nodes), *(one.resources for one in trace.shapes)):
            names |= dict.fromkeys(vector.names())
        self.names = tuple(names)
        self.index = {node.name: at for at, node in enumerate(view.nodes)}
        shape = (len(self.names), len(view.nodes))
        self.capacity = _matrix([node.allocatable.as_dict() for node in view.nodes], self.names, shape)
        self.free = self.capacity - _matrix(
            [node.allocated.as_dict() for node in view.nodes], self.names, shape
        )
        self.open = np.array([is_open(node) for node in view.nodes], dtype=bool)
        self.demands = [
            np.array([one.resources.get(name) for name in self.names], dtype=np.int64) for one in trace.shapes
        ]
        self.lists = [demand.tolist() for demand in self.demands]
        self.used: list[int] = (self.capacity - self.free).sum(axis=1).tolist()
        self.residents = [len(node.residents) or int(not node.allocated.is_zero()) for node in view.nodes]
        self.nodes_in_use = sum(count > 0 for count in self.residents)
        self.instances = sum(self.residents)

    def enter(self, shape: int, node: int) -> None:
        self._move(shape, node, +1)
        self.nodes_in_use += self.residents[node] == 1

    def leave(self, shape: int, node: int) -> None:
        self._move(shape, node, -1)
        self.nodes_in_use -= self.residents[node] == 0

    def _move(self, shape: int, node: int, sign: int) -> None:
        self.free[:, node] -= sign * self.demands[shape]
        self.residents[node] += sign
        self.instances += sign
        self.used = [have + sign * want for have, want in zip(self.used, self.lists[shape], strict=True)]

    def total(self) -> list[int]:
        """Allocatable amounts of the open nodes, at least 1 so that shares are defined."""
        sums: list[int] = np.maximum(self.capacity[:, self.open].sum(axis=1), 1).tolist()
        return sums


def _matrix(rows: Sequence[dict[str, int]], names: Sequence[str], shape: tuple[int, int]) -> Ints:
    return np.array([[row.get(name, 0) for row in rows] for name in names], dtype=np.int64).reshape(shape)


@dataclass(frozen=True, slots=True)
class Event:
    """One turn of a replay, after its decision. `node` is -1 for an instance that was refused."""

    time_s: float
    number: int
    arrives: bool
    node: int


def replay(seats: Seats, index: dict[str, int], trace: Trace, rng: random.Random) -> Iterator[Event]:
    """Let instances come and go. The inner loop of simulate and bench: only the seats decide."""
    leaving: list[tuple[float, int, Placement, Request]] = []
    for number, one in enumerate(trace.arrivals()):
        while leaving and leaving[0][0] <= one.arrival_s:
            time_s, gone, placement, request = heapq.heappop(leaving)
            seats.leave(request, placement)
            yield Event(time_s, gone, False, index[placement.node])
        seats.advance(max(int(one.arrival_s), 0))
        request = _named(one.request, number)
        placed = seats.place((request,), rng)[0]
        if placed is None:
            yield Event(one.arrival_s, number, True, -1)
            continue
        heapq.heappush(leaving, (one.departure_s, number, placed, request))
        yield Event(one.arrival_s, number, True, index[placed.node])
    while leaving and leaving[0][0] <= trace.end_s:
        time_s, gone, placement, request = heapq.heappop(leaving)
        seats.leave(request, placement)
        yield Event(time_s, gone, False, index[placement.node])


def _named(shape: Request, number: int) -> Request:
    """The shape's request under a uid of its own, where that matters: residents are known by it."""
    if shape.groups or shape.numa_cells or shape.devices:
        return replace(shape, uid=f"t{number}")
    return shape


class _Clock:
    """Means over time of what changes at events, and the curves' points."""

    def __init__(self, times: Floats, resources: int) -> None:
        self._times: list[float] = times.tolist()
        self._next = 0
        self._last_s = self._times[0] if self._times else 0.0
        self.sums = np.zeros(2 + resources)  # nodes, bound, each resource
        self.elapsed_s = 0.0
        self.points: list[tuple[float, ...]] = []

    def advance(self, time_s: float, books: _Books, bound: int, point: _Point) -> None:
        """Up to `time_s` things were as the books say."""
        if time_s > self._last_s:
            span_s = time_s - self._last_s
            self.sums += span_s * np.array([books.nodes_in_use, bound, *books.used], dtype=np.float64)
            self.elapsed_s += span_s
            self._last_s = time_s
        while self._next < len(self._times) and self._times[self._next] < time_s:
            self.points.append(point.of(books, bound))
            self._next += 1

    def finish(self, books: _Books, bound: int, point: _Point) -> None:
        while len(self.points) < len(self._times):
            self.points.append(point.of(books, bound))


class _Point:
    """One point of every curve."""

    def __init__(self, books: _Books, trace: Trace) -> None:
        self._total = books.total()
        self._demands = demand_rows(trace.common, books.names)
        self._shares = shares_of(trace.common)
        self.rejected = 0

    def of(self, books: _Books, bound: int) -> tuple[float, ...]:
        lost = fragmentation(books.free[:, books.open], self._demands, self._shares)
        used = (have / total for have, total in zip(books.used, self._total, strict=True))
        return (books.instances, books.nodes_in_use, bound, self.rejected, *used, *lost.tolist())


def simulate(
    view: View, trace: Trace, policy: Policy, seed: int = 0, samples: int = SAMPLES_DEFAULT
) -> tuple[Result, Series]:
    """Replay the trace; the fleet's own instances stay where they are throughout."""
    books = _Books(view, trace)
    bounds, point = Bound(books.capacity[:, books.open]), _Point(books, trace)
    start_s = float(trace.arrival_s[0]) if len(trace) else 0.0
    times = np.linspace(start_s, max(trace.end_s, start_s), max(2, min(samples, SAMPLES_MAX)))
    clock, failures = _Clock(times, len(books.names)), _Failures(books)
    seats = open_seats(view, policy, trace.shapes)
    shapes: list[int] = trace.shape.tolist()
    bound = peak_bound = bounds.of(books.used)
    peak_nodes = books.nodes_in_use
    for event in replay(seats, books.index, trace, random.Random(seed)):
        clock.advance(event.time_s, books, bound, point)
        shape = shapes[event.number]
        if event.node < 0:
            point.rejected += 1
            failures.note(
                event, trace.shapes[shape], float(trace.departure_s[event.number]), books, trace.end_s
            )
            continue
        (books.enter if event.arrives else books.leave)(shape, event.node)
        bound = bounds.of(books.used)
        peak_nodes, peak_bound = max(peak_nodes, books.nodes_in_use), max(peak_bound, bound)
    clock.finish(books, bound, point)
    series = _series(times, books.names, clock.points)
    span_s = clock.elapsed_s or 1.0
    means = clock.sums / span_s
    result = Result(
        policy=policy.name,
        nodes=len(view.nodes),
        arrivals=len(trace),
        rejected=point.rejected,
        rejected_vcpu_hours=failures.vcpu_hours,
        peak_nodes=peak_nodes,
        peak_bound=peak_bound,
        offered_bound_peak=offered_peak(trace, bounds, books.names),
        average_nodes=float(means[0]),
        average_bound=float(means[1]),
        average_utilisation=_pairs(books.names, means[2:] / np.array(books.total())),
        average_fragmentation=_pairs(books.names, series.fragmentation.mean(axis=1)),
        first_failure=failures.first,
    )
    return result, series


class _Failures:
    """The first refusal, and how much was refused."""

    def __init__(self, books: _Books) -> None:
        self.first: FirstFailure | None = None
        self.vcpu_hours = 0.0
        self._total = books.total()
        self._placed = 0

    def note(self, event: Event, request: Request, departure_s: float, books: _Books, end_s: float) -> None:
        if self.first is None:
            shares = (have / total for have, total in zip(books.used, self._total, strict=True))
            self.first = FirstFailure(
                event.time_s, event.number, tuple(zip(books.names, shares, strict=True))
            )
        self.vcpu_hours += request.resources.vcpu * (min(departure_s, end_s) - event.time_s) / 3600


def offered_peak(trace: Trace, bounds: Bound, names: Sequence[str]) -> int:
    """The largest bound of everything that is asked for, placed or not."""
    demands = np.array(
        [[one.resources.get(name) for name in names] for one in trace.shapes], dtype=np.int64
    ).reshape(len(trace.shapes), len(names))
    leaves = np.isfinite(trace.departure_s)
    times = np.concatenate([trace.departure_s[leaves], trace.arrival_s])
    changes = np.concatenate([-demands[trace.shape[leaves]], demands[trace.shape]])
    # Stable: at equal times the departures, which come first here, stay first.
    running = np.cumsum(changes[np.argsort(times, kind="stable")], axis=0)
    if not len(running):
        return 0
    # A bound rises with each resource's demand alone, so the peaks of the resources are enough.
    peaks: list[int] = running.max(axis=0).tolist()
    return bounds.of(peaks)


def _series(times: Floats, names: tuple[str, ...], points: Sequence[tuple[float, ...]]) -> Series:
    table = np.array(points, dtype=np.float64).T
    count = len(names)
    return Series(
        time_s=times,
        resources=names,
        instances=table[0],
        nodes_in_use=table[1],
        bound=table[2],
        rejected=table[3],
        utilisation=table[4 : 4 + count],
        fragmentation=table[4 + count :],
    )


def _pairs(names: Sequence[str], values: Floats) -> tuple[tuple[str, float], ...]:
    return tuple(zip(names, values.tolist(), strict=True))
