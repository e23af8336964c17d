"""Elements of the sets and maps of the host's tables, and what `nft` lists of them.

**Pure.** Every element's comment names its owner, so that `verify` reads owners from the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from agent.net.rule_words import TABLE, Json

GUARD_TABLE: Final = "cumulet-guard"  # see guard_rules.py
# Sets whose elements the kernel adds itself (counted connections), or that are a group's (group_listing.py).
_UNOWNED: Final = ("connections", "members")
__all__ = ["GUARD_TABLE", "TABLE", "Element", "Json", "add_elements", "parse_elements", "remove_elements"]


@dataclass(frozen=True, slots=True)
class Element:
    """One member of a set, or of a map when there is `data`, with the uid that it belongs to.

    `data`: a number (a mark), a MAC, or a verdict: "accept", "jump CHAIN", "goto CHAIN".
    """

    family: str
    set_name: str
    value: tuple[str, ...]
    network_uid: str
    port_uid: str = ""
    table: str = TABLE
    data: str = ""

    @property
    def comment(self) -> str:
        return f"{self.network_uid} {self.port_uid}".strip()

    @property
    def owner(self) -> str:
        return self.port_uid or self.network_uid

    @property
    def target(self) -> str:
        """The chain that the verdict leads to, if any."""
        return self.data.partition(" ")[2]


def add_elements(elements: Iterable[Element]) -> list[Json]:
    return [{"add": {"element": _element(element)}} for element in _ordered(elements)]


def remove_elements(elements: Iterable[Element]) -> list[Json]:
    """Adding first makes it no error that an element is gone already."""
    return [
        {verb: {"element": _element(element)}} for element in _ordered(elements) for verb in ("add", "delete")
    ]


def parse_elements(listing: Json) -> frozenset[Element]:
    """Elements of our sets in what `nft -j list table` printed; one without our comment has no owner."""
    found: set[Element] = set()
    for item in listing["nftables"]:
        body = item.get("set") or item.get("map")
        if body is not None and not body["name"].startswith(_UNOWNED):
            found.update(_parse_element(body, raw) for raw in body.get("elem", ()))
    return frozenset(found)


def _parse_element(owner: Json, raw: Any) -> Element:
    data = ""
    if isinstance(raw, list):
        raw, data = raw[0], _parse_data(raw[1])
    body = raw["elem"] if isinstance(raw, dict) and "elem" in raw else {"val": raw}
    value = body["val"]
    parts = value["concat"] if isinstance(value, dict) and "concat" in value else [value]
    network_uid, _, port_uid = body.get("comment", "").partition(" ")
    key = tuple(map(_parse_part, parts))
    return Element(owner["family"], owner["name"], key, network_uid, port_uid, owner["table"], data)


def _parse_part(part: Any) -> str:
    if isinstance(part, dict) and "prefix" in part:
        return f"{part['prefix']['addr']}/{part['prefix']['len']}"
    return str(part)


def _parse_data(data: Any) -> str:
    if not isinstance(data, dict):
        return str(data)
    verdict, body = next(iter(data.items()))
    return f"{verdict} {body['target']}" if body else verdict


def _element(element: Element) -> Json:
    parts = [_part(part) for part in element.value]
    value = parts[0] if len(parts) == 1 else {"concat": parts}
    key = {"elem": {"val": value, "comment": element.comment}}
    return {
        "family": element.family,
        "table": element.table,
        "name": element.set_name,
        "elem": [[key, _data(element.data)] if element.data else key],
    }


def _part(part: str) -> str | int | Json:
    """Numbers as numbers (nft prints them so) and prefixes as prefixes."""
    address, slash, length = part.partition("/")
    if slash:
        return {"prefix": {"addr": address, "len": int(length)}}
    return int(part) if part.isdecimal() else part


def _data(data: str) -> int | str | Json:
    if data.isdecimal():
        return int(data)
    if ":" in data:
        return data
    verdict, _, target = data.partition(" ")
    return {verdict: {"target": target} if target else None}


def _ordered(elements: Iterable[Element]) -> list[Element]:
    return sorted(elements, key=lambda one: (one.table, one.family, one.set_name, one.value))
