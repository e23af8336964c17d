"""Filters that run a BPF program on what comes in by a link, on the wire.

**Pure.** Source: linux/pkt_cls.h (TCA_BPF_*). The program's name in a listing is what it was attached with,
which names its bytes.
"""

from __future__ import annotations

from typing import Final

from agent.net.netlink_qos import filter_options, ingress_filter
from agent.net.netlink_wire import attribute, pack_text, pack_u32, parse_text

_KIND: Final = "bpf"
_FD: Final = 6
_NAME: Final = 7
_FLAGS: Final = 8
_DIRECT_ACTION: Final = 1  # the program's return value is the verdict


def program_filter(link: int, program_fd: int, name: str) -> bytes:
    options = (
        attribute(_FD, pack_u32(program_fd))
        + attribute(_NAME, pack_text(name))
        + attribute(_FLAGS, pack_u32(_DIRECT_ACTION))
    )
    return ingress_filter(link, _KIND, options)


def parse_program_name(payload: bytes) -> str:
    """Empty for another kind of filter."""
    return parse_text(filter_options(payload).get(_NAME, b""))
