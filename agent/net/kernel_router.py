"""Routers on this node: namespace, rules, uplink, tunnel between their parts, and the routes to other nodes.

**Edge.** Called in the driver's thread, in the host's namespace. A router's namespace is there before
networks come into it (kernel_network.py). Who may send is known before anybody is sent to, rules are there
before links, what is for nobody is refused before any network is there, and the record is last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from agent.errors import DriverError
from agent.net import (
    conntrack,
    external,
    guard_rules,
    kernel_links,
    names,
    netns,
    router_entries,
    router_program,
    sysctl,
)
from agent.net.addressing import ROUTER_TUNNEL_LINK, router_uplink_pair
from agent.net.conntrack_wire import Connection
from agent.net.driver import IPAddress, RouterDirectory, RouterIntent, digest_of
from agent.net.elements import Element
from agent.net.intent_check import check_router_directory, check_static_routes
from agent.net.kernel_balancer import KernelBalancers
from agent.net.kernel_external import KernelExternal, change_rules
from agent.net.kernel_host import KernelHost
from agent.net.netlink_link import Link
from agent.net.netlink_neighbour import neighbour
from agent.net.netlink_route import RouterRoute, router_route
from agent.net.router_entries import RouterEntry, RouterSpot, hash_of, key_of
from agent.net.router_mirror import RouterMirror
from agent.net.router_state import RouterRecord, RouterState
from agent.net.rtnetlink import EntryChange, Netlink
from agent.net.rules_reader import RulesReader
from agent.net.ruleset import NAMESPACE_TABLES


@dataclass(frozen=True, slots=True)
class _Known:
    """What was programmed last: while the namespace's entries have this hash, it is there."""

    directory: RouterDirectory
    spot: RouterSpot
    hash: int


class KernelRouters:
    """`stop_servers` ends what keeps a router's namespace alive after its name was taken away."""

    def __init__(
        self,
        state: RouterState,
        netns_dir: Path,
        host: KernelHost,
        reader: RulesReader,
        stop_servers: Callable[[str], None],
        external: KernelExternal,
        balancers: KernelBalancers,
    ) -> None:
        self.balancers = balancers
        self._state = state
        self.external = external
        self._netns_dir = netns_dir
        self._host = host
        self._reader = reader
        self._stop_servers = stop_servers
        self._mirrors: dict[str, RouterMirror] = {}
        self._known: dict[str, _Known] = {}

    def namespace(self, uid: str) -> Path:
        return self._netns_dir / names.namespace_name(uid)

    def check_ready(self, uid: str, what: str) -> None:
        """Raises DriverError unless networks may come into the router."""
        if self._state.find(uid) is None or not netns.exists(self.namespace(uid)):
            raise DriverError(
                "RouterMissing", f"{what}: router {uid} is not on this node; ensure the router first"
            )

    def ensure(self, router: RouterIntent) -> None:
        uid = router.uid
        record = self._state.find(uid)
        self._state.begin(uid)
        self.external.release(uid, router)
        self._host.ensure()
        self._host.ensure_elements(
            uid,
            router_program.router_elements(router, self._host.underlay),
            lambda element: not guard_rules.is_peer(element),
        )
        rules = self._ensure_namespace(router, record)
        way_out = self._ensure_links(router)
        mirror = self.follow(uid)
        assert mirror is not None  # its namespace was made above
        wanted = router_program.own_routes(router, way_out.index)
        mirror.change(mirror.routes - wanted, wanted - mirror.routes)
        self._ensure_returns(router, mirror.tunnel)
        if record is not None:
            self._end_translated(record.intent, router)
        self.balancers.ensure(router, self.namespace(uid))
        self._state.write(
            RouterRecord(router, digest_of(router), router_program.router_digest(router), rules)
        )
        self._settle_ipv6()
        self.external.ensure(router)  # last: a lost uplink must not keep networks out of the router

    def ensure_absent(self, uid: str) -> None:
        self._state.begin(uid)
        self.external.release(uid)
        self._close(uid)
        path = self.namespace(uid)
        if netns.exists(path):
            with netns.inside(path), Netlink() as inner:
                tunnel = inner.find_link(ROUTER_TUNNEL_LINK)
                if tunnel is not None:  # not left to the namespace's end, which anything inside delays
                    inner.delete_link(tunnel.index)
        with Netlink() as host:
            pair = router_uplink_pair(uid)
            kernel_links.delete_ours(host, pair.kind, pair.name, uid)
        netns.remove(path)
        self.balancers.ensure_absent(uid)
        self._host.ensure_elements(uid, frozenset())
        self._reader.forget(uid)
        self._state.forget(uid)
        self._settle_ipv6()
        self._host.leave_if_unused()

    def ensure_directory(self, uid: str, directory: RouterDirectory) -> None:
        self.check_ready(uid, "directory")
        record, mirror = self._state.find(uid), self.follow(uid)
        assert record is not None
        assert mirror is not None
        vteps = router_entries.vteps_of(directory)
        if vteps and not mirror.tunnel:
            raise DriverError(
                "NoUnderlay",
                f"router {uid} has ports on other nodes and no tunnel to them; start this node's agent with "
                "--underlay-address",
                permanent=self._host.underlay is None,
            )
        spot = self._find_spot(uid, directory, mirror)
        stale, missing = self._difference(uid, directory, spot, mirror)
        wanted = mirror.hash ^ hash_of(stale, spot.tunnel) ^ hash_of(missing, spot.tunnel)
        self._ensure_peers(uid, record.intent.vni, vteps)
        mirror.change(stale, missing)
        if mirror.hash != wanted:
            self._known.pop(uid, None)
            raise DriverError(
                "RoutesDiffer",
                f"router {uid}: routes are not as they were set; is another program editing those of "
                f"{self.namespace(uid)}?",
            )
        self._known[uid] = _Known(directory, spot, wanted)

    def uids(self) -> list[str]:
        return self._state.uids()

    def namespaces(self) -> dict[str, Path]:
        """Of every router that was begun; not all need be there."""
        return {uid: self.namespace(uid) for uid in self.uids()}

    def balancers_are_whole(self, uid: str) -> bool:
        """Of a router that is there."""
        record = self._state.find(uid)
        return record is not None and self.balancers.are_whole(record.intent, self.namespace(uid))

    def record(self, uid: str) -> RouterRecord | None:
        return self._state.find(uid)

    def follow(self, uid: str) -> RouterMirror | None:
        """What the router's namespace holds now; None while there is none."""
        path = self.namespace(uid)
        if not netns.exists(path):
            self._close(uid)
            return None
        mirror = self._mirrors.get(uid)
        if mirror is not None and mirror.inode == path.stat().st_ino:
            mirror.follow()
            return mirror
        self._close(uid)
        self._mirrors[uid] = mirror = RouterMirror(path)
        return mirror

    def peers(self) -> frozenset[Element]:
        """Who may send into the routers' tunnels."""
        found: set[Element] = set()
        for router in self._state.intents():
            mirror = self._mirrors.get(router.uid)
            if mirror is not None:
                found |= guard_rules.peer_elements(router.uid, router.vni, mirror.vteps())
        return frozenset(found)

    def close(self) -> None:
        for uid in list(self._mirrors):
            self._close(uid)

    # -- steps --------------------------------------------------------------------------------------------

    def _ensure_namespace(self, router: RouterIntent, record: RouterRecord | None) -> str:
        """Fingerprint of its rules."""
        path = self.namespace(router.uid)
        if not netns.exists(path):
            self._stop_servers(router.uid)  # they would keep a namespace of this name, and its tunnel, alive
            path.unlink(missing_ok=True)  # a plain file is what a crash leaves
            netns.create(path)
        with netns.inside(path):
            sysctl.make_router()
            sysctl.join_networks()
            if record is not None and record.program == router_program.router_digest(router):
                tables = self._reader.read(router.uid, NAMESPACE_TABLES)
                if record.rules == tables.fingerprint:
                    return tables.fingerprint
            rules = router_program.router_rules(router)
            return self._reader.replace(router.uid, NAMESPACE_TABLES, rules).fingerprint

    def _ensure_links(self, router: RouterIntent) -> Link:
        """The inner end of its uplink."""
        path, pair = self.namespace(router.uid), router_uplink_pair(router.uid)
        with Netlink() as host, kernel_links.conversation_inside(path) as (inner, namespace_fd):
            kernel_links.set_up(inner, kernel_links.get_link(inner, "lo"))
            self._ensure_tunnel(host, inner, router, namespace_fd)
            way_out = kernel_links.ensure_uplink(
                host,
                inner,
                pair,
                router.uid,
                router.vni,
                namespace_fd,
                passes_ipv6=bool(router.routed),
            )
            with netns.inside(path):
                if router.routed:
                    sysctl.make_ipv6_gateway(way_out.name)
                else:
                    sysctl.disable_ipv6(way_out.name)
            if router.routed:
                outer = kernel_links.get_link(host, pair.name)
                hop = external.hop_outside(way_out.index, outer.mac)
                inner.change_entries([EntryChange(True, neighbour(hop.link, hop.address, hop.mac))])
            return way_out

    def _settle_ipv6(self) -> None:
        """The node forwards IPv6 while it answers for an address of it."""
        if any(router.routed for router in self._state.intents()):
            self._host.open_ipv6()
        else:
            self._host.close_ipv6()

    def _ensure_tunnel(self, host: Netlink, inner: Netlink, router: RouterIntent, namespace_fd: int) -> None:
        """Inside; its outer packets go by the node's underlay."""
        wanted = router_program.wanted_tunnel(router, self._host.underlay)
        present = inner.find_link(ROUTER_TUNNEL_LINK)
        if present is not None and present.tunnel != wanted:
            inner.delete_link(present.index)
            present = None
        if wanted is None:
            return
        if present is None:
            host.add_vxlan(ROUTER_TUNNEL_LINK, router_entries.peer_mac(wanted.local), wanted, namespace_fd)
        tunnel = kernel_links.get_link(inner, ROUTER_TUNNEL_LINK)
        kernel_links.ensure_mtu(inner, tunnel, router.mtu)
        with netns.inside(self.namespace(router.uid)):
            sysctl.make_ipv6_gateway(ROUTER_TUNNEL_LINK)
        kernel_links.set_up(inner, tunnel)

    def _ensure_returns(self, router: RouterIntent, tunnel: int) -> None:
        """Ways back to the nodes that answer for an address which leads to a port here."""
        wanted = external.return_rules(router.announcers)
        with netns.inside(self.namespace(router.uid)), Netlink() as inner:
            for vtep in router.announcers:
                table, route = external.mark_of_node(vtep), external.return_route(vtep, tunnel)
                if route not in inner.table_routes(table):
                    inner.change_routes([EntryChange(True, router_route(route, table))])
            change_rules(inner, inner.rules(), wanted)

    def _end_translated(self, before: RouterIntent, after: RouterIntent) -> None:
        """Connections by an address that leads elsewhere now, or nowhere."""
        kept = {replace(one, members=()) for one in after.floating}  # a balancer ends its members' own
        changed = {replace(one, members=()) for one in before.floating} - kept
        if not changed:
            return
        addresses = {one.address for one in changed}
        senders = {one.fixed for one in changed}

        def is_over(connection: Connection) -> bool:
            if connection.destination in addresses:
                return True
            inside = any(connection.destination in cidr for cidr in after.cidrs)
            return connection.source in senders and not inside

        with netns.inside(self.namespace(after.uid)):
            conntrack.end_connections(conntrack.NO_ZONE, is_over)

    def _ensure_peers(self, uid: str, vni: int, vteps: frozenset[IPAddress]) -> None:
        peers = guard_rules.peer_elements(uid, vni, vteps)
        if peers != set(filter(guard_rules.is_peer, self._host.tables().of_network(uid))):
            self._host.ensure_elements(uid, peers, guard_rules.is_peer)

    def _difference(
        self, uid: str, directory: RouterDirectory, spot: RouterSpot, mirror: RouterMirror
    ) -> tuple[set[RouterEntry], set[RouterEntry]]:
        """(too many, missing). Raises DriverError for a directory that cannot be."""
        known = self._known.get(uid)
        if known is None or (known.spot.tunnel, known.hash) != (spot.tunnel, mirror.hash):
            check_router_directory(uid, directory)
            wanted = router_entries.entries_of(directory, spot)
            return mirror.entries - wanted, wanted - mirror.entries
        check_static_routes(uid, directory.routes)
        stale, missing = router_entries.change_of(known.directory, known.spot, directory, spot)
        ways = [mirror.find_way(entry) for entry in missing if isinstance(entry, RouterRoute)]
        if len(set(map(key_of, missing))) != len(missing) or any(way not in {None, *stale} for way in ways):
            check_router_directory(uid, directory)
        return stale, missing

    def _find_spot(self, uid: str, directory: RouterDirectory, mirror: RouterMirror) -> RouterSpot:
        gateways: dict[str, int] = {}
        with netns.inside(self.namespace(uid)), Netlink() as inner:
            for network_uid in {route.network_uid for route in directory.routes} - {""}:
                gateway = inner.find_link(names.inner_gateway_name(network_uid))
                if gateway is None:
                    raise DriverError(
                        "NetworkMissing",
                        f"router {uid}: a static route leads into network {network_uid}, which is not here; "
                        "ensure the network first",
                    )
                gateways[network_uid] = gateway.index
        return RouterSpot(mirror.tunnel, gateways)

    def _close(self, uid: str) -> None:
        self._known.pop(uid, None)
        mirror = self._mirrors.pop(uid, None)
        if mirror is not None:
            mirror.close()


def recorded_elements(state: RouterState, underlay: IPAddress | None) -> frozenset[Element]:
    """Of all routers that were programmed."""
    return frozenset(
        one for router in state.intents() for one in router_program.router_elements(router, underlay)
    )
