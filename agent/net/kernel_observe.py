"""Gathers what of ours is on the node, for `kernel_judge.py`.

**Edge**, reading only. Called in the driver's thread, in the host's namespace.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.net import dnsmasq, names, netns, qos, sysctl
from agent.net.dnsmasq_config import ServerFiles, parse_leases
from agent.net.driver import NetworkIntent, ObservedNet
from agent.net.kernel_directory import KernelDirectory
from agent.net.kernel_groups import KernelGroups
from agent.net.kernel_host import KernelHost
from agent.net.kernel_judge import HostView, LinkView, NamespaceView, NetworkView, judge
from agent.net.program import build_program
from agent.net.rates import Rates, wanted_rates
from agent.net.rtnetlink import Netlink
from agent.net.rules_reader import RulesReader, Tables
from agent.net.ruleset import NAMESPACE_TABLES
from agent.net.state import State, read_text

_NAMESPACE_PREFIX: Final = names.namespace_name("")
_OF_PORTS: Final = ("tap", qos.KIND)  # kinds of links that belong to a port


def observe(
    state: State,
    netns_dir: Path,
    host: KernelHost,
    reader: RulesReader,
    directory: KernelDirectory,
    groups: KernelGroups,
) -> ObservedNet:
    tables = host.tables()
    mirror = directory.follow()
    links = _links()
    uids = _network_uids(state, netns_dir, links, tables)
    views = tuple(_network(uid, state, netns_dir, reader) for uid in uids)
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
    )
    return judge(host_view, views)


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


def _network(uid: str, state: State, netns_dir: Path, reader: RulesReader) -> NetworkView:
    record, files = state.find_network(uid), state.files(uid)
    namespace = netns_dir / names.namespace_name(uid)
    return NetworkView(
        uid=uid,
        record=record,
        program=_program_digest(record.intent, files, state.resolvers) if record else "",
        namespace=_namespace(uid, namespace, reader),
        server_pid=dnsmasq.find_pid(files, namespace),
        leased=parse_leases(read_text(files.leases), time.time()),
    )


def _namespace(uid: str, path: Path, reader: RulesReader) -> NamespaceView | None:
    if not netns.exists(path):
        return None
    with netns.inside(path):
        tables = reader.read(uid, NAMESPACE_TABLES)
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
