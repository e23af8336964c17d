"""Addresses of the outside that this node answers for, in the node's own namespace.

**Edge.** Called in the driver's thread, in the host's namespace. An address is let go before anything else is
done for its router, and answered for when all that it leads to is there. What is ours bears our protocol
number; an address belongs to the router whose uplink its route leads to. The node must forward IPv6 before it
answers for an address of it (kernel_host.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

from agent.errors import DriverError
from agent.net import external, kernel_links, names, sysctl
from agent.net.announce import announce
from agent.net.driver import IPAddress, RouterIntent
from agent.net.external import Outside
from agent.net.netlink_ip import Route
from agent.net.netlink_link import Link
from agent.net.netlink_neighbour import Neighbour, Proxy, neighbour, proxy
from agent.net.netlink_route import RouterRoute, router_route
from agent.net.netlink_rule import TABLE_MAIN, PolicyRule
from agent.net.rtnetlink import EntryChange, Netlink

Ways = dict[IPAddress, tuple[int, IPAddress]]  # index of the link and next hop by address


@dataclass(frozen=True, slots=True)
class ExternalView:
    """What of ours is there. `links`: index by uplink; `solicited` are those that can answer for IPv6.

    `tables`: routes by IP version and the table's number; `ways6`: link and next hop by address of a guest;
    `hops`: next hops of IPv6 on routers' uplinks.
    """

    links: Mapping[str, int] = field(default_factory=dict)
    solicited: frozenset[str] = frozenset()
    proxies: frozenset[Proxy] = frozenset()
    rules: frozenset[PolicyRule] = frozenset()
    tables: Mapping[tuple[int, int], frozenset[RouterRoute]] = field(default_factory=dict)
    ways6: Ways = field(default_factory=dict)
    hops: frozenset[Neighbour] = frozenset()

    def announced(self) -> frozenset[tuple[str, IPAddress]]:
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

    def release(self, router_uid: str, router: RouterIntent | None = None) -> None:
        """Answer for what the router is to have only, and for nothing that leads nowhere."""
        keeps = {address for _, address in router.answered} if router is not None else set()
        sources = set(map(external.source_of, external.outsides(router))) if router is not None else set()
        with Netlink() as host:
            uplink = host.find_link(names.uplink_name(router_uid))
            ways = {**_ways(host.routes()), **_ways6(host)}
            index = uplink.index if uplink is not None else 0
            own = {one for one, (link, _) in ways.items() if link == index}
            gone = own - keeps
            loose = [one for one in host.proxies() if one.address in gone or one.address not in ways]
            host.change_entries([EntryChange(False, proxy(one)) for one in loose])
            host.change_routes([_way(False, external.way_to(one, *ways[one])) for one in gone])
            if gone or uplink is None:
                name, present = names.uplink_name(router_uid), host.rules()
                kept_rules = {one for one in present if one.link != name or one.source in sources}
                change_rules(host, present, kept_rules)

    def ensure(self, router: RouterIntent) -> None:
        """Raises DriverError naming what cannot be answered for; everything else is."""
        with Netlink() as host:
            links: dict[str, Link] = {}
            for name in sorted({one.uplink for one in external.outsides(router)}):
                found = host.find_link(self.uplinks.get(name, ""))
                if found is not None and found.up:
                    links[name] = found
            self._ensure_ways(host, router)
            mute = {name for name, link in links.items() if sysctl.ipv6_is_off(link.name)}
            able = tuple(one for one in router.routed if one.uplink not in mute)
            self._ensure_tables(host, replace(router, routed=able), links)
            self._answer(host, replace(router, routed=able), links)
        lost = sorted(f"{address} ({uplink})" for uplink, address in router.answered if uplink not in links)
        if lost:
            raise DriverError(
                "UplinkMissing",
                f"router {router.uid}: this node has no link, or one that is down, for {', '.join(lost)}; "
                "see its agent's --uplink NAME=LINK and `ip link`",
            )
        silent = sorted(
            {f"{links[one.uplink].name} ({one.uplink})" for one in router.routed if one.uplink in mute}
        )
        if silent:
            raise DriverError(
                "UplinkWithoutIPv6",
                f"router {router.uid}: IPv6 is off on {', '.join(silent)}, so nobody answers there: "
                "`sysctl net.ipv6.conf.LINK.disable_ipv6=0`",
            )

    def announce(self, uplink: str, address: IPAddress) -> None:
        """Once; a link that is not there hears nothing."""
        with Netlink() as host:
            link = host.find_link(self.uplinks.get(uplink, ""))
        if link is not None and link.up:
            announce(link, [address])

    def view(self, host: Netlink, routers: Iterable[RouterIntent]) -> ExternalView:
        """`routers`: all that are wanted here."""
        wanted = [(router, out) for router in routers for out in external.outsides(router)]
        proxies, rules = host.proxies(), host.rules()
        if not wanted and not proxies and not rules:
            return ExternalView()
        found = {name: host.find_link(link) for name, link in self.uplinks.items()}
        links = {name: link for name, link in found.items() if link is not None and link.up}
        tables = {_key_of(out) for _, out in wanted if out.gateway is not None}
        routed = {router.uid for router, _ in wanted if router.routed}
        uplinks = (host.find_link(names.uplink_name(uid)) for uid in sorted(routed))
        return ExternalView(
            links={name: link.index for name, link in links.items()},
            solicited=frozenset(name for name, link in links.items() if _answers_ipv6(link)),
            proxies=proxies,
            rules=rules,
            tables={key: host.table_routes(key[1], key[0]) for key in tables},
            ways6=_ways6(host),
            hops=frozenset(hop for one in uplinks if one is not None for hop in host.neighbours(one.index)),
        )

    def _ensure_ways(self, host: Netlink, router: RouterIntent) -> None:
        """Routes to the router, and rules for what comes from it."""
        name = names.uplink_name(router.uid)
        uplink = kernel_links.get_link(host, name)
        if router.routed:
            host.change_entries([EntryChange(True, _payload(external.hop_inside(uplink.index, router.uid)))])
        wanted = external.wanted_routes(router, uplink.index)
        host.change_routes([_way(True, route) for route in wanted])
        present = host.rules()
        others = {one for one in present if one.link != name}
        change_rules(host, present, others | external.wanted_rules(router))

    def _ensure_tables(self, host: Netlink, router: RouterIntent, links: Mapping[str, Link]) -> None:
        for one in external.outsides(router):
            if one.gateway is not None and one.uplink in links:
                ip_version, table = _key_of(one)
                wanted = external.table_routes(one, links[one.uplink].index)
                missing = wanted - host.table_routes(table, ip_version)
                near_first = sorted(missing, key=lambda route: -route.prefix_length)
                host.change_routes([EntryChange(True, router_route(route, table)) for route in near_first])

    def _answer(self, host: Netlink, router: RouterIntent, links: Mapping[str, Link]) -> None:
        indexes = {name: link.index for name, link in links.items()}
        wanted, present = external.wanted_proxies(router, indexes), host.proxies()
        addresses = {one.address for one in wanted}
        stale = [one for one in present - wanted if one.address in addresses]  # on another link
        host.change_entries([EntryChange(False, proxy(one)) for one in stale])
        for name, link in links.items():
            sysctl.answer_at_once(link.name)
            if any(one.uplink == name for one in router.routed):
                sysctl.answer_solicitations(link.name)
            new = [one for one in wanted - present if one.link == link.index]
            host.change_entries([EntryChange(True, proxy(one)) for one in new])
            announce(link, [one.address for one in new])


def change_rules(netlink: Netlink, present: Set[PolicyRule], wanted: Set[PolicyRule]) -> None:
    """Exactly `wanted` of ours. A table that no rule names any more is emptied before the rule goes."""
    named, kept = ({(one.ip_version, one.table) for one in rules} for rules in (present - wanted, wanted))
    for ip_version, table in named - kept:
        if table == TABLE_MAIN:
            continue
        routes = netlink.table_routes(table, ip_version)
        netlink.change_routes([EntryChange(False, router_route(route, table)) for route in routes])
    netlink.change_rules(present - wanted, wanted - present)


def external_fits(view: ExternalView, routes: Iterable[Route], router: RouterIntent, uplink: int) -> bool:
    """All that the router needs of it is there, and nothing else of it. **Pure.** `routes`: of the host."""
    addresses = {address for _, address in router.answered}
    name = names.uplink_name(router.uid)
    found = {**_ways(routes), **view.ways6}
    ways = {(address, hop) for address, (link, hop) in found.items() if link == uplink}
    answered = {one for one in view.proxies if one.address in addresses}
    return (
        all(one.uplink in view.links for one in external.outsides(router))
        and all(one.uplink in view.solicited for one in router.routed)
        and (not router.routed or external.hop_inside(uplink, router.uid) in view.hops)
        and (not router.routed or external.TO_GUESTS in view.rules)
        and ways == {(address, external.hop_to(router, address)) for address in addresses}
        and answered == external.wanted_proxies(router, view.links)
        and {one for one in view.rules if one.link == name} == external.wanted_rules(router)
        and all(
            external.table_routes(one, view.links[one.uplink]) <= view.tables[_key_of(one)]
            for one in external.outsides(router)
            if one.gateway is not None
        )
    )


def _key_of(one: Outside) -> tuple[int, int]:
    return one.cidr.version, external.table_of(one)


def _way(present: bool, route: RouterRoute) -> EntryChange:
    return EntryChange(present, router_route(route, external.way_table(route.destination)))


def _ways(routes: Iterable[Route]) -> Ways:
    """Of IPv4, in the main table."""
    return {
        route.destination: (route.link, route.gateway)
        for route in routes
        if route.destination is not None and route.gateway is not None
    }


def _ways6(host: Netlink) -> Ways:
    routes = host.table_routes(external.TO_GUESTS.table, 6)
    return {one.destination: (one.link, one.next_hop) for one in routes if one.next_hop is not None}


def _answers_ipv6(link: Link) -> bool:
    return sysctl.ipv6_forwarding_is_on() and sysctl.answers_solicitations(link.name)


def _payload(hop: Neighbour) -> bytes:
    return neighbour(hop.link, hop.address, hop.mac)
