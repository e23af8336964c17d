"""Intents for the tests of pure code: a fixed one for goldens, and strategies."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st

from agent.net import ruleset
from agent.net.addressing import VNI_MAX
from agent.net.dnsmasq_config import ServerFiles
from agent.net.driver import AddressPair, IPAddress, NetworkIntent, PortIntent, RemotePort, SubnetIntent
from agent.net.elements import Element

FEWER = settings(max_examples=30)  # whole networks are slow to draw
FILES = ServerFiles(Path("/var/lib/cumulet/net/net/0f1e2d3c-4b5a-4678-9abc-def012345678"))
RESOLVERS = Path("/var/lib/cumulet/net/resolv.conf")
WEB = PortIntent(
    "11111111-aaaa-4bbb-8ccc-000000000001",
    "0f1e2d3c-4b5a-4678-9abc-def012345678",
    "52:54:00:00:00:01",
    (IPv4Address("10.7.0.5"),),
    "web",
    None,
)
DB = PortIntent(
    "22222222-aaaa-4bbb-8ccc-000000000002",
    "0f1e2d3c-4b5a-4678-9abc-def012345678",
    "52:54:00:00:00:02",
    (IPv4Address("10.7.0.6"), IPv4Address("192.168.9.6")),
    "DB-1",
    None,
)
NETWORK = NetworkIntent(
    "0f1e2d3c-4b5a-4678-9abc-def012345678",
    4711,
    (
        SubnetIntent("s1", IPv4Network("10.7.0.0/24"), IPv4Address("10.7.0.1"), ()),
        SubnetIntent(
            "s2",
            IPv4Network("192.168.8.0/23"),
            IPv4Address("192.168.8.1"),
            (IPv4Address("9.9.9.9"), IPv4Address("149.112.112.112")),
        ),
    ),
    True,
    (WEB, DB),
)

DUAL_WEB = replace(
    WEB, addresses=(IPv4Address("10.7.0.5"), IPv6Address("2001:db8:7::5054:ff:fe00:1")), hostname="web6"
)
DUAL = replace(
    NETWORK,
    subnets=(
        NETWORK.subnets[0],
        SubnetIntent("s6", IPv6Network("2001:db8:7::/64"), IPv6Address("2001:db8:7::1"), ()),
    ),
    ports=(DUAL_WEB,),
    mtu=1430,
)

ZONE = 7


def numbers(network: NetworkIntent) -> dict[str, int]:
    """Of its ports on the node."""
    return {port.uid: at for at, port in enumerate(network.ports, start=1)}


def elements_of(network: NetworkIntent) -> frozenset[Element]:
    """Of the network with all its ports."""
    known = numbers(network)
    ports = (ruleset.port_elements(port, known[port.uid]) for port in network.ports)
    return ruleset.network_elements(network, ZONE).union(*ports)


uids = st.uuids(version=4).map(str)
macs = st.binary(min_size=6, max_size=6).map(lambda raw: (bytes([raw[0] & 0xFE]) + raw[1:]).hex(":"))
hostnames = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
addresses = st.ip_addresses(v=4).map(lambda address: IPv4Address(int(address)))


addresses_v6 = st.ip_addresses(v=6, network="2001:db8::/32").map(lambda address: IPv6Address(int(address)))
any_addresses: st.SearchStrategy[IPAddress] = st.one_of(addresses, addresses_v6)
pairs = st.builds(
    AddressPair,
    st.one_of(addresses.map(IPv4Network), addresses_v6.map(IPv6Network)),
    st.one_of(st.just(""), macs),
)


@st.composite
def subnets(draw: st.DrawFn) -> SubnetIntent:
    if draw(st.booleans()):
        wide = IPv6Network((int(draw(addresses_v6)), 64), strict=False)
        return SubnetIntent(draw(uids), wide, wide[1], tuple(draw(st.lists(addresses_v6, max_size=2))))
    prefix_length = draw(st.integers(8, 30))
    cidr = IPv4Network((int(draw(addresses)), prefix_length), strict=False)
    dns = draw(st.lists(addresses, max_size=3))
    return SubnetIntent(draw(uids), cidr, cidr[draw(st.integers(1, 2))], tuple(dns))


@st.composite
def networks(draw: st.DrawFn) -> NetworkIntent:
    uid = draw(uids)
    port = st.builds(
        PortIntent,
        uids,
        st.just(uid),
        macs,
        st.lists(any_addresses, max_size=3).map(tuple),
        hostnames,
        st.lists(uids, max_size=2).map(tuple),
        st.lists(pairs, max_size=2).map(tuple),
        st.integers(0, 10**9),
        st.integers(0, 10**9),
    )
    return NetworkIntent(
        uid,
        draw(st.integers(1, VNI_MAX)),
        tuple(draw(st.lists(subnets(), min_size=1, max_size=3))),
        draw(st.booleans()),
        tuple(draw(st.lists(port, max_size=4, unique_by=(lambda one: one.uid, lambda one: one.mac)))),
        draw(st.sampled_from([1450, 1430, 8950])),
        draw(st.one_of(st.just(""), uids)),
    )


@st.composite
def directories(draw: st.DrawFn) -> frozenset[RemotePort]:
    """Ports of one network on other nodes: no MAC and no address twice."""
    count = draw(st.integers(0, 6))
    used_macs = draw(st.lists(macs, min_size=count, max_size=count, unique=True))
    used = draw(st.lists(any_addresses, min_size=count, max_size=3 * count, unique=True))
    vteps = st.sampled_from([IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")])
    return frozenset(
        RemotePort(draw(uids), mac, tuple(used[at::count]), draw(vteps)) for at, mac in enumerate(used_macs)
    )
