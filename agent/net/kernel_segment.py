"""Provider networks' ways to the node's links: patches, what runs on them, and the node's netdev table.

**Edge.** Called in the driver's thread, in the host's namespace. Nothing but frames for guests, and copies of
what is for everybody, is ever taken from a link; it takes frames to guests' MACs besides its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from agent.errors import DriverError
from agent.net import addressing, announce, bpf, kernel_links, names, netns, ports, segment, sysctl
from agent.net.directory import digest_of_directory
from agent.net.driver import NetworkIntent, RemotePort, Segment
from agent.net.netlink_link import Link
from agent.net.netlink_neighbour import station_entry
from agent.net.queues import Queues
from agent.net.rtnetlink import EntryChange, Netlink
from agent.net.rules_reader import RulesReader
from agent.net.segment import PATCH, PATCH_UPLINK, TABLES, Crossing
from agent.net.state import State, read_text, write_text

_OWNER: Final = "segments"


@dataclass(frozen=True, slots=True)
class SegmentView:
    """`links`: by the operator's name of the uplink; `programs`: by the name of the link that it runs on;
    `stations`: MACs by link; `directories`: digests by network. `is_sound`: the netdev table is as it was
    programmed."""

    links: Mapping[str, Link] = field(default_factory=dict)
    programs: Mapping[str, str] = field(default_factory=dict)
    stations: Mapping[str, frozenset[str]] = field(default_factory=dict)
    directories: Mapping[str, str] = field(default_factory=dict)
    is_sound: bool = True


class KernelSegments:
    """`uplinks`: name of the link by the name that plans use."""

    def __init__(self, state: State, reader: RulesReader, uplinks: Mapping[str, str]) -> None:
        self._state = state
        self._reader = reader
        self._uplinks = uplinks
        self._stations = state.directory / "stations.json"  # MACs that we gave to links
        self._crossings: dict[str, Crossing] | None = None
        self._rules = ""  # fingerprint of what was programmed
        self._directories: dict[str, str] = {}  # digests of what this process was told

    def ensure(self, network: NetworkIntent) -> None:
        """Raises DriverError when this node has no link to it, or one that is too narrow."""
        uid, wanted = network.uid, network.segment
        if wanted is None or not wanted.joined:
            self.ensure_absent(uid)
            return
        with Netlink() as host:
            uplink = self._find_uplink(host, network, wanted)
            crossing = segment.crossing_of(network, wanted, uplink.name)
            bridge_end, uplink_end = self._ensure_patch(host, network)
            _run(bridge_end, segment.inward_program(wanted.vlan))
            _run(uplink_end, segment.outward_program(uplink.index, uplink.mac, wanted.vlan))
            self._program(host, {**self._known(), uid: crossing})

    def remember_directory(self, uid: str, remotes: frozenset[RemotePort]) -> None:
        """Of a provider network the kernel holds nothing by which it could be told."""
        self._directories[uid] = digest_of_directory(remotes)

    def ensure_absent(self, uid: str) -> None:
        known = self._known()
        self._directories.pop(uid, None)
        with Netlink() as host:
            if uid in known or self._stations.exists():  # there from before to after everything else
                self._program(host, {other: one for other, one in known.items() if other != uid})
            kernel_links.delete_ours(host, PATCH, names.patch_bridge_name(uid), uid)

    def view(self) -> SegmentView:
        known = self._known()
        directories = dict(self._directories)
        if not known:  # as on most nodes, which are not asked for more
            return SegmentView(directories=directories, is_sound=not self._stations.exists())
        with Netlink() as host, Queues() as queues:
            found = {name: host.find_link(link) for name, link in self._uplinks.items()}
            links = {name: link for name, link in found.items() if link is not None and link.up}
            ends = {
                name: host.find_link(name)
                for uid in known
                for name in (names.patch_bridge_name(uid), names.patch_uplink_name(uid))
            }
            programs = {
                name: queues.find_program(link.index) for name, link in ends.items() if link is not None
            }
            stations = {link.name: host.stations(link.index) for link in links.values()}
            is_sound = self._is_sound(_present(host, known))
        return SegmentView(links, programs, stations, directories, is_sound)

    def _is_sound(self, known: Mapping[str, Crossing]) -> bool:
        tables = self._reader.read(_OWNER, TABLES)
        if not known:
            return tables.is_absent
        wanted = segment.crossing_elements(known.values())
        return tables.fingerprint == self._rules and {*tables.elements} == wanted

    def _find_uplink(self, host: Netlink, network: NetworkIntent, wanted: Segment) -> Link:
        link = host.find_link(self._uplinks.get(wanted.uplink, ""))
        if link is None or not link.up:
            raise DriverError(
                "UplinkMissing",
                f"network {network.uid}: this node has no link, or one that is down, to {wanted.uplink}; see "
                "its agent's --uplink NAME=LINK and `ip link`",
            )
        if link.mtu < network.mtu:
            raise DriverError(
                "UplinkTooNarrow",
                f"network {network.uid}: its MTU is {network.mtu}, that of this node's link {link.name} to "
                f"{wanted.uplink} {link.mtu}: raise that, or create the network with a smaller --mtu",
            )
        return link

    def _ensure_patch(self, host: Netlink, network: NetworkIntent) -> tuple[Link, Link]:
        """Ends at the bridge and at the uplink."""
        uid = network.uid
        near, far = names.patch_bridge_name(uid), names.patch_uplink_name(uid)
        if host.find_link(far) is None:
            kernel_links.delete_ours(host, PATCH, near, uid)
            home = netns.open_namespace(netns.OWN_NAMESPACE)
            try:
                host.add_veth(near, far, addressing.fixed_mac(PATCH, uid), home)
            finally:
                os.close(home)
        bridge_end, uplink_end = kernel_links.get_link(host, near), kernel_links.get_link(host, far)
        kernel_links.mark(host, bridge_end, PATCH, uid)
        kernel_links.mark(host, uplink_end, PATCH_UPLINK, uid)
        sysctl.silence_link(far)
        kernel_links.ensure_mtu(host, uplink_end, network.mtu)
        kernel_links.set_up(host, uplink_end)
        bridge = kernel_links.get_link(host, names.bridge_name(uid))
        kernel_links.attach(host, bridge_end, bridge, ports.SEGMENT)
        return bridge_end, uplink_end

    def _program(self, host: Netlink, crossings: dict[str, Crossing]) -> None:
        """A link takes frames for a guest before they are looked for, and for as long as they are. One that
        is gone does not hold up the others."""
        wanted: dict[str, set[str]] = {}
        for one in crossings.values():
            wanted.setdefault(one.link, set()).update(one.macs)
        given = _read_stations(self._stations)
        every = {link: given.get(link, set()) | wanted.get(link, set()) for link in given.keys() | wanted}
        _write_stations(self._stations, every)
        _change_stations(host, wanted, present=True)
        here = _present(host, crossings)
        if not self._is_sound(here):
            batch = segment.crossing_rules(here.values())
            self._rules = self._reader.replace(_OWNER, TABLES, batch).fingerprint
        before, self._crossings = self._known(), crossings
        for uid, one in here.items():
            old = before.get(uid, replace(one, macs=frozenset(), addresses=frozenset()))
            macs, addresses = one.macs - old.macs, one.addresses - old.addresses
            if macs or addresses:
                link = kernel_links.get_link(host, one.link)
                announce.introduce(link, sorted(macs), sorted(addresses), one.vlan)
        gone = {link: macs - wanted.get(link, set()) for link, macs in every.items()}
        _change_stations(host, gone, present=False)
        _write_stations(self._stations, wanted)

    def _known(self) -> dict[str, Crossing]:
        """Of what is recorded, until more is known."""
        if self._crossings is None:
            self._crossings = {
                network.uid: segment.crossing_of(network, network.segment, link)
                for network in self._state.networks()
                if network.segment is not None
                and network.segment.joined
                and (link := self._uplinks.get(network.segment.uplink))
            }
        return self._crossings


def segment_fits(view: SegmentView, network: NetworkIntent) -> bool:
    """What the patch of a provider network needs besides its links. **Pure.**"""
    wanted = network.segment
    link = view.links.get(wanted.uplink) if wanted is not None else None
    if wanted is None or link is None:
        return False
    inward, outward = (
        segment.program_name(program)
        for program in (
            segment.inward_program(wanted.vlan),
            segment.outward_program(link.index, link.mac, wanted.vlan),
        )
    )
    return (
        view.is_sound
        and view.programs.get(names.patch_bridge_name(network.uid)) == inward
        and view.programs.get(names.patch_uplink_name(network.uid)) == outward
        and segment.crossing_of(network, wanted, link.name).macs <= view.stations.get(link.name, frozenset())
    )


def _present(host: Netlink, crossings: Mapping[str, Crossing]) -> dict[str, Crossing]:
    """Those whose link is there: nftables refuses a whole table for one that is not."""
    names_there = {name for name in {one.link for one in crossings.values()} if host.find_link(name)}
    return {uid: one for uid, one in crossings.items() if one.link in names_there}


def _run(link: Link, program: bytes) -> None:
    name = segment.program_name(program)
    with Queues() as queues:
        if queues.find_program(link.index) == name:
            return
        if not program:
            queues.delete_ingress(link.index)
            return
        loaded = bpf.load(program, name)
        try:
            queues.run_program(link.index, loaded, name)
        finally:
            os.close(loaded)


def _change_stations(host: Netlink, macs: Mapping[str, Iterable[str]], *, present: bool) -> None:
    """Links that are not there have nothing to change."""
    for name in sorted(macs):
        link = host.find_link(name)
        if link is not None:
            host.change_entries([EntryChange(present, station_entry(link.index, mac)) for mac in macs[name]])


def _read_stations(path: Path) -> dict[str, set[str]]:
    """Damaged, it is as if it were lost: the links then keep some MACs that nobody has."""
    try:
        return {link: set(macs) for link, macs in json.loads(read_text(path) or "{}").items()}
    except (ValueError, AttributeError, TypeError):
        return {}


def _write_stations(path: Path, macs: Mapping[str, set[str]]) -> None:
    kept = {link: sorted(found) for link, found in sorted(macs.items()) if found}
    if kept:
        write_text(path, json.dumps(kept))
    else:
        path.unlink(missing_ok=True)
