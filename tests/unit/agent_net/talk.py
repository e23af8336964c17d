"""Conversations between guests, for tests of what groups let through. Blocking: runs inside a lab's threads.

**Edge**: sockets of the calling thread's namespace.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterable, Iterator

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


@contextlib.contextmanager
def echoing(ports: Iterable[int]) -> Iterator[None]:
    """Echoes on these ports, over TCP and UDP, IPv4 and IPv6."""
    stop_reader, stop_writer = socket.socketpair()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for end in (stop_reader, stop_writer):
            stack.enter_context(end)
        selector.register(stop_reader, selectors.EVENT_READ, "stop")
        for port in ports:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                server = stack.enter_context(_bound(kind, port))
                selector.register(server, selectors.EVENT_READ, kind)
        thread = threading.Thread(target=_serve, args=(selector, stack))
        thread.start()
        try:
            yield
        finally:
            stop_writer.send(b"x")
            thread.join()


def _bound(kind: socket.SocketKind, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6, kind)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        made.listen(64)
    return made


def _serve(selector: selectors.BaseSelector, stack: contextlib.ExitStack) -> None:
    while True:
        for key, _ in selector.select():
            one = key.fileobj
            if key.data == "stop":
                return
            assert isinstance(one, socket.socket)
            if key.data == socket.SOCK_STREAM:
                connection = stack.enter_context(one.accept()[0])
                selector.register(connection, selectors.EVENT_READ, "connection")
            elif key.data == socket.SOCK_DGRAM:
                data, peer = one.recvfrom(4096)
                one.sendto(data, peer)
            else:
                _echo(selector, one)


def _echo(selector: selectors.BaseSelector, connection: socket.socket) -> None:
    try:
        data = connection.recv(4096)
        connection.sendall(data)
    except OSError:
        data = b""
    if not data:
        selector.unregister(connection)
        connection.close()
