"""Queues and redirections of the links of the namespace that the calling thread is in.

**Edge**: one netlink socket per object. Kernel refusals are raised as OSError with the kernel's errno.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from agent.net import netlink_bpf, netlink_link, netlink_wire
from agent.net import netlink_qos as wire
from agent.net.rtnetlink import converse, open_conversation

_NETLINK_ROUTE: Final = 0
_REPLACE: Final = netlink_wire.F_CREATE | netlink_wire.F_REPLACE
_NEW: Final = netlink_wire.F_CREATE | netlink_wire.F_EXCL
# What there is none of: a link's own queue cannot be deleted, a link without ingress has no filters, and one
# that frames are redirected to may be gone.
_NONE: Final = (errno.ENOENT, errno.EINVAL, errno.ENODEV)


class Queues:
    """A conversation. Use as a context manager; not for several threads."""

    def __init__(self) -> None:
        self._socket = open_conversation(_NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def find_bucket(self, link: int) -> int:
        """Bits per second; 0 for a link with another queue. New kernels answer only who asks for an echo."""
        flags = netlink_wire.F_ACK | netlink_wire.F_ECHO
        with _tolerating_none():
            for answer in self._ask(wire.RTM_GETQDISC, flags, wire.root(link)):
                found = wire.parse_bucket(answer)
                if found is not None:
                    return found[1]
        return 0

    def bucket_drops(self) -> dict[int, int]:
        """Packets that buckets dropped, by link."""
        answers = self._ask(wire.RTM_GETQDISC, netlink_wire.F_DUMP, wire.queue_dump())
        found = map(wire.parse_bucket_drops, answers)
        return dict(drops for drops in found if drops is not None)

    def set_bucket(self, link: int, rate_bps: int) -> None:
        self._do(wire.RTM_NEWQDISC, _REPLACE, wire.bucket(link, rate_bps))

    def delete_bucket(self, link: int) -> None:
        with _tolerating_none():
            self._do(wire.RTM_DELQDISC, 0, wire.root(link))

    def add_shaper(self, name: str) -> None:
        self._do(netlink_link.RTM_NEWLINK, _NEW, wire.shaper(name))

    def redirect(self, link: int, to: int) -> None:
        self._do(wire.RTM_NEWQDISC, _REPLACE, wire.ingress(link))
        self._do(wire.RTM_NEWTFILTER, _NEW, wire.redirection(link, to))

    def find_redirection(self, link: int) -> int | None:
        """Where the frames that come in by `link` are sent."""
        with _tolerating_none():
            for answer in self._ask(wire.RTM_GETTFILTER, netlink_wire.F_DUMP, wire.filter_dump(link)):
                to = wire.parse_redirection(answer)
                if to is not None:
                    return to
        return None

    def run_program(self, link: int, program_fd: int, name: str) -> None:
        """On what comes in by `link`, in place of what filters are there."""
        self.delete_ingress(link)
        self._do(wire.RTM_NEWQDISC, _REPLACE, wire.ingress(link))
        self._do(wire.RTM_NEWTFILTER, _NEW, netlink_bpf.program_filter(link, program_fd, name))

    def find_program(self, link: int) -> str:
        """The name of the program that is run on what comes in by `link`; empty without one."""
        with _tolerating_none():
            for answer in self._ask(wire.RTM_GETTFILTER, netlink_wire.F_DUMP, wire.filter_dump(link)):
                name = netlink_bpf.parse_program_name(answer)
                if name:
                    return name
        return ""

    def delete_ingress(self, link: int) -> None:
        """With its filters."""
        with _tolerating_none():
            self._do(wire.RTM_DELQDISC, 0, wire.ingress(link))

    def _do(self, kind: int, flags: int, payload: bytes) -> None:
        for _ in self._ask(kind, flags | netlink_wire.F_ACK, payload):
            pass

    def _ask(self, kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
        self._sequence += 1
        return converse(self._socket, self._sequence, kind, flags, payload)


@contextlib.contextmanager
def _tolerating_none() -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno not in _NONE:
            raise
