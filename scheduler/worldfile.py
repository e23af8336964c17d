"""A fleet as a document: nodes, groups, flavors, instances, policy. The format of `whatif FILE`.

**Pure**: `parse_world` and `render_world` are inverse to each other up to the shorthands (`count`, flavors of
instances), which are written out. docs/reference/traces.md describes it. Raises FieldError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from cumulet.resources import Resources
from scheduler.document import FieldError, Fields, Path
from scheduler.group import GroupError, PlacementGroup, Rule, Scope
from scheduler.model import (
    Effect,
    Gang,
    ModelError,
    NodeView,
    Preference,
    Request,
    Resident,
    Taint,
    Toleration,
    View,
)
from scheduler.policy import PACK, PolicyError, policy_named
from scheduler.topology import SHARE_WHOLE, Cell, Choice, Device, DeviceRequest, DeviceShare, TopologyError
from scheduler.world import World

FORMAT: Final = "cumulet-fleet/1"
COUNT_MAX: Final = 200_000  # nodes or instances of one entry
PROJECT_DEFAULT: Final = "default"


@dataclass(frozen=True, slots=True)
class _Placed:
    request: Request
    node: str
    choice: Choice
    path: Path


def parse_world(document: Any) -> World:
    """The world of a document."""
    fields = Fields(document, ())
    found_format = fields.take("format", str, FORMAT)
    if found_format != FORMAT:
        raise FieldError(("format",), f"is {found_format!r}, this reads {FORMAT}")
    revision = fields.take("revision", int, 0)
    groups = {group.name: group for group in map(_group, *_columns(fields, "groups"))}
    flavors = {request.name: request for request in map(_flavor, *_columns(fields, "flavors"))}
    nodes = {}
    for path, value in fields.items("nodes", dict):
        for node in _nodes(path, value):
            if node.name in nodes:
                raise FieldError((*path, "name"), f"node {node.name} is there twice")
            nodes[node.name] = node
    placed = [
        one for path, value in fields.items("instances", dict) for one in _instances(path, value, flavors)
    ]
    policy = fields.take("policy", str, PACK.name)
    fields.close()
    _check_uids(placed)
    try:
        return World(
            View(revision, tuple(_inhabited(nodes, placed)), groups),
            flavors,
            tuple(one.request for one in placed if not one.node),
            policy_named(policy),
        )
    except PolicyError as error:
        raise FieldError(("policy",), str(error)) from None


def _columns(fields: Fields, name: str) -> tuple[list[Path], list[Any]]:
    rows = list(fields.items(name, dict))
    return [path for path, _ in rows], [value for _, value in rows]


def _check_uids(placed: list[_Placed]) -> None:
    seen: set[str] = set()
    for one in placed:
        if one.request.uid in seen:
            raise FieldError((*one.path, "uid"), f"instance {one.request.uid} is there twice")
        seen.add(one.request.uid)


def _inhabited(nodes: Mapping[str, NodeView], placed: list[_Placed]) -> Iterator[NodeView]:
    """The nodes with the instances on them."""
    there: dict[str, list[_Placed]] = {}
    for one in placed:
        if one.node and one.node not in nodes:
            raise FieldError((*one.path, "node"), f"there is no node {one.node}")
        there.setdefault(one.node, []).append(one)
    for name, node in nodes.items():
        residents = there.get(name, [])
        yield replace(
            node,
            allocated=Resources.total(one.request.resources for one in residents),
            residents=tuple(Resident(one.request, one.choice) for one in residents),
        )


def _group(path: Path, value: Any) -> PlacementGroup:
    fields = Fields(value, path)
    try:
        group = PlacementGroup(
            name=fields.take("name", str),
            rule=_one_of(Rule, fields, "rule"),
            scope=_one_of(Scope, fields, "scope", Scope.NODE),
            hard=fields.take("hard", bool, True),
            max_per_domain=fields.take("max_per_domain", int, 0),
        )
    except GroupError as error:
        raise FieldError((*path, "max_per_domain"), str(error)) from None
    fields.close()
    return group


def _one_of(kind: Any, fields: Fields, name: str, default: Any = None) -> Any:
    """A member of an enumeration by its value."""
    text = fields.take(name, str) if default is None else fields.take(name, str, default.value)
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(one.value for one in kind)
        raise FieldError((*fields.path, name), f"is {text!r}, must be one of {known}") from None


def _nodes(path: Path, value: Any) -> Iterator[NodeView]:
    """The nodes of an entry; with `count` several, where `{}` in the name is the number."""
    fields = Fields(value, path)
    pattern, count = fields.take("name", str), _count(fields)
    first = fields.take("first", int, 1)
    cells, devices = _cells(fields), tuple(_devices(fields))
    cordoned, not_ready = _reason(fields, "cordoned"), _reason(fields, "not_ready")
    if not_ready == "":
        not_ready = "no reason was given"
    try:
        node = NodeView(
            name=pattern,
            capacity=fields.resources("capacity", needed=True),
            reserved=fields.resources("reserved"),
            allocation_ratio=fields.mapping("allocation_ratio", float),
            schedulable=cordoned is None,
            cordon_reason=cordoned or "",
            ready=not_ready is None,
            not_ready_reason=not_ready or "",
            security_level=fields.take("security_level", int, 0),
            labels=fields.mapping("labels", str),
            taints=tuple(_taint(where, text) for where, text in fields.items("taints", str)),
            dedicated_to=_words(fields, "dedicated_to"),
            capabilities=_words(fields, "capabilities"),
            cells=cells,
            devices=devices,
            idle_watts=fields.take("idle_watts", int, 0),
            full_watts=fields.take("full_watts", int, 0),
            cost_milli=fields.take("cost_milli", int, 0),
        )
    except ModelError as error:
        raise FieldError(path, str(error)) from None
    fields.close()
    names = _numbered(pattern, count, first, (*path, "name"))
    yield from (replace(node, name=name) for name in names)


def _count(fields: Fields) -> int:
    count = fields.take("count", int, 1)
    if not 1 <= count <= COUNT_MAX:
        raise FieldError((*fields.path, "count"), f"is {count}, must be 1 to {COUNT_MAX}")
    return count


def _numbered(pattern: str, count: int, first: int, path: Path) -> Iterator[str]:
    """`{}` is the number, with leading zeros so that names sort by it."""
    if "{}" not in pattern:
        if count > 1:
            raise FieldError(path, f"is {pattern!r}; with count {count} it must have {{}} for the number")
        yield pattern
        return
    width = len(str(first + count - 1))
    for number in range(first, first + count):
        yield pattern.replace("{}", f"{number:0{width}}")


def _reason(fields: Fields, name: str) -> str | None:
    """True or a reason; None if it is not so."""
    if not fields.has(name):
        return None
    try:
        return "" if fields.take(name, bool) else None
    except FieldError:
        return fields.take(name, str)


def _words(fields: Fields, name: str) -> frozenset[str]:
    return frozenset(word for _, word in fields.items(name, str))


def _taint(path: Path, text: str) -> Taint:
    """`KEY[=VALUE][:EFFECT]`"""
    pair, colon, effect = text.partition(":")
    key, _, value = pair.partition("=")
    if not key or (colon and effect not in set(Effect)):
        raise FieldError(path, f"{text!r} is not KEY[=VALUE][:EFFECT], EFFECT one of {', '.join(Effect)}")
    return Taint(key, value, Effect(effect) if colon else Effect.NO_SCHEDULE)


def _cells(fields: Fields) -> tuple[Cell, ...]:
    """A list of cells, or a number of them over which the capacity is split evenly."""
    if not fields.has("cells"):
        return ()
    try:
        count = fields.take("cells", int)
    except FieldError:
        return tuple(_cell(path, value) for path, value in fields.items("cells", dict))
    if count < 1:
        raise FieldError((*fields.path, "cells"), f"is {count}, must be at least 1")
    capacity = fields.resources("capacity", needed=True)
    return (Cell(capacity.vcpu // count, capacity.memory_mib // count),) * count


def _cell(path: Path, value: Any) -> Cell:
    fields = Fields(value, path)
    cell = Cell(fields.take("vcpu", int), fields.take("memory_mib", int))
    fields.close()
    return cell


def _devices(fields: Fields) -> Iterator[Device]:
    for path, value in fields.items("devices", dict):
        inner = Fields(value, path)
        count, pattern = _count(inner), inner.take("address", str)
        model, cell = inner.take("model", str), inner.take("cell", int, -1)
        inner.close()
        for address in _numbered(pattern, count, 0, (*path, "address")):
            yield Device(address, model, cell)


def _flavor(path: Path, value: Any) -> Request:
    fields = Fields(value, path)
    name = fields.take("name", str)
    request = _request(fields, Request(name, PROJECT_DEFAULT, name, Resources()))
    fields.close()
    return request


def _instances(path: Path, value: Any, flavors: Mapping[str, Request]) -> Iterator[_Placed]:
    fields = Fields(value, path)
    pattern, count = fields.take("name", str), _count(fields)
    first = fields.take("first", int, 1)
    node, flavor = fields.take("node", str, ""), fields.take("flavor", str, "")
    if flavor and flavor not in flavors:
        raise FieldError((*path, "flavor"), f"there is no flavor {flavor}")
    request = _request(fields, flavors.get(flavor, Request("", PROJECT_DEFAULT, "", Resources())))
    uid = fields.take("uid", str, "")
    choice = Choice(tuple(cell for _, cell in fields.items("on_cells", int)), tuple(_shares(fields)))
    fields.close()
    if uid and count > 1:
        raise FieldError((*path, "uid"), "is of one instance, and count says that there are several")
    for name in _numbered(pattern, count, first, (*path, "name")):
        own = replace(request, uid=uid or f"{request.project}/{name}", name=name)
        yield _Placed(own, node, choice, path)


def _shares(fields: Fields) -> Iterator[DeviceShare]:
    for path, value in fields.items("on_devices", dict):
        inner = Fields(value, path)
        yield DeviceShare(inner.take("address", str), inner.take("share_milli", int, SHARE_WHOLE))
        inner.close()


def _request(fields: Fields, base: Request) -> Request:
    """A request with the fields that are given, the others as in `base`."""
    given: dict[str, Any] = {"project": fields.take("project", str, base.project)}
    if fields.has("resources") or base.resources.is_zero():
        given["resources"] = fields.resources("resources", needed=True)
    try:
        given |= {name: read(fields, name) for name, read in _REQUEST_FIELDS.items() if fields.has(name)}
        return replace(base, **given)
    except ModelError as error:
        raise FieldError(fields.path, str(error)) from None


def _preferences(fields: Fields, name: str) -> tuple[Preference, ...]:
    found = []
    for path, value in fields.items(name, dict):
        inner = Fields(value, path)
        key, wanted = inner.take("key", str), inner.take("value", str)
        found.append(Preference(key, wanted, inner.take("weight", int, 1)))
        inner.close()
    return tuple(found)


def _tolerations(fields: Fields, name: str) -> frozenset[Toleration]:
    """`KEY` tolerates any value, `KEY=VALUE` that one."""
    pairs = [text.partition("=") for _, text in fields.items(name, str)]
    return frozenset(Toleration(key, value if equals else None) for key, equals, value in pairs)


def _wanted_devices(fields: Fields, name: str) -> tuple[DeviceRequest, ...]:
    found = []
    for path, value in fields.items(name, dict):
        inner = Fields(value, path)
        models = _words(inner, "models")
        try:
            share = inner.take("share_milli", int, SHARE_WHOLE)
            found.append(DeviceRequest(models, inner.take("count", int, 1), share))
        except TopologyError as error:
            raise FieldError(path, str(error)) from None
        inner.close()
    return tuple(found)


def _gang(fields: Fields, name: str) -> Gang:
    inner = Fields(fields.take(name, dict), (*fields.path, name))
    gang = Gang(inner.take("name", str), inner.take("size", int))
    inner.close()
    return gang


_REQUEST_FIELDS: Final[dict[str, Any]] = {
    "security_level": lambda fields, name: fields.take(name, int),
    "node_selector": lambda fields, name: fields.mapping(name, str),
    "excluded_nodes": _words,
    "tolerations": _tolerations,
    "capabilities": _words,
    "preferences": _preferences,
    "groups": lambda fields, name: tuple(text for _, text in fields.items(name, str)),
    "numa_cells": lambda fields, name: fields.take(name, int),
    "devices": _wanted_devices,
    "gang": _gang,
    "lifetime_s": lambda fields, name: fields.take(name, int),
}
