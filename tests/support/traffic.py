"""Traffic that measures a way between two namespaces: small datagrams, bulk TCP, round trips.

**Edge**: sockets of the namespace they are made in. The kernel does the work of a batch in one call
(`sendmmsg`, by ctypes), so that Python is no part of what is measured; every packet goes its whole way, up to
the receiver's socket, inside the sender's call. That thread has a processor for itself while it measures.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PAYLOAD: Final = bytes(18)  # of UDP over IPv4: 60 bytes of frame, 64 with its checksum
BATCH: Final = 256
_CHUNK: Final = bytes(1 << 18)
_PRIORITY: Final = 1
_PING: Final = 8
_HELLO_S: Final = 2.0
_IP_HEADER: Final = 20


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr of sendmmsg(2), for a connected socket."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


_C: Final = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def _undisturbed(cpu: int) -> Iterator[None]:
    """This thread runs before all others of this processor: the machine may be busy with other work."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[cpu % len(cpus)]})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, cpus)


def make_sink(address: str, port: int = 0) -> socket.socket:
    """A socket whose packets nobody reads: its queue fills, and what follows ends there."""
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sink.settimeout(_HELLO_S)
    sink.bind((address, port))
    return sink


def connect(sink: socket.socket, address: str, *, answered: bool) -> socket.socket:
    """To a sink, by this address. `answered`: both ends have spoken once, as ends of most flows have."""
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(_HELLO_S)
    client.connect((address, sink.getsockname()[1]))
    if answered:
        client.send(PAYLOAD)
        _, peer = sink.recvfrom(64)
        sink.sendto(PAYLOAD, peer)
        client.recv(64)
    client.setblocking(True)
    return client


def flood(client: socket.socket, seconds: float) -> float:
    """Sends smallest datagrams for so long; returns how long it was."""
    vector = _Vector(PAYLOAD, len(PAYLOAD))
    batch = (_Message * BATCH)(
        *[_Message(vectors=ctypes.pointer(vector), vector_count=1) for _ in range(BATCH)]
    )
    number = client.fileno()
    with _undisturbed(0):
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            if _C.sendmmsg(number, batch, BATCH, 0) < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg failed")
    return elapsed


def packets_received(link: str) -> int:
    """By a link of the calling thread's namespace, ever."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    (values,) = [line.partition(":")[2] for line in lines if line.partition(":")[0].strip() == link]
    return int(values.split()[1])


class Swallower:
    """Takes one TCP connection and reads it to its end, in a thread; `bits_per_s` tells what came."""

    def __init__(self, address: str, port: int = 0) -> None:
        self._server = socket.socket()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._server.bind((address, port))
        self._server.listen(1)
        self.port: int = self._server.getsockname()[1]
        self._rate = 0.0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        buffer = bytearray(len(_CHUNK))
        connection, _ = self._server.accept()
        with connection, _undisturbed(1):
            total, started = 0, time.perf_counter()
            while got := connection.recv_into(buffer):
                total += got
            self._rate = total * 8 / (time.perf_counter() - started)

    def bits_per_s(self) -> float:
        """Waits for the end."""
        self._thread.join()
        self._server.close()
        return self._rate


def pour(endpoint: tuple[str, int], seconds: float) -> None:
    """As much as TCP carries."""
    with socket.create_connection(endpoint, timeout=_HELLO_S) as client, _undisturbed(0):
        client.settimeout(None)
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            client.sendall(_CHUNK)


def round_trip_s(target: str, count: int) -> float:
    """The median time of echo requests that the other end's kernel answers."""
    number = os.getpid() & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as asker:
        asker.settimeout(_HELLO_S)
        asker.connect((target, 0))
        with _undisturbed(0):
            return statistics.median(_ask(asker, number, sequence) for sequence in range(count))


def _ask(asker: socket.socket, number: int, sequence: int) -> float:
    total = (_PING << 8) + number + sequence
    total = (total & 0xFFFF) + (total >> 16)
    request = struct.pack("!BBHHH", _PING, 0, ~total & 0xFFFF, number, sequence)
    started = time.perf_counter()
    asker.send(request)
    while asker.recv(64)[_IP_HEADER + 4 :] != request[4:]:
        pass
    return time.perf_counter() - started
