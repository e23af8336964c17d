"""Questions to members of load balancers: sockets of a router's namespace, and one question over one of them.

**Edge.** A socket belongs to the namespace that it was made in, whoever uses it.
"""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path
from typing import Final

from agent.net import netns
from agent.net.driver import IPAddress

_STATUS: Final = re.compile(rb"HTTP/1\.[01] [23][0-9][0-9][ \r\n]")  # RFC 9112, section 4: up to the reason
_STATUS_BYTES: Final = 13
_ANSWER_BYTES: Final = 256


def open_sockets(namespace: Path, source: IPAddress, count: int) -> list[socket.socket]:
    """TCP sockets in the namespace that speak from this address of it. Blocking; raises OSError."""
    made: list[socket.socket] = []
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    try:
        with netns.inside(namespace):
            for _ in range(count):
                made.append(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
                made[-1].setblocking(False)
                made[-1].bind((str(source), 0))
    except OSError:
        for one in made:
            one.close()
        raise
    return made


async def ask(one: socket.socket, target: tuple[str, int], http_path: str, timeout_s: float) -> bool:
    """Whether it accepts a connection, and with a path answers a GET with a status from 200 to 399."""
    try:
        async with asyncio.timeout(timeout_s):
            loop = asyncio.get_running_loop()
            await loop.sock_connect(one, target)
            return not http_path or await _answers(one, target[0], http_path)
    except (OSError, TimeoutError):
        return False


async def _answers(one: socket.socket, host: str, path: str) -> bool:
    loop = asyncio.get_running_loop()
    headers = (
        f"Host: {f'[{host}]' if ':' in host else host}",
        "User-Agent: cumulet-health",
        "Connection: close",
    )
    lines = (f"GET {path} HTTP/1.1", *headers, "", "")
    await loop.sock_sendall(one, "\r\n".join(lines).encode())
    answer = b""
    while len(answer) < _STATUS_BYTES:
        part = await loop.sock_recv(one, _ANSWER_BYTES)
        if not part:
            break
        answer += part
    return _STATUS.match(answer) is not None
