"""A node with one instance more or less on it. **Pure.**"""

from __future__ import annotations

from dataclasses import replace

from scheduler.model import NodeView, Placement, Request, Resident


def resident_of(node: NodeView, request: Request, placement: Placement) -> NodeView:
    """The node with the instance on it."""
    return replace(
        node,
        allocated=node.allocated + request.resources,
        residents=(*node.residents, Resident(request, placement.choice)),
    )


def without(node: NodeView, request: Request) -> NodeView:
    """The node without the instance, which is known by its uid."""
    return replace(
        node,
        allocated=node.allocated - request.resources,
        residents=tuple(one for one in node.residents if one.request.uid != request.uid),
    )
