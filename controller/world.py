"""The fleet of a what-if from the State: every instance on its node, who waits, what can be asked for.

**Pure.** `copy_tables` is quick and is what must happen before the State changes; `build_world` looks at
every instance and may run in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from controller.admit.common import Violations
from controller.admit.requirements import merge_flavor
from controller.fleet import build_node, build_request, ratios
from controller.scheduling import build_groups, capabilities_of, choice_of, placed_request
from controller.state import State
from controller.store import keys
from controller.tables import Parts, Stored
from cumulet.convert import resources_from
from cumulet.resources import ZERO, Resources
from cumulet.v1 import flavor_pb2, image_pb2, instance_pb2, meta_pb2, node_pb2, project_pb2, store_pb2
from scheduler.group import PlacementGroup
from scheduler.model import ModelError, NodeView, Request, Resident, View
from scheduler.policy import Policy
from scheduler.world import World

LEFT_OUT_MAX: Final = 5  # names in a note; whoever has more of them has another problem


@dataclass(frozen=True, slots=True)
class Tables:
    """What a world is built from, at one revision; the messages are shared and never changed."""

    revision: int
    nodes: Mapping[Parts, Stored]
    statuses: Mapping[Parts, Stored]
    placements: Mapping[Parts, Stored]
    instances: Mapping[Parts, Stored]
    flavors: Mapping[Parts, Stored]
    groups: Mapping[str, PlacementGroup]


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose instances a what-if adds, and of which image; None: of one that asks for nothing."""

    project: project_pb2.Project
    image: image_pb2.Image | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """The world, and in sentences what could not be made part of it."""

    world: World
    notes: tuple[str, ...]


def copy_tables(state: State) -> Tables:
    """The rows as they are now: about a millisecond for 100,000 of them."""
    return Tables(
        revision=state.revision,
        nodes=dict(state.rows(keys.NODES)),
        statuses=dict(state.rows(keys.NODE_STATUS)),
        placements=dict(state.rows(keys.PLACEMENTS)),
        instances=dict(state.rows(keys.INSTANCES)),
        flavors=dict(state.rows(keys.FLAVORS)),
        groups=build_groups(state),
    )


def build_world(tables: Tables, asker: Asker, policy: Policy) -> Built:
    """The world at the tables' revision. What contradicts itself is left out and noted."""
    bad: dict[str, list[str]] = {}
    placed = {parts[1] for parts in tables.placements}
    by_uid = {row.message.meta.uid: row.message for row in tables.instances.values()}
    residents = _residents(tables, by_uid)
    nodes = list(_nodes(tables, residents, bad.setdefault("node", [])))
    waiting = tuple(_waiting(tables, placed, bad.setdefault("instance", [])))
    flavors = dict(_flavors(tables, asker, bad.setdefault("flavor", [])))
    wanted = {uid for uid, instance in by_uid.items() if not instance.meta.HasField("deleted_at")}
    world = World(
        View(tables.revision, tuple(nodes), tables.groups),
        flavors,
        waiting,
        policy,
        _fresh(tables),
        frozenset(placed - wanted),
    )
    return Built(world, tuple(_note(kind, names) for kind, names in bad.items() if names))


def _note(kind: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - LEFT_OUT_MAX} more" if len(names) > LEFT_OUT_MAX else ""
    return f"left out, since it cannot be read: {kind} {', '.join(names[:LEFT_OUT_MAX])}{more}"


def _residents(
    tables: Tables, by_uid: Mapping[str, instance_pb2.Instance]
) -> Mapping[str, tuple[Resident, ...]]:
    """Who is on each node, as it was placed."""
    found: dict[str, list[Resident]] = {}
    for (node, uid), row in tables.placements.items():
        found.setdefault(node, []).append(_resident(row.message, by_uid.get(uid)))
    return {node: tuple(there) for node, there in found.items()}


def _resident(record: store_pb2.PlacementRecord, instance: instance_pb2.Instance | None) -> Resident:
    """The amounts are the placement's; a gang has done its work when its members are placed."""
    choice = choice_of(record)
    if instance is None:
        return Resident(placed_request(record), choice)
    try:
        request = build_request(instance)
    except ValueError:  # it runs, whatever is wrong with what the store says of it
        return Resident(placed_request(record), choice)
    amounts = resources_from(record.resources)
    if request.gang is not None or request.resources != amounts:
        request = replace(request, resources=amounts, gang=None)
    return Resident(request, choice)


def _nodes(
    tables: Tables, residents: Mapping[str, tuple[Resident, ...]], bad: list[str]
) -> Iterator[NodeView]:
    for parts, row in tables.nodes.items():
        status = tables.statuses.get(parts)
        there = residents.get(parts[0], ())
        allocated = Resources.total(one.request.resources for one in there)
        try:
            yield build_node(row.message, status.message if status else None, allocated, there)
        except ValueError:
            bad.append(parts[0])


def _waiting(tables: Tables, placed: set[str], bad: list[str]) -> Iterator[Request]:
    """Who is to be placed, the oldest first. One whose gang is placed joins it alone."""
    rows = sorted(tables.instances.values(), key=lambda row: row.create_revision)
    gangs = {
        (row.message.meta.project, row.message.spec.gang.name)
        for row in rows
        if row.message.spec.HasField("gang") and row.message.meta.uid in placed
    }
    for row in rows:
        meta = row.message.meta
        if meta.uid in placed or meta.HasField("deleted_at"):
            continue
        try:
            request = build_request(row.message)
        except ValueError:
            bad.append(f"{meta.project}/{meta.name}")
            continue
        joins = (meta.project, row.message.spec.gang.name) in gangs
        yield replace(request, gang=None) if joins else request


def _flavors(tables: Tables, asker: Asker, bad: list[str]) -> Iterator[tuple[str, Request]]:
    for (name,), row in tables.flavors.items():
        try:
            yield name, _flavor_request(row.message, asker)
        except ModelError:
            bad.append(name)


def _flavor_request(flavor: flavor_pb2.Flavor, asker: Asker) -> Request:
    """What an instance of the flavor asks for, as admission would write it down."""
    name, project = flavor.meta.name, asker.project
    spec = instance_pb2.InstanceSpec(flavor=name, resources=flavor.spec.resources)
    spec.security_level = project.spec.security_level
    merge_flavor(flavor.spec, spec, Violations())  # an instance without wishes of its own contradicts nothing
    if asker.image is not None:
        spec.image_files.CopyFrom(asker.image.spec)
    meta = meta_pb2.Meta(uid=name, name=name, project=project.meta.name)
    return build_request(instance_pb2.Instance(meta=meta, spec=spec))


def _fresh(tables: Tables) -> NodeView:
    """A node that joins: default ratios, and what every node that has reported offers."""
    offers = [capabilities_of(row.message) for row in tables.statuses.values()]
    common = frozenset.intersection(*offers) if offers else frozenset()
    return NodeView("new", ZERO, allocation_ratio=ratios(node_pb2.NodeSpec()), capabilities=common)
