"""An instance store in memory, for simulations and for tests of everything above the driver.

**Pure** but for the event loop's clock (virtual in simulations). `FakeStore` is the disk and outlives the
agent; `FakeStorage` is the agent's use of it. Passes tests/contract/test_storage.py.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict, deque
from typing import Final

from agent.errors import DriverError
from agent.storage.driver import (
    CONSOLE_LOG_READ_MAX,
    DISK_RESERVE_BYTES,
    DiskSpec,
    Fetch,
    InstanceFiles,
    ObservedStorage,
    SeedSpec,
)
from cumulet.v1 import image_pb2

QCOW2_MAGIC: Final = b"QFI\xfb"
OVERLAY_BYTES: Final = 200 << 10  # an empty qcow2 overlay


class FakeStore:
    """The disk: images by digest, files by instance. Everything here survives the agent."""

    def __init__(self, *, capacity_gib: int = 1024, copy_s: float = 0.0) -> None:
        self.capacity_gib = capacity_gib
        self.copy_s = copy_s  # for each image fetched
        self.images: dict[str, bytes] = {}
        self.partial: dict[str, bytes] = {}  # interrupted downloads
        self.disks: dict[str, DiskSpec] = {}
        self.seeds: dict[str, SeedSpec] = {}
        self.console_logs: dict[str, bytes] = {}
        self.reserved_bytes = 0  # used by others; a test fills the disk with it
        self._failures: dict[tuple[str, str], deque[DriverError]] = defaultdict(deque)

    def free_bytes(self) -> int:
        kept = [*self.images.values(), *self.partial.values(), *self.console_logs.values()]
        used = sum(map(len, kept)) + len(self.disks) * OVERLAY_BYTES + self.reserved_bytes
        return (self.capacity_gib << 30) - used

    def fail_next(self, method: str, error: DriverError, *, name: str = "") -> None:
        """The next call of this driver method (for this uid or digest, or for any) raises `error`."""
        self._failures[method, name].append(error)

    def check_call(self, method: str, name: str) -> None:
        """Raise what a test planted for this call."""
        for key in ((method, name), (method, "")):
            if self._failures.get(key):
                raise self._failures[key].popleft()

    def check_space(self, wanted_bytes: int, what: str) -> None:
        free_bytes = self.free_bytes()
        if free_bytes - wanted_bytes < DISK_RESERVE_BYTES:
            message = f"{what} needs {wanted_bytes} bytes, {free_bytes} are free: make room or add a disk."
            raise DriverError("DiskFull", message)


class FakeStorage:
    """The driver: an agent's use of a FakeStore."""

    def __init__(self, store: FakeStore, state_dir: str = "/var/lib/cumulet-fake") -> None:
        self.store = store
        self._state_dir = state_dir
        self._image_locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def observe_storage(self) -> ObservedStorage:
        await self._call("observe_storage")
        store = self.store
        files: dict[str, set[str]] = defaultdict(set)
        kinds = (("disk", store.disks), ("seed", store.seeds), ("console_log", store.console_logs))
        for kind, present in kinds:
            for uid in present:
                files[uid].add(kind)
        instances = {uid: frozenset(names) for uid, names in sorted(files.items())}
        return ObservedStorage(instances, frozenset(store.images), store.free_bytes())

    async def disk_capacity_gib(self) -> int:
        await self._call("disk_capacity_gib")
        return self.store.capacity_gib

    def image_path(self, sha256: str) -> str:
        return f"{self._state_dir}/images/{sha256}"

    def instance_files(self, uid: str) -> InstanceFiles:
        folder = f"{self._state_dir}/instances/{uid}"
        return InstanceFiles(f"{folder}/disk.qcow2", f"{folder}/seed.iso", f"{folder}/console.log")

    async def ensure_image(self, file: image_pb2.ImageFile, fetch: Fetch) -> None:
        async with self._image_locks[file.sha256]:
            await self._call("ensure_image", file.sha256)
            if file.sha256 in self.store.images:
                return
            held = self.store.partial.get(file.sha256, b"")
            self.store.check_space(file.size_bytes - len(held), f"Image {file.sha256}")
            await self._download(file, fetch)
            _check_complete(file, self.store.partial[file.sha256])
            data = self.store.partial.pop(file.sha256)
            _check_image(file, data)
            self.store.images[file.sha256] = data

    async def _download(self, file: image_pb2.ImageFile, fetch: Fetch) -> None:
        partial = self.store.partial
        partial.setdefault(file.sha256, b"")
        if self.store.copy_s:
            await asyncio.sleep(self.store.copy_s)
        async for chunk in fetch(len(partial[file.sha256])):
            partial[file.sha256] += chunk
            if len(partial[file.sha256]) > file.size_bytes:
                break  # the size check refuses it

    async def ensure_disk(self, spec: DiskSpec) -> None:
        await self._call("ensure_disk", spec.uid)
        if spec.uid in self.store.disks:
            return
        if spec.base.sha256 not in self.store.images:
            message = f"The disk of instance {spec.uid} needs image {spec.base.sha256}: fetch it first."
            raise DriverError("ImageMissing", message)
        self.store.check_space(OVERLAY_BYTES, f"The disk of instance {spec.uid}")
        self.store.disks[spec.uid] = spec

    async def ensure_seed(self, spec: SeedSpec) -> None:
        await self._call("ensure_seed", spec.uid)
        self.store.seeds[spec.uid] = spec

    async def ensure_absent(self, uid: str) -> None:
        await self._call("ensure_absent", uid)
        for files in (self.store.disks, self.store.seeds, self.store.console_logs):
            files.pop(uid, None)

    async def drop_images(self, unused: frozenset[str]) -> None:
        await self._call("drop_images")
        for sha256 in unused:
            self.store.images.pop(sha256, None)
            self.store.partial.pop(sha256, None)

    async def read_console_log(self, uid: str, tail_lines: int) -> bytes:
        await self._call("read_console_log", uid)
        log = self.store.console_logs.get(uid, b"")[-CONSOLE_LOG_READ_MAX:]
        return b"".join(log.splitlines(keepends=True)[-tail_lines:]) if tail_lines > 0 else b""

    async def close(self) -> None:
        await asyncio.sleep(0)

    async def _call(self, method: str, name: str = "") -> None:
        await asyncio.sleep(0)  # a real call always lets other tasks run
        self.store.check_call(method, name)


def _check_complete(file: image_pb2.ImageFile, data: bytes) -> None:
    if len(data) < file.size_bytes:
        message = f"Image {file.sha256} broke off at {len(data)} of {file.size_bytes} bytes; try again."
        raise DriverError("ImageIncomplete", message)


def _check_image(file: image_pb2.ImageFile, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256 or len(data) != file.size_bytes:
        message = f"Image {file.sha256} came as {len(data)} bytes with digest {digest}: import it again."
        raise DriverError("ImageDigestMismatch", message)
    is_qcow2 = data.startswith(QCOW2_MAGIC)
    if file.format == image_pb2.FILE_FORMAT_BLOB or is_qcow2 == (file.format == image_pb2.FILE_FORMAT_QCOW2):
        return
    message = f"Image {file.sha256} is not of the format that it claims: import it with its real format."
    raise DriverError("ImageFormatMismatch", message, permanent=True)
