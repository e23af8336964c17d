"""Rules and elements off the wire, and what their counters mean.

Messages are built as linux/netfilter/nf_tables.h has them; the driver's contract reads the kernel's own.
"""

from __future__ import annotations

import struct

from agent.net.counters import count_host, count_links, count_router
from agent.net.netlink_stats import CountedLink
from agent.net.netlink_wire import attribute
from agent.net.rules_wire import CountedRule, parse_counted_names, parse_rule
from agent.net.stats import Count, NetworkStats, PortStats, RouterStats, Traffic

from .cases import NETWORK

PORT_UID, OTHER_UID = "11111111-aaaa-4bbb-8ccc-000000000001", "22222222-aaaa-4bbb-8ccc-000000000002"
TRAFFIC = Traffic(1, 2, 3, 4, 5, 6)


def _expression(name: bytes, data: bytes) -> bytes:
    return attribute(1, attribute(1, name + b"\0") + attribute(2, data))


COUNTER = _expression(b"counter", attribute(1, struct.pack("!Q", 250)) + attribute(2, struct.pack("!Q", 5)))
META = _expression(b"meta", b"")


def _verdict(code: int) -> bytes:
    verdict = attribute(2, attribute(1, struct.pack("!I", code)))
    return _expression(b"immediate", attribute(1, bytes(4)) + attribute(2, verdict))


def _rule(*expressions: bytes, userdata: bytes = b"") -> bytes:
    return (
        struct.pack("!BBH", 7, 0, 1)
        + attribute(1, b"cumulet\0")
        + attribute(2, b"guest\0")
        + attribute(3, struct.pack("!Q", 12))
        + attribute(4, b"".join(expressions))
        + (attribute(7, userdata) if userdata else b"")
    )


def test_a_rule_is_read_with_its_counter_comment_and_verdict() -> None:
    assert parse_rule(_rule(META, COUNTER, _verdict(0), userdata=b"\x02\x01x\x00\x05lb-x\0")) == CountedRule(
        "bridge", "cumulet", "guest", 12, "lb-x", 5, 250, True
    )
    accepts = parse_rule(_rule(COUNTER, META, _verdict(1)))
    assert accepts is not None
    assert (accepts.drops, accepts.comment, accepts.packets) == (False, "", 5)


def test_a_rule_without_a_counter_is_none() -> None:
    assert parse_rule(_rule(META, _verdict(0))) is None
    assert parse_rule(_rule()) is None


def test_a_set_that_counts_is_read_and_one_that_does_not_is_empty() -> None:
    name = attribute(1, attribute(1, b"tapb5e6f64f7ec\0\0"))
    counter = attribute(7, COUNTER[4:])
    assert list(parse_counted_names(_elements(name + counter))) == [("tapb5e6f64f7ec", 5)]
    assert list(parse_counted_names(_elements(name))) == []
    assert list(parse_counted_names(bytes(4))) == []


def _elements(element: bytes) -> bytes:
    return bytes(4) + attribute(1, b"cumulet\0") + attribute(3, attribute(1, element))


def _counted(
    chain: str,
    packets: int,
    *,
    family: str = "inet",
    table: str = "cumulet",
    comment: str = "",
    drops: bool = True,
) -> CountedRule:
    return CountedRule(family, table, chain, 1, comment, packets, 10 * packets, drops)


def test_drops_are_counted_by_stage_and_those_of_a_zone_for_its_network() -> None:
    host = count_host(
        [
            _counted("guest", 1, family="bridge"),
            _counted("arp", 2, family="bridge"),
            _counted("guest", 4),  # of another family: its own name
            _counted("egress", 8),
            _counted("zone-7", 16),
            _counted("zone-of-somebody", 1),
            _counted("input", 32, table="cumulet-guard"),
            _counted("services", 64, drops=False),
        ]
    )
    assert host.dropped == {"anti-spoofing": 3, "guest": 4, "egress": 8, "tunnel-sender": 32}
    assert host.unmarked == {"zone-7": 16, "zone-of-somebody": 1}


def test_rules_are_counted_for_their_group() -> None:
    group = NETWORK.uid
    host = count_host(
        [
            _counted(f"in-{group}", 1, comment="sgr-1-4", drops=False),
            _counted(f"out-{group}", 2, comment="sgr-2-4", drops=False),
            _counted(f"ports-in-{group}", 4, comment="sgr-1-4", drops=False),
            _counted("ingress", 8, drops=False),
        ]
    )
    assert host.rules == {(group, "sgr-1-4"): 1, (group, "sgr-2-4"): 2}


def test_a_routers_rules_and_links_are_its_own() -> None:
    links = [CountedLink(2, "up0", "", 0, "", TRAFFIC), CountedLink(3, "gw123", "", 0, "", TRAFFIC)]
    rules = [
        _counted("forward", 1),
        _counted("forward", 2, drops=False),
        _counted("in", 4, table="cumulet-lb-a", comment="a/tcp/80", drops=False),
        _counted("out", 8, table="cumulet-lb-a", comment="a/tcp/80", drops=False),
        _counted("out", 16, table="cumulet-lb-a", drops=False),
        _counted("in", 32, table="elsewhere"),
    ]
    assert count_router(links, rules) == RouterStats(TRAFFIC, None, 1, {"a/tcp/80": Count(12, 120)})


def test_links_are_told_by_our_mark_and_a_port_is_of_the_bridge_it_is_on() -> None:
    turned = Traffic(4, 5, 6, 1, 2, 3)
    links = [
        CountedLink(1, "cbr1", "cumulet:bridge:n1", 0, "", TRAFFIC),
        CountedLink(2, "cvx1", "cumulet:tunnel:n1", 1, "", TRAFFIC),
        CountedLink(3, "tap1", f"cumulet:tap:{PORT_UID}", 1, "tbf", TRAFFIC),
        CountedLink(4, "tap2", f"cumulet:tap:{OTHER_UID}", 0, "", TRAFFIC),
        CountedLink(5, "tap3", "", 1, "tbf", TRAFFIC),
        CountedLink(6, "cbr2", "cumulet:bridge:n2", 0, "", TRAFFIC),
        CountedLink(8, "cpb2", "cumulet:patch:n2", 6, "", TRAFFIC),
        CountedLink(9, "cpu2", "cumulet:patch-uplink:n2", 0, "", turned),
        CountedLink(7, "csh2", f"cumulet:shaper:{OTHER_UID}", 0, "tbf", TRAFFIC),
    ]
    over_rate, refused = {3: 11, 5: 12, 7: 13}, {"tap1": 9, "tap3": 8}
    ports, networks = count_links(links, over_rate, refused, {"n1": 5, "n2": 6}, {"zone-5": 7, "zone-7": 3})
    assert ports == {
        PORT_UID: PortStats("n1", turned, 9, 11, None),
        OTHER_UID: PortStats("", turned, 0, None, 13),
    }
    assert networks == {"n1": NetworkStats(1, TRAFFIC, 7), "n2": NetworkStats(uplink=TRAFFIC)}
