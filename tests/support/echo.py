"""Guests that say who they are, and questions to them. Blocking: runs in the calling thread's namespace.

**Edge**: sockets; the answering part runs in a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Final

ANSWER_S: Final = 0.5  # an answer on one machine takes well below a millisecond
ASK_AGAIN_S: Final = 0.15
MESSAGE_BYTES: Final = 4096
_ECHO_REQUEST: Final = {socket.AF_INET: 8, socket.AF_INET6: 128}
_ECHO_REPLY: Final = {socket.AF_INET: 0, socket.AF_INET6: 129}


@contextlib.contextmanager
def echoing(ports: Iterable[int], name: str = "") -> Iterator[None]:
    """Answer each message with the name, without one with itself: over TCP and UDP, IPv4 and IPv6."""
    stop_reader, stop_writer = socket.socketpair()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for end in (stop_reader, stop_writer):
            stack.enter_context(end)
        selector.register(stop_reader, selectors.EVENT_READ, "stop")
        for port in ports:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                selector.register(stack.enter_context(_bound(kind, port)), selectors.EVENT_READ, kind)
        thread = threading.Thread(target=_serve, args=(selector, stack, name.encode()))
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


def _serve(selector: selectors.BaseSelector, stack: contextlib.ExitStack, name: bytes) -> None:
    while True:
        for key, _ in selector.select():
            one = key.fileobj
            if key.data == "stop":
                return
            assert isinstance(one, socket.socket)
            with contextlib.suppress(OSError):  # whoever asked may be gone already
                if key.data == socket.SOCK_STREAM:
                    connection = stack.enter_context(one.accept()[0])
                    selector.register(connection, selectors.EVENT_READ, "connection")
                elif key.data == socket.SOCK_DGRAM:
                    data, peer = one.recvfrom(MESSAGE_BYTES)
                    one.sendto(name or data, peer)
                else:
                    _answer(selector, one, name)


def _answer(selector: selectors.BaseSelector, connection: socket.socket, name: bytes) -> None:
    try:
        data = connection.recv(MESSAGE_BYTES)
        if data:
            connection.sendall(name or data)
    except OSError:
        data = b""
    if not data:
        selector.unregister(connection)
        connection.close()


def responder(kind: socket.SocketKind, target: str, port: int) -> str:
    """The name of whoever answers there; empty for nobody."""
    return responders(kind, target, port, 1)[0]


def responders(kind: socket.SocketKind, target: str, port: int, times: int) -> list[str]:
    """Who answers so many askers, one after the other.

    All keep their ports to the end: a port that is used again belongs to the connection it had before.
    """
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with contextlib.ExitStack() as stack:
        askers = (stack.enter_context(socket.socket(family, kind)) for _ in range(times))
        return [_ask(asker, target, port) for asker in askers]


def _ask(asker: socket.socket, target: str, port: int) -> str:
    asker.settimeout(ANSWER_S)
    try:
        asker.connect((target, port))
        asker.send(b"who?")
        return asker.recv(MESSAGE_BYTES).decode()
    except OSError:
        return ""


def ping(target: str) -> bool:
    """Whether an echo request is answered."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
    number = os.urandom(4)
    with socket.socket(family, socket.SOCK_RAW, protocol) as asker:
        asker.settimeout(ASK_AGAIN_S)
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                asker.sendto(_echo_request(family, number), (target, 0))
                if _is_reply(family, asker.recv(256), number):
                    return True
    return False


def _echo_request(family: socket.AddressFamily, number: bytes) -> bytes:
    """The kernel fills in ICMPv6's checksum, which covers addresses."""
    head = struct.pack("!BBH", _ECHO_REQUEST[family], 0, 0) + number
    if family == socket.AF_INET6:
        return head
    total = sum(struct.unpack("!4H", head))
    total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!BBH", _ECHO_REQUEST[family], 0, ~(total + (total >> 16)) & 0xFFFF) + number


def _is_reply(family: socket.AddressFamily, packet: bytes, number: bytes) -> bool:
    body = packet[(packet[0] & 15) * 4 :] if family == socket.AF_INET else packet
    return body[:1] == bytes([_ECHO_REPLY[family]]) and body[4:8] == number
