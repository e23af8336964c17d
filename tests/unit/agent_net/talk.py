"""Conversations between guests, for tests of what groups let through. Blocking: runs inside a lab's threads.

**Edge**: sockets of the calling thread's namespace.
"""

from __future__ import annotations

import contextlib
import socket

_ANSWER_WAIT_S = 0.4  # an answer on one machine takes well below a millisecond
_HELLO = b"still there?"


class Talk:
    """A TCP connection or a UDP flow to an echo; `goes_on` before and after something changes."""

    def __init__(self, kind: str, target: str, port: int, own_port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        self._socket.settimeout(_ANSWER_WAIT_S)
        self._socket.bind(("", own_port))
        try:
            self._socket.connect((target, port))
        except OSError:
            self._socket.close()

    def goes_on(self) -> bool:
        try:
            self._socket.send(_HELLO)
            return self._socket.recv(64) == _HELLO
        except OSError:
            return False

    def close(self) -> None:
        self._socket.close()


def talks(kind: str, target: str, port: int, own_port: int = 0) -> bool:
    """Whether an echo there answers."""
    with contextlib.closing(Talk(kind, target, port, own_port)) as talk:
        return talk.goes_on()
