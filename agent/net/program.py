"""Everything that a network's intent becomes in its namespace: rules and the DHCP server's files.

**Pure.** `digest` changes with the intent and with this code, so that an upgraded agent programs anew.
"""

from __future__ import annotations

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
    rules: tuple[Json, ...]
    config: str
    hosts: str
    names: str

    @property
    def digest(self) -> str:
        return _digest([self.rules, self.config, self.hosts, self.names])


def build_program(network: NetworkIntent, files: ServerFiles, resolvers: Path) -> NetworkProgram:
    return NetworkProgram(
        rules=tuple(ruleset.namespace_rules(outbound_nat=network.outbound_nat)),
        config=dnsmasq_config.render_config(network, files, resolvers),
        hosts=dnsmasq_config.render_hosts(network.ports),
        names=dnsmasq_config.render_names(network.ports),
    )


def host_digest() -> str:
    """Of the host's rules as this code would program them."""
    return _digest([ruleset.host_rules(()), guard_rules.GUARD_RULES])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
