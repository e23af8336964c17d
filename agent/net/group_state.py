"""The groups that the driver was last told of, on disk.

**Edge**: one file for each group, replaced atomically. What is lost here is programmed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agent.net.driver import GroupIntent, RuleIntent, digest_of_group
from agent.net.state import read_text, write_text


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """`rules`: the fingerprint of its chains as the kernel listed them afterwards."""

    intent: GroupIntent
    digest: str
    rules: str
    members: frozenset[str]  # as nft prints them


class GroupState:
    """Read once; only this process writes the files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._directory.mkdir(parents=True, exist_ok=True)
        self._records: dict[str, GroupRecord] = {}
        for file in sorted(directory.glob("*.json")):
            record = _parse(read_text(file))
            if record is not None:
                self._records[record.intent.uid] = record

    @property
    def records(self) -> Mapping[str, GroupRecord]:
        return MappingProxyType(self._records)

    def intents(self) -> dict[str, GroupIntent]:
        return {uid: record.intent for uid, record in self._records.items()}

    def write(self, intent: GroupIntent, rules: str) -> None:
        raw = {
            "uid": intent.uid,
            "rules": [_rule_json(rule) for rule in intent.rules],
            "members": sorted(map(str, intent.members)),
            "fingerprint": rules,
        }
        write_text(self._file(intent.uid), json.dumps(raw))
        self._records[intent.uid] = _record(intent, rules)

    def forget(self, uid: str) -> None:
        self._file(uid).unlink(missing_ok=True)
        self._records.pop(uid, None)

    def _file(self, uid: str) -> Path:
        return self._directory / f"{uid}.json"


def _record(intent: GroupIntent, rules: str) -> GroupRecord:
    return GroupRecord(intent, digest_of_group(intent), rules, frozenset(map(str, intent.members)))


def _rule_json(rule: RuleIntent) -> dict[str, Any]:
    cidr = None if rule.remote_cidr is None else str(rule.remote_cidr)
    return {**asdict(rule), "remote_cidr": cidr}


def _parse(text: str) -> GroupRecord | None:
    """None for what a crash or another version wrote."""
    try:
        raw = json.loads(text)
        rules = tuple(_parse_rule(rule) for rule in raw["rules"])
        intent = GroupIntent(raw["uid"], rules, frozenset(map(ip_address, raw["members"])))
        return _record(intent, str(raw["fingerprint"]))
    except (ValueError, KeyError, TypeError):
        return None


def _parse_rule(raw: dict[str, Any]) -> RuleIntent:
    cidr = raw["remote_cidr"]
    return RuleIntent(**{**raw, "remote_cidr": None if cidr is None else ip_network(cidr)})
