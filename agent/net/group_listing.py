"""What of groups, ports' chains and zones the kernel has, out of what `nft -j list` printed.

**Pure.** These come and go with intents, so they are told apart from the static rules, whose fingerprint
never changes. Small chains verify themselves: their name says what must be in them. Only a group's own rules
need a fingerprint that was taken when they were programmed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from agent.net import guest_rules, security
from agent.net.fingerprint import fingerprint
from agent.net.rule_words import Json
from agent.net.security import ProgrammedGroup


@dataclass(frozen=True, slots=True)
class Chains:
    """`ports`: groups by the name of what `security.ports_chains` made. `damaged`: one of those is edited."""

    groups: Mapping[str, ProgrammedGroup] = field(default_factory=dict)
    ports: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    zones: frozenset[int] = frozenset()
    damaged: bool = False


NO_CHAINS: Final = Chains()


def is_changing(item: Json) -> bool:
    """Whether a listed chain, rule or set comes and goes with groups, ports or networks."""
    kind, body = next(iter(item.items()))
    name = body.get("chain", "") if kind == "rule" else body.get("name", "")
    return (
        kind in ("chain", "rule", "set")
        and body.get("family") == "inet"
        and name.startswith(security.CHANGING_PREFIXES)
    )


def parse_chains(items: Iterable[Json]) -> Chains:
    """Of the items of a listing."""
    changing = [item for item in items if is_changing(item)]
    rules: dict[str, list[Json]] = {item["chain"]["name"]: [] for item in changing if "chain" in item}
    for item in changing:
        if "rule" in item:
            rules[item["rule"]["chain"]].append(item)
    sets = {item["set"]["name"]: _members(item["set"]) for item in changing if "set" in item}
    ports, broken_ports = _ports(rules)
    zones, broken_zones = _zones(rules)
    return Chains(_groups(rules, sets), ports, zones, broken_ports or broken_zones)


def group_fingerprint(uid: str, items: Iterable[Json]) -> str:
    """Of a listing of a group's chains."""
    return parse_chains(items).groups[uid].rules


def _groups(
    rules: Mapping[str, list[Json]], sets: Mapping[str, frozenset[str]]
) -> dict[str, ProgrammedGroup]:
    """A group that is only referred to has sets or chains, and no rules: it is there with nothing in it."""
    uids = {
        name.removeprefix(prefix)
        for prefix in (*security.GROUP_PREFIXES, *security.MEMBERS_PREFIXES)
        for name in (*rules, *sets)
        if name.startswith(prefix)
    }
    return {
        uid: ProgrammedGroup(
            fingerprint([rules.get(f"{prefix}{uid}") for prefix in security.GROUP_PREFIXES]),
            frozenset().union(*(sets.get(f"{prefix}{uid}", ()) for prefix in security.MEMBERS_PREFIXES)),
        )
        for uid in uids
    }


def _ports(rules: Mapping[str, list[Json]]) -> tuple[dict[str, tuple[str, ...]], bool]:
    found: dict[str, tuple[str, ...]] = {}
    fits: dict[str, list[bool]] = {}
    for way, prefix in zip(("in", "out"), security.PORTS_PREFIXES, strict=True):
        for chain in (chain for chain in rules if chain.startswith(prefix)):
            name = chain.removeprefix(prefix)
            targets = [_jump_target(item) for item in rules[chain]]
            found[name] = tuple(target.removeprefix(f"{way}-") for target in targets)
            is_whole = all(target.startswith(f"{way}-") for target in targets)
            fits.setdefault(name, []).append(is_whole and security.ports_name(found[name]) == name)
    return found, any(both != [True, True] for both in fits.values())


def _zones(rules: Mapping[str, list[Json]]) -> tuple[frozenset[int], bool]:
    found: set[int] = set()
    broken = False
    for chain, items in rules.items():
        if chain.startswith(guest_rules.ZONE_PREFIX):
            zone = int(chain.removeprefix(guest_rules.ZONE_PREFIX))
            found.add(zone)
            wanted = [fingerprint(list(one)) for one in guest_rules.zone_rules(zone)[1]]
            broken |= [fingerprint(item["rule"]["expr"]) for item in items] != wanted
    return frozenset(found), broken


def _jump_target(item: Json) -> str:
    expr = item["rule"]["expr"]
    return str(expr[0]["jump"]["target"]) if len(expr) == 1 and "jump" in expr[0] else ""


def _members(body: Json) -> frozenset[str]:
    return frozenset(str(ip_address(element)) for element in body.get("elem", ()) if isinstance(element, str))
