"""Rates on the wire and as intended."""

from __future__ import annotations

import struct
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agent.net import netlink_qos as wire
from agent.net.rates import Rates, wanted_rates
from tests.unit.agent_net.cases import WEB

links = st.integers(1, 2**31 - 1)


@given(links, st.integers(8, 10**12))
def test_a_bucket_is_read_as_it_was_set(link: int, rate_bps: int) -> None:
    assert wire.parse_bucket(wire.bucket(link, rate_bps)) == (link, rate_bps // 8 * 8)


@given(links, links)
def test_a_redirection_is_read_as_it_was_set(link: int, to: int) -> None:
    assert wire.parse_redirection(wire.redirection(link, to)) == to
    assert wire.parse_redirection(wire.ingress(link)) is None


@given(links)
def test_another_queue_is_no_bucket(link: int) -> None:
    assert wire.parse_bucket(wire.ingress(link)) is None
    elsewhere = bytearray(wire.bucket(link, 8_000_000))
    struct.pack_into("=I", elsewhere, 12, 0x10001)  # a bucket within another queue limits a part only
    assert wire.parse_bucket(bytes(elsewhere)) is None


def test_rates_are_whole_bytes_and_nothing_is_no_limit() -> None:
    assert wanted_rates(WEB) == Rates()
    assert wanted_rates(replace(WEB, ingress_bps=1_000_007, egress_bps=15)) == Rates(1_000_000, 8)
