"""Rates of links on the wire: token buckets, and the redirection of what comes in.

**Pure.** Source: linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h. The kernel's policing action
is not in every kernel that is met here; a redirection to an `ifb` link, whose queue is then a bucket, is.
"""

from __future__ import annotations

import struct
from typing import Final

from agent.net.netlink_wire import attribute, attributes, pack_text, pack_u32, parse_text

RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_GETQDISC: Final = 38
RTM_NEWTFILTER: Final = 44
RTM_GETTFILTER: Final = 46

BUCKET: Final = "tbf"  # kind of a queue
SHAPER: Final = "ifb"  # kind of a link
ROOT: Final = 0xFFFFFFFF
_INGRESS_PARENT: Final = 0xFFFFFFF1
_INGRESS_HANDLE: Final = 0xFFFF0000
_PRIORITY: Final = 1
_ETH_P_ALL: Final = 3
_BURST_MIN_BYTES: Final = 16_384  # a jumbo frame fits; a larger bundle of segments is cut by the bucket
_BURST_PART: Final = 50  # of a second: 20 ms, several of the kernel's ticks
_QUEUE_PART: Final = 20  # of a second: what waits longer than 50 ms is late for everybody

_IFLA_IFNAME: Final = 3
_IFLA_LINKINFO: Final = 18
_INFO_KIND: Final = 1
_KIND: Final = 1
_OPTIONS: Final = 2
_STATS: Final = 7
_STATS_QUEUE: Final = 3
_TBF_PARMS: Final = 1
_TBF_RATE64: Final = 4
_TBF_BURST: Final = 6
_U32_SEL: Final = 5
_U32_ACT: Final = 7
_ACT_KIND: Final = 1
_ACT_OPTIONS: Final = 2
_MIRRED_PARMS: Final = 2
_ACT_STOLEN: Final = 4
_EGRESS_REDIRECT: Final = 1
_LINKLAYER_ETHERNET: Final = 1  # without it the kernel wants a table of times

_HEADER: Final = struct.Struct("=BxHiIII")  # family, index, handle, parent, info
_RATE: Final = struct.Struct("=BBHhHI")  # log, link layer, overhead, align, least packet, bytes per second
_QUEUE_STATS: Final = struct.Struct("=IIIII")  # packets, bytes, dropped, requeued, over the limit
_NO_RATE: Final = bytes(_RATE.size)
_MIRRED: Final = struct.Struct("=IIiiiiI")  # index, capabilities, action, references, binds, mode, link
_MATCH_ALL: Final = struct.pack("=BBBxHHhhI", 1, 0, 1, 0, 0, 0, 0, 0) + bytes(
    16
)  # terminal, one key of nothing


def shaper(name: str) -> bytes:
    """A link that hands back what is sent to it, after its queue."""
    kind = attribute(_IFLA_LINKINFO, attribute(_INFO_KIND, pack_text(SHAPER)))
    return struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(_IFLA_IFNAME, pack_text(name)) + kind


def bucket(link: int, rate_bps: int) -> bytes:
    """A token bucket in place of the link's queue."""
    rate = rate_bps // 8
    burst = max(_BURST_MIN_BYTES, rate // _BURST_PART)
    words = _RATE.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, min(rate, 2**32 - 1))
    parms = words + _NO_RATE + struct.pack("=III", min(burst + rate // _QUEUE_PART, 2**32 - 1), 0, 0)
    options = (
        attribute(_TBF_PARMS, parms)
        + attribute(_TBF_RATE64, struct.pack("=Q", rate))
        + attribute(_TBF_BURST, pack_u32(min(burst, 2**32 - 1)))
    )
    return _header(link, 0, ROOT) + attribute(_KIND, pack_text(BUCKET)) + attribute(_OPTIONS, options)


def root(link: int) -> bytes:
    """To delete: the kernel's own queue is back."""
    return _header(link, 0, ROOT)


def ingress(link: int) -> bytes:
    """Where a filter for what comes in may be; deleted with all filters."""
    return _header(link, _INGRESS_HANDLE, _INGRESS_PARENT) + attribute(_KIND, pack_text("ingress"))


def redirection(link: int, to: int) -> bytes:
    """Everything that comes in by `link` first goes through the queue of `to`."""
    parms = _MIRRED.pack(0, 0, _ACT_STOLEN, 0, 0, _EGRESS_REDIRECT, to)
    action = attribute(_ACT_KIND, pack_text("mirred")) + attribute(
        _ACT_OPTIONS, attribute(_MIRRED_PARMS, parms)
    )
    options = attribute(_U32_SEL, _MATCH_ALL) + attribute(_U32_ACT, attribute(1, action))
    return ingress_filter(link, "u32", options)


def ingress_filter(link: int, kind: str, options: bytes) -> bytes:
    """The only one for what comes in by the link."""
    info = _PRIORITY << 16 | int.from_bytes(struct.pack("!H", _ETH_P_ALL), "little")
    header = _HEADER.pack(0, 0, link, 0, _INGRESS_HANDLE, info)
    return header + attribute(_KIND, pack_text(kind)) + attribute(_OPTIONS, options)


def filter_options(payload: bytes) -> dict[int, bytes]:
    """Of any kind of filter."""
    return attributes(attributes(payload, _HEADER.size).get(_OPTIONS, b""), 0)


def filter_dump(link: int) -> bytes:
    return _header(link, 0, _INGRESS_HANDLE)


def parse_bucket(payload: bytes) -> tuple[int, int] | None:
    """(link, bits per second) of a bucket at a link's root, else None."""
    _, _, link, _, parent, _ = _HEADER.unpack_from(payload)
    found = attributes(payload, _HEADER.size)
    if parent != ROOT or parse_text(found.get(_KIND, b"")) != BUCKET:
        return None
    options = attributes(found.get(_OPTIONS, b""), 0)
    rate = _RATE.unpack_from(options[_TBF_PARMS])[5]
    wide = options.get(_TBF_RATE64)
    return link, 8 * (struct.unpack("=Q", wide)[0] if wide else rate)


def queue_dump() -> bytes:
    """Of all links."""
    return _header(0, 0, 0)


def parse_bucket_drops(payload: bytes) -> tuple[int, int] | None:
    """(link, packets dropped) of a bucket at a link's root, else None."""
    _, _, link, _, parent, _ = _HEADER.unpack_from(payload)
    found = attributes(payload, _HEADER.size)
    if parent != ROOT or parse_text(found.get(_KIND, b"")) != BUCKET:
        return None
    counts = attributes(found.get(_STATS, b""), 0).get(_STATS_QUEUE, b"")
    return link, _QUEUE_STATS.unpack_from(counts)[2] if counts else 0


def parse_redirection(payload: bytes) -> int | None:
    """The link that a filter redirects to."""
    action = attributes(attributes(filter_options(payload).get(_U32_ACT, b""), 0).get(1, b""), 0)
    parms = attributes(action.get(_ACT_OPTIONS, b""), 0).get(_MIRRED_PARMS)
    return int(_MIRRED.unpack_from(parms)[6]) if parms else None


def _header(link: int, handle: int, parent: int) -> bytes:
    return _HEADER.pack(0, 0, link, handle, parent, 0)
