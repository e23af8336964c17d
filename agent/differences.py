"""What of the network is not as planned at this moment, in words: the works that a round would begin.

**Pure.** The diff decides; here its works are only told, for `cumulet verify` and `explain reach --live`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.actions import (
    Action,
    EnsureDirectory,
    EnsureGroup,
    EnsureNetwork,
    EnsurePort,
    EnsureRouter,
    EnsureRouterDirectory,
    RemoveGroup,
    RemoveNetwork,
    RemovePort,
    RemoveRouter,
    Work,
)
from cumulet.v1 import agent_pb2 as pb


def describe_differences(works: Iterable[Work]) -> list[pb.InventoryDifference]:
    """One for each effect on the network that is due, in order of the works."""
    return [
        pb.InventoryDifference(kind=kind, owner_uid=uid, message=text)
        for work in works
        for action in work.actions
        for kind, uid, text in _described(action)
    ]


def _described(action: Action) -> Iterator[tuple[str, str, str]]:
    match action:
        case EnsureNetwork(network):
            yield "network", network.uid, "its links, addresses, rules or DHCP server are not as planned"
        case EnsurePort(port):
            yield "port", port.uid, "its tap is missing, detached, or not guarded as planned"
        case EnsureDirectory(uid, _):
            yield "directory", uid, "its entries of ports on other nodes are not as told"
        case EnsureGroup(group):
            yield "security-group", group.uid, "its rules or members are not as planned"
        case EnsureRouter(router):
            yield "router", router.uid, "its namespace, links, rules or load balancers are not as planned"
        case EnsureRouterDirectory(uid, _):
            yield "router-directory", uid, "its routes to ports on other nodes are not as told"
        case RemoveNetwork(uid):
            yield "network", uid, "it is here, and nothing plans it"
        case RemovePort(uid):
            yield "port", uid, "its tap is here, and nothing plans it"
        case RemoveGroup(uid):
            yield "security-group", uid, "it is here, and nothing plans it"
        case RemoveRouter(uid):
            yield "router", uid, "it is here, and nothing plans it"
        case _:
            return
