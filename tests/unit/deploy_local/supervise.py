"""A supervisor over the services that a JSON file describes: the real loop, run as a process by the tests.

**Edge**: the process. Arguments: state directory, services file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deploy.local.services import Service
from deploy.local.supervisor import supervise


def _service(entry: dict[str, object]) -> Service:
    room = entry.pop("room_in", None)
    words = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Service(**words, room_in=Path(str(room)) if room else None)  # type: ignore[arg-type]


if __name__ == "__main__":
    described = json.loads(Path(sys.argv[2]).read_text())
    sys.exit(supervise(Path(sys.argv[1]), lambda _: tuple(_service(entry) for entry in described)))
