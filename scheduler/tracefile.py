"""Traces as rows: which format a table has, and what each row asks for.

**Pure**: rows of texts or numbers in, a trace or nodes out; docs/reference/traces.md describes the formats.
A fault is a RowError with the row and the column. A format is known by its columns, not by its file's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cumulet.resources import BASE_NAMES, QuantityError, Resources, validate_resources
from scheduler.model import ModelError, NodeView, Request, Toleration
from scheduler.topology import SHARE_WHOLE, Device, DeviceRequest, TopologyError
from scheduler.trace import STAYS, Arrival, Trace, shape_key

OURS_TIMES: Final = ("arrival_s", "duration_s", "departure_s")
_OURS_OTHER: Final = (
    "name",
    "project",
    "groups",
    "node_selector",
    "tolerations",
    "capabilities",
    "lifetime_s",
)
_LISTS: Final = ";"  # between the items of a cell
KIB_PER_MIB: Final = 1024  # bitbrains has memory in KiB
MS_PER_S: Final = 1000

Row = Mapping[str, Any]


class RowError(ValueError):
    """A cell that cannot be. `row` counts from 1 without the header; `column` is empty for all of it."""

    def __init__(self, row: int, column: str, description: str) -> None:
        super().__init__(f"row {row}{f', {column}' if column else ''}: {description}")
        self.row = row
        self.column = column
        self.description = description


@dataclass(frozen=True, slots=True)
class Format:
    """One format of traces: its name, the columns that it is known by, and how a row is read.

    `read(row, cell)` gives arrival, departure and the request; `cell` reads numbers with typed errors.
    """

    name: str
    columns: frozenset[str]
    read: Callable[[Cells], Arrival]


class Cells:
    """One row's cells, each read by its column's name."""

    def __init__(self, row: Row, number: int) -> None:
        self.row = row
        self.number = number

    def text(self, column: str) -> str:
        """The text of a cell; empty where there is none."""
        value = self.row.get(column)
        return "" if value is None else str(value)

    def number_of(self, column: str, default: float | None = None) -> float:
        """A finite number that is not negative. Raises RowError."""
        text = self.text(column)
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            raise RowError(self.number, column, f"{text!r} is no number") from None
        if not math.isfinite(value) or value < 0:
            raise RowError(self.number, column, f"{text} is not a number from 0 on")
        return value

    def amount(self, column: str, factor: float = 1) -> int:
        """A whole amount, rounded up after the factor. Raises RowError."""
        return math.ceil(self.number_of(column, 0.0) * factor)

    def items(self, column: str) -> list[str]:
        return [item.strip() for item in self.text(column).split(_LISTS) if item.strip()]

    def request(self, **fields: Any) -> Request:
        """A request of these fields. Raises RowError."""
        try:
            return Request(**fields)
        except (ModelError, TopologyError) as error:
            raise RowError(self.number, "", str(error)) from None

    def resources(self, amounts: Mapping[str, int]) -> Resources:
        """Raises RowError."""
        try:
            found = Resources.of(amounts)
            for error in validate_resources(found, "resources"):
                raise error
        except QuantityError as error:
            raise RowError(self.number, error.field.removeprefix("resources."), error.description) from None
        return found


def find_format(columns: Iterable[str]) -> Format | None:
    """The format whose columns are all there."""
    there = frozenset(columns)
    return next((one for one in FORMATS if one.columns <= there), None)


def parse_rows(rows: Iterable[Row], found: Format) -> Trace:
    """The trace of a table's rows. Raises RowError."""
    return Trace.of(_arrivals(rows, found))


def _arrivals(rows: Iterable[Row], found: Format) -> Iterator[Arrival]:
    known: dict[tuple[object, ...], Request] = {}
    for number, row in enumerate(rows, 1):
        one = found.read(Cells(row, number))
        if not one.arrival_s <= one.departure_s:
            raise RowError(
                number, "", f"it departs at {one.departure_s:g} s and arrives at {one.arrival_s:g} s"
            )
        # One Request for a shape, or a million rows would be a million of them.
        request = known.setdefault(shape_key(one.request), one.request)
        yield Arrival(one.arrival_s, one.departure_s, request)


def _read_ours(cells: Cells) -> Arrival:
    arrival_s = cells.number_of("arrival_s")
    departure_s = cells.number_of("departure_s", STAYS) if cells.text("departure_s") else STAYS
    if cells.text("duration_s"):
        departure_s = arrival_s + cells.number_of("duration_s")
    amounts = {
        column: cells.amount(column)
        for column in cells.row
        if column and column not in OURS_TIMES and column not in _OURS_OTHER
    }
    project = cells.text("project") or "default"
    request = cells.request(
        uid="",
        project=project,
        name=cells.text("name"),
        resources=cells.resources(amounts),
        groups=tuple(cells.items("groups")),
        node_selector=dict(_pairs(cells, "node_selector")),
        tolerations=frozenset(_tolerations(cells)),
        capabilities=frozenset(cells.items("capabilities")),
        lifetime_s=cells.amount("lifetime_s") if cells.text("lifetime_s") else None,
    )
    return Arrival(arrival_s, departure_s, request)


def _pairs(cells: Cells, column: str) -> Iterator[tuple[str, str]]:
    for item in cells.items(column):
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise RowError(cells.number, column, f"{item!r} is not KEY=VALUE; {_LISTS} is between several")
        yield key, value


def _tolerations(cells: Cells) -> Iterator[Toleration]:
    for item in cells.items("tolerations"):
        key, equals, value = item.partition("=")
        yield Toleration(key, value if equals else None)


def _read_azure(cells: Cells) -> Arrival:
    arrival_s = cells.number_of("arrival_s")
    stays = cells.text("censored") == "1"
    departure_s = STAYS if stays else arrival_s + cells.number_of("duration_s")
    resources = cells.resources({"vcpu": cells.amount("vcpu"), "memory_mib": cells.amount("mem_gb", 1024)})
    request = cells.request(uid="", project="azure", name=cells.text("flavor"), resources=resources)
    return Arrival(arrival_s, departure_s, request)


def _read_openb(cells: Cells) -> Arrival:
    """CPUs are in thousandths here, on the nodes too. `gpu_milli` counts what the devices are asked for."""
    arrival_s = cells.number_of("creation_time", 0.0)
    departure_s = cells.number_of("deletion_time") if cells.text("deletion_time") else STAYS
    count, share = cells.amount("num_gpu"), cells.amount("gpu_milli")
    models = frozenset(model for model in cells.text("gpu_spec").split("|") if model)
    try:
        wants = (DeviceRequest(models, count, share if count == 1 else SHARE_WHOLE),) if count else ()
    except TopologyError as error:
        raise RowError(cells.number, "num_gpu", str(error)) from None
    vector = {
        "cpu_milli": cells.amount("cpu_milli"),
        "memory_mib": cells.amount("memory_mib"),
        "gpu_milli": sum(want.count * want.share_milli for want in wants),
    }
    resources = cells.resources(vector)
    request = cells.request(
        uid="", project="openb", name=cells.text("name"), resources=resources, devices=wants
    )
    return Arrival(arrival_s, max(departure_s, arrival_s), request)


def _read_tasks(cells: Cells) -> Arrival:
    arrival_s = cells.number_of("submission_time") / MS_PER_S
    resources = cells.resources(
        {"vcpu": cells.amount("cpu_count"), "memory_mib": cells.amount("mem_capacity", 1 / KIB_PER_MIB)}
    )
    request = cells.request(uid="", project="bitbrains", name=cells.text("id"), resources=resources)
    return Arrival(arrival_s, arrival_s + cells.number_of("duration") / MS_PER_S, request)


FORMATS: Final = (
    Format("azure", frozenset({"arrival_s", "vcpu", "mem_gb", "duration_s", "censored"}), _read_azure),
    Format("openb", frozenset({"cpu_milli", "memory_mib", "num_gpu", "gpu_milli"}), _read_openb),
    Format(
        "workload-traces",
        frozenset({"submission_time", "duration", "cpu_count", "mem_capacity"}),
        _read_tasks,
    ),
    Format("cumulet", frozenset({"arrival_s", "vcpu", "memory_mib"}), _read_ours),
)
NODE_COLUMNS: Final = frozenset({"sn", "cpu_milli", "memory_mib", "gpu", "model"})


def parse_openb_nodes(rows: Iterable[Row]) -> tuple[NodeView, ...]:
    """The nodes of openb's node list; `cpu_milli` is a resource of its own. Raises RowError."""
    return tuple(_openb_node(Cells(row, number)) for number, row in enumerate(rows, 1))


def _openb_node(cells: Cells) -> NodeView:
    model, count = cells.text("model"), cells.amount("gpu")
    devices = tuple(Device(f"gpu-{index}", model) for index in range(count))
    vector = {
        "cpu_milli": cells.amount("cpu_milli"),
        "memory_mib": cells.amount("memory_mib"),
        "gpu_milli": SHARE_WHOLE * count,
    }
    try:
        return NodeView(name=cells.text("sn"), capacity=cells.resources(vector), devices=devices)
    except ModelError as error:
        raise RowError(cells.number, "gpu", str(error)) from None


def render_rows(trace: Trace) -> Iterator[Sequence[str]]:
    """A trace as a table of the documented format: the titles, then a row for each instance.

    Devices, cells and preferences have no column; what asks for them is refused.
    """
    names = sorted({name for shape in trace.shapes for name, _ in shape.resources.extended})
    yield ("arrival_s", "departure_s", "project", "name", *BASE_NAMES, *names, *_OURS_OTHER[2:])
    for one in trace.arrivals():
        request = one.request
        if request.devices or request.numa_cells or request.preferences or request.security_level:
            raise RowError(0, "", f"instance {request.name} asks for what this format has no column for")
        yield (
            repr(one.arrival_s),
            "" if one.departure_s == STAYS else repr(one.departure_s),
            request.project,
            request.name,
            *(str(request.resources.get(name)) for name in (*BASE_NAMES, *names)),
            _LISTS.join(request.groups),
            _LISTS.join(f"{key}={value}" for key, value in sorted(request.node_selector.items())),
            _LISTS.join(
                sorted(
                    one.key if one.value is None else f"{one.key}={one.value}" for one in request.tolerations
                )
            ),
            _LISTS.join(sorted(request.capabilities)),
            "" if request.lifetime_s is None else str(request.lifetime_s),
        )
