"""What the driver remembers on disk: per network the last intent that was programmed completely.

**Edge**: files below one directory, replaced atomically. Everything here may be lost: the network is then
observed as incomplete and programmed again. What is there is never believed without the kernel.

    STATE/resolv.conf               resolvers that namespaces can reach
    STATE/host.json                 HostRecord
    STATE/net/<uid>/                dnsmasq's files and intent.json (NetworkRecord)
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any, Final

from agent.errors import DriverError
from agent.net.dnsmasq_config import ServerFiles
from agent.net.driver import AddressPair, NetworkIntent, PortIntent, Segment, SubnetIntent

_RECORD: Final = "intent.json"
_OTHERS_MAY_ENTER: Final = 0o001


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """Written last: its presence says that everything before it was done."""

    intent: NetworkIntent
    digest: str  # of the intent
    program: str  # digest of what was programmed
    rules: str  # fingerprint of the namespace's rules as the kernel listed them afterwards


@dataclass(frozen=True, slots=True)
class HostRecord:
    program: str
    rules: str
    forwarding_was_off: bool  # then it goes off again with the last network
    opened_ipv6: bool = False  # it was us who had the node forward IPv6


class State:
    """The driver's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.resolvers = directory / "resolv.conf"
        self._networks = directory / "net"
        self._host = directory / "host.json"
        self._read: dict[str, tuple[tuple[int, int], NetworkRecord | None]] = {}

    def prepare(self) -> None:
        """Raises DriverError when dnsmasq, which runs as a user of its own, could not read its files."""
        self._networks.mkdir(parents=True, exist_ok=True)
        for directory, access in ((self.directory, 0o711), (self._networks, 0o755)):
            directory.chmod(directory.stat().st_mode | access)
        for parent in self.directory.resolve().parents:
            if not parent.stat().st_mode & _OTHERS_MAY_ENTER:
                raise DriverError(
                    "StateDirNotTraversable",
                    f"network state {self.directory}: dnsmasq runs as its own user and cannot enter "
                    f"{parent}; choose another directory or `chmod o+x {parent}`",
                    permanent=True,
                )

    def files(self, uid: str) -> ServerFiles:
        return ServerFiles(self._networks / uid)

    def network_uids(self) -> list[str]:
        return sorted(entry.name for entry in self._networks.iterdir()) if self._networks.is_dir() else []

    def find_network(self, uid: str) -> NetworkRecord | None:
        """None when the network was not programmed completely, or by a version that wrote otherwise.

        A file is read once, since parsing costs more than the look of it.
        """
        file = self._networks / uid / _RECORD
        try:
            seen = file.stat()
        except OSError:
            return None
        version = (seen.st_ino, seen.st_mtime_ns)
        read = self._read.get(uid)
        if read is None or read[0] != version:
            read = self._read[uid] = (version, _parse_record(_read_json(file)))
        return read[1]

    def find_intent(self, uid: str) -> NetworkIntent | None:
        """As it was last programmed."""
        record = self.find_network(uid)
        return record.intent if record is not None else None

    def networks(self) -> list[NetworkIntent]:
        """As they were last programmed."""
        records = map(self.find_network, self.network_uids())
        return [record.intent for record in records if record is not None]

    def write_network(self, record: NetworkRecord) -> None:
        self._read.pop(record.intent.uid, None)
        write_text(self._networks / record.intent.uid / _RECORD, json.dumps(_network_json(record)))

    def forget_completion(self, uid: str) -> None:
        self._read.pop(uid, None)
        (self._networks / uid / _RECORD).unlink(missing_ok=True)

    def forget_network(self, uid: str) -> None:
        self._read.pop(uid, None)
        shutil.rmtree(self._networks / uid, ignore_errors=True)

    def find_host(self) -> HostRecord | None:
        raw = _read_json(self._host)
        try:
            return None if raw is None else HostRecord(**raw)
        except TypeError:
            return None

    def write_host(self, record: HostRecord) -> None:
        raw = {
            "program": record.program,
            "rules": record.rules,
            "forwarding_was_off": record.forwarding_was_off,
            "opened_ipv6": record.opened_ipv6,
        }
        write_text(self._host, json.dumps(raw))

    def forget_host(self) -> None:
        self._host.unlink(missing_ok=True)
        self.resolvers.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """Empty when there is no such file."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def write_text(path: Path, text: str) -> None:
    """Replace a file at once; readable by dnsmasq's user."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path) or "null")
    except ValueError:
        return None


def _network_json(record: NetworkRecord) -> dict[str, Any]:
    network = record.intent
    return {
        "digest": record.digest,
        "program": record.program,
        "rules": record.rules,
        "uid": network.uid,
        "vni": network.vni,
        "outbound_nat": network.outbound_nat,
        "mtu": network.mtu,
        "router_uid": network.router_uid,
        "segment": dataclasses.astuple(network.segment) if network.segment is not None else None,
        "answered": list(map(str, network.answered)),
        "subnets": [
            [subnet.uid, str(subnet.cidr), str(subnet.gateway), list(map(str, subnet.dns_servers))]
            for subnet in network.subnets
        ],
        "ports": list(map(_port_json, network.ports)),
    }


def _port_json(port: PortIntent) -> dict[str, Any]:
    return {
        "uid": port.uid,
        "mac": port.mac,
        "addresses": list(map(str, port.addresses)),
        "hostname": port.hostname,
        "security_groups": port.security_groups,
        "allowed_pairs": [[str(pair.cidr), pair.mac] for pair in port.allowed_pairs],
        "ingress_bps": port.ingress_bps,
        "egress_bps": port.egress_bps,
    }


def _parse_record(raw: Any) -> NetworkRecord | None:
    try:
        return None if raw is None else _network_record(raw)
    except (KeyError, TypeError, ValueError):
        return None


def _network_record(raw: dict[str, Any]) -> NetworkRecord:
    subnets = tuple(
        SubnetIntent(uid, ip_network(cidr), ip_address(gateway), tuple(map(ip_address, dns)))
        for uid, cidr, gateway, dns in raw["subnets"]
    )
    intent = NetworkIntent(
        uid=raw["uid"],
        vni=raw["vni"],
        subnets=subnets,
        outbound_nat=raw["outbound_nat"],
        ports=tuple(_port(raw["uid"], port) for port in raw["ports"]),
        mtu=raw["mtu"],
        router_uid=raw["router_uid"],
        segment=Segment(*raw["segment"]) if raw["segment"] is not None else None,
        answered=tuple(map(IPv6Address, raw.get("answered", ()))),
    )
    return NetworkRecord(intent, raw["digest"], raw["program"], raw["rules"])


def _port(network_uid: str, raw: dict[str, Any]) -> PortIntent:
    return PortIntent(
        uid=raw["uid"],
        network_uid=network_uid,
        mac=raw["mac"],
        addresses=tuple(map(ip_address, raw["addresses"])),
        hostname=raw["hostname"],
        security_groups=None if raw["security_groups"] is None else tuple(raw["security_groups"]),
        allowed_pairs=tuple(AddressPair(ip_network(cidr), mac) for cidr, mac in raw["allowed_pairs"]),
        ingress_bps=raw["ingress_bps"],
        egress_bps=raw["egress_bps"],
    )
