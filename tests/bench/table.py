"""A suite's figures as a page for the docs: one table, the machine, the date.

**Edge**: reads build/bench/SUITE.jsonl and /proc, prints Markdown.

    python -m tests.bench.table scheduler > docs/reference/benchmarks-scheduler.md
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.report import OUTPUT

CONTEXT_CHARS_MAX = 100  # of a row; the rest is in the JSON lines
_MAIN = frozenset({"name", "value", "unit"})


def render_page(suite: str, figures: Iterable[dict[str, Any]], machine: str, date: str) -> Iterator[str]:
    """**Pure.**"""
    yield f"# Benchmarks: {suite}"
    yield ""
    yield f"Measured on {date} with `make bench-{suite}` on {machine}. This page is written by"
    yield f"`python -m tests.bench.table {suite}`; how each figure is taken is said in its module in"
    yield "[tests/bench](../../tests/bench)."
    yield ""
    yield "| figure | value | unit | context |"
    yield "|---|---|---|---|"
    for figure in figures:
        context = ", ".join(f"{name} {_plain(value)}" for name, value in figure.items() if name not in _MAIN)
        shown = context if len(context) <= CONTEXT_CHARS_MAX else context[: CONTEXT_CHARS_MAX - 1] + "…"
        yield f"| `{figure['name']}` | {_plain(figure['value'])} | {figure['unit']} | {shown} |"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def describe_machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a CPU")
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return (
        f"{os.cpu_count()} cores of {model} (a virtual machine, shared and noisy), "
        f"{memory_kib / 2**20:.0f} GiB, "
        f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite")
    suite = parser.parse_args().suite
    text = (OUTPUT / f"{suite}.jsonl").read_text()
    figures = [json.loads(line) for line in text.splitlines()]
    date = datetime.datetime.fromtimestamp((OUTPUT / f"{suite}.jsonl").stat().st_mtime).date().isoformat()
    print("\n".join(render_page(suite, figures, describe_machine(), date)))


if __name__ == "__main__":
    main()
