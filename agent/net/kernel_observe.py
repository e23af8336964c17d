"""Gathers what of ours is on the node, for `kernel_judge.py`.

**Edge**, reading only. Called in the driver's thread, in the host's namespace.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from agent.net import dnsmasq, external, names, netns, qos, router_judge, sysctl
from agent.net.addressing import ROUTER_UPLINK, UPLINK_LINK
from agent.net.dnsmasq_config import ServerFiles, parse_leases
from agent.net.driver import NetworkIntent, ObservedNet
from agent.net.kernel_directory import KernelDirectory
from agent.net.kernel_external import ExternalView
from agent.net.kernel_groups import KernelGroups
from agent.net.kernel_host import KernelHost
from agent.net.kernel_judge import HostView, LinkView, NamespaceView, NetworkView, judge
from agent.net.kernel_router import KernelRouters
from agent.net.kernel_segment import KernelSegments
from agent.net.netlink_neighbour import AF_INET6, Neighbour
from agent.net.program import build_program
from agent.net.rates import Rates, wanted_rates
from agent.net.router_judge import RouterView
from agent.net.router_program import router_digest
from agent.net.router_state import RouterRecord
from agent.net.rtnetlink import Netlink
from agent.net.rules_reader import RulesReader, Tables
from agent.net.ruleset import NAMESPACE_TABLES
from agent.net.state import NetworkRecord, State, read_text

_NAMESPACE_PREFIX: Final = names.namespace_name("")
_OF_PORTS: Final = ("tap", qos.KIND)  # kinds of links that belong to a port


def observe(
    state: State,
    netns_dir: Path,
    host: KernelHost,
    reader: RulesReader,
    directory: KernelDirectory,
    groups: KernelGroups,
    routers: KernelRouters,
    segments: KernelSegments,
) -> ObservedNet:
    tables = host.tables()
    mirror = directory.follow()
    links = _links()
    router_uids = _router_uids(routers, links)
    uids = [uid for uid in _network_uids(state, netns_dir, links, tables) if uid not in router_uids]
    namespaces = _Namespaces(netns_dir, reader)
    views = tuple(_network(uid, state, namespaces) for uid in uids)
    router_views = tuple(_router(uid, routers, namespaces, links) for uid in sorted(router_uids))
    host_view = HostView(
        links=links,
        tables=tables,
        is_sound=host.is_sound(tables),
        entries=mirror,
        underlay=host.underlay,
        numbers=host.numbers.known,
        zones=host.zones.known,
        groups=groups.digests(tables),
        rates=_rates(links, views),
        external=_external(routers),
        segments=segments.view(),
    )
    observed = judge(host_view, views)
    return replace(
        observed,
        routers=router_judge.router_digests(host_view, router_views),
        router_directories=dict(router_judge.directory_digests(host_view, router_views)),
        items=tuple(sorted({*observed.items, *router_judge.router_items(router_views)})),
    )


def _router_uids(routers: KernelRouters, links: LinkView) -> frozenset[str]:
    """Of every router of which anything is there."""
    marks = (names.parse_alias(link.alias) for link in links.links.values())
    seen = (mark[1] for mark in marks if mark is not None and mark[0] == ROUTER_UPLINK)
    return frozenset((*routers.uids(), *seen))


def _network_uids(state: State, netns_dir: Path, links: LinkView, tables: Tables) -> list[str]:
    """Of every network of which anything is there, whatever it is."""
    marks = (names.parse_alias(link.alias) for link in links.links.values())
    return sorted(
        {
            *state.network_uids(),
            *_namespace_uids(netns_dir),
            *(mark[1] for mark in marks if mark is not None and mark[0] not in _OF_PORTS),
            *(element.owner for element in tables.elements if element.owner and not element.port_uid),
        }
    )


def _namespace_uids(netns_dir: Path) -> Iterable[str]:
    if netns_dir.is_dir():
        for entry in netns_dir.iterdir():
            if entry.name.startswith(_NAMESPACE_PREFIX):
                yield entry.name.removeprefix(_NAMESPACE_PREFIX)


def _network(uid: str, state: State, namespaces: _Namespaces) -> NetworkView:
    record, files = state.find_network(uid), state.files(uid)
    domain_uid = (record.intent.router_uid if record else "") or uid
    return NetworkView(
        uid=uid,
        record=record,
        program=_program_digest(record.intent, files, state.resolvers) if record else "",
        namespace=namespaces.view(domain_uid),
        has_own_namespace=netns.exists(namespaces.path(uid)),
        server_pid=dnsmasq.find_pid(files, namespaces.path(domain_uid)),
        leased=parse_leases(read_text(files.leases), time.time()) | _heard(record, domain_uid, namespaces),
    )


def _heard(
    record: NetworkRecord | None, domain_uid: str, namespaces: _Namespaces
) -> frozenset[tuple[str, str]]:
    """Guests with IPv6 alone make their addresses themselves; a gateway hears of them when they speak."""
    ports = record.intent.ports if record else ()
    if all(any(address.version == 4 for address in port.addresses) for port in ports):
        return frozenset()
    return namespaces.heard(domain_uid)


def _router(uid: str, routers: KernelRouters, namespaces: _Namespaces, links: LinkView) -> RouterView:
    record, mirror, view = routers.record(uid), routers.follow(uid), namespaces.view(uid)
    return RouterView(
        uid=uid,
        record=record,
        program=router_digest(record.intent) if record else "",
        namespace=view,
        joins=view is not None and _joins(namespaces.path(uid)),
        balances=view is not None and routers.balancers_are_whole(uid),
        routes=frozenset(mirror.routes if mirror else ()),
        hash=mirror.hash if mirror else 0,
        vteps=mirror.vteps() if mirror else frozenset(),
        returns=record is None or mirror is None or _returns(namespaces.path(uid), record, mirror.tunnel),
        passes_ipv6=record is None or view is None or _passes_ipv6(namespaces.path(uid), record, links),
    )


def _external(routers: KernelRouters) -> ExternalView:
    records = map(routers.record, routers.uids())
    intents = [record.intent for record in records if record is not None]
    with Netlink() as host:
        return routers.external.view(host, intents)


def _returns(path: Path, record: RouterRecord, tunnel: int) -> bool:
    """The ways back by those who answer for addresses of the outside are there, and no other ones."""
    announcers = record.intent.announcers
    if not announcers:
        return True
    with netns.inside(path), Netlink() as inner:
        tables = {vtep: inner.table_routes(external.mark_of_node(vtep)) for vtep in announcers}
        return inner.rules() == external.return_rules(announcers) and all(
            external.return_route(vtep, tunnel) in routes for vtep, routes in tables.items()
        )


def _passes_ipv6(path: Path, record: RouterRecord, host: LinkView) -> bool:
    """IPv6 gets from the router's namespace to the node, where it is to."""
    outer = host.links.get(names.uplink_name(record.intent.uid))
    if not record.intent.routed or outer is None:
        return True
    with netns.inside(path), Netlink() as inner:
        uplink = inner.find_link(UPLINK_LINK)
        return (
            uplink is not None
            and not sysctl.ipv6_is_off(UPLINK_LINK)
            and external.hop_outside(uplink.index, outer.mac) in inner.neighbours(uplink.index)
        )


def _joins(path: Path) -> bool:
    with netns.inside(path):
        return sysctl.networks_are_joined()


class _Namespaces:
    """Of routing domains, each looked at once."""

    def __init__(self, directory: Path, reader: RulesReader) -> None:
        self._directory = directory
        self._reader = reader
        self._views: dict[str, NamespaceView | None] = {}

    def path(self, domain_uid: str) -> Path:
        return self._directory / names.namespace_name(domain_uid)

    def view(self, domain_uid: str) -> NamespaceView | None:
        if domain_uid not in self._views:
            self._views[domain_uid] = self._look(domain_uid)
        return self._views[domain_uid]

    def heard(self, domain_uid: str) -> frozenset[tuple[str, str]]:
        """(MAC, IPv6 address) of whom the domain's gateways know."""
        path = self.path(domain_uid)
        if not netns.exists(path):
            return frozenset()
        with netns.inside(path), Netlink() as netlink:
            entries = netlink.entries([AF_INET6])
            return frozenset((one.mac, str(one.address)) for one in entries if isinstance(one, Neighbour))

    def _look(self, domain_uid: str) -> NamespaceView | None:
        path = self.path(domain_uid)
        if not netns.exists(path):
            return None
        with netns.inside(path):
            tables = self._reader.read(domain_uid, NAMESPACE_TABLES)
            return NamespaceView(_links(), sysctl.forwarding_is_on(), tables.fingerprint)


def _rates(links: LinkView, networks: Iterable[NetworkView]) -> dict[str, Rates]:
    """A node where nothing is limited, as most are, is not asked for its queues."""
    intents = (port for network in networks if network.record for port in network.record.intent.ports)
    limited = any(wanted_rates(port) != Rates() for port in intents)
    marks = {name: names.parse_alias(link.alias) for name, link in links.links.items()}
    shapes = any(mark is not None and mark[0] == qos.KIND for mark in marks.values())
    if not limited and not shapes:
        return {}
    taps = (links.links[name] for name, mark in marks.items() if mark is not None and mark[0] == "tap")
    return qos.read_rates(taps)


def _links() -> LinkView:
    with Netlink() as netlink:
        links = {link.name: link for link in netlink.links()}
        return LinkView(links, frozenset(netlink.addresses()), frozenset(netlink.routes()))


@functools.lru_cache(maxsize=4096)  # networks on one node; compiling costs more than looking it up
def _program_digest(intent: NetworkIntent, files: ServerFiles, resolvers: Path) -> str:
    return build_program(intent, files, resolvers).digest
