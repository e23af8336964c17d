"""Rules as data: goldens, and elements that come back as they went."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from agent.net import names, ruleset, segment
from agent.net.balancer import BalancerIntent, ListenerIntent, MemberIntent
from agent.net.balancer_rules import balancer_rules
from agent.net.driver import FloatingIntent, ForwardIntent, NetworkIntent, RoutedIntent, RouterIntent
from agent.net.elements import Json, add_elements, parse_elements, remove_elements
from agent.net.guest_rules import mark_of
from tests.unit.agent_net.cases import DB, FEWER, NETWORK, WEB, elements_of, networks

ROUTER = RouterIntent("router-1", 7, (IPv4Network("10.0.0.0/24"),), outbound_nat=True)
FLOATING = replace(
    ROUTER,
    outbound_nat=False,
    floating=(
        FloatingIntent(
            IPv4Address("203.0.113.70"),
            "internet",
            IPv4Network("203.0.113.0/24"),
            fixed=IPv4Address("10.0.0.5"),
        ),
        FloatingIntent(
            IPv4Address("203.0.113.71"),
            "internet",
            IPv4Network("203.0.113.0/24"),
            forwards=(ForwardIntent(6, 2222, IPv4Address("10.0.0.6"), 22),),
        ),
    ),
    announcers=(IPv4Address("192.0.2.12"),),
)
ROUTED = replace(
    FLOATING,
    cidrs=(*ROUTER.cidrs, IPv6Network("2001:db8:100:7::/64"), IPv6Network("fd00:8::/64")),
    routed=(
        RoutedIntent(
            IPv6Network("2001:db8:100:7::/64"),
            IPv6Address("2001:db8:100:7::1"),
            "internet",
            IPv6Network("2001:db8:100::/48"),
        ),
    ),
)
BALANCER = BalancerIntent(
    "lb-uid",
    "lb",
    IPv4Address("10.7.0.200"),
    (ListenerIntent(6, 80), ListenerIntent(17, 53)),
    False,
    (
        MemberIntent(IPv4Address("10.7.0.5"), 8080, False, 8080),
        MemberIntent(IPv4Address("10.8.0.5"), 0, False, 80),
    ),
)
BY_SOURCE = replace(BALANCER, by_source=True)
BALANCER6 = replace(
    BALANCER,
    address=IPv6Address("fd00:a::c8"),
    by_source=True,
    members=(
        MemberIntent(IPv6Address("fd00:a::5"), 8080, False, 8080),
        MemberIntent(IPv6Address("fd00:b::5"), 0, False, 80),
    ),
)
ASKED = ["echo-request", "nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert"]
CROSSINGS = (
    segment.Crossing(NETWORK.uid, "eth1", 0, frozenset({"52:54:00:00:00:01", "52:54:00:00:00:02"})),
    segment.Crossing("1f1e2d3c-4b5a-4678-9abc-def012345678", "eth1", 20, frozenset({"52:54:00:00:00:03"})),
)
GOLDENS = Path(__file__).parent / "goldens"


@pytest.mark.parametrize(
    ("golden", "batch"),
    [
        ("host_rules.json", ruleset.host_rules(elements_of(NETWORK))),
        ("host_rules_absent.json", ruleset.host_rules_absent()),
        ("namespace_rules.json", ruleset.namespace_rules(outbound_nat=True)),
        ("router_rules.json", ruleset.namespace_rules(outbound_nat=True, router=ROUTER)),
        ("floating_rules.json", ruleset.namespace_rules(outbound_nat=False, router=FLOATING)),
        ("routed_rules.json", ruleset.namespace_rules(outbound_nat=False, router=ROUTED)),
        ("host_rules_guests_only.json", ruleset.host_rules((), guests_only=True)),
        ("namespace_rules_isolated.json", ruleset.namespace_rules(outbound_nat=False)),
        ("balancer_rules.json", balancer_rules(BALANCER, BALANCER.members)),
        (
            "balancer_rules_by_source.json",
            balancer_rules(replace(BALANCER, by_source=True), BALANCER.members),
        ),
        ("balancer_rules_refused.json", balancer_rules(BALANCER, ())),
        ("balancer_rules_ipv6.json", balancer_rules(BALANCER6, BALANCER6.members)),
        ("crossing_rules.json", segment.crossing_rules(CROSSINGS)),
        ("crossing_rules_absent.json", segment.crossing_rules(())),
        ("remove_elements.json", remove_elements(ruleset.port_elements(DB, 2))),
    ],
)
def test_the_rules_are_the_golden(golden: str, batch: list[Json]) -> None:
    assert batch == json.loads((GOLDENS / golden).read_text())


@FEWER
@given(networks())
def test_elements_survive_a_listing(network: NetworkIntent) -> None:
    elements = elements_of(network)
    assert parse_elements(_as_listing(add_elements(elements))) == elements


def test_an_element_of_somebody_else_has_no_owner() -> None:
    body = {"family": "inet", "name": "uplinks", "table": "cumulet", "elem": ["cup0"]}
    (found,) = parse_elements({"nftables": [{"set": body}]})
    assert (found.value, found.owner) == (("cup0",), "")


@FEWER
@given(networks())
def test_a_port_may_send_as_itself_only(network: NetworkIntent) -> None:
    for port in network.ports:
        elements = ruleset.port_elements(replace(port, allowed_pairs=()), 5)
        senders = [e for e in elements if e.set_name.startswith("senders")]
        assert {e.value[1] for e in senders} == {port.mac}
        assert {e.value[2] for e in senders if e.set_name == "senders4"} == {
            "0.0.0.0",
            *(str(address) for address in port.addresses if address.version == 4),
        }
        assert {e.owner for e in elements} == {port.uid}
        assert {e.value[0] for e in elements if e.family == "bridge"} == {names.tap_name(port.uid)}
        marks = {e.data for e in elements if e.set_name in ("senders4", "senders6", "receivers")}
        assert marks == {e.value[0] for e in elements if e.family == "inet"} == {str(mark_of(5))}


def test_the_fingerprint_ignores_what_changes_by_itself_and_nothing_else() -> None:
    listing: dict[str, Any] = {
        "nftables": [
            {"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "inet", "name": "cumulet", "handle": 1}},
            {"set": {"name": "taps", "handle": 2, "elem": ["tap1"]}},
            {"rule": {"handle": 3, "expr": [{"counter": {"packets": 1, "bytes": 2}}, {"drop": None}]}},
        ]
    }
    same, other = copy.deepcopy(listing), copy.deepcopy(listing)
    same["nftables"][3]["rule"] |= {
        "handle": 9,
        "expr": [{"counter": {"packets": 5, "bytes": 6}}, {"drop": None}],
    }
    other["nftables"][3]["rule"]["expr"][1] = {"accept": None}
    assert ruleset.rules_fingerprint(same) == ruleset.rules_fingerprint(listing)
    assert ruleset.rules_fingerprint(other) != ruleset.rules_fingerprint(listing)


def test_the_way_into_a_gateway_is_closed_by_default() -> None:
    """Everything that is accepted from guests is named here, and the policy drops the rest."""
    batch = ruleset.namespace_rules(outbound_nat=True)
    chains = {c["add"]["chain"]["name"]: c["add"]["chain"] for c in batch if "chain" in c.get("add", ())}
    assert (chains["input"]["policy"], chains["forward"]["policy"]) == ("drop", "drop")
    accepted = [
        [json.dumps(match["match"]["right"]) for match in rule["expr"] if "match" in match]
        for rule in (c["add"]["rule"] for c in batch if "rule" in c.get("add", ()))
        if rule["chain"] == "input" and {"accept": None} in rule["expr"]
    ]
    assert accepted == [
        ['"lo"'],
        ['["established", "related"]'],
        ['"gw*"', "67"],
        ['"gw*"', "53"],
        ['"gw*"', "53"],
        ['"gw*"', '"169.254.169.254"', "80"],
        ['"gw*"', '"echo-request"'],
        ['"gw*"', '"ipv6"', "547"],
        ['"gw*"', json.dumps({"set": ASKED})],
    ]


def test_removal_and_addition_name_the_same_element() -> None:
    added, deleted = remove_elements([next(iter(ruleset.port_elements(WEB, 1)))])
    assert added["add"] == deleted["delete"]


def _as_listing(commands: list[Json]) -> Json:
    sets: dict[tuple[str, str, str], list[Any]] = {}
    for command in commands:
        body = command["add"]["element"]
        sets.setdefault((body["table"], body["family"], body["name"]), []).extend(body["elem"])
    listed = [
        {"set": {"family": family, "name": name, "table": table, "handle": 7, "elem": listed}}
        for (table, family, name), listed in sets.items()
    ]
    return {"nftables": [{"metainfo": {}}, *listed]}
