"""The storage driver on a local file system: cached images, qcow2 overlays made by qemu-img, seeds.

**Edge**: files and one child process at a time per disk. Nothing is remembered; every method looks first, and
a file has its name only when it is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from agent.errors import DriverError
from agent.storage.driver import DiskSpec, Fetch, InstanceFiles, ObservedStorage, SeedSpec
from agent.storage.files import (
    IMAGE_MODE,
    PARTIAL_SUFFIX,
    SECRET_MODE,
    TEMPORARY_SUFFIX,
    Layout,
    ensure_folder,
    put_in_place,
    read_tail,
    remove_folder,
    translated,
    write_whole,
)
from agent.storage.image_format import QEMU_FORMATS, check_format, read_virtual_size
from agent.storage.seed import build_iso, parse_iso, render_seed
from cumulet.v1 import image_pb2

QEMU_IMG_DEADLINE_S: Final = 60.0  # an overlay's header takes 0.1 s; more means that the disk hangs
OVERLAY_BYTES: Final = 1 << 20  # an empty overlay with its tables, rounded up
SEED_BYTES_MAX: Final = 8 << 20  # larger ones than we write are not ours
HASH_CHUNK_BYTES: Final = 1 << 20

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class QemuImgStorage:
    """Files below `state_dir`, which must be on a local file system with O_DIRECT (see domain_xml.py)."""

    def __init__(self, state_dir: Path | str) -> None:
        self._layout = Layout(Path(state_dir))
        # Weak: a lock lives as long as somebody holds or awaits it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def observe_storage(self) -> ObservedStorage:
        return await self._io("List", self._observe)

    async def disk_capacity_gib(self) -> int:
        def measure() -> int:
            self._layout.ensure_folders()
            figures = os.statvfs(self._layout.instances)
            return figures.f_frsize * figures.f_blocks >> 30

        return await self._io("Measure", measure)

    def image_path(self, sha256: str) -> str:
        return str(self._layout.image(sha256))

    def instance_files(self, uid: str) -> InstanceFiles:
        return self._layout.files(uid)

    async def ensure_image(self, file: image_pb2.ImageFile, fetch: Fetch) -> None:
        target = self._layout.image(file.sha256)
        async with self._lock(file.sha256):
            if await asyncio.to_thread(target.exists):
                return
            partial = target.with_name(target.name + PARTIAL_SUFFIX)
            digest = await self._io("Resume", self._prepare_partial, file, partial)
            if digest.size_bytes < file.size_bytes:
                await self._download(file, fetch, partial, digest)
            await self._io("Check", _finish_image, file, partial, target, digest)

    async def ensure_disk(self, spec: DiskSpec) -> None:
        disk = Path(self._layout.files(spec.uid).disk)
        async with self._lock(spec.uid):
            if await asyncio.to_thread(disk.exists):
                return
            temporary = disk.with_name(disk.name + TEMPORARY_SUFFIX)
            size_bytes = await self._io("Prepare", self._prepare_disk, spec, temporary)
            await _create_overlay(spec, self._layout.image(spec.base.sha256), temporary, size_bytes)
            await self._io("Finish", put_in_place, temporary, disk, SECRET_MODE)

    async def ensure_seed(self, spec: SeedSpec) -> None:
        seed = Path(self._layout.files(spec.uid).seed)
        async with self._lock(spec.uid):
            await self._io("Write", self._write_seed, spec, seed)

    async def ensure_absent(self, uid: str) -> None:
        folder = self._layout.instance(uid)
        async with self._lock(uid):
            await self._io("Remove", remove_folder, folder)

    async def drop_images(self, unused: frozenset[str]) -> None:
        def drop() -> None:
            for path in paths:
                path.unlink(missing_ok=True)
                path.with_name(path.name + PARTIAL_SUFFIX).unlink(missing_ok=True)

        paths = [self._layout.image(sha256) for sha256 in sorted(unused)]
        await self._io("Drop images in", drop)

    async def read_console_log(self, uid: str, tail_lines: int) -> bytes:
        log = Path(self._layout.files(uid).console_log)
        return await self._io("Read", read_tail, log, tail_lines)

    async def close(self) -> None:
        """Nothing is held open."""

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _io(
        self,
        attempt: str,
        call: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        paths = [arg for arg in args if isinstance(arg, Path)]
        with translated(attempt, paths[0] if paths else self._layout.state_dir):
            return await asyncio.to_thread(call, *args, **kwargs)

    def _observe(self) -> ObservedStorage:
        self._layout.ensure_folders()
        return self._layout.observe()

    def _prepare_partial(self, file: image_pb2.ImageFile, partial: Path) -> _Digest:
        self._layout.ensure_folders()
        partial.touch(SECRET_MODE)
        digest = _Digest()
        with partial.open("rb") as held:
            while chunk := held.read(HASH_CHUNK_BYTES):
                digest.eat(chunk)
        self._layout.check_space(file.size_bytes - digest.size_bytes, f"Image {file.sha256}")
        return digest

    async def _download(
        self, file: image_pb2.ImageFile, fetch: Fetch, partial: Path, digest: _Digest
    ) -> None:
        chunks = fetch(digest.size_bytes)
        with partial.open("ab", buffering=0) as target:
            async with contextlib.AsyncExitStack() as stack:
                if isinstance(chunks, AsyncGenerator):  # let it close its connection, come what may
                    await stack.enter_async_context(aclosing(chunks))
                async for chunk in chunks:
                    await self._io("Write", _append, target.fileno(), chunk, digest)
                    if digest.size_bytes > file.size_bytes:
                        return  # the check refuses it

    def _prepare_disk(self, spec: DiskSpec, temporary: Path) -> int:
        base = self._layout.image(spec.base.sha256)
        if not base.exists():
            message = f"The disk of instance {spec.uid} needs image {spec.base.sha256}: fetch it first."
            raise DriverError("ImageMissing", message)
        self._layout.check_space(OVERLAY_BYTES, f"The disk of instance {spec.uid}")
        ensure_folder(temporary.parent)
        temporary.unlink(missing_ok=True)
        return max(spec.size_gib << 30, read_virtual_size(str(base), spec.base))

    def _write_seed(self, spec: SeedSpec, seed: Path) -> None:
        files = render_seed(spec)
        if _read_seed(seed) == files:
            return
        image = build_iso(files)
        self._layout.ensure_folders()
        self._layout.check_space(len(image), f"The seed of instance {spec.uid}")
        ensure_folder(seed.parent)
        write_whole(seed, image, SECRET_MODE)


class _Digest:
    """Mutable: the running digest and length of a file that is being written."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0

    def eat(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self.size_bytes += len(chunk)

    def hex(self) -> str:
        return self._sha256.hexdigest()


def _append(fd: int, chunk: bytes, digest: _Digest) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]
    digest.eat(chunk)


def _finish_image(file: image_pb2.ImageFile, partial: Path, target: Path, digest: _Digest) -> None:
    if digest.size_bytes < file.size_bytes:
        message = (
            f"Image {file.sha256} broke off at {digest.size_bytes} of {file.size_bytes} bytes; try again."
        )
        raise DriverError("ImageIncomplete", message)
    try:
        _check_digest(file, digest)
        check_format(str(partial), file)
    except DriverError:
        partial.unlink()  # it cannot become right by going on
        raise
    put_in_place(partial, target, IMAGE_MODE)


def _check_digest(file: image_pb2.ImageFile, digest: _Digest) -> None:
    if digest.size_bytes == file.size_bytes and digest.hex() == file.sha256:
        return
    message = (
        f"Image {file.sha256} came as {digest.size_bytes} bytes with digest {digest.hex()}: import it again."
    )
    raise DriverError("ImageDigestMismatch", message)


async def _create_overlay(spec: DiskSpec, base: Path, disk: Path, size_bytes: int) -> None:
    base_format = QEMU_FORMATS.get(spec.base.format)
    if base_format is None:
        message = f"The disk of instance {spec.uid} cannot stand on image {spec.base.sha256}: it is no disk."
        raise DriverError("ImageFormatMismatch", message, permanent=True)
    command = ("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", base_format)
    await _run(f"The disk of instance {spec.uid}", *command, str(disk), str(size_bytes))


async def _run(what: str, *command: str) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as err:
        raise DriverError("QemuImgMissing", f"{what}: install qemu-utils for {command[0]}.") from err
    try:
        async with asyncio.timeout(QEMU_IMG_DEADLINE_S):
            _, errors = await process.communicate()
    except TimeoutError as err:
        message = (
            f"{what}: {command[0]} did not end in {QEMU_IMG_DEADLINE_S:g} s; see whether the disk hangs."
        )
        raise DriverError("QemuImgOverdue", message) from err
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        detail = errors.decode(errors="replace").strip()
        raise DriverError("QemuImgFailed", f"{what}: {detail}; see the image and the free space.")


def _read_seed(seed: Path) -> dict[str, bytes] | None:
    try:
        if seed.stat().st_size > SEED_BYTES_MAX:
            return None
        return parse_iso(seed.read_bytes())
    except FileNotFoundError:
        return None
