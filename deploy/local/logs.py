"""Bounded log files of processes that know nothing of rotation.

**Edge**: copies and truncates files. The writers have them open for appending, so a truncated file goes on at
its start; a line written between copy and truncation is lost, which a log may.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

LOG_MAX_BYTES: Final = 8 << 20  # some days of a quiet cloud; twice that on disk with the older half
TAIL_MAX_BYTES: Final = 64 << 10  # the end of a log that an error message may look at


def rotate(path: Path, limit_bytes: int = LOG_MAX_BYTES) -> bool:
    """Moves a log that has grown too large to PATH.1; True when it did."""
    try:
        if path.stat().st_size <= limit_bytes:
            return False
    except FileNotFoundError:
        return False
    older = path.with_name(f"{path.name}.1")
    shutil.copyfile(path, older)
    os.truncate(path, 0)
    return True


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; none when it is missing."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - TAIL_MAX_BYTES))
        return stream.read().decode(errors="replace").splitlines()[-lines:]
    return []
