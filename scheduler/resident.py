"""A node with one instance more or less on it. **Pure.**"""

from __future__ import annotations

from scheduler.answer import Placement
from scheduler.model import NodeView, Request, Resident
from scheduler.packing import coarse, end_s, lasts_level, later


def resident_of(node: NodeView, request: Request, placement: Placement, now_s: int = 0) -> NodeView:
    """The node with the instance on it, which comes now."""
    residents = (*node.residents, Resident(request, placement.choice))
    until_s = end_s(coarse(now_s), lasts_level(request.lifetime_s))
    if not node.allocated.is_zero():
        until_s = later(node.busy_until_s, until_s)
    return node.holding(node.allocated + request.resources, residents, node.others, until_s)


def without(node: NodeView, request: Request) -> NodeView:
    """The node without the instance, which is known by its uid."""
    residents = tuple(one for one in node.residents if one.request.uid != request.uid)
    return node.holding(node.allocated - request.resources, residents, node.others, node.busy_until_s)
