"""A guest's serial console as a two-way stream of bytes.

**Edge**: one gRPC call. Input is queued without blocking the person who types; the queue is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import Full, Queue
from typing import TYPE_CHECKING, Any, Final

import grpc

if TYPE_CHECKING:
    from cumulet.errors import CumuletError
    from cumulet.v1 import instance_pb2

QUEUE_MAX: Final = 1024  # keystrokes that a stuck link may hold; more are dropped, like on a real line


class ConsoleStream:
    """Iterate for the guest's output; `send` types. `close` detaches, the guest notices nothing."""

    def __init__(
        self,
        attach: Any,
        first: instance_pb2.AttachConsoleRequest,
        typed: Callable[[grpc.RpcError], CumuletError],
    ) -> None:
        self._typed = typed
        self._input: Queue[bytes | None] = Queue(QUEUE_MAX)
        self._call = attach(self._requests(first))

    def send(self, data: bytes) -> None:
        """Type into the guest's console. Dropped while the link is stuck."""
        try:
            self._input.put_nowait(data)
        except Full:
            return

    def close(self) -> None:
        """Detach."""
        self._call.cancel()
        while not self._input.empty():
            self._input.get_nowait()
        self._input.put(None)

    def __iter__(self) -> Iterator[bytes]:
        """Output until the guest's console or the link ends. Raises typed errors, none after `close`."""
        try:
            for reply in self._call:
                yield reply.data
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.CANCELLED:
                raise self._typed(error) from error

    def _requests(
        self, first: instance_pb2.AttachConsoleRequest
    ) -> Iterator[instance_pb2.AttachConsoleRequest]:
        from cumulet.v1 import instance_pb2

        yield first
        while (data := self._input.get()) is not None:
            yield instance_pb2.AttachConsoleRequest(data=data)
