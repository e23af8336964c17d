"""Reads our tables back, and only when the kernel says that rules have changed.

**Edge.** `nft list` costs some 5 ms for each namespace. The kernel counts generations of rules, and
namespaces have cookies that are never used twice: an unchanged pair proves that the last reading holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.errors import DriverError
from agent.net import nft, rtnetlink, ruleset
from agent.net.ruleset import Element

_NOTHING: Final = ruleset.rules_fingerprint({"nftables": []})


@dataclass(frozen=True, slots=True)
class Tables:
    """Our tables as the kernel has them."""

    fingerprint: str
    elements: frozenset[Element]

    @property
    def is_absent(self) -> bool:
        return self.fingerprint == _NOTHING


@dataclass(frozen=True, slots=True)
class _Reading:
    version: tuple[int, int]
    tables: Tables


class RulesReader:
    """Readings by owner: a network's uid, or "" for the host."""

    def __init__(self) -> None:
        self._readings: dict[str, _Reading] = {}

    def read(self, owner: str, families: tuple[str, ...]) -> Tables:
        """Of the calling thread's namespace."""
        version = rtnetlink.rules_generation()  # before the listing: a change in between is seen next time
        reading = self._readings.get(owner)
        if reading is None or reading.version != version:
            listing = nft.list_tables(ruleset.TABLE, families)
            tables = Tables(ruleset.rules_fingerprint(listing), ruleset.parse_elements(listing))
            reading = self._readings[owner] = _Reading(version, tables)
        return reading.tables

    def commit(self, owner: str, families: tuple[str, ...], batch: list[ruleset.Json]) -> Tables:
        """Program a batch that replaces our tables, and read them back.

        Raises DriverError when the kernel holds another number of rules than were sent.
        """
        nft.commit(batch)
        listing = nft.list_tables(ruleset.TABLE, families)
        sent, found = ruleset.count_rules(batch), ruleset.count_rules(listing["nftables"])
        if sent != found:
            raise DriverError(
                "NftDiffers",
                f"rules of {owner or 'the host'}: {sent} sent, {found} found; is another program editing "
                f"the table {ruleset.TABLE}?",
            )
        return self.read(owner, families)

    def forget(self, owner: str) -> None:
        self._readings.pop(owner, None)
