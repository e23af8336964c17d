"""The judge: a network is complete with everything there, and incomplete without any single thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given

from agent.net import addressing, guard_rules, names, ports, ruleset
from agent.net.addressing import UPLINK_LINK, gateway_addresses, gateway_pair
from agent.net.directory import EntryMirror, Spot, digest_of_directory, entries_of
from agent.net.driver import AddressPair, NetworkIntent, RemotePort, digest_of
from agent.net.elements import Element
from agent.net.holdings import Holdings
from agent.net.kernel_judge import HostView, LinkView, NamespaceView, NetworkView, judge
from agent.net.netlink_ip import Address, Route
from agent.net.netlink_link import BridgePort, Link, Tunnel
from agent.net.netlink_neighbour import Entry, Neighbour, PortEntry, TunnelEntry
from agent.net.ports import guest_port
from agent.net.rates import wanted_rates
from agent.net.rules_reader import Tables
from agent.net.state import NetworkRecord
from tests.unit.agent_net.cases import FEWER, NETWORK, ZONE, elements_of, networks, numbers

World = tuple[HostView, NetworkView]
UNDERLAY = IPv4Address("192.0.2.1")
TUNNEL = 5
REMOTES = frozenset(
    {
        RemotePort("r1", "52:54:00:00:01:01", (IPv4Address("10.7.0.101"),), IPv4Address("192.0.2.2")),
        RemotePort("r2", "52:54:00:00:01:02", (IPv4Address("10.7.0.102"),), IPv4Address("192.0.2.3")),
    }
)


def complete_world(network: NetworkIntent) -> World:
    """What the kernel shows when all of a network and its ports is in place."""
    record = NetworkRecord(network, digest_of(network), "program", "rules")
    elements = elements_of(network)
    elements |= guard_rules.tunnel_elements(network, UNDERLAY)
    elements |= guard_rules.peer_elements(network.uid, network.vni, {remote.vtep for remote in REMOTES})
    host = HostView(
        links=_host_links(network),
        tables=Tables("host-rules", Holdings(elements)),
        is_sound=True,
        entries=_entries(network),
        underlay=UNDERLAY,
        numbers=numbers(network),
        zones={network.uid: ZONE},
        groups={},
        rates={names.tap_name(port.uid): wanted_rates(port) for port in network.ports},
    )
    inner = NamespaceView(_inner_links(network), True, "rules")
    leased = frozenset((port.mac, str(a)) for port in network.ports for a in port.addresses)
    is_alone = not network.router_uid
    return host, NetworkView(network.uid, record, "program", inner, is_alone, 4242, leased)


def _host_links(network: NetworkIntent) -> LinkView:
    uid = network.uid
    links = [
        _link(2, names.bridge_name(uid), "bridge", "bridge", uid, network, master=0, filters=True),
        _link(3, names.gateway_link_name(uid), "veth", "gateway", uid, network, bridge_port=ports.GATEWAY),
        *([] if network.router_uid else [_uplink(network)]),
        _link(
            TUNNEL,
            names.tunnel_name(uid),
            "vxlan",
            "tunnel",
            uid,
            network,
            bridge_port=ports.TUNNEL,
            tunnel=Tunnel(network.vni, UNDERLAY),
        ),
        *(
            _link(
                10 + at,
                names.tap_name(port.uid),
                "tun",
                "tap",
                port.uid,
                network,
                bridge_port=guest_port(port),
            )
            for at, port in enumerate(network.ports)
        ),
    ]
    route = Route(addressing.uplink_address(network.vni), 32, 4, None)
    address = Address(4, addressing.HOST_END, 32)
    return LinkView({link.name: link for link in links}, frozenset({address}), frozenset({route}))


def _uplink(network: NetworkIntent) -> Link:
    return _link(4, names.uplink_name(network.uid), "veth", "uplink", network.uid, network, master=0)


def _link(
    index: int, name: str, kind: str, mark: str, uid: str, network: NetworkIntent, **fields: Any
) -> Link:
    return Link(
        index, name, kind, names.alias(mark, uid), fields.pop("master", 2), "", True, network.mtu, **fields
    )


def _entries(network: NetworkIntent) -> EntryMirror:
    """Where the gateway's, the guests' and the remote ports' MACs lead to."""
    local = [
        PortEntry(2, gateway_pair(network.uid).inner_mac, 3, True),
        *(PortEntry(2, port.mac, 10 + at, True) for at, port in enumerate(network.ports)),
    ]
    return EntryMirror([*local, *entries_of(REMOTES, Spot(2, TUNNEL))])


def _inner_links(network: NetworkIntent) -> LinkView:
    pairs = [addressing.gateway_pair(network.uid)]
    if not network.router_uid:
        pairs.append(addressing.uplink_pair(network.uid))
    links = [
        Link(at + 2, pair.inner, "veth", "", 0, pair.inner_mac, True, network.mtu)
        for at, pair in enumerate(pairs)
    ]
    gateways = {Address(2, *address) for address in gateway_addresses(network)}
    uplink = Address(3, addressing.uplink_address(network.vni), 32)
    route = Route(None, 0, 3, addressing.HOST_END)
    return LinkView({link.name: link for link in links}, frozenset({*gateways, uplink}), frozenset({route}))


@FEWER
@given(networks())
def test_a_complete_world_is_complete(network: NetworkIntent) -> None:
    host, view = complete_world(network)
    observed = judge(host, (view,))
    assert observed.networks[network.uid].complete
    assert observed.networks[network.uid].digest == digest_of(network)
    assert observed.taps == {port.uid: True for port in network.ports}
    assert observed.leased == {str(a) for port in network.ports for a in port.addresses}
    assert observed.directories == {network.uid: digest_of_directory(REMOTES)}
    assert {owner for _, _, owner in observed.items} == {network.uid, *(p.uid for p in network.ports)}


def _holding(host: HostView, elements: Iterable[Element]) -> HostView:
    return replace(host, tables=replace(host.tables, elements=Holdings(elements)))


def _without_one(view: LinkView) -> Iterator[LinkView]:
    """Every view with one thing less, one link down, or one link unmarked or moved."""
    for name, link in view.links.items():
        if not link.name.startswith("tap"):
            yield replace(view, links={k: v for k, v in view.links.items() if k != name})
            yield replace(view, links={**view.links, name: replace(link, up=False)})
            if link.name not in (UPLINK_LINK, names.uplink_name(NETWORK.uid)):
                yield replace(view, links={**view.links, name: replace(link, mtu=1500)})
        if link.bridge_port is not None and not link.name.startswith("tap"):
            yield replace(view, links={**view.links, name: replace(link, bridge_port=BridgePort())})
        if link.filters:
            yield replace(view, links={**view.links, name: replace(link, filters=False)})
        if link.tunnel is not None:
            elsewhere = replace(link.tunnel, vni=link.tunnel.vni + 1)
            yield replace(view, links={**view.links, name: replace(link, tunnel=elsewhere)})
    for address in view.addresses:
        yield replace(view, addresses=view.addresses - {address})
    for route in view.routes:
        yield replace(view, routes=frozenset())
        yield replace(view, routes=frozenset({replace(route, link=99)}))


def damaged_worlds(world: World) -> Iterator[World]:
    host, view = world
    inner = view.namespace
    assert inner is not None
    assert view.record is not None
    for links in _without_one(host.links):
        yield replace(host, links=links), view
    for links in _without_one(inner.links):
        yield host, replace(view, namespace=replace(inner, links=links))
    tunnel_elements = guard_rules.tunnel_elements(view.record.intent, UNDERLAY)
    for element in ruleset.network_elements(view.record.intent, ZONE) | tunnel_elements:
        yield _holding(host, host.tables.elements - {element}), view
    for element in host.tables.elements:
        if element.set_name in ("senders4", "senders6", "egress", "ingress"):
            yield _holding(host, host.tables.elements - {element}), view
    yield replace(host, entries=EntryMirror(entries_of(REMOTES, Spot(2, TUNNEL)))), view
    yield replace(host, is_sound=False), view
    yield host, replace(view, namespace=None)
    yield host, replace(view, has_own_namespace=False)
    yield host, replace(view, namespace=replace(inner, forwards=False))
    yield host, replace(view, namespace=replace(inner, rules="edited"))
    yield host, replace(view, server_pid=None)
    yield host, replace(view, record=None)
    yield host, replace(view, program="what a newer agent would program")


def test_every_single_damage_makes_it_incomplete() -> None:
    count = 0
    for host, view in damaged_worlds(complete_world(NETWORK)):
        count += 1
        assert not judge(host, (view,)).networks[NETWORK.uid].complete
    assert count > 25


def _tap(change: Callable[[Link], Link | None]) -> Callable[[HostView], HostView]:
    def act(host: HostView) -> HostView:
        name = names.tap_name(NETWORK.ports[0].uid)
        changed = change(host.links.links[name])
        links = {k: v for k, v in host.links.links.items() if k != name}
        if changed is not None:
            links[name] = changed
        return replace(host, links=replace(host.links, links=links))

    return act


def _unguarded(host: HostView) -> HostView:
    uid = NETWORK.ports[0].uid
    kept = frozenset(e for e in host.tables.elements if (e.port_uid, e.set_name) != (uid, "taps"))
    return _holding(host, kept)


@pytest.mark.parametrize(
    "damage",
    [
        _tap(lambda tap: None),
        _tap(lambda tap: replace(tap, up=False)),
        _tap(lambda tap: replace(tap, master=0)),
        _tap(lambda tap: replace(tap, alias="")),
        _tap(lambda tap: replace(tap, mtu=1500)),
        _tap(lambda tap: replace(tap, bridge_port=BridgePort())),
        lambda host: replace(host, entries=EntryMirror()),
        _unguarded,
        lambda host: replace(host, is_sound=False),
    ],
    ids=[
        "lost",
        "down",
        "detached",
        "unmarked",
        "too wide",
        "learning",
        "nothing leads to it",
        "unguarded",
        "rules edited",
    ],
)
def test_a_tap_out_of_place_is_noticed(damage: Callable[[HostView], HostView]) -> None:
    host, view = complete_world(NETWORK)
    assert judge(damage(host), (view,)).taps[NETWORK.ports[0].uid] is False


def test_a_lease_of_somebody_else_does_not_count() -> None:
    host, view = complete_world(NETWORK)
    stolen = frozenset({("02:00:00:00:00:99", "10.7.0.5")})
    assert judge(host, (replace(view, leased=stolen),)).leased == frozenset()


def _damaged_directories() -> Iterator[tuple[str, HostView]]:
    host, _ = complete_world(NETWORK)
    spot = Spot(2, TUNNEL)
    for entry in entries_of(REMOTES, spot):
        mirror = _entries(NETWORK)
        mirror.apply(False, entry)
        yield f"without {entry}", replace(host, entries=mirror)
    strange: list[Entry] = [
        TunnelEntry(TUNNEL, "00:00:00:00:00:00", IPv4Address("192.0.2.2")),
        TunnelEntry(TUNNEL, "52:54:00:00:01:01", IPv4Address("192.0.2.3")),
        PortEntry(2, "52:54:00:00:01:01", TUNNEL, False),
        PortEntry(2, "52:54:00:00:01:02", 3, True),
        Neighbour(2, IPv4Address("10.7.0.101"), "52:54:00:00:01:02", True),
        Neighbour(2, IPv4Address("10.7.0.101"), "52:54:00:00:01:01", False),
    ]
    for entry in strange:
        mirror = _entries(NETWORK)
        mirror.apply(True, entry)
        yield f"with {entry}", replace(host, entries=mirror)
    peers = frozenset(filter(guard_rules.is_peer, host.tables.elements))
    other = guard_rules.peer_elements(NETWORK.uid, NETWORK.vni, [IPv4Address("192.0.2.9")])
    yield "peers gone", _holding(host, host.tables.elements - peers)
    yield "another peer", _holding(host, host.tables.elements | other)


def test_an_edited_directory_has_another_digest_and_the_network_is_still_complete() -> None:
    _, view = complete_world(NETWORK)
    for name, host in _damaged_directories():
        observed = judge(host, (view,))
        assert observed.directories[NETWORK.uid] != digest_of_directory(REMOTES), name
        assert observed.networks[NETWORK.uid].complete, name


def test_a_guest_that_may_use_another_mac_gets_what_is_for_an_unknown_one() -> None:
    """And no longer when it may not: the tap is then out of place until it is ensured again."""
    pair = AddressPair(IPv4Network("10.7.0.250/32"), "00:00:5e:00:01:01")
    virtual = replace(NETWORK, ports=(replace(NETWORK.ports[0], allowed_pairs=(pair,)), *NETWORK.ports[1:]))
    own = replace(NETWORK, ports=(replace(NETWORK.ports[0], allowed_pairs=(replace(pair, mac=""),)),))
    assert guest_port(virtual.ports[0]).floods_unicast
    assert not guest_port(own.ports[0]).floods_unicast
    host, view = complete_world(virtual)
    assert judge(host, (view,)).taps[NETWORK.ports[0].uid]
    record = view.record
    assert record is not None
    plain = replace(view, record=replace(record, intent=NETWORK))
    assert not judge(host, (plain,)).taps[NETWORK.ports[0].uid]
