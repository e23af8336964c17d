"""The load balancers that are programmed on this node; on disk, by router.

**Edge**: one file for each router, replaced atomically. Who was unhealthy is kept, so that an agent that
starts anew neither sends clients to the dead nor touches rules that are right.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from agent.net.balancer import BalancerIntent, Probed, balancer_from_json, balancer_to_json
from agent.net.state import read_text, write_text


@dataclass(frozen=True, slots=True)
class BalancerRecord:
    """`program` is a digest of what the intent compiles to, `rules` a fingerprint of what was listed then."""

    intent: BalancerIntent
    down: frozenset[Probed]
    program: str
    rules: str


class BalancerState:
    """Only this process writes the files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._directory.mkdir(parents=True, exist_ok=True)
        self._records = {file.stem: _parse(read_text(file)) for file in sorted(directory.glob("*.json"))}

    def of_router(self, uid: str) -> dict[str, BalancerRecord]:
        """By uid of the balancer."""
        return dict(self._records.get(uid, {}))

    def write(self, uid: str, records: dict[str, BalancerRecord]) -> None:
        if records == self._records.get(uid, {}):
            return
        if records:
            write_text(self._file(uid), json.dumps([_render(record) for record in records.values()]))
            self._records[uid] = dict(records)
        else:
            self._file(uid).unlink(missing_ok=True)
            self._records.pop(uid, None)

    def _file(self, uid: str) -> Path:
        return self._directory / f"{uid}.json"


def _render(record: BalancerRecord) -> dict[str, Any]:
    return {
        "intent": balancer_to_json(record.intent),
        "down": [[str(one.address), one.port] for one in sorted(record.down)],
        "program": record.program,
        "rules": record.rules,
    }


def _parse(text: str) -> dict[str, BalancerRecord]:
    """Empty for what another version wrote: all are programmed anew."""
    try:
        records = [
            BalancerRecord(
                balancer_from_json(raw["intent"]),
                frozenset(Probed(ip_address(address), port) for address, port in raw["down"]),
                raw["program"],
                raw["rules"],
            )
            for raw in json.loads(text)
        ]
    except (ValueError, KeyError, TypeError):
        return {}
    return {record.intent.uid: record for record in records}
