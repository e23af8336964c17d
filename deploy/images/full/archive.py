"""A small Debian archive of exactly the packages of an image, so that nothing else can get into it.

**Pure**: apt's records in, the archive's index files out. The packages were checked against apt's signed
lists before; here they are named again by the same digests.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

# Source: apt-get(8), --simulate: Inst NAME (VERSION ORIGIN [ARCH])
_INSTALLED = re.compile(r"^Inst (?P<name>\S+) \((?P<version>\S+) ", re.MULTILINE)
_NAME = re.compile(r"^Package: (\S+)$", re.MULTILINE)
_FILENAME = re.compile(r"^Filename: .*$", re.MULTILINE)
COMPONENT = "main"
INDEX = f"{COMPONENT}/binary-amd64/Packages"


def parse_simulation(text: str) -> tuple[str, ...]:
    """`NAME=VERSION` of all that a simulated apt-get would install."""
    return tuple(f"{found['name']}={found['version']}" for found in _INSTALLED.finditer(text))


def list_required(records: Iterable[str], priority: str) -> tuple[str, ...]:
    """Names of the packages with a priority, of the lines of apt's records (`apt-cache dumpavail`)."""
    names: set[str] = set()
    name = ""
    for line in records:
        if line.startswith("Package: "):
            name = line[9:].strip()
        elif line.rstrip() == f"Priority: {priority}":
            names.add(name)
    return tuple(sorted(names))


def render_packages(records: str, filenames: Mapping[str, str]) -> str:
    """The index: apt's records (`apt-cache show`) with the files' places in this archive, by name.

    Raises ValueError when a package has no record, or two.
    """
    rendered: dict[str, str] = {}
    for record in filter(str.strip, records.split("\n\n")):
        found = _NAME.search(record)
        if found is None or found[1] not in filenames or found[1] in rendered:
            raise ValueError(f"not the record of one package of the archive: {record[:80]!r}")
        rendered[found[1]] = _placed(record, filenames[found[1]])
    lost = filenames.keys() - rendered.keys()
    if lost:
        raise ValueError(f"no record of {', '.join(sorted(lost))}")
    # debootstrap overlooks a last record that no empty line ends.
    return "".join(f"{record}\n\n" for record in rendered.values())


def _placed(record: str, filename: str) -> str:
    # A function, for a replacement text would be searched for escapes.
    return _FILENAME.sub(lambda _: f"Filename: pool/{filename}", record).strip()


def render_release(suite: str, index: bytes) -> str:
    """The archive's Release file."""
    digest = hashlib.sha256(index).hexdigest()
    return (
        f"Suite: {suite}\nCodename: {suite}\nArchitectures: amd64\nComponents: {COMPONENT}\n"
        f"SHA256:\n {digest} {len(index)} {INDEX}\n"
    )
