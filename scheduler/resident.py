"""A node with one instance more or less on it. **Pure.**"""

from __future__ import annotations

from scheduler.model import NodeView, Placement, Request, Resident


def resident_of(node: NodeView, request: Request, placement: Placement) -> NodeView:
    """The node with the instance on it."""
    residents = (*node.residents, Resident(request, placement.choice))
    return node.holding(node.allocated + request.resources, residents, node.others)


def without(node: NodeView, request: Request) -> NodeView:
    """The node without the instance, which is known by its uid."""
    residents = tuple(one for one in node.residents if one.request.uid != request.uid)
    return node.holding(node.allocated - request.resources, residents, node.others)
