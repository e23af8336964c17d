"""Commands in a guest of the small image, typed on its serial console, where root is logged in.

**Edge**: the console's stream of the API, a thread that types.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from typing import NamedTuple

from cumulet.client import Client
from cumulet.console_stream import ConsoleStream

# What is typed before the shell is at its prompt is lost, so it is typed again until the shell begins.
TYPE_AGAIN_S = 3.0


class Said(NamedTuple):
    """How a command in a guest ended, and what it wrote."""

    code: int
    text: str


def in_guest(cloud: Client, instance: str, command: str, timeout_s: float = 60.0) -> Said:
    """Runs a line of the guest's shell, which may be typed twice. Fails with what the console shows."""
    mark = uuid.uuid4().hex[:8]
    # The console shows the typed line too, and there the marks are in two parts.
    line = f'echo "<""{mark} begins>"; {command}; echo "<""{mark} $?>"\n'
    wanted = re.compile(rf"<{mark} begins>\n(.*?)<{mark} (\d+)>", re.DOTALL)
    stream = cloud.console(instance)
    begun, ended = threading.Event(), threading.Event()
    typing = threading.Thread(target=_type, args=(stream, line.encode(), begun, ended, timeout_s))
    typing.start()
    seen = ""
    try:
        for data in stream:
            seen += data.decode(errors="replace").replace("\r", "")
            if f"<{mark} begins>" in seen:
                begun.set()
            if (found := wanted.search(seen)) is not None:
                return Said(int(found[2]), found[1])
    finally:
        begun.set()
        ended.set()
        typing.join()
        stream.close()
    raise AssertionError(f"{instance}: {command!r} has not ended after {timeout_s} s: {seen[-2000:]}")


def _type(
    stream: ConsoleStream, line: bytes, begun: threading.Event, ended: threading.Event, timeout_s: float
) -> None:
    """Types until the line has begun; ends the stream when it has not ended in time."""
    deadline_s = time.monotonic() + timeout_s
    stream.send(line)
    while not begun.wait(TYPE_AGAIN_S) and time.monotonic() < deadline_s:
        stream.send(line)
    if not ended.wait(max(0.0, deadline_s - time.monotonic())):
        stream.close()
