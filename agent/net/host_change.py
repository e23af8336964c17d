"""A change of elements with the chains that they lead to, as one batch.

**Pure.** A chain is there before an element leads to it, and goes when none does any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from agent.net import guest_rules, rule_words, security
from agent.net.elements import Element, add_elements, remove_elements
from agent.net.group_listing import Chains
from agent.net.guest_rules import ZONE_PREFIX
from agent.net.holdings import Holdings
from agent.net.rule_words import TABLE, Json
from agent.net.security import NOTHING

_PORTS_IN: Final = security.PORTS_PREFIXES[0]
PortGroups = Mapping[str, tuple[str, ...]]  # by the name of a port's chains


def build_change(
    chains: Chains,
    after: Holdings,
    stale: frozenset[Element],
    missing: frozenset[Element],
    groups: PortGroups,
) -> tuple[list[Json], Chains]:
    """The batch, and the chains afterwards. `after`: all elements then. `groups`: those of new chains."""
    wanted = zones_of(after.targets), ports_of(after.targets)
    new_zones, new_ports = wanted[0] - chains.zones, wanted[1] - chains.ports.keys()
    old_zones, old_ports = chains.zones - wanted[0], chains.ports.keys() - wanted[1]
    batch = [
        *chain_commands(new_zones, {name: groups[name] for name in new_ports}),
        *remove_elements(stale),
        *add_elements(missing),
        *(command for name in sorted(old_ports) for command in security.ports_chains_absent(name)),
        *(command for zone in sorted(old_zones) for command in _zone_absent(zone)),
    ]
    ports = {name: uids for name, uids in chains.ports.items() if name not in old_ports}
    ports |= {name: tuple(sorted(set(groups[name]))) for name in new_ports}
    known = {uid: NOTHING for name in new_ports for uid in groups[name]} | dict(chains.groups)
    return batch, replace(chains, zones=wanted[0], ports=ports, groups=known)


def chain_commands(zones: Iterable[int], groups: PortGroups) -> list[Json]:
    """New chains of zones, and of ports in groups."""
    commands: list[Json] = []
    for zone in sorted(zones):
        name, rules = guest_rules.zone_rules(zone)
        commands.append(rule_words.chain("inet", name))
        commands += [rule_words.rule("inet", name, *statements) for statements in rules]
    return [*commands, *(one for name in sorted(groups) for one in security.ports_chains(groups[name]))]


def zones_of(targets: Iterable[str]) -> frozenset[int]:
    return frozenset(int(one.removeprefix(ZONE_PREFIX)) for one in targets if one.startswith(ZONE_PREFIX))


def ports_of(targets: Iterable[str]) -> frozenset[str]:
    return frozenset(one.removeprefix(_PORTS_IN) for one in targets if one.startswith(_PORTS_IN))


def _zone_absent(zone: int) -> list[Json]:
    chain = {"chain": {"family": "inet", "table": TABLE, "name": f"{ZONE_PREFIX}{zone}"}}
    return [{"flush": chain}, {"delete": chain}]
