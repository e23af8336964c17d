"""Listeners, members and health checks as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.balancing import parse_health, parse_listener, parse_member, render
from cumulet.v1 import loadbalancer_pb2 as pb

names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
ports = st.integers(1, 65_535)
wheres = st.one_of(
    st.builds(lambda name: {"instance": name}, names),
    st.builds(lambda key, value: {"selector": f"{key}={value},!x"}, names, names),
    st.builds(lambda last: {"address": f"10.1.0.{last}"}, st.integers(2, 200)),
    st.builds(lambda last: {"address": f"fd00:a::{last:x}"}, st.integers(2, 200)),
)
members = st.builds(
    lambda where, port, drain: {
        **where,
        **({"port": port} if port else {}),
        **({"drain": True} if drain else {}),
    },
    wheres,
    st.just(0) | ports,
    st.booleans(),
)
checks = st.builds(
    lambda protocol, port, path, amounts: {
        "protocol": protocol,
        **({"port": port} if port else {}),
        **({"path": path} if protocol == "http" and path else {}),
        **amounts,
    },
    st.sampled_from(["tcp", "http"]),
    st.just(0) | ports,
    st.sampled_from(["", "/", "/a/b?c=d:e"]),
    st.dictionaries(st.sampled_from(["interval_s", "timeout_s", "rise", "fall"]), st.integers(1, 60)),
)


@given(members)
def test_a_member_is_read_as_it_is_written(fields: dict[str, Any]) -> None:
    assert parse_member(render(pb.LoadBalancerMember(**fields))) == fields


@given(checks)
def test_a_health_check_is_read_as_it_is_written(fields: dict[str, Any]) -> None:
    assert parse_health(render(pb.HealthCheck(**fields))) == fields


@given(st.sampled_from(["tcp", "udp"]), ports)
def test_a_listener_is_read_as_it_is_written(protocol: str, port: int) -> None:
    fields: dict[str, Any] = {"protocol": protocol, "port": port}
    assert parse_listener(render(pb.Listener(**fields))) == fields


@pytest.mark.parametrize("text", ["tcp", "sctp:80", "tcp:", "tcp:http", "tcp:-1", "80"])
def test_what_is_no_listener(text: str) -> None:
    with pytest.raises(ValueError, match=r"tcp:80|is not a number"):
        parse_listener(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "instance:web quickly",
        "10.1.0.7:http",
        "instance:a drain drain",
        "[fd00::7",
        "[fd00::7]80",
        "[fd00::7]:http",
    ],
)
def test_what_is_no_member(text: str) -> None:
    with pytest.raises(ValueError, match=r"instance:web-1|is not a number|in brackets|\[fd00:a::7\]:8080"):
        parse_member(text)


@pytest.mark.parametrize("text", ["", "udp", "tcp/ready", "http:x/ready", "http:/ often", "http:/ rise=x"])
def test_what_is_no_health_check(text: str) -> None:
    with pytest.raises(ValueError, match=r"http:/ready|is not a number|interval=N"):
        parse_health(text)


def test_a_status_says_who_keeps_connections_away() -> None:
    status = pb.LoadBalancerMemberStatus(instance="web-1", address="10.1.0.7", unhealthy_on=["n1", "n3"])
    assert render(status) == "web-1@10.1.0.7 unhealthy on n1+n3"
    assert render(pb.LoadBalancerMemberStatus(address="10.1.0.9", draining=True)) == "10.1.0.9 drains"
