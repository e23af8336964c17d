"""What a request would rather not: soft constraints as one number, the penalty.

**Pure.** Of the nodes that fit, those with the smallest penalty are looked at first; the policy's score
decides among them. Unmet preferences add their weights, soft taints and soft groups the weights below.
"""

from __future__ import annotations

from typing import Final

from scheduler.group import Occupancy, domain_of
from scheduler.model import PREFERENCE_WEIGHT_MAX, Effect, NodeView, Request

# A broken soft group outweighs any one wish; a soft taint weighs like a wish of middle strength.
SOFT_GROUP_PENALTY: Final = PREFERENCE_WEIGHT_MAX
SOFT_TAINT_PENALTY: Final = 10


def node_penalty(node: NodeView, request: Request) -> int:
    """What the node's labels and taints cost the request, wherever other instances are."""
    unmet = sum(one.weight for one in request.preferences if node.labels.get(one.key) != one.value)
    taints = sum(
        taint.effect is Effect.PREFER_NO_SCHEDULE
        and not any(one.covers(taint) for one in request.tolerations)
        for taint in node.taints
    )
    return unmet + SOFT_TAINT_PENALTY * taints


def group_penalty(node: NodeView, request: Request, occupancy: Occupancy) -> int:
    """What the soft groups of the request cost it on the node."""
    broken = 0
    for name in request.groups:
        group = occupancy.find(name)
        if group and not group.hard and not occupancy.allows(group, domain_of(node, group.scope)):
            broken += 1
    return SOFT_GROUP_PENALTY * broken
