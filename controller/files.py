"""Image files by digest on the controller's disk.

**Edge**: reads and writes below one directory. A file's format is what the uploader says and is checked by an
inspector that reads bytes only (oslo.utils); nothing is ever probed by QEMU. Several controllers share
the directory (a network file system, or copies kept by the operator).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import MessageToDict, ParseDict
from oslo_utils.imageutils import format_inspector

from cumulet.errors import (
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from cumulet.v1 import image_pb2

FILE_BYTES_MAX: Final = 64 * 2**30  # a larger disk is brought in another way than through one stream
FREE_RESERVE_BYTES: Final = 2**30  # the journal and etcd may share this file system
READ_CHUNK: Final = 1 << 20
TORN_S: Final = 3600.0  # an upload that has not grown for so long is torn; another controller's may go on
_SHA256_HEX: Final = 64
FORMATS: Final = (image_pb2.FILE_FORMAT_QCOW2, image_pb2.FILE_FORMAT_RAW, image_pb2.FILE_FORMAT_BLOB)


class FileStore:
    """`<sha256>` holds the bytes, `<sha256>.json` what was found about them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for torn in directory.glob("upload-*"):
            if time.time() - torn.stat().st_mtime > TORN_S:
                torn.unlink(missing_ok=True)

    def find(self, sha256: str) -> image_pb2.ImageFile | None:
        """What is known of a file, or None."""
        if len(sha256) != _SHA256_HEX or not all(c in "0123456789abcdef" for c in sha256):
            return None
        path = self._directory / f"{sha256}.json"
        if not path.exists() or not (self._directory / sha256).exists():
            return None
        return ParseDict(json.loads(path.read_text()), image_pb2.ImageFile())

    async def receive(
        self, header: image_pb2.UploadHeader, chunks: AsyncIterator[bytes]
    ) -> image_pb2.ImageFile:
        """Take a file in. Raises InvalidArgumentError, TooLargeError, UnavailableError (disk full)."""
        if header.size_bytes > FILE_BYTES_MAX:
            raise TooLargeError(f"the file has {header.size_bytes} bytes, at most {FILE_BYTES_MAX}")
        if header.format not in FORMATS:
            raise _bad("header.format", "say which format the file has (qcow2, raw, blob): it is not guessed")
        self._check_space(header.size_bytes)
        handle, name = tempfile.mkstemp(prefix="upload-", dir=self._directory)
        path = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                sha256, size = await self._write(file, header, chunks)
            found = await asyncio.to_thread(_inspect, path, header.format)
            found.sha256, found.size_bytes = sha256, size
            await asyncio.to_thread(self._keep, path, found)
            return found
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _write(
        self, file: Any, header: image_pb2.UploadHeader, chunks: AsyncIterator[bytes]
    ) -> tuple[str, int]:
        digest = hashlib.sha256()
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > FILE_BYTES_MAX:
                raise TooLargeError(f"the file has more than {FILE_BYTES_MAX} bytes")
            digest.update(chunk)
            self._check_space(len(chunk))
            try:
                await asyncio.to_thread(file.write, chunk)
            except OSError as error:
                raise UnavailableError(f"the file was not stored: {error.strerror}") from error
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
        if header.size_bytes and size != header.size_bytes:
            raise _bad("header.size_bytes", f"{header.size_bytes} bytes were announced, {size} came")
        if header.sha256 and digest.hexdigest() != header.sha256:
            raise _bad("header.sha256", f"the bytes that came have {digest.hexdigest()}: send the file again")
        return digest.hexdigest(), size

    def _keep(self, path: Path, found: image_pb2.ImageFile) -> None:
        target = self._directory / found.sha256
        path.chmod(0o444)
        if not target.exists():
            path.rename(target)
        info = self._directory / f"{found.sha256}.json"
        temporary = path.with_name(f"{path.name}.json")  # two may send the same file at once
        temporary.write_text(json.dumps(MessageToDict(found, preserving_proto_field_name=True)))
        temporary.rename(info)
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)  # the names, too, are on the disk before the answer
        finally:
            os.close(directory)

    def _check_space(self, size: int) -> None:
        stat = os.statvfs(self._directory)
        free = stat.f_bavail * stat.f_frsize - FREE_RESERVE_BYTES
        if size > free:
            raise UnavailableError(
                f"the file has {size} bytes, {max(free, 0)} are free on the controller: make room, try again"
            )

    async def read(self, sha256: str, offset: int) -> AsyncIterator[tuple[bytes, int]]:
        """(bytes, total size) from an offset on. Raises NotFoundError."""
        found = self.find(sha256)
        if found is None:
            raise NotFoundError(f"file {sha256} is not on this controller: import the image again")
        with (self._directory / sha256).open("rb") as file:
            file.seek(offset)
            while chunk := await asyncio.to_thread(file.read, READ_CHUNK):
                yield chunk, found.size_bytes


def _inspect(path: Path, claimed: image_pb2.FileFormat.ValueType) -> image_pb2.ImageFile:
    """What the bytes are. Raises InvalidArgumentError when they are not what was claimed, or not safe."""
    found = image_pb2.ImageFile(format=claimed, virtual_size_bytes=path.stat().st_size)
    if claimed == image_pb2.FILE_FORMAT_BLOB:
        return found
    detected = _detect(path)
    claimed_name = "qcow2" if claimed == image_pb2.FILE_FORMAT_QCOW2 else "raw"
    if str(detected) != claimed_name and not (claimed_name == "raw" and str(detected) in ("gpt", "raw")):
        raise _bad(
            "header.format",
            f"the file is {detected}, not {claimed_name}: say --format {detected}, or convert it (qemu-img)",
        )
    if claimed == image_pb2.FILE_FORMAT_QCOW2:
        try:
            detected.safety_check()
        except format_inspector.SafetyCheckFailed as error:
            raise _bad("header.format", f"the qcow2 file is refused: {error}") from error
    found.virtual_size_bytes = detected.virtual_size or path.stat().st_size
    return found


def _detect(path: Path) -> Any:
    try:
        return format_inspector.detect_file_format(str(path))
    except (format_inspector.ImageFormatError, OSError) as error:
        raise _bad("header.format", f"the file cannot be read as a disk image: {error}") from error


def _bad(field: str, text: str) -> InvalidArgumentError:
    return InvalidArgumentError.of("the file was refused", [FieldViolation(field, text)])
