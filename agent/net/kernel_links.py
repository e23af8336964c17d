"""Links of one network: its bridge, its tunnel, and the pairs that join its namespace to it and to the node.

**Edge.** Works through netlink conversations of the host and of the namespace, opened by the caller; the
calling thread stays in the host's namespace. Link aliases carry our mark and are set right after creation;
a link with our name and no alias yet is one that a crash left, and ours.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from agent.errors import DriverError
from agent.net import addressing, names, netns, ports, sysctl
from agent.net.addressing import Pair, gateway_pair, link_addresses, uplink_pair
from agent.net.driver import IPAddress, NetworkIntent, announces_ipv6
from agent.net.netlink_ip import Address, Route
from agent.net.netlink_link import BridgePort, Link, Tunnel
from agent.net.netlink_neighbour import port_entry
from agent.net.rtnetlink import EntryChange, Netlink

_SINGLE: Final = 32  # prefix length of a lone address
_SINGLE6: Final = 128


@contextlib.contextmanager
def conversation_inside(namespace: Path) -> Iterator[tuple[Netlink, int]]:
    """A conversation with the namespace's kernel state, and the namespace's file descriptor."""
    namespace_fd = netns.open_namespace(namespace)
    try:
        with netns.inside(namespace):
            inner = Netlink()
        with inner:
            yield inner, namespace_fd
    finally:
        os.close(namespace_fd)


def ensure_links(network: NetworkIntent, namespace: Path, underlay: IPAddress | None) -> bool:
    """All links, addresses and routes of a network; a tunnel where there is an underlay.

    Its gateway comes into this namespace from any other one that it was in.

    True when the gateway's link or addresses are new: a DHCP server of before is bound to nothing.
    """
    with Netlink() as host, conversation_inside(namespace) as (inner, namespace_fd):
        set_up(inner, get_link(inner, "lo"))
        bridge = _ensure_bridge(host, network)
        pair = gateway_pair(network.uid)
        is_new = _ensure_pair(host, inner, pair, network.uid, namespace_fd)
        attach(host, get_link(host, pair.name), bridge, ports.GATEWAY, pair.inner_mac)
        gateway = get_link(inner, pair.inner)
        ensure_mtu(inner, gateway, network.mtu)
        if announces_ipv6(network):
            with netns.inside(namespace):
                sysctl.make_ipv6_gateway(pair.inner)
        set_up(inner, gateway)  # first: a link that is down loses IPv6 addresses
        changed = ensure_addresses(inner, gateway, link_addresses(network))
        # What a load balancer is found by is of no concern to a DHCP server.
        is_changed = any(length != _SINGLE6 for _, length in changed)
        if not network.router_uid:
            uplink = ensure_uplink(
                host, inner, uplink_pair(network.uid), network.uid, network.vni, namespace_fd
            )
            inner.ensure_route(Route(None, 0, uplink.index, addressing.HOST_END))
        for route in near_routes(network, gateway.index):
            inner.ensure_route(route)
        _ensure_tunnel(host, network, bridge, underlay if network.segment is None else None)
    return is_new or is_changed


def near_routes(network: NetworkIntent, gateway: int) -> set[Route]:
    """To guests of an operator's network: the gateway's link has no address of their ranges. **Pure.**"""
    subnets = network.subnets if network.segment is not None else ()
    cidrs = [one.cidr for one in subnets if isinstance(one.cidr, IPv4Network)]
    return {Route(cidr.network_address, cidr.prefixlen, gateway, None) for cidr in cidrs}


def attach(host: Netlink, link: Link, bridge: Link, port: BridgePort, mac: str = "") -> None:
    """On the bridge, silent towards the host, as wide as the bridge, and up; frames to `mac` leave by it."""
    sysctl.silence_link(link.name)
    ensure_mtu(host, link, bridge.mtu)
    if link.master != bridge.index:
        host.change_link(link.index, master=bridge.index)
    if link.master != bridge.index or link.bridge_port != port:
        host.change_link(link.index, bridge_port=port)
    if mac:
        host.change_entries([EntryChange(True, port_entry(link.index, mac))])
    set_up(host, link)


def mark(host: Netlink, link: Link, kind: str, uid: str) -> None:
    """Put our alias on a link. Raises DriverError when somebody else's is there."""
    wanted = names.alias(kind, uid)
    if link.alias not in ("", wanted):
        raise DriverError(
            "LinkTaken",
            f"{kind} {uid}: link {link.name} belongs to {link.alias!r}; remove or rename that link",
        )
    if link.alias != wanted:
        host.change_link(link.index, alias=wanted)


def delete_ours(host: Netlink, kind: str, name: str, uid: str) -> None:
    """A link of this name that somebody else marked stays."""
    link = host.find_link(name)
    if link is not None and link.alias in ("", names.alias(kind, uid)):
        host.delete_link(link.index)


def delete_host_links(uid: str) -> None:
    """The tunnel, both pairs (their inner ends go with them) and the bridge."""
    with Netlink() as host:
        delete_ours(host, "tunnel", names.tunnel_name(uid), uid)
        for pair in (uplink_pair(uid), gateway_pair(uid)):
            delete_ours(host, pair.kind, pair.name, uid)
        delete_ours(host, "bridge", names.bridge_name(uid), uid)


def delete_uplink(uid: str) -> None:
    """Of a network without a router."""
    with Netlink() as host:
        delete_ours(host, "uplink", names.uplink_name(uid), uid)


def find_bridge(host: Netlink, network_uid: str) -> Link | None:
    link = host.find_link(names.bridge_name(network_uid))
    return link if link is not None and link.alias == names.alias("bridge", network_uid) else None


def _ensure_bridge(host: Netlink, network: NetworkIntent) -> Link:
    name = names.bridge_name(network.uid)
    if host.find_link(name) is None:
        # A fixed MAC: a bridge without one takes the lowest of its ports, and changes it with them.
        host.add_bridge(name, addressing.fixed_mac("bridge", network.uid))
    bridge = get_link(host, name)
    mark(host, bridge, "bridge", network.uid)
    if not bridge.filters:
        host.change_link(bridge.index, filters=True)
    sysctl.silence_bridge(name)
    ensure_mtu(host, bridge, network.mtu)
    set_up(host, bridge)
    return get_link(host, name)


def _ensure_tunnel(host: Netlink, network: NetworkIntent, bridge: Link, underlay: IPAddress | None) -> None:
    """One that ends elsewhere or has another VNI is made anew: a directory is programmed again then."""
    name, uid = names.tunnel_name(network.uid), network.uid
    wanted = Tunnel(network.vni, underlay) if underlay is not None else None
    present = host.find_link(name)
    if present is not None and present.tunnel != wanted:
        mark(host, present, "tunnel", uid)
        host.delete_link(present.index)
        present = None
    if wanted is None:
        return
    if present is None:
        host.add_vxlan(name, addressing.fixed_mac("tunnel", uid), wanted)
    tunnel = get_link(host, name)
    mark(host, tunnel, "tunnel", uid)
    attach(host, tunnel, bridge, ports.TUNNEL)


def ensure_mtu(netlink: Netlink, link: Link, mtu: int) -> None:
    if link.mtu != mtu:
        netlink.change_link(link.index, mtu=mtu)


def _ensure_pair(host: Netlink, inner: Netlink, pair: Pair, uid: str, namespace_fd: int) -> bool:
    """True when the pair was made."""
    outer_end, inner_end = host.find_link(pair.name), inner.find_link(pair.inner)
    if outer_end is not None and inner_end is not None:
        mark(host, outer_end, pair.kind, uid)
        return False
    if outer_end is not None:
        delete_ours(host, pair.kind, pair.name, uid)
    if inner_end is not None:
        inner.delete_link(inner_end.index)
    host.add_veth(pair.name, pair.inner, pair.inner_mac, namespace_fd)
    mark(host, get_link(host, pair.name), pair.kind, uid)
    return True


def ensure_uplink(
    host: Netlink,
    inner: Netlink,
    pair: Pair,
    uid: str,
    vni: int,
    namespace_fd: int,
    *,
    passes_ipv6: bool = False,
) -> Link:
    """Point to point: the node knows the namespace by one address, the namespace the node by another.

    The inner end; the way out by it, and IPv6 inside, are the caller's.
    """
    _ensure_pair(host, inner, pair, uid, namespace_fd)
    outer_end, inner_end = get_link(host, pair.name), get_link(inner, pair.inner)
    if passes_ipv6:
        sysctl.pass_ipv6(pair.name)
    else:
        sysctl.disable_ipv6(pair.name)
    inside_address = addressing.uplink_address(vni)
    ensure_addresses(host, outer_end, {(addressing.HOST_END, _SINGLE)})
    ensure_addresses(inner, inner_end, {(inside_address, _SINGLE)})
    set_up(host, outer_end)
    set_up(inner, inner_end)
    host.ensure_route(Route(inside_address, _SINGLE, outer_end.index, None))
    return inner_end


def ensure_addresses(
    netlink: Netlink, link: Link, wanted: set[tuple[IPAddress, int]]
) -> set[tuple[IPAddress, int]]:
    """Exactly these; those that were changed."""
    present = {(address.address, address.prefix_length) for address in netlink.addresses_of(link.index)}
    for address, prefix_length in present - wanted:
        netlink.delete_address(Address(link.index, address, prefix_length))
    for address, prefix_length in wanted - present:
        netlink.ensure_address(Address(link.index, address, prefix_length))
    return present ^ wanted


def set_up(netlink: Netlink, link: Link) -> None:
    if not link.up:
        netlink.change_link(link.index, up=True)


def get_link(netlink: Netlink, name: str) -> Link:
    link = netlink.find_link(name)
    if link is None:
        raise DriverError("LinkVanished", f"link {name} vanished while it was set up; trying again helps")
    return link
