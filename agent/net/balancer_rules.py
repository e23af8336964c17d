"""How a load balancer's address is translated: a table of its own in the router's namespace.

**Pure.** The first packet of a connection to a listener is led to one chosen member (by a counter, or by a
hash of the client's address); conntrack translates the others, and the replies. The source stays, so a
member's groups judge the true client. What is not translated comes to the namespace itself, whose address it
is, and is refused. Every rule that translates counts, and says for which listener: BALANCER/PROTOCOL/PORT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent.net import rule_words as words
from agent.net.balancer import BalancerIntent, ListenerIntent, MemberIntent
from agent.net.program import digest_of_program
from agent.net.rule_words import COUNTER, Json
from cumulet.protocols import TRANSLATED

FAMILIES: Final = ("ip", "ip6")
_UNREACHABLE: Final = {"ip": "icmp", "ip6": "icmpv6"}
_PREFIX: Final = "cumulet-lb-"
_TRANSLATE: Final = -100  # of destinations
_SOURCE_NAT: Final = 100
_BEFORE_INPUT: Final = -10
_PROTOCOL: Final[Json] = {"meta": {"key": "l4proto"}}
_SEED: Final = 0x43554D55  # the same on every node: a client has one member


def table_name(uid: str) -> str:
    return f"{_PREFIX}{uid}"


def owner_of_table(name: str) -> str:
    """Uid of its balancer; empty for a table that is none of ours."""
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else ""


def family_of(balancer: BalancerIntent) -> str:
    """Of its table: one address of one IP version."""
    return "ip" if balancer.address.version == 4 else "ip6"


def listener_id(balancer: BalancerIntent, listener: ListenerIntent) -> str:
    return f"{balancer.uid}/{TRANSLATED[listener.protocol]}/{listener.port}"


def balancer_rules(balancer: BalancerIntent, members: Sequence[MemberIntent]) -> list[Json]:
    """Replaces its table. `members` are those that get new connections; without any, all are refused."""
    family = family_of(balancer)
    commands = [
        words.base_chain(family, "prerouting", "nat", "prerouting", _TRANSLATE),
        words.base_chain(family, "input", "filter", "input", _BEFORE_INPUT),
        *(words.rule(family, "input", *statements) for statements in _refusals(balancer)),
    ]
    if balancer.members:
        commands.append(words.base_chain(family, "postrouting", "nat", "postrouting", _SOURCE_NAT))
        commands.append(words.rule(family, "postrouting", *_own_client(balancer)))
    for number, listener in enumerate(balancer.listeners):
        if members:
            commands += _listener(balancer, listener, f"listener-{number}", members)
    name = table_name(balancer.uid)
    return [
        *words.table_absent(family, name),
        {"add": {"table": {"family": family, "name": name}}},
        *(_in_table(command, name) for command in commands),
    ]


def balancer_absent(family: str, uid: str) -> list[Json]:
    return words.table_absent(family, table_name(uid))


def balancer_digest(balancer: BalancerIntent) -> str:
    """Of what its intent compiles to, whoever is healthy: it changes with the intent and with this code."""
    return digest_of_program(balancer_rules(balancer, balancer.members))


def _listener(
    balancer: BalancerIntent, listener: ListenerIntent, chain: str, members: Sequence[MemberIntent]
) -> list[Json]:
    """A chain for each member, one that chooses, and what leads there."""
    family, ends = family_of(balancer), [f"{chain}-{number}" for number in range(len(members))]
    asked = [
        words.is_field(family, "daddr", _addresses(balancer)),
        words.is_field(TRANSLATED[listener.protocol], "dport", listener.port),
    ]
    protocol = words.match("==", _PROTOCOL, TRANSLATED[listener.protocol])  # nft asks for it beside a port
    comment = listener_id(balancer, listener)
    commands = [words.chain(family, name) for name in (*ends, chain)]
    for name, member in zip(ends, members, strict=True):
        target = {"dnat": {"addr": str(member.address), "port": member.port or listener.port}}
        commands.append(_commented(words.rule(family, name, protocol, COUNTER, target), comment))
    choice = {"set": [[number, words.goto(name)] for number, name in enumerate(ends)]}
    key = _by_source(family, len(ends)) if balancer.by_source else _in_turn(len(ends))
    commands.append(words.rule(family, chain, {"vmap": {"key": key, "data": choice}}))
    commands.append(words.rule(family, "prerouting", *asked, words.goto(chain)))
    return commands


def _addresses(balancer: BalancerIntent) -> object:
    """Where its listeners are asked."""
    own = str(balancer.address)
    return {"set": [own, *map(str, balancer.outside)]} if balancer.outside else own


def _own_client(balancer: BalancerIntent) -> list[Json]:
    """No guest takes a packet that comes from itself: a member that is its own client sees the balancer."""
    addresses = sorted({str(member.address) for member in balancer.members})
    family = family_of(balancer)
    ends = {"concat": [words.payload(family, "saddr"), words.payload(family, "daddr")]}
    same = {"set": [{"concat": [address, address]} for address in addresses]}
    translated = words.match("in", {"ct": {"key": "status"}}, "dnat")
    return [words.match("==", ends, same), translated, {"snat": {"addr": str(balancer.address)}}]


def _in_turn(count: int) -> Json:
    return {"numgen": {"mode": "inc", "mod": count, "offset": 0}}


def _by_source(family: str, count: int) -> Json:
    source = words.payload(family, "saddr")
    return {"jhash": {"mod": count, "offset": 0, "expr": source, "seed": _SEED}}


def _refusals(balancer: BalancerIntent) -> list[list[Json]]:
    family = family_of(balancer)
    mine = words.is_field(family, "daddr", str(balancer.address))
    return [
        [mine, words.match("==", _PROTOCOL, "tcp"), COUNTER, {"reject": {"type": "tcp reset"}}],
        [
            mine,
            words.match("==", _PROTOCOL, "udp"),
            COUNTER,
            {"reject": {"type": _UNREACHABLE[family], "expr": "port-unreachable"}},
        ],
    ]


def _commented(command: Json, comment: str) -> Json:
    return {"add": {"rule": {**command["add"]["rule"], "comment": comment}}}


def _in_table(command: Json, name: str) -> Json:
    """The words are those of the main table."""
    ((kind, body),) = command["add"].items()
    return {"add": {kind: {**body, "name" if kind == "table" else "table": name}}}
