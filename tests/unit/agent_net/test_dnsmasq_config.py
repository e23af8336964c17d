"""dnsmasq's files: goldens, and no text that could say more than was meant."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DriverError
from agent.net import dnsmasq_config
from agent.net.driver import NetworkIntent
from agent.net.intent_check import check_network
from tests.unit.agent_net.cases import DUAL, FEWER, FILES, NETWORK, RESOLVERS, WEB, networks

GOLDENS = Path(__file__).parent / "goldens"
_HOST_LINE = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2},\d+\.\d+\.\d+\.\d+,[a-z0-9-]{1,63},3600\n")
_NAME_LINE = re.compile(r"[0-9a-f.:]+ [a-z0-9-]{1,63}\.cumulet\.internal [a-z0-9-]{1,63}\n")


def test_the_config_is_the_golden() -> None:
    text = dnsmasq_config.render_config(NETWORK, FILES, RESOLVERS)
    assert text == (GOLDENS / "dnsmasq.conf").read_text()


def test_a_dual_stack_network_is_the_golden() -> None:
    """Stateless IPv6 without a default route, and addresses that only the names file has."""
    text = dnsmasq_config.render_config(DUAL, FILES, RESOLVERS)
    assert text == (GOLDENS / "dnsmasq_dual.conf").read_text()
    assert dnsmasq_config.render_hosts(DUAL.ports) == f"{WEB.mac},10.7.0.5,web6,3600\n"
    names = dnsmasq_config.render_names(DUAL.ports)
    assert "2001:db8:7:0:5054:ff:fe00:1 web6.cumulet.internal web6\n" in names
    routed = dnsmasq_config.render_config(replace(DUAL, router_uid="r"), FILES, RESOLVERS).splitlines()
    assert "ra-param=gw0f1e2d3c4b5,mtu:1430,0" in routed


def test_the_hosts_are_the_golden() -> None:
    assert dnsmasq_config.render_hosts(NETWORK.ports) == (GOLDENS / "hosts").read_text()
    assert dnsmasq_config.render_names(NETWORK.ports) == (GOLDENS / "names").read_text()


@FEWER
@given(networks())
def test_every_line_has_its_one_form(network: NetworkIntent) -> None:
    check_network(network)
    hosts = dnsmasq_config.render_hosts(network.ports)
    names = dnsmasq_config.render_names(network.ports)
    count = sum(len(port.addresses) for port in network.ports)
    leased = sum(address.version == 4 for port in network.ports for address in port.addresses)
    assert [bool(_HOST_LINE.fullmatch(line)) for line in hosts.splitlines(keepends=True)] == [True] * leased
    assert [bool(_NAME_LINE.fullmatch(line)) for line in names.splitlines(keepends=True)] == [True] * count


@given(st.text(max_size=80), st.sampled_from(["hostname", "mac"]))
def test_hostile_text_is_refused_or_harmless(text: str, field: str) -> None:
    """Whatever a port says, it is refused by the check, or it is one well-formed line."""
    port = replace(WEB, **{field: text})  # type: ignore[arg-type]
    with contextlib.suppress(DriverError):
        check_network(replace(NETWORK, ports=(port,)))
        assert _HOST_LINE.fullmatch(dnsmasq_config.render_hosts((port,)))
        assert _NAME_LINE.fullmatch(dnsmasq_config.render_names((port,)))


@given(st.text(max_size=40).filter(lambda text: not re.fullmatch(r"[A-Za-z0-9._:,/=!\[\]-]*", text)))
def test_rendering_itself_refuses_what_the_check_let_through(text: str) -> None:
    port = replace(WEB, hostname=text)
    with pytest.raises(ValueError, match="cannot be a value"):
        dnsmasq_config.render_hosts((port,))
    with pytest.raises(ValueError, match="cannot be a value"):
        dnsmasq_config.render_names((port,))


@settings(max_examples=8)
@given(networks())
def test_dnsmasq_takes_every_config(network: NetworkIntent) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(dnsmasq_config.render_config(network, FILES, RESOLVERS))
        file.flush()
        done = subprocess.run(
            ["/usr/sbin/dnsmasq", "--test", f"--conf-file={file.name}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    assert done.returncode == 0, done.stderr


def test_an_isolated_network_forwards_no_names() -> None:
    lines = dnsmasq_config.render_config(replace(NETWORK, outbound_nat=False), FILES, RESOLVERS).splitlines()
    assert "no-resolv" in lines
    assert not [line for line in lines if line.startswith(("resolv-file", "server"))]


def test_resolvers_that_a_namespace_cannot_reach_are_left_out() -> None:
    text = "# nameserver 1.1.1.1\nnameserver 127.0.0.53\n nameserver 9.9.9.9\nnameserver ::1\nnameserver x\n"
    assert dnsmasq_config.parse_resolvers(text) == (IPv4Address("9.9.9.9"),)
    assert dnsmasq_config.render_resolvers((IPv4Address("9.9.9.9"),)) == "nameserver 9.9.9.9\n"


def test_leases_in_force() -> None:
    text = (
        "100 52:54:00:00:00:01 10.7.0.5 web 01:52\n"
        "200 52:54:00:00:00:0A 10.7.0.6 * *\n"
        "0 52:54:00:00:00:03 10.7.0.7 * *\n"
        "duid 00:01\nrubbish\n"
    )
    assert dnsmasq_config.parse_leases(text, now=150.0) == {
        ("52:54:00:00:00:0a", "10.7.0.6"),
        ("52:54:00:00:00:03", "10.7.0.7"),
    }
