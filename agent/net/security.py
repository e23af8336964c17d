"""Security groups as chains and sets of the host's inet table.

**Pure.** A group is one chain for each direction and one set of members for each IP version; what a port's
groups are together is one chain for each direction that jumps to theirs, shared by all ports with the same
groups. A port's mark leads there by one lookup. Only a connection's first packet comes here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from agent.net import rule_words as words
from agent.net.driver import GroupIntent, PortIntent, RuleIntent
from agent.net.guest_rules import ZONE_PREFIX
from agent.net.rule_words import COUNTER, TABLE, Json

_ICMP: Final = {4: (1, "icmp"), 6: (58, "icmpv6")}
_FAMILY: Final = {4: "ipv4", 6: "ipv6"}
GROUP_PREFIXES: Final = ("in-", "out-")
MEMBERS_PREFIXES: Final = ("members4-", "members6-")
PORTS_PREFIXES: Final = ("ports-in-", "ports-out-")
CHANGING_PREFIXES: Final = (*GROUP_PREFIXES, *MEMBERS_PREFIXES, *PORTS_PREFIXES, ZONE_PREFIX)
_ACCEPT: Final = "accept"


@dataclass(frozen=True, slots=True)
class ProgrammedGroup:
    """A group as the kernel has it. `rules`: a fingerprint of its chains."""

    rules: str
    members: frozenset[str]


NOTHING: Final = ProgrammedGroup("", frozenset())


# -- ports ------------------------------------------------------------------------------------------------


def is_filtered(port: PortIntent) -> bool:
    """Whether groups judge a port: one in no group gets nothing but its node's services."""
    return port.security_groups is not None


def port_verdicts(port: PortIntent) -> dict[str, str]:
    """By map, the verdict that the port's mark leads to."""
    if not is_filtered(port):
        return {"egress": _ACCEPT, "ingress": _ACCEPT}
    name = ports_name(port.group_uids)
    return {"egress": f"jump ports-out-{name}", "ingress": f"jump ports-in-{name}"}


def port_groups(ports: Iterable[PortIntent]) -> dict[str, tuple[str, ...]]:
    """Groups by the name of the chains that they need."""
    judged = (port.group_uids for port in ports if is_filtered(port))
    return {ports_name(groups): tuple(sorted(set(groups))) for groups in judged}


def ports_name(groups: Iterable[str]) -> str:
    """Of the ports that are in exactly these groups."""
    return hashlib.sha256(" ".join(sorted(set(groups))).encode()).hexdigest()[:16]


def ports_chains(groups: Iterable[str]) -> list[Json]:
    """New chains for ports in these groups; a group that is not known yet allows nothing."""
    uids = sorted(set(groups))
    name = ports_name(uids)
    chains = [chain for uid in uids for chain in _group_chains(uid)]
    for way in ("in", "out"):
        chains.append(words.chain("inet", f"ports-{way}-{name}"))
        chains += [words.rule("inet", f"ports-{way}-{name}", words.jump(f"{way}-{uid}")) for uid in uids]
    return chains


def ports_chains_absent(name: str) -> list[Json]:
    """Nothing leads there any more."""
    chains = [_chain_body(f"{prefix}{name}") for prefix in PORTS_PREFIXES]
    return [{verb: chain} for verb in ("flush", "delete") for chain in chains]


# -- groups -----------------------------------------------------------------------------------------------


def group_commands(group: GroupIntent, known: ProgrammedGroup, *, keep_rules: bool) -> list[Json]:
    """What makes `known` the intended group, in one transaction; only the difference of its members."""
    members = frozenset(map(str, group.members))
    commands = [*_group_chains(group.uid), *_group_sets(group.uid)]
    if not keep_rules:
        remotes = dict.fromkeys(rule.remote_group for rule in group.rules if rule.remote_group)
        commands += [one for uid in remotes for one in _group_sets(uid)]
        commands += [{"flush": _chain_body(f"{prefix}{group.uid}")} for prefix in GROUP_PREFIXES]
        commands += [compile_rule(group.uid, rule) for rule in group.rules]
    gone = _member_commands("delete", group.uid, known.members - members)
    return [*commands, *gone, *_member_commands("add", group.uid, members - known.members)]


def group_closed(uid: str) -> list[Json]:
    """The group allows nothing and has no members; chains and sets stay for those that refer to them."""
    chains = [{"flush": _chain_body(f"{prefix}{uid}")} for prefix in GROUP_PREFIXES]
    sets = [{"flush": _set_body(f"{prefix}{uid}")} for prefix in MEMBERS_PREFIXES]
    return [*_group_chains(uid), *_group_sets(uid), *chains, *sets]


def group_absent(uid: str) -> list[Json]:
    """Nothing refers to it any more. What is to go is added first, so that its absence is no error."""
    chains = [_chain_body(f"{prefix}{uid}") for prefix in GROUP_PREFIXES]
    sets = [_set_body(f"{prefix}{uid}") for prefix in MEMBERS_PREFIXES]
    deletions: list[Json] = [{verb: chain} for verb in ("flush", "delete") for chain in chains]
    return [*_group_chains(uid), *_group_sets(uid), *deletions, *({"delete": one} for one in sets)]


def used_names(groups: Mapping[str, GroupIntent], ports: Iterable[Iterable[str]]) -> frozenset[str]:
    """Groups that somebody told of, that their rules mean, or that a port is in."""
    remotes = {rule.remote_group for group in groups.values() for rule in group.rules}
    return frozenset({*groups, *remotes, *(uid for uids in ports for uid in uids)})


def compile_rule(group_uid: str, rule: RuleIntent) -> Json:
    """The rule of a group's chain; its comment is the rule's uid, for counters and for `explain`."""
    way = "out" if rule.egress else "in"
    # Towards a guest the frame's mark has done its work (guest_rules.py).
    clear = () if rule.egress else (words.set_mark(0),)
    statements = (*_remote(rule), *_protocol(rule), COUNTER, *clear, {"accept": None})
    command = words.rule("inet", f"{way}-{group_uid}", *statements)
    command["add"]["rule"]["comment"] = rule.uid
    return command


def _remote(rule: RuleIntent) -> Iterator[Json]:
    version = rule.ip_version
    far_end = words.payload("ip" if version == 4 else "ip6", "daddr" if rule.egress else "saddr")
    if rule.remote_group:
        yield words.match("==", far_end, f"@members{version}-{rule.remote_group}")
    elif rule.remote_cidr is not None and rule.remote_cidr.prefixlen:
        cidr = {"addr": str(rule.remote_cidr.network_address), "len": rule.remote_cidr.prefixlen}
        yield words.match("==", far_end, {"prefix": cidr})
    else:
        yield words.match("==", {"meta": {"key": "nfproto"}}, _FAMILY[version])


def _protocol(rule: RuleIntent) -> Iterator[Json]:
    if not rule.protocol:
        return
    number, name = _ICMP[rule.ip_version]
    yield words.match("==", {"meta": {"key": "l4proto"}}, rule.protocol)
    if rule.protocol == number and rule.icmp_type is not None:
        yield words.is_field(name, "type", rule.icmp_type)
        if rule.icmp_code is not None:
            yield words.is_field(name, "code", rule.icmp_code)
    elif rule.port_min:
        ports = rule.port_min if rule.port_min == rule.port_max else {"range": [rule.port_min, rule.port_max]}
        yield words.is_field("th", "dport", ports)


def _group_chains(uid: str) -> list[Json]:
    return [words.chain("inet", f"{prefix}{uid}") for prefix in GROUP_PREFIXES]


def _group_sets(uid: str) -> list[Json]:
    return [words.named_set("inet", f"members{version}-{uid}", f"ipv{version}_addr") for version in (4, 6)]


def _member_commands(verb: str, uid: str, members: Iterable[str]) -> list[Json]:
    """One command for each IP version; what is to go is added first, so that its absence is no error."""
    commands: list[Json] = []
    for version in (4, 6):
        chosen = sorted(member for member in members if (":" in member) == (version == 6))
        body = {"element": {**_set_body(f"members{version}-{uid}")["set"], "elem": chosen}}
        verbs = ("add", "delete") if verb == "delete" else ("add",)
        commands += [{one: body} for one in verbs if chosen]
    return commands


def _chain_body(name: str) -> Json:
    return {"chain": {"family": "inet", "table": TABLE, "name": name}}


def _set_body(name: str) -> Json:
    return {"set": {"family": "inet", "table": TABLE, "name": name}}
