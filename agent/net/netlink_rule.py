"""Policy rules of routing on the wire: which table a packet's way is looked up in.

**Pure.** Of IPv4. Source: linux/fib_rules.h.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from agent.net.netlink_wire import attribute, attributes, pack_text, pack_u32, parse_text, parse_u32

RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34

PROTOCOL: Final = 199  # ours (see netlink_ip.py)
TABLE_MAIN: Final = 254
_AF_INET: Final = 2
_TO_TABLE: Final = 1  # FR_ACT_TO_TBL
_SINGLE: Final = 32
_NOT_SUPPRESSED: Final = 0xFFFFFFFF  # what the kernel tells of a rule that takes any route

_FRA_SRC: Final = 2
_FRA_IIFNAME: Final = 3
_FRA_PRIORITY: Final = 6
_FRA_FWMARK: Final = 10
_FRA_SUPPRESS_PREFIXLEN: Final = 14
_FRA_TABLE: Final = 15
_FRA_FWMASK: Final = 16
_FRA_PROTOCOL: Final = 21

_HEADER: Final = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, two unused, action, flags


class PolicyRule(NamedTuple):
    """Packets that came in by `link` (a name) from `source`, or that have this `mark`, look in `table` first.

    `specific_only`: its default route does not count.
    """

    priority: int
    table: int
    source: IPv4Address | None = None
    link: str = ""
    mark: int = 0
    specific_only: bool = False


def rule(value: PolicyRule) -> bytes:
    length = _SINGLE if value.source is not None else 0
    payload = _HEADER.pack(_AF_INET, 0, length, 0, 0, 0, 0, _TO_TABLE, 0)
    payload += attribute(_FRA_PRIORITY, pack_u32(value.priority)) + attribute(
        _FRA_TABLE, pack_u32(value.table)
    )
    payload += attribute(_FRA_PROTOCOL, bytes([PROTOCOL]))
    if value.source is not None:
        payload += attribute(_FRA_SRC, value.source.packed)
    if value.link:
        payload += attribute(_FRA_IIFNAME, pack_text(value.link))
    if value.mark:
        payload += attribute(_FRA_FWMARK, pack_u32(value.mark)) + attribute(_FRA_FWMASK, pack_u32(0xFFFFFFFF))
    if value.specific_only:
        payload += attribute(_FRA_SUPPRESS_PREFIXLEN, pack_u32(0))
    return payload


def rule_dump() -> bytes:
    return _HEADER.pack(_AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)


def parse_rule(payload: bytes) -> PolicyRule | None:
    """None for one that is not ours."""
    found = attributes(payload, _HEADER.size)
    if found.get(_FRA_PROTOCOL) != bytes([PROTOCOL]):
        return None
    suppress = found.get(_FRA_SUPPRESS_PREFIXLEN)
    return PolicyRule(
        priority=parse_u32(found.get(_FRA_PRIORITY)),
        table=parse_u32(found.get(_FRA_TABLE)),
        source=IPv4Address(found[_FRA_SRC]) if _FRA_SRC in found else None,
        link=parse_text(found.get(_FRA_IIFNAME, b"")),
        mark=parse_u32(found.get(_FRA_FWMARK)),
        specific_only=suppress is not None and parse_u32(suppress) != _NOT_SUPPRESSED,
    )
