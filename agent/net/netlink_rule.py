"""Policy rules of routing on the wire: which table a packet's way is looked up in.

**Pure.** Source: linux/fib_rules.h.
"""

from __future__ import annotations

import struct
from ipaddress import ip_network
from typing import Final, NamedTuple

from agent.net.driver import IPNetwork
from agent.net.netlink_wire import attribute, attributes, pack_text, pack_u32, parse_text, parse_u32

RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34

PROTOCOL: Final = 199  # ours (see netlink_ip.py)
TABLE_MAIN: Final = 254
_AF_INET: Final = 2
_AF_INET6: Final = 10
_TO_TABLE: Final = 1  # FR_ACT_TO_TBL
_BLACKHOLE: Final = 6  # FR_ACT_BLACKHOLE
_INVERT: Final = 0x2  # FIB_RULE_INVERT
_OWN: Final = "lo"  # by which, as it were, the node's own packets come in
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

    `specific_only`: its default route does not count. Without a table, packets that came in by any link and
    have found no way yet are dropped.
    """

    priority: int
    table: int
    source: IPNetwork | None = None
    link: str = ""
    mark: int = 0
    specific_only: bool = False
    ip_version: int = 4


def rule(value: PolicyRule) -> bytes:
    length = value.source.prefixlen if value.source is not None else 0
    action, flags = (_TO_TABLE, 0) if value.table else (_BLACKHOLE, _INVERT)
    payload = _HEADER.pack(_family(value.ip_version), 0, length, 0, 0, 0, 0, action, flags)
    payload += attribute(_FRA_PRIORITY, pack_u32(value.priority)) + attribute(
        _FRA_TABLE, pack_u32(value.table)
    )
    payload += attribute(_FRA_PROTOCOL, bytes([PROTOCOL]))
    if value.source is not None:
        payload += attribute(_FRA_SRC, value.source.network_address.packed)
    link = value.link if value.table else _OWN
    if link:
        payload += attribute(_FRA_IIFNAME, pack_text(link))
    if value.mark:
        payload += attribute(_FRA_FWMARK, pack_u32(value.mark)) + attribute(_FRA_FWMASK, pack_u32(0xFFFFFFFF))
    if value.specific_only:
        payload += attribute(_FRA_SUPPRESS_PREFIXLEN, pack_u32(0))
    return payload


def rule_dump(ip_version: int) -> bytes:
    return _HEADER.pack(_family(ip_version), 0, 0, 0, 0, 0, 0, 0, 0)


def parse_rule(payload: bytes) -> PolicyRule | None:
    """None for one that is not ours."""
    found = attributes(payload, _HEADER.size)
    if found.get(_FRA_PROTOCOL) != bytes([PROTOCOL]):
        return None
    suppress, source = found.get(_FRA_SUPPRESS_PREFIXLEN), found.get(_FRA_SRC)
    family, _, length, _, _, _, _, action, _ = _HEADER.unpack_from(payload)
    drops = action == _BLACKHOLE
    return PolicyRule(
        priority=parse_u32(found.get(_FRA_PRIORITY)),
        table=0 if drops else parse_u32(found.get(_FRA_TABLE)),
        source=ip_network((source, length)) if source is not None else None,
        link="" if drops else parse_text(found.get(_FRA_IIFNAME, b"")),
        mark=parse_u32(found.get(_FRA_FWMARK)),
        specific_only=suppress is not None and parse_u32(suppress) != _NOT_SUPPRESSED,
        ip_version=4 if family == _AF_INET else 6,
    )


def _family(ip_version: int) -> int:
    return _AF_INET if ip_version == 4 else _AF_INET6
