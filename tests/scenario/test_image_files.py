"""Files of images through the API: kept by content, refused when they are not what they say.

**Edge**: gRPC over a Unix socket; qemu-img as a child process.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.files import TORN_S, FileStore
from cumulet.errors import (
    InvalidArgumentError,
    NotFoundError,
    TooLargeError,
)
from cumulet.kinds import IMAGE
from cumulet.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    image_pb2,
)
from cumulet.wire_errors import from_rpc_error
from tests.scenario.serving import Cloud, refusal, sample, until

QCOW2, RAW, BLOB = image_pb2.FILE_FORMAT_QCOW2, image_pb2.FILE_FORMAT_RAW, image_pb2.FILE_FORMAT_BLOB


def _qemu_img(*arguments: str) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def _qcow2(path: Path, *options: str) -> bytes:
    _qemu_img("create", "-q", "-f", "qcow2", *options, str(path), "8M")
    return path.read_bytes()


def _with_backing_file(path: Path) -> bytes:
    base = path.with_name("base")
    _qcow2(base)
    _qemu_img("create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(path))
    return path.read_bytes()


def _with_data_file(path: Path) -> bytes:
    return _qcow2(path, "-o", f"data_file={path}.data")


async def test_an_upload_is_found_and_read_back(cloud: Cloud, tmp_path: Path) -> None:
    data = _qcow2(tmp_path / "disk")
    digest = hashlib.sha256(data).hexdigest()
    file = await cloud.upload(data, QCOW2, sha256=digest, size_bytes=len(data))
    assert (file.sha256, file.size_bytes, file.virtual_size_bytes) == (digest, len(data), 8 << 20)
    both = await asyncio.gather(*(cloud.upload(data, QCOW2) for _ in range(4)))
    assert all(found == file for found in both)
    assert {path.name for path in (cloud.directory / "files").iterdir()} == {digest, f"{digest}.json"}
    stub = agent_pb2_grpc.AgentServiceStub(cloud.channel)
    read = b""
    async for reply in stub.ReadFile(agent_pb2.ReadFileRequest(sha256=digest, offset=100)):
        assert reply.size_bytes == len(data)
        read += reply.chunk
    assert read == data[100:]


BAD_FILES: dict[str, tuple[Callable[[Path], bytes], Any, dict[str, Any], str]] = {
    "raw that says qcow2": (lambda path: bytes(4096), QCOW2, {}, "not qcow2"),
    "qcow2 that says raw": (_qcow2, RAW, {}, "the file is qcow2, not raw"),
    "a backing file": (_with_backing_file, QCOW2, {}, "refused"),
    "a data file": (_with_data_file, QCOW2, {}, "refused"),
    "a torn qcow2": (lambda path: _qcow2(path)[:40], QCOW2, {}, "not qcow2"),
    "other bytes": (_qcow2, QCOW2, {"sha256": "ab" * 32}, "send the file again"),
    "another size": (_qcow2, QCOW2, {"size_bytes": 5}, "5 bytes were announced"),
    "no format": (_qcow2, 0, {}, "it is not guessed"),
    "an unknown format": (_qcow2, 77, {}, "it is not guessed"),
}


@pytest.mark.parametrize("what", BAD_FILES)
async def test_a_file_that_is_not_what_it_says_is_refused_and_not_kept(
    cloud: Cloud, tmp_path: Path, what: str
) -> None:
    make, claimed, header, said = BAD_FILES[what]
    error = await refusal(cloud.upload(make(tmp_path / "disk"), claimed, **header))
    assert isinstance(error, InvalidArgumentError)
    assert error.violations[0].field.startswith("header.")
    assert said in str(error)
    await until(lambda: not list((cloud.directory / "files").iterdir()))


async def test_a_kernel_is_no_disk_and_a_missing_file_no_image(cloud: Cloud, tmp_path: Path) -> None:
    await cloud.seed()
    image = sample(IMAGE, "bad")
    image.spec.disk.CopyFrom(await cloud.upload(_with_backing_file(tmp_path / "disk"), BLOB))
    error = await refusal(cloud.create(IMAGE, image))
    assert isinstance(error, InvalidArgumentError)
    assert error.violations[0].field == "spec.disk.format"
    image.spec.disk.sha256 = "cd" * 32
    assert "upload it first" in str(await refusal(cloud.create(IMAGE, image)))
    stub = agent_pb2_grpc.AgentServiceStub(cloud.channel)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.ReadFile(agent_pb2.ReadFileRequest(sha256="cd" * 32)).read()
    assert isinstance(from_rpc_error(failed.value), NotFoundError)


async def test_what_is_too_large_or_says_nothing_is_refused(cloud: Cloud) -> None:
    assert isinstance(await refusal(cloud.upload(b"", RAW, size_bytes=2**40)), TooLargeError)
    call = IMAGE.stub(cloud.channel).UploadFile(iter([image_pb2.UploadFileRequest(chunk=b"x")]))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    assert "must be the first message" in str(from_rpc_error(failed.value))


def test_torn_uploads_go_and_those_under_way_stay(tmp_path: Path) -> None:
    for name, age_s in (("upload-old", TORN_S + 60), ("upload-new", 0)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    FileStore(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["upload-new"]
