"""What a router's intent becomes on the node: elements, tunnel, rules and routes of its own.

**Pure.** Routes to other nodes are in router_entries.py.
"""

from __future__ import annotations

from typing import Final

from agent.net import addressing, external, guard_rules, ruleset
from agent.net.driver import IPAddress, RouterIntent
from agent.net.elements import Element, Json
from agent.net.netlink_link import Tunnel
from agent.net.netlink_route import OF_ROUTER, RouterRoute, route_of
from agent.net.program import digest_of_program

# A gateway's own subnet comes first, a range of the router's comes before the way out.
_NOBODYS_METRIC: Final = 4096
_WAY_OUT_METRIC: Final = 1000  # a static default route, of metric 0, comes first


def router_elements(router: RouterIntent, underlay: IPAddress | None) -> frozenset[Element]:
    """Its uplink, where its tunnel ends here, and its addresses of the outside."""
    end = guard_rules.tunnel_end(router.uid, router.vni, underlay)
    return ruleset.uplink_elements(router.uid) | end | external.floating_elements(router)


def wanted_tunnel(router: RouterIntent, underlay: IPAddress | None) -> Tunnel | None:
    return Tunnel(router.vni, underlay) if underlay is not None else None


def own_routes(router: RouterIntent, way_out: int) -> set[RouterRoute]:
    """The way out, a link's index; and of the router's ranges, what no port has goes nowhere."""
    default = RouterRoute(addressing.ANYWHERE, 0, way_out, addressing.HOST_END, _WAY_OUT_METRIC, OF_ROUTER)
    ways = {default}
    if router.routed:
        ways.add(
            RouterRoute(addressing.ANYWHERE6, 0, way_out, addressing.HOST_HOP, _WAY_OUT_METRIC, OF_ROUTER)
        )
    return ways | {
        route_of(cidr, protocol=OF_ROUTER)._replace(metric=_NOBODYS_METRIC) for cidr in router.cidrs
    }


def router_rules(router: RouterIntent) -> list[Json]:
    return ruleset.namespace_rules(outbound_nat=router.outbound_nat, router=router)


def router_digest(router: RouterIntent) -> str:
    """Of the rules: it changes with the intent and with this code."""
    return digest_of_program(router_rules(router))
