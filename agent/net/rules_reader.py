"""Reads our tables back, and only when the kernel says that rules have changed.

**Edge.** `nft list` costs some 5 ms for each namespace. The kernel counts generations of rules, and
namespaces have cookies that are never used twice: an unchanged pair proves that the last reading holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from agent.errors import DriverError
from agent.net import elements, nft, rtnetlink, ruleset
from agent.net.elements import Element
from agent.net.group_listing import NO_CHAINS, Chains, parse_chains
from agent.net.holdings import Holdings

_NOTHING: Final = ruleset.rules_fingerprint({"nftables": []})


@dataclass(frozen=True)
class Tables:
    """Our tables as the kernel has them."""

    fingerprint: str
    elements: Holdings
    chains: Chains = NO_CHAINS

    @property
    def is_absent(self) -> bool:
        return self.fingerprint == _NOTHING

    def of_network(self, network_uid: str) -> list[Element]:
        """Its own and its ports'."""
        return list(self.elements.of_network(network_uid))

    def tapped(self, network_uid: str) -> frozenset[str]:
        """Ports of a network that have, or are about to have, a tap."""
        return self.elements.ports_of(network_uid)


@dataclass(frozen=True, slots=True)
class _Reading:
    version: tuple[int, int]
    tables: Tables


class RulesReader:
    """Readings by owner: a network's uid, or "" for the host."""

    def __init__(self) -> None:
        self._readings: dict[str, _Reading] = {}

    def read(self, owner: str, names: nft.Tables) -> Tables:
        """Of the calling thread's namespace."""
        reading = self._readings.get(owner)
        if reading is None or reading.version != rtnetlink.rules_generation():
            reading = self._readings[owner] = _read(names)[0]
        return reading.tables

    def replace(self, owner: str, names: nft.Tables, batch: list[elements.Json]) -> Tables:
        """Program a batch that replaces our tables, and read them back.

        Raises DriverError when the kernel holds another number of rules than were sent.
        """
        nft.commit(batch)
        reading, found = _read(names)
        sent = ruleset.count_rules(batch)
        if sent != found:
            raise DriverError(
                "NftDiffers",
                f"rules of {owner or 'the host'}: {sent} sent, {found} found; is another program editing "
                f"the table {elements.TABLE}?",
            )
        self._readings[owner] = reading
        return reading.tables

    def change(
        self, owner: str, names: nft.Tables, batch: list[elements.Json], after: Callable[[Tables], Tables]
    ) -> None:
        """One transaction. It raises the generation by one: then nobody else came between, and what we know
        plus our change (`after`) is what there is, without a listing."""
        before = self.read(owner, names)
        cookie, generation = self._readings[owner].version
        nft.commit(batch)
        if rtnetlink.rules_generation() == (cookie, generation + 1):
            self._readings[owner] = _Reading((cookie, generation + 1), after(before))

    def learn(self, owner: str, names: nft.Tables, after: Callable[[Tables], Tables]) -> None:
        """More of what there is, found by another listing; not when rules have changed since."""
        self.read(owner, names)
        self._readings[owner] = replace(self._readings[owner], tables=after(self._readings[owner].tables))

    def forget(self, owner: str) -> None:
        self._readings.pop(owner, None)


def _read(names: nft.Tables) -> tuple[_Reading, int]:
    """A reading, and the number of rules."""
    version = rtnetlink.rules_generation()  # before the listing: a change in between is seen next time
    listing = nft.list_tables(names)
    fingerprint, found = ruleset.rules_fingerprint(listing), elements.parse_elements(listing)
    tables = Tables(fingerprint, Holdings(found), parse_chains(listing["nftables"]))
    return _Reading(version, tables), ruleset.count_rules(listing["nftables"])
