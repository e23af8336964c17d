"""The agent's journal: the newest accepted plan, and the version of the newest plan ever acted on.

**Edge**: files, with fsync, in `FileJournal`. The version has a file of its own, written before the plan
is acted on: a plan that got lost must not let an older one in. A torn or corrupt file reads as none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from cumulet.v1 import agent_pb2 as pb

M = TypeVar("M", bound=Message)
_MAGIC: Final = b"cumulet-journal-1\n"
_DIGEST_SIZE: Final = hashlib.sha256().digest_size
# A node's plan is below the link's message limit; a larger file is not ours and is not read into memory.
JOURNAL_BYTES_MAX: Final = 64 * 2**20


def order_of(version: pb.PlanVersion) -> tuple[int, int, int]:
    """What plans are ordered by. The zero version is before all."""
    return version.restore_generation, version.leader_epoch, version.revision


def is_newer(a: pb.PlanVersion, b: pb.PlanVersion) -> bool:
    """`a` is of a later restore, leader or revision than `b`."""
    return order_of(a) > order_of(b)


class Journal(Protocol):
    """What survives the agent. `write_plan` returns when the plan and its version are safe."""

    def read_plan(self) -> pb.NodePlan | None:
        """The last plan written, or None."""

    def read_acted(self) -> pb.PlanVersion:
        """The newest version ever written; zero if none."""

    def write_plan(self, plan: pb.NodePlan) -> None:
        """Raises JournalError; then nothing may be done for this plan."""

    def read_proven(self) -> dict[str, int]:
        """Links to operators' networks, and with how many stations they cut nobody off (trial.py)."""

    def write_proven(self, uplinks: Mapping[str, int]) -> None:
        """Raises JournalError."""


class JournalError(Exception):
    """The journal cannot be written; the message names the file and the next step."""


class MemoryJournal:
    """A journal for simulations: survives the agent object, not the process."""

    def __init__(self) -> None:
        self._plan: bytes | None = None
        self._acted = pb.PlanVersion()
        self._proven: dict[str, int] = {}

    def read_plan(self) -> pb.NodePlan | None:
        return None if self._plan is None else pb.NodePlan.FromString(self._plan)

    def read_acted(self) -> pb.PlanVersion:
        return self._acted

    def write_plan(self, plan: pb.NodePlan) -> None:
        if is_newer(plan.version, self._acted):
            self._acted = pb.PlanVersion.FromString(plan.version.SerializeToString())
        self._plan = plan.SerializeToString()

    def read_proven(self) -> dict[str, int]:
        return self._proven

    def write_proven(self, uplinks: Mapping[str, int]) -> None:
        self._proven = dict(uplinks)


class FileJournal:
    """Three files in a directory of the agent: `plan`, `acted` and `proven`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._acted: pb.PlanVersion | None = None
        self._proven: dict[str, int] | None = None

    def read_plan(self) -> pb.NodePlan | None:
        return self._read("plan", pb.NodePlan)

    def read_acted(self) -> pb.PlanVersion:
        if self._acted is None:
            acted = self._read("acted", pb.PlanVersion) or pb.PlanVersion()
            plan = self.read_plan()  # stands in for a lost version file
            self._acted = plan.version if plan is not None and is_newer(plan.version, acted) else acted
        return self._acted

    def write_plan(self, plan: pb.NodePlan) -> None:
        if is_newer(plan.version, self.read_acted()):
            self._write("acted", plan.version.SerializeToString())
            self._acted = pb.PlanVersion.FromString(plan.version.SerializeToString())
        self._write("plan", plan.SerializeToString())

    def read_proven(self) -> dict[str, int]:
        if self._proven is None:
            self._proven = json.loads(self._read_payload("proven") or b"{}")
        return self._proven

    def write_proven(self, uplinks: Mapping[str, int]) -> None:
        self._write("proven", json.dumps(uplinks, sort_keys=True).encode())
        self._proven = dict(uplinks)

    def _read(self, name: str, kind: type[M]) -> M | None:
        payload = self._read_payload(name)
        try:
            return None if payload is None else kind.FromString(payload)
        except DecodeError:
            return None

    def _read_payload(self, name: str) -> bytes | None:
        try:
            with (self._directory / name).open("rb") as file:
                return unpack(file.read(JOURNAL_BYTES_MAX))
        except OSError:
            return None

    def _write(self, name: str, payload: bytes) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._directory / name, pack(payload))
        except OSError as err:
            raise JournalError(
                f"cannot write the journal {self._directory / name}: {err.strerror}; "
                "free space or correct the directory, the agent tries again"
            ) from err


def pack(payload: bytes) -> bytes:
    """A journal file's bytes: magic, SHA-256 of the payload, payload."""
    return _MAGIC + hashlib.sha256(payload).digest() + payload


def unpack(content: bytes) -> bytes | None:
    """The payload, or None if the content is torn or corrupt."""
    head = len(_MAGIC) + _DIGEST_SIZE
    if len(content) < head or not content.startswith(_MAGIC):
        return None
    payload = content[head:]
    return payload if hashlib.sha256(payload).digest() == content[len(_MAGIC) : head] else None


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all, and on the disk when this returns. Raises OSError."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
