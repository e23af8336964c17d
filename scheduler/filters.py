"""Hard constraints: what speaks against a node, all of it and not only the first.

**Pure**: a node, what is free on it and a request in, reasons out; an empty tuple means it fits.

A resource that is not asked for never speaks against a node, even where it is overcommitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from scheduler.model import NodeView, Request
from scheduler.reasons import (
    Cordoned,
    Excluded,
    LabelMismatch,
    NotEnough,
    NotReady,
    Reason,
    SecurityLevelTooLow,
)

NodeFilter = Callable[[NodeView, Request], tuple[Reason, ...]]


def cordoned(node: NodeView, request: Request) -> tuple[Reason, ...]:
    return () if node.schedulable else (Cordoned(node.cordon_reason),)


def not_ready(node: NodeView, request: Request) -> tuple[Reason, ...]:
    return () if node.ready else (NotReady(node.not_ready_reason or "no reason was reported"),)


def excluded(node: NodeView, request: Request) -> tuple[Reason, ...]:
    return (Excluded(),) if node.name in request.excluded_nodes else ()


def security_level_too_low(node: NodeView, request: Request) -> tuple[Reason, ...]:
    if node.security_level >= request.security_level:
        return ()
    return (SecurityLevelTooLow(request.security_level, node.security_level),)


def label_mismatch(node: NodeView, request: Request) -> tuple[Reason, ...]:
    if not request.node_selector:  # most requests, and this runs for every node
        return ()
    return tuple(
        LabelMismatch(key, want, node.labels.get(key))
        for key, want in sorted(request.node_selector.items())
        if node.labels.get(key) != want
    )


def not_enough(free: Mapping[str, int], request: Request) -> tuple[Reason, ...]:
    """`free`: amount by resource, negative if overcommitted; one that is missing counts as 0."""
    return tuple(
        NotEnough(name, want, free.get(name, 0))
        for name, want in request.resources.as_dict().items()
        if want > 0 and want > free.get(name, 0)
    )


# In the order in which a person would look; "the first failed constraint" means this order.
NODE_FILTERS: Final[tuple[NodeFilter, ...]] = (
    cordoned,
    not_ready,
    excluded,
    security_level_too_low,
    label_mismatch,
)


def is_eligible(node: NodeView, request: Request) -> bool:
    """Nothing but resources can speak against the node."""
    for node_filter in NODE_FILTERS:  # noqa: SIM110  (runs for every node; a generator takes twice the time)
        if node_filter(node, request):
            return False
    return True


def reasons_against(node: NodeView, free: Mapping[str, int], request: Request) -> tuple[Reason, ...]:
    """Everything that speaks against the node, in the filters' order; empty if it takes the request."""
    found = tuple(reason for node_filter in NODE_FILTERS for reason in node_filter(node, request))
    return found + not_enough(free, request)
