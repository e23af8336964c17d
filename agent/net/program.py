"""What intents become in a namespace: rules, and the DHCP server's files of a network.

**Pure.** `digest` changes with the intent and with this code, so that an upgraded agent programs anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from agent.net import dnsmasq_config, guard_rules, ruleset
from agent.net.dnsmasq_config import ServerFiles
from agent.net.driver import NetworkIntent
from agent.net.elements import Json


@dataclass(frozen=True, slots=True)
class NetworkProgram:
    """`rules` of its namespace; none where that is its router's."""

    rules: tuple[Json, ...]
    config: str
    hosts: str
    names: str

    @property
    def digest(self) -> str:
        return digest_of_program([self.rules, self.config, self.hosts, self.names])


def build_program(network: NetworkIntent, files: ServerFiles, resolvers: Path) -> NetworkProgram:
    rules = [] if network.router_uid else ruleset.namespace_rules(outbound_nat=network.outbound_nat)
    return NetworkProgram(
        rules=tuple(rules),
        config=dnsmasq_config.render_config(network, files, resolvers),
        hosts=dnsmasq_config.render_hosts(network.ports),
        names=dnsmasq_config.render_names(network.ports),
    )


@functools.cache
def host_digest(*, guests_only: bool) -> str:
    """Of the host's rules as this code would program them."""
    rules = ruleset.host_rules((), guests_only=guests_only)
    return digest_of_program([rules, guard_rules.GUARD_RULES])


def digest_of_program(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
