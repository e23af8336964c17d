"""Groups as rules, what a change of them sends, what connections they allow; numbers and wire format."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import DriverError
from agent.net import conntrack_wire, guest_rules, host_change, security, security_flows
from agent.net.conntrack_wire import Connection
from agent.net.driver import GroupIntent, IPAddress, PortIntent, RuleIntent
from agent.net.elements import Element
from agent.net.group_listing import NO_CHAINS, Chains
from agent.net.group_state import GroupState
from agent.net.holdings import Holdings
from agent.net.netlink_wire import attribute
from agent.net.numbers import Numbers
from agent.net.security import NOTHING, ProgrammedGroup
from agent.net.security_flows import Policy
from tests.unit.agent_net.cases import DB, WEB
from tests.unit.agent_net.neighbours import all_out, group, in_groups, rule

GATEWAY = IPv4Address("10.7.0.1")
_MEMBERS = [f"10.9.{at // 250}.{at % 250 + 1}" for at in range(1000)]


def _connection(source: str, target: str, protocol: int, first: int, second: int) -> Connection:
    return Connection(1, ip_address(source), ip_address(target), protocol, first, second, b"")


def _policy(*groups: GroupIntent, sender: tuple[str, ...] = (), receiver: tuple[str, ...] = ()) -> Policy:
    ports: tuple[PortIntent, ...] = (in_groups(WEB, *sender), in_groups(DB, *receiver))
    return Policy(ports, frozenset({GATEWAY}), {one.uid: one for one in groups})


def test_a_change_of_a_thousand_members_sends_the_difference() -> None:
    before = group(rule("in", "tcp"), members=_MEMBERS)
    known = ProgrammedGroup("as listed", frozenset(_MEMBERS))
    after = replace(before, members=before.members - {ip_address(_MEMBERS[0])} | {ip_address("2001:db8::1")})
    commands = security.group_commands(after, known, keep_rules=True)
    sent = [
        one
        for command in commands
        for body in command.values()
        for one in body.get("element", {}).get("elem", ())
    ]
    assert sorted(set(sent)) == [_MEMBERS[0], "2001:db8::1"]
    assert len(json.dumps(commands)) < 2000
    assert len(json.dumps(security.group_commands(after, NOTHING, keep_rules=False))) > 10_000


def test_what_was_kept_is_not_sent_again() -> None:
    one = group(rule("in", "tcp"))
    kinds = {next(iter(command)) for command in security.group_commands(one, NOTHING, keep_rules=True)}
    assert kinds == {"add"}
    with_rules = security.group_commands(one, NOTHING, keep_rules=False)
    assert {next(iter(command)) for command in with_rules} == {"add", "flush"}


@pytest.mark.parametrize(
    ("intent", "matches"),
    [
        (rule("in"), [("nfproto", "ipv4")]),
        (rule("in", version=6), [("nfproto", "ipv6")]),
        (rule("in", cidr="0.0.0.0/0"), [("nfproto", "ipv4")]),
        (
            rule("out", "tcp", (80, 80), cidr="10.0.0.0/8"),
            [("daddr", "10.0.0.0"), ("l4proto", 6), ("dport", 80)],
        ),
        (
            rule("in", "udp", (5, 9), remote="g"),
            [("saddr", "@members4-g"), ("l4proto", 17), ("dport", [5, 9])],
        ),
        (rule("in", "icmp", icmp=(8, 0)), [("nfproto", "ipv4"), ("l4proto", 1), ("type", 8), ("code", 0)]),
        (rule("in", "icmpv6", version=6), [("nfproto", "ipv6"), ("l4proto", 58)]),
    ],
)
def test_a_rule_says_what_it_means(intent: RuleIntent, matches: list[tuple[str, object]]) -> None:
    body = security.compile_rule("g1", intent)["add"]["rule"]
    found = [statement["match"] for statement in body["expr"] if "match" in statement]
    said = [
        (
            (one["left"].get("payload") or {"field": one["left"].get("meta", {}).get("key")})["field"],
            one["right"]
            if not isinstance(one["right"], dict)
            else one["right"].get("range") or one["right"]["prefix"]["addr"],
        )
        for one in found
    ]
    assert said == matches
    assert (body["chain"], body["comment"]) == ("out-g1" if intent.egress else "in-g1", intent.uid)
    assert body["expr"][-1] == {"accept": None}


def test_only_a_port_that_no_plan_has_is_not_judged() -> None:
    assert set(security.port_verdicts(WEB).values()) == {"accept"}
    nowhere = security.port_verdicts(in_groups(WEB))
    assert all(verdict.startswith("jump ports-") for verdict in nowhere.values())
    one, same = in_groups(WEB, "a", "b"), in_groups(DB, "b", "a")
    assert security.port_verdicts(one) == security.port_verdicts(same)
    assert security.port_verdicts(one) != security.port_verdicts(in_groups(WEB, "a"))
    assert all(verdict.startswith("jump ports-") for verdict in security.port_verdicts(one).values())


def test_chains_come_with_the_first_that_leads_there_and_go_with_the_last() -> None:
    name = security.ports_name(["g"])
    first = Element("inet", "egress", ("1",), "n", "p1", data=f"jump ports-out-{name}")
    both = {first, replace(first, set_name="ingress", data=f"jump ports-in-{name}")}
    more = {replace(one, value=("2",), port_uid="p2") for one in both}
    groups = {name: ("g",)}
    batch, there = host_change.build_change(NO_CHAINS, Holdings(both), frozenset(), frozenset(both), groups)
    added = [command["add"]["chain"]["name"] for command in batch if "chain" in command.get("add", ())]
    assert {f"ports-in-{name}", f"ports-out-{name}", "in-g", "out-g"} == set(added)
    assert there.ports == groups
    batch, there = host_change.build_change(there, Holdings(both | more), frozenset(), frozenset(more), {})
    assert not [command for command in batch if "chain" in command.get("add", ())]
    batch, there = host_change.build_change(there, Holdings(more), frozenset(both), frozenset(), {})
    assert "flush" not in {next(iter(command)) for command in batch}
    batch, there = host_change.build_change(there, Holdings(), frozenset(more), frozenset(), {})
    gone = [command["delete"]["chain"]["name"] for command in batch if "chain" in command.get("delete", ())]
    assert set(gone) == {f"ports-in-{name}", f"ports-out-{name}"}
    assert there == Chains(groups={"g": NOTHING})


def test_zones_and_marks_are_within_their_bits() -> None:
    assert guest_rules.mark_of(1) != guest_rules.OPEN
    for number in (0, guest_rules.NUMBER_MAX):
        with pytest.raises(ValueError, match="port number"):
            guest_rules.mark_of(number)


# -- connections ------------------------------------------------------------------------------------------

CLIENT = group(*all_out(), uid="c")
TO_WEB = _connection("10.7.0.5", "10.7.0.6", 6, 40_000, 80)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        (group(rule("in", "tcp", (80, 90))), True),
        (group(rule("in", "tcp", (81, 90))), False),
        (group(rule("in", "udp", (80, 90))), False),
        (group(rule("in", cidr="10.7.0.0/29")), True),
        (group(rule("in", cidr="10.7.0.8/29")), False),
        (group(rule("in", version=6)), False),
        (group(rule("out")), False),
        (group(rule("in", remote="c")), False),
        (group(), False),
    ],
)
def test_a_connection_needs_a_rule_at_each_end(host: GroupIntent, allowed: bool) -> None:
    policy = _policy(CLIENT, host, sender=("c",), receiver=(host.uid,))
    assert policy.allows(TO_WEB) is allowed
    no_way_out = _policy(group(uid="c"), host, sender=("c",), receiver=(host.uid,))
    assert not no_way_out.allows(TO_WEB)
    elsewhere = replace(TO_WEB, source=ip_address("10.7.9.9"))
    assert policy.allows(elsewhere) is (allowed and host.rules[0].remote_cidr is None)


def test_members_and_icmp_and_services() -> None:
    host = group(rule("in", "icmp", icmp=(8, None), remote="c"), uid="h")
    policy = _policy(
        replace(CLIENT, members=frozenset({WEB.addresses[0]})), host, sender=("c",), receiver=("h",)
    )
    assert policy.allows(_connection("10.7.0.5", "10.7.0.6", 1, 8, 0))
    assert not policy.allows(_connection("10.7.0.5", "10.7.0.6", 1, 13, 0))
    silent = _policy(sender=("nobody knows",))
    services = [
        ("10.7.0.1", 17, 9, 53),
        ("10.7.0.1", 6, 9, 53),
        ("10.7.0.1", 1, 8, 0),
        ("169.254.169.254", 6, 9, 80),
    ]
    for target, protocol, first, second in services:
        assert silent.allows(_connection("10.7.0.5", target, protocol, first, second))
    assert not silent.allows(_connection("10.7.0.5", "10.7.0.1", 6, 9, 22))
    answer = _connection("10.7.0.1", "10.7.0.6", 17, 67, 68)
    assert _policy(receiver=("nobody knows",)).allows(answer)
    assert not _policy(receiver=("nobody knows",)).allows(replace(answer, source=ip_address("10.7.0.9")))


def test_only_what_became_narrower_is_looked_for() -> None:
    before = group(rule("in", "tcp"), members=["10.7.0.5"])
    other_id = replace(before.rules[0], uid="another")
    assert not security_flows.is_narrower(before, replace(before, rules=(other_id, rule("out"))))
    assert not security_flows.is_narrower(before, replace(before, members=before.members | {GATEWAY}))
    assert security_flows.is_narrower(before, replace(before, members=frozenset()))
    assert security_flows.is_narrower(before, replace(before, rules=()))
    assert security_flows.is_narrower(None, before)
    meant = group(rule("in", remote="x"), uid="y")
    ports = [in_groups(WEB, "x"), replace(in_groups(DB, "y"), network_uid="other"), WEB]
    assert security_flows.affected_networks("x", ports, {"y": meant}) == {WEB.network_uid, "other"}
    assert security_flows.affected_networks("y", ports, {"y": meant}) == {"other"}


addresses = st.one_of(st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**128 - 1).map(IPv6Address))


@given(addresses, addresses, st.integers(1, 65_535), st.integers(0, 65_535), st.integers(0, 65_535))
def test_a_connection_is_read_from_the_wire(
    source: IPAddress, other: IPAddress, zone: int, first: int, second: int
) -> None:
    target = type(source)(int(other) % 2**source.max_prefixlen)
    base = 1 if source.version == 4 else 3
    ends = attribute(base, source.packed) + attribute(base + 1, target.packed)
    numbers = (
        attribute(1, b"\x06")
        + attribute(2, struct.pack("!H", first))
        + attribute(3, struct.pack("!H", second))
    )
    original = attribute(1, ends) + attribute(2, numbers)
    payload = (
        bytes(4) + attribute(1, original) + attribute(18, struct.pack("!H", zone)) + attribute(12, b"abcd")
    )
    found = conntrack_wire.parse_connection(payload)
    assert found is not None
    assert found == Connection(zone, source, target, 6, first, second, found.key)
    assert conntrack_wire.delete_request(found).endswith(found.key)


def test_a_connection_of_another_kind_is_left_alone() -> None:
    assert conntrack_wire.parse_connection(bytes(4)) is None


# -- what is on disk --------------------------------------------------------------------------------------


def test_numbers_are_kept_given_again_and_bounded(tmp_path: Path) -> None:
    numbers = Numbers(tmp_path / "zones", 3)
    assert [numbers.ensure(uid) for uid in ("a", "b", "c", "a")] == [1, 2, 3, 1]
    with pytest.raises(DriverError, match="zones") as full:
        numbers.ensure("d")
    assert full.value.reason == "NumbersExhausted"
    numbers.release("b")
    numbers.release("nobody")
    again = Numbers(tmp_path / "zones", 3)
    assert dict(again.known) == {"a": 1, "c": 3}
    assert again.ensure("d") == 2


def test_a_line_that_a_crash_cut_short_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "ports").write_text("1 a\n2 b\n- a\n3 c")
    numbers = Numbers(tmp_path / "ports", 9)
    assert dict(numbers.known) == {"b": 2}
    assert [numbers.ensure(uid) for uid in ("d", "e")] == [1, 3]


def test_groups_survive_a_restart_and_damage_is_forgotten(tmp_path: Path) -> None:
    one = group(
        rule("in", "tcp", (1, 2), cidr="10.0.0.0/8"), rule("out", version=6), members=["10.0.0.1", "::1"]
    )
    state = GroupState(tmp_path)
    state.write(one, "fingerprint")
    assert GroupState(tmp_path).records == state.records
    assert GroupState(tmp_path).intents() == {one.uid: one}
    (tmp_path / f"{one.uid}.json").write_text('{"uid": 1')
    assert GroupState(tmp_path).records == {}
    state.forget(one.uid)
    assert list(tmp_path.iterdir()) == []


def _element(owner: str, network: str, value: str, data: str = "") -> Element:
    return Element("inet", "egress", (value,), network, "" if owner == network else owner, data=data)


small = st.builds(
    _element,
    st.sampled_from(["n1", "n2", "p1", "p2"]),
    st.sampled_from(["n1", "n2"]),
    st.sampled_from("12"),
    st.sampled_from(["accept", "jump a", "jump b"]),
)


@given(st.sets(small), st.lists(st.tuples(st.sets(small), st.sets(small)), max_size=4))
def test_holdings_are_a_set_that_knows_its_owners(
    first: set[Element], changes: list[tuple[set[Element], set[Element]]]
) -> None:
    held, plain = Holdings(first), set(first)
    for stale, missing in changes:
        held, plain = held.changed(stale, missing), plain - stale | missing
    assert set(held) == plain
    assert len(held) == len(plain)
    for uid in ("n1", "n2", "p1", "p2"):
        assert held.of_owner(uid) == {one for one in plain if one.owner == uid}
        assert set(held.of_network(uid)) == {one for one in plain if one.network_uid == uid}
        assert held.ports_of(uid) >= {
            one.port_uid for one in plain if one.network_uid == uid and one.port_uid
        }
    targets = [one.target for one in plain if one.target]
    assert held.targets == {target: targets.count(target) for target in targets}
