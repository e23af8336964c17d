"""The storage driver's protocol and values.

**Pure**: types only. `qemu_img_driver.py` and `fake.py` implement it and pass
`tests/contract/test_storage.py`. Layout under the agent's state directory:
`images/<sha256>` (read only, shared), `instances/<uid>/{disk.qcow2,seed.iso,console.log}`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from cumulet.v1 import image_pb2

CONSOLE_LOG_READ_MAX: Final = 1 << 20  # bytes; a quarter of gRPC's message limit, some 10,000 lines
DISK_RESERVE_BYTES: Final = 1 << 30  # kept free: running guests' overlays grow, the journal must be written


@dataclass(frozen=True, slots=True)
class SeedSpec:
    """What the guest's cloud-init seed (NoCloud) says."""

    uid: str  # instance-id
    hostname: str
    authorized_keys: tuple[str, ...]
    user_data: bytes


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """An overlay on a cached base image. The guest sees the larger of size_gib and the base's size."""

    uid: str
    base: image_pb2.ImageFile
    size_gib: int


@dataclass(frozen=True, slots=True)
class InstanceFiles:
    """Paths of one instance's files; they need not exist."""

    disk: str
    seed: str
    console_log: str


@dataclass(frozen=True, slots=True)
class ObservedStorage:
    """What is on the disk: instances by uid with the names of their files, cached base digests."""

    instances: dict[str, frozenset[str]]  # {"disk", "seed", "console_log"}
    images: frozenset[str]
    free_bytes: int


# Opens the bytes of a file from an offset on; the driver resumes a partial download and checks the digest.
Fetch = Callable[[int], AsyncIterator[bytes]]


class Storage(Protocol):
    """Methods raise DriverError, with the path or digest in the message."""

    async def observe_storage(self) -> ObservedStorage: ...

    async def disk_capacity_gib(self) -> int:
        """For the node's hello: the size of the file system that holds instances."""

    def image_path(self, sha256: str) -> str: ...

    def instance_files(self, uid: str) -> InstanceFiles: ...

    async def ensure_image(self, file: image_pb2.ImageFile, fetch: Fetch) -> None:
        """Have the file in the cache: complete, of the right digest and format, or not at all."""

    async def ensure_disk(self, spec: DiskSpec) -> None:
        """Make the overlay if it is not there. An existing one is never touched: it holds data."""

    async def ensure_seed(self, spec: SeedSpec) -> None:
        """Write the seed if it is not there or says something else."""

    async def ensure_absent(self, uid: str) -> None:
        """Remove all files of an instance."""

    async def drop_images(self, unused: frozenset[str]) -> None:
        """Remove cached files."""

    async def read_console_log(self, uid: str, tail_lines: int) -> bytes:
        """The end of the serial console's log, at most CONSOLE_LOG_READ_MAX bytes; empty if none."""

    async def close(self) -> None: ...
