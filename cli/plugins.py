"""Commands that other distributions add through the entry point group `cumulet.commands`.

**Edge**: reads the metadata of installed distributions; imports a command only when it is run. The files
are read directly, since importlib.metadata takes 50-80 ms, half of the budget of `cumulet --help`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Final

from cli.lazy import Entry, imported

GROUP: Final = "cumulet.commands"
SECTION: Final = "This machine"
# Listing must not import the commands, so what is known of ours is said here.
_HELP: Final = {
    "up": "Start a one-machine cloud, or bring it up to date.",
    "down": "Stop the one-machine cloud and remove every trace of it.",
    "status": "Processes of the one-machine cloud and whether they are well.",
    "doctor": "Check what this machine needs, each finding with its fix.",
    "lab": "A cloud of several nodes on this machine, and faults in it.",
}


def plugin_entries(path: Iterable[str] | None = None) -> dict[str, Entry]:
    """Commands of installed distributions, by name; the first on the import path wins."""
    found: dict[str, str] = {}
    for text in _entry_point_files(sys.path if path is None else path):
        for name, target in parse_entry_points(text, GROUP):
            found.setdefault(name, target)
    return {
        name: Entry(_HELP.get(name, f"From {target.partition(':')[0]}."), imported(target), SECTION)
        for name, target in found.items()
    }


def parse_entry_points(text: str, group: str) -> Iterator[tuple[str, str]]:
    """The `name = module:attribute` lines of one group of an entry_points.txt."""
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[]").strip()
        elif section == group and "=" in line and not line.startswith("#"):
            name, _, target = line.partition("=")
            yield name.strip(), target.partition("[")[0].strip()


def _entry_point_files(path: Iterable[str]) -> Iterator[str]:
    for folder in path:
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:
            continue  # a zip file, or a folder that is gone
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                try:
                    with open(os.path.join(folder, name, "entry_points.txt"), encoding="utf-8") as source:
                        text = source.read()
                except OSError:
                    continue
                if GROUP in text:
                    yield text
