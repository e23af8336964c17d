"""Figures as JSON lines, on stdout and in build/bench/SUITE.jsonl.

**Edge**: prints and appends. One object a line: name, value, unit, free context.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

OUTPUT = Path(__file__).resolve().parents[2] / "build" / "bench"


class Suite:
    """One run of a suite; its file is written anew."""

    def __init__(self, name: str) -> None:
        OUTPUT.mkdir(parents=True, exist_ok=True)
        self._file = OUTPUT / f"{name}.jsonl"
        self._file.write_text("")

    def figure(self, name: str, value: float, unit: str, **context: object) -> None:
        line = json.dumps({"name": name, "value": round(value, 4), "unit": unit, **context})
        print(line, flush=True)
        with self._file.open("a") as file:
            file.write(line + "\n")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` (0..1) of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, int(len(ordered) * share + 0.9999) - 1))]
