"""A host on the internet: tells who asks by TCP or UDP from which address and port the question came.

**Edge**: sockets. `python -m deploy.lab.echo PORT ADDRESS...`; each address has sockets of its own, since an
answer by UDP must come from where the question went to.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any, cast


def render_peer(peer: tuple[Any, ...]) -> bytes:
    """`ADDRESS PORT` and a newline."""
    return f"{peer[0]} {peer[1]}\n".encode()


class _Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Python 3.11's own datagram transports are no subclass of it.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._transport.sendto(render_peer(addr), addr)


async def _answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(render_peer(writer.get_extra_info("peername")))
    writer.close()
    await writer.wait_closed()


async def serve(port: int, addresses: Sequence[str]) -> None:
    """For ever."""
    for address in addresses:
        await asyncio.get_running_loop().create_datagram_endpoint(_Datagrams, (address, port))
    server = await asyncio.start_server(_answer, addresses, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2:]))
