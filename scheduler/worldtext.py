"""A world as the plain values of its document.

**Pure**: the inverse of `scheduler.worldfile.parse_world`. What has its default is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cumulet.resources import Resources
from scheduler.group import PlacementGroup
from scheduler.model import Effect, NodeView, Request, Resident
from scheduler.topology import NO_CELL, SHARE_WHOLE
from scheduler.world import World
from scheduler.worldfile import FORMAT, PROJECT_DEFAULT


def render_world(world: World) -> dict[str, Any]:
    """The document of a world. Groups, flavors and nodes in order of name, instances node by node."""
    instances = [_instance(resident, node.name) for node in world.view.nodes for resident in node.residents]
    instances += [_instance(Resident(request), "") for request in world.waiting]
    document = {
        "format": FORMAT,
        "revision": world.view.revision,
        "policy": world.policy.name,
        "groups": [_group(group) for _, group in sorted(world.view.groups.items())],
        "flavors": [_flavor(request) for _, request in sorted(world.flavors.items())],
        "nodes": [_node(node) for node in world.view.nodes],
        "instances": instances,
    }
    return {key: value for key, value in document.items() if value not in ([], 0)}


def _given(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is empty or zero, which are the defaults."""
    return {key: value for key, value in pairs.items() if value not in ("", 0, [], {}, None)}


def _vector(resources: Resources) -> dict[str, int]:
    return {name: amount for name, amount in resources.as_dict().items() if amount}


def _group(group: PlacementGroup) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": group.name, "rule": group.rule.value, "scope": group.scope.value}
    if not group.hard:
        shown["hard"] = False
    return shown | _given({"max_per_domain": group.max_per_domain})


def _node(node: NodeView) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": node.name, "capacity": _vector(node.capacity)}
    if not node.schedulable:
        shown["cordoned"] = node.cordon_reason or True
    if not node.ready:
        shown["not_ready"] = node.not_ready_reason or True
    return shown | _given(
        {
            "reserved": _vector(node.reserved),
            "allocation_ratio": dict(node.allocation_ratio),
            "security_level": node.security_level,
            "labels": dict(node.labels),
            "taints": [
                f"{taint}" if taint.effect is Effect.NO_SCHEDULE else f"{taint}:{taint.effect.value}"
                for taint in node.taints
            ],
            "dedicated_to": sorted(node.dedicated_to),
            "capabilities": sorted(node.capabilities),
            "cells": [{"vcpu": cell.vcpu, "memory_mib": cell.memory_mib} for cell in node.cells],
            "devices": [
                {"address": one.address, "model": one.model}
                | ({} if one.cell == NO_CELL else {"cell": one.cell})
                for one in node.devices
            ],
            "idle_watts": node.idle_watts,
            "full_watts": node.full_watts,
            "cost_milli": node.cost_milli,
        }
    )


def _flavor(request: Request) -> dict[str, Any]:
    return {"name": request.name} | _request(request)


def _instance(resident: Resident, node: str) -> dict[str, Any]:
    request, choice = resident.request, resident.choice
    return (
        {"name": request.name, "uid": request.uid}
        | _given({"node": node})
        | _request(request)
        | _given(
            {
                "on_cells": list(choice.cells),
                "on_devices": [
                    {"address": one.address, "share_milli": one.share_milli} for one in choice.devices
                ],
            }
        )
    )


def _request(request: Request) -> dict[str, Any]:
    shown = _given(
        {
            "project": "" if request.project == PROJECT_DEFAULT else request.project,
            "security_level": request.security_level,
            "node_selector": dict(request.node_selector),
            "excluded_nodes": sorted(request.excluded_nodes),
            "tolerations": sorted(
                one.key if one.value is None else f"{one.key}={one.value}" for one in request.tolerations
            ),
            "capabilities": sorted(request.capabilities),
            "preferences": [
                {"key": one.key, "value": one.value, "weight": one.weight} for one in request.preferences
            ],
            "groups": list(request.groups),
            "numa_cells": request.numa_cells,
            "devices": [_wanted(one) for one in request.devices],
        }
    )
    if request.gang is not None:
        shown["gang"] = {"name": request.gang.name, "size": request.gang.size}
    if request.lifetime_s is not None:
        shown["lifetime_s"] = request.lifetime_s
    return {"resources": _vector(request.resources)} | shown


def _wanted(device: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {"models": sorted(device.models), "count": device.count}
    return shown | ({} if device.share_milli == SHARE_WHOLE else {"share_milli": device.share_milli})
