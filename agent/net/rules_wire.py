"""Counters of nftables as nfnetlink tells them: requests to bytes, answers to values.

**Pure**: struct packing only. Source: linux/netfilter/nf_tables.h, libnftnl's udata.h. `nft list` reads all
elements of all sets to print one counter; the kernel gives rules alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from agent.net.netlink_wire import attribute, attributes, pack_text, parse_text

_SUBSYSTEM: Final = 10 << 8
GETRULE: Final = _SUBSYSTEM | 7
GETSETELEM: Final = _SUBSYSTEM | 13
_GENERIC: Final = struct.Struct("!BBH")  # family, version, resource id
_FAMILIES: Final = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_NUMBERS: Final = {name: number for number, name in _FAMILIES.items()}
_ANY_FAMILY: Final = 0

_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 3, 4, 7
_EXPR_NAME, _EXPR_DATA = 1, 2
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_IMMEDIATE_DATA, _DATA_VERDICT, _VERDICT_CODE = 2, 2, 1
_ELEMENTS_TABLE, _ELEMENTS_SET, _ELEMENTS = 1, 2, 3
_ELEMENT_KEY, _ELEMENT_EXPR, _DATA_VALUE = 1, 7, 1
_NF_DROP: Final = bytes(4)
_COMMENT: Final = 0
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type


class CountedRule(NamedTuple):
    """A rule with a counter. `comment`: empty for none."""

    family: str
    table: str
    chain: str
    handle: int
    comment: str
    packets: int
    bytes: int
    drops: bool


def all_rules_request() -> bytes:
    """Of every table of every family."""
    return _GENERIC.pack(_ANY_FAMILY, 0, 0)


def rules_request(family: str, table: str) -> bytes:
    """Of one table. A name without a family would get the first table of that name only."""
    return _GENERIC.pack(_NUMBERS[family], 0, 0) + attribute(_RULE_TABLE, pack_text(table))


def elements_request(family: str, table: str, name: str) -> bytes:
    """All elements of a set."""
    of = attribute(_ELEMENTS_TABLE, pack_text(table)) + attribute(_ELEMENTS_SET, pack_text(name))
    return _GENERIC.pack(_NUMBERS[family], 0, 0) + of


def parse_rule(payload: bytes) -> CountedRule | None:
    """None for a rule without a counter."""
    found = attributes(payload, _GENERIC.size)
    counter, drops = None, False
    for expression in _entries(found.get(_RULE_EXPRESSIONS, b"")):
        parts = attributes(expression, 0)
        name, data = parts.get(_EXPR_NAME), parts.get(_EXPR_DATA, b"")
        if name == b"counter\0":
            counter = attributes(data, 0)
        elif name == b"immediate\0":
            drops = drops or _is_drop(data)
    if counter is None:
        return None
    return CountedRule(
        _FAMILIES.get(payload[0], ""),
        parse_text(found.get(_RULE_TABLE, b"")),
        parse_text(found.get(_RULE_CHAIN, b"")),
        _number(found.get(_RULE_HANDLE)),
        _parse_comment(found.get(_RULE_USERDATA, b"")),
        _number(counter.get(_COUNTER_PACKETS)),
        _number(counter.get(_COUNTER_BYTES)),
        drops,
    )


def parse_counted_names(payload: bytes) -> Iterator[tuple[str, int]]:
    """Elements of a set of names of links that counts: the name, and packets."""
    for element in _entries(attributes(payload, _GENERIC.size).get(_ELEMENTS, b"")):
        found = attributes(element, 0)
        key = attributes(found.get(_ELEMENT_KEY, b""), 0).get(_DATA_VALUE, b"")
        expression = attributes(found.get(_ELEMENT_EXPR, b""), 0)
        if expression.get(_EXPR_NAME) == b"counter\0":
            counter = attributes(expression.get(_EXPR_DATA, b""), 0)
            yield parse_text(key), _number(counter.get(_COUNTER_PACKETS))


def _entries(data: bytes) -> Iterator[bytes]:
    """Of a list, whose members all have the same type."""
    offset, last = 0, len(data) - _ATTRIBUTE.size
    while offset <= last:
        length, _ = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _is_drop(data: bytes) -> bool:
    verdict = attributes(attributes(data, 0).get(_IMMEDIATE_DATA, b""), 0).get(_DATA_VERDICT)
    return verdict is not None and attributes(verdict, 0).get(_VERDICT_CODE) == _NF_DROP


def _parse_comment(userdata: bytes) -> str:
    """Type and length are a byte each."""
    offset = 0
    while offset + 2 <= len(userdata):
        kind, length = userdata[offset], userdata[offset + 1]
        if kind == _COMMENT:
            return parse_text(userdata[offset + 2 : offset + 2 + length])
        offset += 2 + length
    return ""


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")
