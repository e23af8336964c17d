"""What a cloud has left on this host: processes, domains, links, namespaces, nft tables.

**Edge**: reads /proc, netlink, libvirt and nft. Only what carries our mark is seen: the mark in a process's
environment, the metadata of a domain, the alias of a link, the names of namespaces and tables.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import libvirt
from pyroute2 import IPRoute, netns

from deploy.local import process
from deploy.local.address import answers
from deploy.local.environment import MARK_VARIABLE, with_sbin
from deploy.local.health import LIBVIRT_URI
from deploy.local.layout import Layout
from deploy.local.process import ProcessId
from deploy.local.services import LIBVIRT_SOCKET

ALIAS_PREFIX: Final = "cumulet:"
NAMESPACE_PREFIX: Final = "cumulet-"
TABLE_NAME: Final = "cumulet"
METADATA_URI: Final = "urn:cumulet:domain:1"
NAMESPACE_DIR: Final = Path("/run/netns")
# libvirt's files of defined and of running domains, for when nobody answers.
_DOMAIN_FILES: Final = (Path("/etc/libvirt/qemu"), Path("/run/libvirt/qemu"))
_GUEST_PROGRAMS: Final = ("qemu-system", "dnsmasq")
_NFT_TIMEOUT_S: Final = 20


@dataclass(frozen=True, slots=True)
class Table:
    """One nft table."""

    family: str
    name: str


@dataclass(frozen=True, slots=True)
class Traces:
    """Everything of ours that was found, in the order in which it is taken away."""

    domains: tuple[str, ...] = ()  # uuids
    processes: tuple[ProcessId, ...] = ()
    links: tuple[str, ...] = ()  # of the host's own namespace
    namespaces: tuple[str, ...] = ()
    tables: tuple[Table, ...] = field(default=())

    def describe(self) -> tuple[str, ...]:
        """One line for each thing; empty when nothing is there."""
        return (
            *(f"domain {uuid}" for uuid in self.domains),
            *(f"process {entry.pid} ({process.command_line(entry)[:60]})" for entry in self.processes),
            *(f"link {name}" for name in self.links),
            *(f"namespace {name}" for name in self.namespaces),
            *(f"nft table {table.family} {table.name}" for table in self.tables),
        )


def observe_traces(layout: Layout) -> Traces:
    """All traces. Domains are seen only while libvirt answers: see `has_domain_files`."""
    namespaces = list_namespaces()
    return Traces(
        domains=list_domains(),
        processes=list_processes(layout, namespaces),
        links=list_links(),
        namespaces=namespaces,
        tables=list_tables(),
    )


def list_domains() -> tuple[str, ...]:
    """Uuids of domains with our metadata; none when libvirt does not run."""
    if not answers(LIBVIRT_SOCKET):
        return ()
    connection = libvirt.open(LIBVIRT_URI)
    try:
        return tuple(sorted(d.UUIDString() for d in connection.listAllDomains() if has_mark(d)))
    finally:
        connection.close()


def has_mark(domain: libvirt.virDomain) -> bool:
    """True for a domain that an agent of ours defined."""
    try:
        domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA_URI)
    except libvirt.libvirtError:
        return False  # no such element, or the domain went away meanwhile
    return True


def has_domain_files(directories: tuple[Path, ...] = _DOMAIN_FILES) -> bool:
    """True when libvirt, running or not, has a domain of ours defined or running."""
    return any(True for _ in _domain_files(directories))


def _domain_files(directories: tuple[Path, ...]) -> Iterator[Path]:
    for path in (path for directory in directories for path in directory.glob("*.xml")):
        with contextlib.suppress(OSError):
            if METADATA_URI in path.read_text(errors="replace"):
                yield path


def count_instances(layout: Layout) -> int:
    """How many instances would be lost: libvirt's domains of ours, or their files when it does not run."""
    return max(len(list_domains()), sum(1 for _ in _domain_files(_DOMAIN_FILES[:1])))


def list_processes(layout: Layout, namespaces: tuple[str, ...]) -> tuple[ProcessId, ...]:
    """Supervised ones and their children, those inside our namespaces, guests on our disks."""
    found = {
        *process.find_marked(MARK_VARIABLE, str(layout.state_dir)),
        *process.find_by_argument(_GUEST_PROGRAMS, str(layout.agent_dir)),
        *(entry for name in namespaces for entry in _processes_in(name)),
    }
    return tuple(sorted(found, key=lambda entry: entry.pid))


def list_links() -> tuple[str, ...]:
    """Names of links with our alias."""
    with IPRoute() as netlink:
        links = list(netlink.link("dump"))
    ours = (link for link in links if str(link.get("ifalias") or "").startswith(ALIAS_PREFIX))
    return tuple(sorted(str(link.get("ifname")) for link in ours))


def list_namespaces() -> tuple[str, ...]:
    return tuple(sorted(name for name in netns.listnetns() if name.startswith(NAMESPACE_PREFIX)))


def list_tables() -> tuple[Table, ...]:
    """Our nft tables; none where nft is not installed."""
    try:
        output = run_nft(["list", "tables"])
    except FileNotFoundError:
        return ()
    return parse_tables(output)


def parse_tables(output: str) -> tuple[Table, ...]:
    """Our tables in the JSON of `nft -j list tables`."""
    entries = (entry["table"] for entry in json.loads(output)["nftables"] if "table" in entry)
    return tuple(Table(entry["family"], entry["name"]) for entry in entries if is_ours(entry["name"]))


def is_ours(table: str) -> bool:
    """True for the names that agents give their nft tables: `cumulet`, `cumulet-guard`. **Pure.**"""
    return table == TABLE_NAME or table.startswith(f"{TABLE_NAME}-")


def run_nft(words: list[str], stdin: str = "") -> str:
    """Output of `nft -j WORDS`. Raises FileNotFoundError and subprocess.CalledProcessError."""
    done = subprocess.run(
        ["nft", "-j", *words],
        input=stdin,
        env=with_sbin(os.environ),
        capture_output=True,
        text=True,
        timeout=_NFT_TIMEOUT_S,
        check=True,
    )
    return done.stdout


def _processes_in(namespace: str) -> tuple[ProcessId, ...]:
    """Processes whose network namespace is the named one."""
    try:
        wanted = (NAMESPACE_DIR / namespace).stat().st_ino
    except OSError:
        return ()
    numbers = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    inside = (number for number in numbers if number != os.getpid() and _namespace_inode(number) == wanted)
    return tuple(one for one in map(process.find_process, inside) if one is not None)


def _namespace_inode(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return 0
