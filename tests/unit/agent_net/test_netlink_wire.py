"""The wire format against pyroute2's own decoder and encoder."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from agent.net import netlink_wire as wire
from agent.net.netlink_wire import Address, Route
from tests.unit.agent_net.cases import addresses, macs

names = st.from_regex(r"[a-z][a-z0-9]{0,14}", fullmatch=True)
indexes = st.integers(1, 2**31 - 1)


def _framed(payload: bytes) -> bytes:
    return wire.message(wire.RTM_NEWLINK, 0, 1, payload)


@given(indexes, names, st.text(max_size=60).filter(lambda text: "\0" not in text), macs, st.booleans())
def test_a_link_as_pyroute2_writes_it(index: int, name: str, alias: str, mac: str, up: bool) -> None:
    message = ifinfmsg()
    message["index"] = index
    message["flags"] = int(up)
    message["attrs"] = [
        ("IFLA_IFNAME", name),
        ("IFLA_ADDRESS", mac),
        ("IFLA_IFALIAS", alias),
        ("IFLA_MASTER", 17),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]}),
    ]
    message.encode()
    (read,) = wire.parse_messages(bytes(message.data))
    link = wire.parse_link(read.payload)
    assert (link.index, link.name, link.kind, link.master) == (index, name, "bridge", 17)
    assert (link.alias, link.mac, link.up) == (alias, mac, up)


@given(names, names, macs)
def test_a_pair_as_pyroute2_reads_it(name: str, peer: str, mac: str) -> None:
    message = ifinfmsg(_framed(wire.veth(name, peer, mac, 9)))
    message.decode()
    info = message.get_attr("IFLA_LINKINFO")
    assert message.get_attr("IFLA_IFNAME") == name
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    other = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert (other.get_attr("IFLA_IFNAME"), other.get_attr("IFLA_ADDRESS")) == (peer, mac)
    assert other.get_attr("IFLA_NET_NS_FD") == 9


@given(indexes, addresses, st.integers(0, 32))
def test_an_address_as_pyroute2_reads_it(link: int, address: IPv4Address, prefix_length: int) -> None:
    payload = wire.address(Address(link, address, prefix_length))
    message = ifaddrmsg(_framed(payload))
    message.decode()
    assert (message["index"], message["prefixlen"]) == (link, prefix_length)
    assert message.get_attr("IFA_LOCAL") == str(address)
    assert wire.parse_address(payload) == Address(link, address, prefix_length)


@given(indexes, addresses, st.none() | addresses)
def test_a_route_as_pyroute2_reads_it(link: int, to: IPv4Address, gateway: IPv4Address | None) -> None:
    route = Route(to, 32, link, gateway)
    payload = wire.route(route)
    message = rtmsg(_framed(payload))
    message.decode()
    assert (message["dst_len"], message["proto"], message["table"]) == (32, wire.ROUTE_PROTOCOL, 254)
    assert message.get_attr("RTA_DST") == str(to)
    assert message.get_attr("RTA_GATEWAY") == (str(gateway) if gateway else None)
    assert wire.parse_route(payload) == route


@given(st.binary(max_size=200))
def test_rubbish_ends_instead_of_looping(data: bytes) -> None:
    assert len(list(wire.parse_messages(data))) <= len(data) // 16 + 1
