"""Intents for the tests of pure code: a fixed one for goldens, and strategies."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st

from agent.net.addressing import VNI_MAX
from agent.net.dnsmasq_config import ServerFiles
from agent.net.driver import NetworkIntent, PortIntent, SubnetIntent

FEWER = settings(max_examples=30)  # whole networks are slow to draw
FILES = ServerFiles(Path("/var/lib/cumulet/net/net/0f1e2d3c-4b5a-4678-9abc-def012345678"))
RESOLVERS = Path("/var/lib/cumulet/net/resolv.conf")
WEB = PortIntent(
    "11111111-aaaa-4bbb-8ccc-000000000001",
    "0f1e2d3c-4b5a-4678-9abc-def012345678",
    "52:54:00:00:00:01",
    (IPv4Address("10.7.0.5"),),
    "web",
)
DB = PortIntent(
    "22222222-aaaa-4bbb-8ccc-000000000002",
    "0f1e2d3c-4b5a-4678-9abc-def012345678",
    "52:54:00:00:00:02",
    (IPv4Address("10.7.0.6"), IPv4Address("192.168.9.6")),
    "DB-1",
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

uids = st.uuids(version=4).map(str)
macs = st.binary(min_size=6, max_size=6).map(lambda raw: (bytes([raw[0] & 0xFE]) + raw[1:]).hex(":"))
hostnames = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
addresses = st.ip_addresses(v=4).map(lambda address: IPv4Address(int(address)))


@st.composite
def subnets(draw: st.DrawFn) -> SubnetIntent:
    prefix_length = draw(st.integers(8, 30))
    cidr = IPv4Network((int(draw(addresses)), prefix_length), strict=False)
    dns = draw(st.lists(addresses, max_size=3))
    return SubnetIntent(draw(uids), cidr, cidr[draw(st.integers(1, 2))], tuple(dns))


@st.composite
def networks(draw: st.DrawFn) -> NetworkIntent:
    uid = draw(uids)
    port = st.builds(
        PortIntent, uids, st.just(uid), macs, st.lists(addresses, max_size=2).map(tuple), hostnames
    )
    return NetworkIntent(
        uid,
        draw(st.integers(1, VNI_MAX)),
        tuple(draw(st.lists(subnets(), min_size=1, max_size=3))),
        draw(st.booleans()),
        tuple(draw(st.lists(port, max_size=4, unique_by=lambda one: one.uid))),
    )
