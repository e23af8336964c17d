"""Addresses of the outside that this node answers for, in the node's own namespace.

**Edge.** Called in the driver's thread, in the host's namespace. An address is let go before anything else is
done for its router, and answered for when all that it leads to is there. What is ours bears our protocol
number; an address belongs to the router whose uplink its route leads to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from agent.errors import DriverError
from agent.net import external, kernel_links, names, sysctl
from agent.net.addressing import uplink_address
from agent.net.announce import announce
from agent.net.driver import FloatingIntent, RouterIntent
from agent.net.netlink_ip import Route
from agent.net.netlink_link import Link
from agent.net.netlink_neighbour import Proxy, proxy
from agent.net.netlink_route import OF_ROUTER, RouterRoute, router_route
from agent.net.netlink_rule import TABLE_MAIN, PolicyRule
from agent.net.rtnetlink import EntryChange, Netlink


@dataclass(frozen=True, slots=True)
class ExternalView:
    """What of ours is there. `links`: index by uplink; `tables`: routes by the table's number."""

    links: Mapping[str, int] = field(default_factory=dict)
    proxies: frozenset[Proxy] = frozenset()
    rules: frozenset[PolicyRule] = frozenset()
    tables: Mapping[int, frozenset[RouterRoute]] = field(default_factory=dict)

    def announced(self) -> frozenset[tuple[str, IPv4Address]]:
        names_by_index = {index: name for name, index in self.links.items()}
        return frozenset((names_by_index.get(one.link, ""), one.address) for one in self.proxies)


def check_uplinks(uplinks: Mapping[str, str]) -> None:
    """Raises DriverError when a link is not there: the cloud would be told of what this node cannot do."""
    with Netlink() as host:
        for name, link in sorted(uplinks.items()):
            if host.find_link(link) is None:
                raise DriverError(
                    "UplinkMissing",
                    f"this node has no link {link} to external network {name}; give --uplink {name}=LINK one "
                    "that `ip link` shows, or leave it out",
                    permanent=True,
                )


class KernelExternal:
    """`uplinks`: name of the link by the name that plans use."""

    def __init__(self, uplinks: Mapping[str, str]) -> None:
        self.uplinks = uplinks

    def release(self, router_uid: str, kept: Iterable[IPv4Address] = ()) -> None:
        """Answer for the router's `kept` addresses only, and for none that leads nowhere."""
        keeps = set(kept)
        with Netlink() as host:
            uplink = host.find_link(names.uplink_name(router_uid))
            ways = {route.destination: route for route in host.routes() if route.gateway is not None}
            index = uplink.index if uplink is not None else 0
            own = {one for one, route in ways.items() if one is not None and route.link == index}
            gone = own - keeps
            loose = [one for one in host.proxies() if one.address in gone or one.address not in ways]
            host.change_entries([EntryChange(False, proxy(one)) for one in loose])
            routes = [_route(one, index, ways[one].gateway) for one in gone]
            host.change_routes([EntryChange(False, router_route(route)) for route in routes])
            if gone or uplink is None:
                name, present = names.uplink_name(router_uid), host.rules()
                kept_rules = {one for one in present if one.link != name or one.source in keeps}
                change_rules(host, present, kept_rules)

    def ensure(self, router: RouterIntent) -> None:
        """Raises DriverError naming what cannot be answered for; everything else is."""
        lost = []
        with Netlink() as host:
            links: dict[str, Link] = {}
            for name in sorted({one.uplink for one in router.floating}):
                found = host.find_link(self.uplinks.get(name, ""))
                if found is not None and found.up:
                    links[name] = found
            ours = [one for one in router.floating if one.uplink in links]
            lost = [one for one in router.floating if one.uplink not in links]
            self._ensure_ways(host, router)
            self._ensure_tables(host, ours, links)
            self._answer(host, router, links)
        if lost:
            told = ", ".join(f"{one.address} ({one.uplink})" for one in lost)
            raise DriverError(
                "UplinkMissing",
                f"router {router.uid}: this node has no link, or one that is down, for {told}; see its "
                "agent's --uplink NAME=LINK and `ip link`",
            )

    def announce(self, uplink: str, address: IPv4Address) -> None:
        """Once; a link that is not there hears nothing."""
        with Netlink() as host:
            link = host.find_link(self.uplinks.get(uplink, ""))
        if link is not None and link.up:
            announce(link, [address])

    def view(self, host: Netlink, floating: Iterable[FloatingIntent]) -> ExternalView:
        """`floating`: all that is wanted here."""
        wanted = tuple(floating)
        proxies, rules = host.proxies(), host.rules()
        if not wanted and not proxies and not rules:
            return ExternalView()
        found = {name: host.find_link(link) for name, link in self.uplinks.items()}
        links = {name: link.index for name, link in found.items() if link is not None and link.up}
        tables = {external.table_of(one.gateway) for one in wanted if one.gateway is not None}
        return ExternalView(links, proxies, rules, {table: host.table_routes(table) for table in tables})

    def _ensure_ways(self, host: Netlink, router: RouterIntent) -> None:
        """Routes to the router, and rules for what comes from it."""
        name = names.uplink_name(router.uid)
        wanted = external.wanted_routes(router, kernel_links.get_link(host, name).index)
        host.change_routes([EntryChange(True, router_route(route)) for route in wanted])
        present = host.rules()
        others = {one for one in present if one.link != name}
        change_rules(host, present, others | external.wanted_rules(router))

    def _ensure_tables(
        self, host: Netlink, floating: Iterable[FloatingIntent], links: Mapping[str, Link]
    ) -> None:
        for one in floating:
            if one.gateway is not None:
                table = external.table_of(one.gateway)
                missing = external.table_routes(one, links[one.uplink].index) - host.table_routes(table)
                near_first = sorted(missing, key=lambda route: -route.prefix_length)
                host.change_routes([EntryChange(True, router_route(route, table)) for route in near_first])

    def _answer(self, host: Netlink, router: RouterIntent, links: Mapping[str, Link]) -> None:
        indexes = {name: link.index for name, link in links.items()}
        wanted, present = external.wanted_proxies(router, indexes), host.proxies()
        addresses = {one.address for one in wanted}
        stale = [one for one in present - wanted if one.address in addresses]  # on another link
        host.change_entries([EntryChange(False, proxy(one)) for one in stale])
        for link in links.values():
            sysctl.answer_at_once(link.name)
            new = [one for one in wanted - present if one.link == link.index]
            host.change_entries([EntryChange(True, proxy(one)) for one in new])
            announce(link, [one.address for one in new])


def change_rules(netlink: Netlink, present: Set[PolicyRule], wanted: Set[PolicyRule]) -> None:
    """Exactly `wanted` of ours. A table that no rule names any more is emptied before the rule goes."""
    for table in {one.table for one in present - wanted} - {one.table for one in wanted} - {TABLE_MAIN}:
        routes = netlink.table_routes(table)
        netlink.change_routes([EntryChange(False, router_route(route, table)) for route in routes])
    netlink.change_rules(present - wanted, wanted - present)


def external_fits(view: ExternalView, routes: Iterable[Route], router: RouterIntent, uplink: int) -> bool:
    """All that the router needs of it is there, and nothing else of it. **Pure.** `routes`: of the host."""
    addresses, inside = {one.address for one in router.floating}, uplink_address(router.vni)
    name = names.uplink_name(router.uid)
    ways = {(route.destination, route.gateway) for route in routes if route.link == uplink and route.gateway}
    answered = {one for one in view.proxies if one.address in addresses}
    return (
        all(one.uplink in view.links for one in router.floating)
        and ways == {(address, inside) for address in addresses}
        and answered == external.wanted_proxies(router, view.links)
        and {one for one in view.rules if one.link == name} == external.wanted_rules(router)
        and all(
            external.table_routes(one, view.links[one.uplink]) <= view.tables[external.table_of(one.gateway)]
            for one in router.floating
            if one.gateway is not None
        )
    )


def _route(address: IPv4Address, link: int, gateway: IPv4Address | None) -> RouterRoute:
    return RouterRoute(address, external.SINGLE, link, gateway, protocol=OF_ROUTER)
