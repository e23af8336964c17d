"""The wire format against pyroute2's own decoder and encoder."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from agent.net import netlink_ip, netlink_link, netlink_neighbour
from agent.net import netlink_wire as wire
from agent.net.driver import IPAddress
from agent.net.netlink_ip import Address, Route
from agent.net.netlink_link import BridgePort, Tunnel
from agent.net.netlink_neighbour import Neighbour, TunnelEntry
from tests.unit.agent_net.cases import addresses, any_addresses, macs

names = st.from_regex(r"[a-z][a-z0-9]{0,14}", fullmatch=True)
indexes = st.integers(1, 2**31 - 1)


def _framed(payload: bytes) -> bytes:
    return wire.message(netlink_link.RTM_NEWLINK, 0, 1, payload)


@given(indexes, names, st.text(max_size=60).filter(lambda text: "\0" not in text), macs, st.booleans())
def test_a_link_as_pyroute2_writes_it(index: int, name: str, alias: str, mac: str, up: bool) -> None:
    message = ifinfmsg()
    message["index"] = index
    message["flags"] = int(up)
    message["attrs"] = [
        ("IFLA_MTU", 1450),
        ("IFLA_IFNAME", name),
        ("IFLA_ADDRESS", mac),
        ("IFLA_IFALIAS", alias),
        ("IFLA_MASTER", 17),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "bridge")]}),
    ]
    message.encode()
    (read,) = wire.parse_messages(bytes(message.data))
    link = netlink_link.parse_link(read.payload)
    assert (link.index, link.name, link.kind, link.master) == (index, name, "bridge", 17)
    assert (link.alias, link.mac, link.up, link.mtu) == (alias, mac, up, 1450)


PORT_ATTRIBUTES = (
    ("IFLA_BRPORT_LEARNING", "learns"),
    ("IFLA_BRPORT_UNICAST_FLOOD", "floods_unicast"),
    ("IFLA_BRPORT_MCAST_FLOOD", "floods_multicast"),
    ("IFLA_BRPORT_BCAST_FLOOD", "floods_broadcast"),
    ("IFLA_BRPORT_NEIGH_SUPPRESS", "suppresses"),
)
bridge_ports = st.builds(BridgePort, *[st.booleans()] * len(PORT_ATTRIBUTES))


@given(indexes, bridge_ports)
def test_a_bridge_port_as_pyroute2_reads_it_and_back(index: int, port: BridgePort) -> None:
    payload = netlink_link.link_change(index, bridge_port=port, mtu=1430)
    message = ifinfmsg(_framed(payload))
    message.decode()
    info = message.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_SLAVE_DATA")
    assert (message["index"], message.get_attr("IFLA_MTU")) == (index, 1430)
    assert info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge"
    for attribute, field in PORT_ATTRIBUTES:
        assert data.get_attr(attribute) == getattr(port, field)
    assert netlink_link.parse_link(payload).bridge_port == port


@given(names, macs, st.integers(1, 2**24 - 1), any_addresses, st.booleans())
def test_a_tunnel_as_pyroute2_reads_it_and_back(
    name: str, mac: str, vni: int, local: IPAddress, learns: bool
) -> None:
    tunnel = Tunnel(vni, local, learns=learns)
    payload = netlink_link.vxlan(name, mac, tunnel)
    message = ifinfmsg(_framed(payload))
    message.decode()
    info = message.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA")
    assert (info.get_attr("IFLA_INFO_KIND"), data.get_attr("IFLA_VXLAN_ID")) == ("vxlan", vni)
    assert data.get_attr("IFLA_VXLAN_LOCAL" if local.version == 4 else "IFLA_VXLAN_LOCAL6") == str(local)
    assert data.get_attr("IFLA_VXLAN_LEARNING") == learns
    assert data.get_attr("IFLA_VXLAN_PORT") == 4789
    assert netlink_link.parse_link(payload).tunnel == tunnel


@given(indexes, macs, any_addresses)
def test_entries_as_pyroute2_reads_them(link: int, mac: str, address: IPAddress) -> None:
    both = ndmsg(_framed(netlink_neighbour.remote_entry(link, mac, address)))
    both.decode()
    assert (both["family"], both["ifindex"], both["state"], both["flags"]) == (7, link, 0x42, 0x46)
    assert both.get_attr("NDA_LLADDR") == mac
    one = ndmsg(_framed(netlink_neighbour.neighbour(link, address, mac)))
    one.decode()
    assert (one["family"], one["ifindex"], one["state"]) == (2 if address.version == 4 else 10, link, 0x80)
    assert (one.get_attr("NDA_DST"), one.get_attr("NDA_LLADDR")) == (str(address), mac)


@given(indexes, macs, any_addresses)
def test_entries_are_read_as_they_were_written(link: int, mac: str, address: IPAddress) -> None:
    parse = netlink_neighbour.parse_entry
    assert parse(netlink_neighbour.tunnel_entry(link, mac, address)) == TunnelEntry(link, mac, address)
    neighbour = Neighbour(link, address, mac, True)
    assert parse(netlink_neighbour.neighbour(link, address, mac)) == neighbour


@given(names, names, macs)
def test_a_pair_as_pyroute2_reads_it(name: str, peer: str, mac: str) -> None:
    message = ifinfmsg(_framed(netlink_link.veth(name, peer, mac, 9)))
    message.decode()
    info = message.get_attr("IFLA_LINKINFO")
    assert message.get_attr("IFLA_IFNAME") == name
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    other = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert (other.get_attr("IFLA_IFNAME"), other.get_attr("IFLA_ADDRESS")) == (peer, mac)
    assert other.get_attr("IFLA_NET_NS_FD") == 9


@given(indexes, any_addresses, st.integers(0, 32))
def test_an_address_as_pyroute2_reads_it(link: int, address: IPAddress, prefix_length: int) -> None:
    payload = netlink_ip.address(Address(link, address, prefix_length))
    message = ifaddrmsg(_framed(payload))
    message.decode()
    assert (message["index"], message["prefixlen"]) == (link, prefix_length)
    assert message.get_attr("IFA_LOCAL") == str(address)
    assert netlink_ip.parse_address(payload) == Address(link, address, prefix_length)


@given(indexes, addresses, st.none() | addresses)
def test_a_route_as_pyroute2_reads_it(link: int, to: IPv4Address, gateway: IPv4Address | None) -> None:
    route = Route(to, 32, link, gateway)
    payload = netlink_ip.route(route)
    message = rtmsg(_framed(payload))
    message.decode()
    assert (message["dst_len"], message["proto"], message["table"]) == (32, netlink_ip.ROUTE_PROTOCOL, 254)
    assert message.get_attr("RTA_DST") == str(to)
    assert message.get_attr("RTA_GATEWAY") == (str(gateway) if gateway else None)
    assert netlink_ip.parse_route(payload) == route


@given(st.binary(max_size=200))
def test_rubbish_ends_instead_of_looping(data: bytes) -> None:
    assert len(list(wire.parse_messages(data))) <= len(data) // 16 + 1
