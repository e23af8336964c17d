"""One network on this node: its rules, links, namespace and DHCP server, made and removed.

**Edge.** Called in the driver's thread, in the host's namespace. The order of effects is what makes every
prefix safe: guards before links, the record last; and the reverse when a network goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

from agent.errors import DriverError
from agent.net import (
    dnsmasq,
    guard_rules,
    kernel_links,
    names,
    netns,
    qos,
    rtnetlink,
    ruleset,
    sysctl,
)
from agent.net.directory import Spot
from agent.net.dnsmasq_config import ServerFiles, parse_leases, render_names
from agent.net.driver import NetworkIntent, PortIntent, RemotePort, digest_of
from agent.net.intent_check import check_directory
from agent.net.kernel_directory import KernelDirectory
from agent.net.kernel_groups import KernelGroups
from agent.net.kernel_host import KernelHost
from agent.net.kernel_segment import KernelSegments
from agent.net.netlink_link import Link
from agent.net.ports import guest_port
from agent.net.program import NetworkProgram, build_program
from agent.net.rtnetlink import Netlink
from agent.net.rules_reader import RulesReader, Tables
from agent.net.ruleset import NAMESPACE_TABLES
from agent.net.state import NetworkRecord, State, read_text, write_text


class KernelNetwork:
    def __init__(
        self,
        state: State,
        netns_dir: Path,
        host: KernelHost,
        reader: RulesReader,
        directory: KernelDirectory,
        groups: KernelGroups,
        segments: KernelSegments,
        check_router: Callable[[str, str], None],
    ) -> None:
        """`check_router` raises DriverError unless networks may come into a router."""
        self.segments = segments
        self._directory = directory
        self._groups = groups
        self._state = state
        self._netns_dir = netns_dir
        self._host = host
        self._reader = reader
        self._check_router = check_router

    def namespace(self, domain_uid: str) -> Path:
        return self._netns_dir / names.namespace_name(domain_uid)

    def home(self, network: NetworkIntent) -> Path:
        """The namespace that its gateway is in."""
        return self.namespace(network.router_uid or network.uid)

    def ensure(self, network: NetworkIntent) -> None:
        if network.router_uid:
            self._check_router(network.router_uid, f"network {network.uid}")
        self._host.ensure()  # while the record says which ports are to be guarded, should all be lost
        files = self._state.files(network.uid)
        program = build_program(network, files, self._state.resolvers)
        record = self._state.find_network(network.uid)
        self._state.forget_completion(network.uid)
        files.directory.mkdir(exist_ok=True)
        files.directory.chmod(0o755)  # whatever the umask: dnsmasq's user reads here
        if network.router_uid:
            kernel_links.delete_uplink(network.uid)  # before its guards
        if self._ensure_elements(network):
            self._groups.end_connections(network)
        with Netlink() as host:
            qos.ensure_all_rates(host, network)
        rules = "" if network.router_uid else self._ensure_namespace(network.uid, program, record).fingerprint
        gateway_is_new = kernel_links.ensure_links(network, self.home(network), self._host.underlay)
        self.segments.ensure(network)
        self._ensure_server(network, program, is_synced=record is not None and not gateway_is_new)
        if network.router_uid:
            netns.remove(self.namespace(network.uid))
            self._reader.forget(network.uid)
        self._state.write_network(NetworkRecord(network, digest_of(network), program.digest, rules))

    def stop_servers(self, router_uid: str) -> None:
        """Of the networks that were last in this router; they are then observed as incomplete."""
        for network in self._state.networks():
            if network.router_uid == router_uid:
                dnsmasq.stop(self._state.files(network.uid))

    def ensure_absent(self, uid: str) -> None:
        """Taps of ports that are still there stay, without a bridge and still guarded."""
        self._state.forget_completion(uid)
        files = self._state.files(uid)
        if files.directory.exists():
            dnsmasq.stop(files)
        self.segments.ensure_absent(uid)
        kernel_links.delete_host_links(uid)
        netns.remove(self.namespace(uid))
        self._host.ensure_elements(uid, frozenset(), lambda element: element.owner == uid)
        self._host.zones.release(uid)
        self._reader.forget(uid)
        self._directory.forget(uid)
        self._state.forget_network(uid)
        self._host.leave_if_unused()

    def ensure_directory(self, uid: str, remotes: frozenset[RemotePort]) -> None:
        """Who may send is known before anybody is sent to."""
        known = self._state.find_intent(uid)
        if known is not None and known.segment is not None:
            check_directory(uid, remotes)
            self._name_remotes(uid, remotes)  # where they are, the segment knows
            self.segments.remember_directory(uid, remotes)
            return
        with Netlink() as host:
            bridge, tunnel = self._find_spot(host, uid)
        vni = tunnel.tunnel.vni if tunnel.tunnel is not None else 0
        change = self._directory.plan(uid, remotes, Spot(bridge.index, tunnel.index))
        peers = guard_rules.peer_elements(uid, vni, change.vteps)
        present = set(filter(guard_rules.is_peer, self._host.tables().of_network(uid)))
        if present != peers:
            self._host.ensure_elements(uid, peers, guard_rules.is_peer)
        self._directory.program(uid, vni, change)
        self._name_remotes(uid, remotes)

    def _name_remotes(self, uid: str, remotes: frozenset[RemotePort]) -> None:
        """What DNS says of them; the server reads its files again only when that is something else."""
        files = self._state.files(uid)
        text = render_names(sorted(remotes, key=attrgetter("uid")))
        if read_text(files.remote_names) == text:
            return
        write_text(files.remote_names, text)
        network = self._state.find_network(uid)
        pid = dnsmasq.find_pid(files, self.home(network.intent)) if network is not None else 0
        if pid:
            dnsmasq.reload(pid)

    def ensure_port(self, port: PortIntent) -> None:
        with Netlink() as host:
            bridge = self._get_bridge(host, port.network_uid, f"port {port.uid}")
            self._host.ensure()
            wanted = ruleset.port_elements(port, self._host.numbers.ensure(port.uid))
            if self._host.ensure_elements(port.uid, wanted, ports=[port]):
                self._groups.end_connections_of(port)  # also what a port of before left with its address
            name = names.tap_name(port.uid)
            tap = host.find_link(name)
            if tap is None:
                rtnetlink.create_tap(name)
                tap = kernel_links.get_link(host, name)
            kernel_links.mark(host, tap, "tap", port.uid)
            qos.ensure_rates(host, port, tap)
            kernel_links.attach(host, tap, bridge, guest_port(port), port.mac)

    def ensure_port_absent(self, uid: str) -> None:
        """The tap goes before its guards."""
        with Netlink() as host:
            kernel_links.delete_ours(host, "tap", names.tap_name(uid), uid)
            qos.delete_shaper(host, uid)
        self._host.ensure_elements(uid, frozenset())
        self._host.numbers.release(uid)
        self._groups.sweep()
        self._host.leave_if_unused()

    def _get_bridge(self, host: Netlink, uid: str, what: str) -> Link:
        bridge = kernel_links.find_bridge(host, uid)
        if bridge is None:
            raise DriverError(
                "NetworkMissing", f"{what}: network {uid} is not on this node; ensure the network first"
            )
        return bridge

    def _find_spot(self, host: Netlink, uid: str) -> tuple[Link, Link]:
        """Bridge and tunnel."""
        bridge = self._get_bridge(host, uid, "directory")
        if self._host.underlay is None:
            raise DriverError(
                "NoUnderlay",
                f"network {uid} has ports on other nodes and this node no address for tunnels; "
                "start its agent with --underlay-address",
                permanent=True,
            )
        return bridge, kernel_links.get_link(host, names.tunnel_name(uid))

    # -- steps --------------------------------------------------------------------------------------------

    def _ensure_elements(self, network: NetworkIntent) -> bool:
        """The network's links, and what its ports may send as: of those that have a tap already.

        True when somebody's connections are to be judged again.
        """
        tapped = self._host.tables().tapped(network.uid)
        wanted = (
            ruleset.network_elements(network, self._host.ensure_zone(network.uid))
            | guard_rules.tunnel_elements(network, self._host.underlay)
            | ruleset.guard_elements(network, tapped, self._host.numbers.known)
        )
        return self._host.ensure_elements(
            network.uid, wanted, lambda element: not guard_rules.is_peer(element), network.ports
        )

    def _ensure_namespace(self, uid: str, program: NetworkProgram, record: NetworkRecord | None) -> Tables:
        path = self.namespace(uid)
        if not netns.exists(path):
            path.unlink(missing_ok=True)  # a plain file is what a crash leaves
            netns.create(path)
        with netns.inside(path):
            sysctl.make_router()
            if record is not None and record.program == program.digest:
                tables = self._reader.read(uid, NAMESPACE_TABLES)
                if record.rules == tables.fingerprint:
                    return tables
            return self._reader.replace(uid, NAMESPACE_TABLES, list(program.rules))

    def _ensure_server(self, network: NetworkIntent, program: NetworkProgram, *, is_synced: bool) -> None:
        """A reload where that is enough; leases and their clients outlive a restart as well."""
        files = self._state.files(network.uid)
        pid = dnsmasq.find_pid(files, self.home(network))
        config_holds = read_text(files.config) == program.config
        if pid and is_synced and config_holds and not _lease_conflicts(files, network):
            if (read_text(files.hosts), read_text(files.names)) != (program.hosts, program.names):
                _write_hosts(files, program)
                dnsmasq.reload(pid)
            return
        if files.config.exists():
            dnsmasq.stop(files)
        _write_hosts(files, program)
        _prune_leases(files, network)
        write_text(files.config, program.config)
        with netns.inside(self.home(network)):
            dnsmasq.start(files)


def _write_hosts(files: ServerFiles, program: NetworkProgram) -> None:
    write_text(files.hosts, program.hosts)
    write_text(files.names, program.names)
    if not files.remote_names.exists():  # the server would complain of a file that it was told of
        write_text(files.remote_names, "")


def _holders(network: NetworkIntent) -> dict[str, str]:
    """Address to MAC."""
    return {str(address): port.mac.lower() for port in network.ports for address in port.addresses}


def _lease_conflicts(files: ServerFiles, network: NetworkIntent) -> bool:
    """An address has moved to another MAC while its lease runs: dnsmasq would refuse the new owner."""
    holders = _holders(network)
    leases = parse_leases(read_text(files.leases), time.time())
    return any(holders.get(address, mac) != mac for mac, address in leases)


def _prune_leases(files: ServerFiles, network: NetworkIntent) -> None:
    """Keep the leases of ports that are still there. The server is stopped."""
    held = {(mac, address) for address, mac in _holders(network).items()}
    lines = read_text(files.leases).splitlines(keepends=True)
    kept = "".join(line for line in lines if parse_leases(line, 0.0) & held)
    if files.leases.exists():
        write_text(files.leases, kept)
