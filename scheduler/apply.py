"""Applying a change: the view and the request as they would be after it.

**Pure**: new values out, nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from cumulet.resources import ZERO, Resources
from scheduler.change import (
    AddLabel,
    AddNodes,
    AdmitProject,
    AllowNode,
    Change,
    DropCapability,
    DropCells,
    DropGroup,
    DropSelector,
    LowerSecurity,
    MakeReady,
    Migrate,
    OtherFlavor,
    Reduce,
    ReduceAll,
    RelaxDevice,
    Tolerate,
    Uncordon,
    Untaint,
)
from scheduler.model import NodeView, Request, Resident, Toleration, View
from scheduler.topology import DeviceRequest

NodeChange = Uncordon | MakeReady | Untaint | AddLabel | AdmitProject


def apply_change(view: View, request: Request, change: Change) -> tuple[View, Request]:
    """The view and the request after the change. The change is of that view and request."""
    match change:
        case Uncordon() | MakeReady() | Untaint() | AddLabel() | AdmitProject():
            return _with_node(view, _change_node(_find(view, change.node), change)), request
        case Migrate():
            return _migrate(view, change), request
        case AddNodes():
            return add_nodes(view, request, _find(view, change.like), change.count), request
        case _:
            return view, _change_request(request, change)


def _change_node(
    node: NodeView, change: Uncordon | MakeReady | Untaint | AddLabel | AdmitProject
) -> NodeView:
    match change:
        case Uncordon():
            return replace(node, schedulable=True, cordon_reason="")
        case MakeReady():
            return replace(node, ready=True, not_ready_reason="")
        case Untaint():
            return replace(node, taints=tuple(taint for taint in node.taints if taint != change.taint))
        case AddLabel():
            return replace(node, labels={**node.labels, change.key: change.value})
        case AdmitProject():
            return replace(node, dedicated_to=node.dedicated_to | {change.project})


def _change_request(request: Request, change: Change) -> Request:
    match change:
        case AllowNode():
            return replace(request, excluded_nodes=request.excluded_nodes - {change.node})
        case Tolerate():
            one = Toleration(change.taint.key, change.taint.value)
            return replace(request, tolerations=request.tolerations | {one})
        case DropSelector():
            return replace(request, node_selector=without(request.node_selector, change.key))
        case DropCapability():
            return replace(request, capabilities=request.capabilities - {change.name})
        case DropGroup():
            return replace(request, groups=tuple(name for name in request.groups if name != change.name))
        case DropCells():
            return replace(request, numa_cells=0)
        case LowerSecurity():
            return replace(request, security_level=change.to)
        case RelaxDevice():
            return replace(request, devices=relaxed(request.devices, change))
        case Reduce():
            amounts = {**request.resources.as_dict(), change.resource: change.to}
            return replace(request, resources=Resources.of(amounts))
        case ReduceAll():
            return replace(request, resources=change.to)
        case OtherFlavor():
            return change.request
    raise AssertionError(f"{change} does not change the request")


def without(selector: Mapping[str, str], key: str) -> Mapping[str, str]:
    return MappingProxyType({other: value for other, value in selector.items() if other != key})


def relaxed(devices: tuple[DeviceRequest, ...], change: RelaxDevice) -> tuple[DeviceRequest, ...]:
    """The wants with the first of its kind changed or left out."""
    at = devices.index(change.want)
    return (*devices[:at], *((change.to,) if change.to else ()), *devices[at + 1 :])


def _find(view: View, name: str) -> NodeView:
    return next(node for node in view.nodes if node.name == name)


def _with_node(view: View, *changed: NodeView) -> View:
    by_name = {node.name: node for node in changed}
    return replace(view, nodes=tuple(by_name.get(node.name, node) for node in view.nodes))


def _migrate(view: View, change: Migrate) -> View:
    source, target = _find(view, change.source), _find(view, change.target)
    moved = change.resident.request
    there = Resident(moved, change.choice)
    return _with_node(view, leave(source, change.resident), enter(target, there))


def leave(node: NodeView, resident: Resident) -> NodeView:
    """The node without the resident."""
    at = node.residents.index(resident)
    return replace(
        node,
        allocated=node.allocated - resident.request.resources,
        residents=(*node.residents[:at], *node.residents[at + 1 :]),
    )


def enter(node: NodeView, resident: Resident) -> NodeView:
    """The node with one resident more."""
    return replace(
        node,
        allocated=node.allocated + resident.request.resources,
        residents=(*node.residents, resident),
    )


def empty_like(node: NodeView, name: str) -> NodeView:
    """A new node of the same shape: nothing on it, open and ready."""
    return replace(
        node,
        name=name,
        allocated=ZERO,
        residents=(),
        others=(),
        schedulable=True,
        cordon_reason="",
        ready=True,
        not_ready_reason="",
    )


def add_nodes(view: View, request: Request, like: NodeView, count: int) -> View:
    """The view with so many empty nodes more; their names are new to the view and to the request."""
    taken = {node.name for node in view.nodes} | request.excluded_nodes
    names: list[str] = []
    number = 0
    while len(names) < count:
        number += 1
        name = f"{like.name}-new-{number}"
        if name not in taken:
            names.append(name)
    return replace(view, nodes=(*view.nodes, *(empty_like(like, name) for name in names)))
