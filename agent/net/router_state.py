"""The routers of which anything is, or is about to be, on this node; on disk.

**Edge**: one file for each router, replaced atomically. A file without an intent says that its router was
begun or is being removed: so a half-made one is never taken for a network, whose namespaces look the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from agent.net.balancer import balancer_from_json, balancer_to_json
from agent.net.driver import FloatingIntent, ForwardIntent, RoutedIntent, RouterIntent, digest_of
from agent.net.state import read_text, write_text


@dataclass(frozen=True, slots=True)
class RouterRecord:
    """Written last: its presence says that everything before it was done.

    `program` is a digest of what was programmed, `rules` a fingerprint of what the kernel listed afterwards.
    """

    intent: RouterIntent
    digest: str
    program: str
    rules: str


class RouterState:
    """Read once; only this process writes the files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._directory.mkdir(parents=True, exist_ok=True)
        self._records = {file.stem: _parse(read_text(file)) for file in sorted(directory.glob("*.json"))}

    def uids(self) -> list[str]:
        return sorted(self._records)

    def find(self, uid: str) -> RouterRecord | None:
        """None when the router was not programmed completely."""
        return self._records.get(uid)

    def intents(self) -> list[RouterIntent]:
        """As they were last programmed completely."""
        return [record.intent for record in self._records.values() if record is not None]

    def begin(self, uid: str) -> None:
        """Something is about to be made or removed."""
        if uid not in self._records or self._records[uid] is not None:
            write_text(self._file(uid), "{}")
            self._records[uid] = None

    def write(self, record: RouterRecord) -> None:
        intent = record.intent
        raw = {
            "uid": intent.uid,
            "vni": intent.vni,
            "cidrs": list(map(str, intent.cidrs)),
            "outbound_nat": intent.outbound_nat,
            "mtu": intent.mtu,
            "floating": list(map(_floating_json, intent.floating)),
            "announcers": list(map(str, intent.announcers)),
            "balancers": [balancer_to_json(balancer) for balancer in intent.balancers],
            "routed": list(map(_routed_json, intent.routed)),
            "program": record.program,
            "rules": record.rules,
        }
        write_text(self._file(intent.uid), json.dumps(raw))
        self._records[intent.uid] = record

    def forget(self, uid: str) -> None:
        self._file(uid).unlink(missing_ok=True)
        self._records.pop(uid, None)

    def _file(self, uid: str) -> Path:
        return self._directory / f"{uid}.json"


def _parse(text: str) -> RouterRecord | None:
    """None for one that was only begun, and for what another version wrote."""
    try:
        raw = json.loads(text)
        intent = RouterIntent(
            uid=raw["uid"],
            vni=raw["vni"],
            cidrs=tuple(map(ip_network, raw["cidrs"])),
            outbound_nat=raw["outbound_nat"],
            mtu=raw["mtu"],
            floating=tuple(map(_parse_floating, raw["floating"])),
            announcers=tuple(map(ip_address, raw["announcers"])),
            balancers=tuple(map(balancer_from_json, raw.get("balancers", ()))),
            routed=tuple(map(_parse_routed, raw.get("routed", ()))),
        )
        return RouterRecord(intent, digest_of(intent), raw["program"], raw["rules"])
    except (ValueError, KeyError, TypeError):
        return None


def _floating_json(one: FloatingIntent) -> dict[str, Any]:
    return {
        "address": str(one.address),
        "uplink": one.uplink,
        "cidr": str(one.cidr),
        "gateway": None if one.gateway is None else str(one.gateway),
        "fixed": None if one.fixed is None else str(one.fixed),
        "forwards": [[way.protocol, way.port, str(way.target), way.target_port] for way in one.forwards],
        "members": list(map(str, one.members)),
    }


def _parse_floating(raw: dict[str, Any]) -> FloatingIntent:
    return FloatingIntent(
        address=IPv4Address(raw["address"]),
        uplink=raw["uplink"],
        cidr=IPv4Network(raw["cidr"]),
        gateway=None if raw["gateway"] is None else IPv4Address(raw["gateway"]),
        fixed=None if raw["fixed"] is None else IPv4Address(raw["fixed"]),
        forwards=tuple(
            ForwardIntent(protocol, port, IPv4Address(target), target_port)
            for protocol, port, target, target_port in raw["forwards"]
        ),
        members=tuple(map(IPv4Address, raw["members"])),
    )


def _routed_json(one: RoutedIntent) -> dict[str, Any]:
    return {
        "subnet": str(one.subnet),
        "router_address": str(one.router_address),
        "uplink": one.uplink,
        "cidr": str(one.cidr),
        "gateway": None if one.gateway is None else str(one.gateway),
        "addresses": list(map(str, one.addresses)),
    }


def _parse_routed(raw: dict[str, Any]) -> RoutedIntent:
    return RoutedIntent(
        subnet=IPv6Network(raw["subnet"]),
        router_address=IPv6Address(raw["router_address"]),
        uplink=raw["uplink"],
        cidr=IPv6Network(raw["cidr"]),
        gateway=None if raw["gateway"] is None else IPv6Address(raw["gateway"]),
        addresses=tuple(map(IPv6Address, raw["addresses"])),
    )
