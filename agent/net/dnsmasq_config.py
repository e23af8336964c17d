"""dnsmasq's files for one network: typed options in, text out.

**Pure.** Only addresses, MACs, checked host names and checked paths are ever written, and every value passes
`_option`, which refuses what could end a line or start a comment. IPv4 addresses are fixed by DHCP; IPv6
guests make theirs from the announced prefix (SLAAC) and ask DHCPv6 for the rest. Source: dnsmasq(8) 2.90.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from agent.net import names
from agent.net.addressing import METADATA_ADDRESS
from agent.net.driver import IPAddress, NetworkIntent, PortIntent, RemotePort, SubnetIntent, announces_ipv6

DOMAIN: Final = "cumulet.internal"  # .internal is reserved for private use (ICANN, 2024)
LEASE_S: Final = 3600  # addresses are fixed: a lease only says that the guest is there
_LEASES_MAX: Final = 65536  # ranges are static, so known ports bound the leases; dnsmasq's 1,000 is too few
_SAFE_VALUE: Final = re.compile(r"[A-Za-z0-9._:,/=!\[\]-]+")
_NAMESERVER: Final = re.compile(r"^\s*nameserver\s+(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """Where one network's server keeps its files."""

    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "dnsmasq.conf"

    @property
    def hosts(self) -> Path:
        """MAC to address; read again on SIGHUP."""
        return self.directory / "hosts"

    @property
    def names(self) -> Path:
        """Address to name; read again on SIGHUP."""
        return self.directory / "names"

    @property
    def remote_names(self) -> Path:
        """The same of ports on other nodes; read again on SIGHUP."""
        return self.directory / "remote-names"

    @property
    def leases(self) -> Path:
        return self.directory / "leases"

    @property
    def pid(self) -> Path:
        return self.directory / "dnsmasq.pid"


def render_config(network: NetworkIntent, files: ServerFiles, resolvers: Path) -> str:
    """What a change of needs a restart. `resolvers` is a resolv.conf that is polled.

    Without outbound NAT nothing is forwarded: DNS would be a tunnel out of an isolated network.
    """
    forwards = network.outbound_nat or network.segment is not None  # guests of a segment are out already
    upstream = _option("resolv-file", str(resolvers)) if forwards else _option("no-resolv")
    lines = [
        _option("interface", names.inner_gateway_name(network.uid)),
        _option("except-interface", "lo"),
        _option("bind-interfaces"),
        _option("pid-file", str(files.pid)),
        _option("no-hosts"),
        _option("addn-hosts", str(files.names)),
        _option("addn-hosts", str(files.remote_names)),
        upstream,
        _option("domain", DOMAIN),
        _option("local", f"/{DOMAIN}/"),
        _option("domain-needed"),
        _option("bogus-priv"),
        _option("dhcp-authoritative"),
        _option("dhcp-ignore-names"),  # a guest cannot choose the name that others find it by
        _option("dhcp-hostsfile", str(files.hosts)),
        _option("dhcp-leasefile", str(files.leases)),
        _option("dhcp-lease-max", str(_LEASES_MAX)),
        _option("quiet-dhcp"),
    ]
    if announces_ipv6(network):
        lines += _advertisement_options(network)
    for index, subnet in enumerate(network.subnets):
        if network.segment is None:
            lines += _subnet_options(f"subnet{index}", subnet, network.mtu)
        elif subnet.cidr.version == 4:
            lines += _segment_options(f"subnet{index}", subnet, network)
    return "".join(f"{line}\n" for line in lines)


def render_hosts(ports: tuple[PortIntent, ...]) -> str:
    """dhcp-hostsfile: one line per fixed address; IPv6 addresses are not leased."""
    return "".join(
        f"{_checked(f'{port.mac.lower()},{address},{port.hostname.lower()},{LEASE_S}')}\n"
        for port in ports
        for address in port.addresses
        if address.version == 4
    )


def render_names(ports: Iterable[PortIntent | RemotePort]) -> str:
    """addn-hosts: names resolve before the guest has asked for its address."""
    return "".join(
        f"{address} {_checked(port.hostname.lower())}.{DOMAIN} {port.hostname.lower()}\n"
        for port in ports
        if port.hostname
        for address in port.addresses
    )


def render_resolvers(resolvers: tuple[IPv4Address, ...]) -> str:
    return "".join(f"nameserver {address}\n" for address in resolvers)


def parse_resolvers(text: str) -> tuple[IPv4Address, ...]:
    """The resolvers of a resolv.conf that can be reached from a namespace: IPv4, not loopback."""
    return tuple(address for word in _NAMESERVER.findall(text) if (address := _reachable(word)) is not None)


def parse_leases(text: str, now: float) -> frozenset[tuple[str, str]]:
    """(MAC, address) of the leases in force; a line is `expiry MAC address name client-id`, 0 = no expiry."""
    return frozenset(_leases(text, now))


def _leases(text: str, now: float) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 4 and words[0].isdigit() and (words[0] == "0" or int(words[0]) > now):
            yield words[1].lower(), words[2]


def _advertisement_options(network: NetworkIntent) -> list[str]:
    """A network without a router is no way to other IPv6 networks: its advertisements say so by a lifetime
    of 0, and guests do not try (RFC 4861, section 4.2)."""
    interval_and_lifetime = "0" if network.router_uid else "0,0"  # an interval of 0 is dnsmasq's default
    link = names.inner_gateway_name(network.uid)
    parameters = f"{link},mtu:{network.mtu},{interval_and_lifetime}"
    return [_option("enable-ra"), _option("ra-param", parameters)]


def _subnet_options(tag: str, subnet: SubnetIntent, mtu: int) -> list[str]:
    network = subnet.cidr.network_address
    if subnet.cidr.version == 6:
        dns = subnet.dns_servers or (subnet.gateway,)
        servers = ",".join(f"[{server}]" for server in dns)
        return [
            _option("dhcp-range", f"set:{tag},{network},ra-stateless,{subnet.cidr.prefixlen},{LEASE_S}"),
            _option("dhcp-option", f"tag:{tag},option6:dns-server,{servers}"),
        ]
    return _leasing_options(tag, subnet, subnet.gateway, mtu)


def _segment_options(tag: str, subnet: SubnetIntent, network: NetworkIntent) -> list[str]:
    """Of an operator's network, where this server has no address but that of metadata: guests are told the
    way to it. A client that is told of ways ignores the option for its router (RFC 3442)."""
    ways = f"0.0.0.0/0,{subnet.gateway},{METADATA_ADDRESS}/32,0.0.0.0"
    link = names.inner_gateway_name(network.uid)
    return [
        _option("shared-network", f"{link},{subnet.cidr.network_address}"),
        *_leasing_options(tag, subnet, METADATA_ADDRESS, network.mtu),
        _option("dhcp-option", f"tag:{tag},option:classless-static-route,{ways}"),
    ]


def _leasing_options(tag: str, subnet: SubnetIntent, names_server: IPAddress, mtu: int) -> list[str]:
    network, dns = subnet.cidr.network_address, subnet.dns_servers or (names_server,)
    return [
        _option("dhcp-range", f"set:{tag},{network},static,{subnet.cidr.netmask},{LEASE_S}"),
        _option("dhcp-option", f"tag:{tag},option:router,{subnet.gateway}"),
        _option("dhcp-option", f"tag:{tag},option:dns-server,{','.join(map(str, dns))}"),
        _option("dhcp-option", f"tag:{tag},option:mtu,{mtu}"),
    ]


def _option(name: str, value: str | None = None) -> str:
    return name if value is None else f"{name}={_checked(value)}"


def _checked(value: str) -> str:
    if not _SAFE_VALUE.fullmatch(value):
        raise ValueError(f"{value!r} cannot be a value in dnsmasq's files")
    return value


def _reachable(word: str) -> IPv4Address | None:
    try:
        address = IPv4Address(word)
    except ValueError:
        return None
    return None if address.is_loopback or address.is_unspecified else address
