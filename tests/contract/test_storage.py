"""One contract for both storage drivers: the fake, and qemu-img on a real file system."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from agent.errors import DriverError
from agent.storage.driver import CONSOLE_LOG_READ_MAX, DiskSpec, Fetch, SeedSpec, Storage
from agent.storage.fake import FakeStorage, FakeStore
from agent.storage.qemu_img_driver import QemuImgStorage
from agent.storage.seed import parse_iso
from cumulet.v1 import image_pb2

UID = "0b1e7f52-52f2-4d36-9f43-5ff0a9b0f001"
OTHER = "0b1e7f52-52f2-4d36-9f43-5ff0a9b0f002"
SEED = SeedSpec(UID, "web-1", ("ssh-ed25519 AAAA one", "ssh-ed25519 BBBB two"), b"#!/bin/sh\necho hi\n")
GIB = 1 << 30


class Place(Protocol):
    """Where a driver keeps things, and what only a test does to it."""

    def open(self) -> Storage: ...

    def write_console_log(self, uid: str, text: bytes) -> None: ...


class FakePlace:
    def __init__(self) -> None:
        self.store = FakeStore()

    def open(self) -> Storage:
        return FakeStorage(self.store)

    def write_console_log(self, uid: str, text: bytes) -> None:
        self.store.console_logs[uid] = text


class RealPlace:
    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    def open(self) -> Storage:
        return QemuImgStorage(self.state_dir)

    def write_console_log(self, uid: str, text: bytes) -> None:
        log = self.state_dir / "instances" / uid / "console.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(text)


@pytest.fixture
def real_place() -> Iterator[RealPlace]:
    # Not tmp_path: pytest's folder is closed to others, and whether QEMU's user gets through is in question.
    folder = Path(tempfile.mkdtemp(prefix="cumulet-storage-", dir="/var/tmp"))
    folder.chmod(0o711)
    yield RealPlace(folder / "state")
    shutil.rmtree(folder)


@pytest.fixture(params=["fake", "real"])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "fake":
        return FakePlace()
    found: RealPlace = request.getfixturevalue("real_place")
    return found


@pytest.fixture(scope="module")
def qcow2(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("images") / "base"
    qemu_img("create", "-q", "-f", "qcow2", str(path), "64M")
    return path.read_bytes()


def image_of(
    data: bytes, claimed: image_pb2.FileFormat.ValueType = image_pb2.FILE_FORMAT_QCOW2
) -> image_pb2.ImageFile:
    digest = hashlib.sha256(data).hexdigest()
    return image_pb2.ImageFile(sha256=digest, size_bytes=len(data), format=claimed)


class Source:
    """A server of bytes that can break off; remembers the offsets it was asked for."""

    def __init__(self, data: bytes, *, break_at: int | None = None) -> None:
        self.data, self.break_at = data, break_at
        self.offsets: list[int] = []

    async def fetch(self, offset: int) -> AsyncIterator[bytes]:
        self.offsets.append(offset)
        end = len(self.data) if self.break_at is None else self.break_at
        for start in range(offset, end, 50_000):
            yield self.data[start : min(start + 50_000, end)]


def source(data: bytes) -> Fetch:
    return Source(data).fetch


def read(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def inode(path: Path) -> int:
    return path.stat().st_ino


def qemu_img(*arguments: str) -> bytes:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True).stdout


async def with_image(place: Place, data: bytes) -> tuple[Storage, image_pb2.ImageFile]:
    driver, file = place.open(), image_of(data)
    await driver.ensure_image(file, source(data))
    return driver, file


async def test_an_image_is_fetched_once_and_found_by_the_next_agent(place: Place, qcow2: bytes) -> None:
    driver, file = place.open(), image_of(qcow2)
    server = Source(qcow2)
    await asyncio.gather(*(driver.ensure_image(file, server.fetch) for _ in range(3)))
    await place.open().ensure_image(file, server.fetch)
    assert server.offsets == [0]
    assert (await driver.observe_storage()).images == {file.sha256}


async def test_a_broken_download_is_resumed_where_it_broke(place: Place, qcow2: bytes) -> None:
    file = image_of(qcow2)
    server = Source(qcow2, break_at=70_000)
    with pytest.raises(DriverError) as refused:
        await place.open().ensure_image(file, server.fetch)
    assert refused.value.reason == "ImageIncomplete"
    driver = place.open()
    assert not (await driver.observe_storage()).images
    server.break_at = None
    await driver.ensure_image(file, server.fetch)
    assert server.offsets == [0, 70_000]
    assert (await driver.observe_storage()).images == {file.sha256}


@pytest.mark.parametrize("change", ["flipped", "longer"])
async def test_other_bytes_are_refused_and_not_kept(place: Place, qcow2: bytes, change: str) -> None:
    file = image_of(qcow2)
    wrong = bytes([*qcow2[:-1], qcow2[-1] ^ 1]) if change == "flipped" else qcow2 + b"x"
    driver = place.open()
    with pytest.raises(DriverError) as refused:
        await driver.ensure_image(file, source(wrong))
    assert refused.value.reason == "ImageDigestMismatch"
    assert file.sha256 in refused.value.message
    await driver.ensure_image(file, source(qcow2))  # nothing wrong was left to resume from
    assert (await driver.observe_storage()).images == {file.sha256}


async def test_a_false_format_is_refused_for_good(place: Place, qcow2: bytes) -> None:
    raw = bytes(4096)
    lies = (
        image_of(qcow2, image_pb2.FILE_FORMAT_RAW),
        image_of(raw, image_pb2.FILE_FORMAT_QCOW2),
    )
    driver = place.open()
    for file, data in zip(lies, (qcow2, raw), strict=True):
        with pytest.raises(DriverError) as refused:
            await driver.ensure_image(file, source(data))
        assert (refused.value.reason, refused.value.permanent) == ("ImageFormatMismatch", True)
    for claimed in (image_pb2.FILE_FORMAT_RAW, image_pb2.FILE_FORMAT_BLOB):
        await driver.ensure_image(image_of(raw, claimed), source(raw))
    assert (await driver.observe_storage()).images == {image_of(raw).sha256}


async def test_a_disk_needs_its_image_and_is_made_once(place: Place, qcow2: bytes) -> None:
    driver, file = place.open(), image_of(qcow2)
    with pytest.raises(DriverError) as refused:
        await driver.ensure_disk(DiskSpec(UID, file, 1))
    assert refused.value.reason == "ImageMissing"
    await driver.ensure_image(file, source(qcow2))
    for _ in range(2):
        await driver.ensure_disk(DiskSpec(UID, file, 1))
    assert (await place.open().observe_storage()).instances == {UID: {"disk"}}


async def test_removing_an_instance_removes_all_of_it_and_nothing_else(place: Place, qcow2: bytes) -> None:
    driver, file = await with_image(place, qcow2)
    for uid in (UID, OTHER):
        await driver.ensure_disk(DiskSpec(uid, file, 1))
        await driver.ensure_seed(replace(SEED, uid=uid))
        place.write_console_log(uid, b"hello\n")
    seen = await driver.observe_storage()
    assert seen.instances == {uid: {"disk", "seed", "console_log"} for uid in (UID, OTHER)}
    for _ in range(2):
        await driver.ensure_absent(UID)
    seen = await driver.observe_storage()
    assert seen.instances == {OTHER: {"disk", "seed", "console_log"}}
    assert seen.images == {file.sha256}
    await driver.drop_images(frozenset((file.sha256,)))
    assert not (await driver.observe_storage()).images


async def test_the_console_log_is_read_from_its_end_and_bounded(place: Place) -> None:
    driver = place.open()
    assert await driver.read_console_log(UID, 10) == b""
    place.write_console_log(UID, b"one\ntwo\nthree")
    assert await driver.read_console_log(UID, 2) == b"two\nthree"
    assert await driver.read_console_log(UID, 0) == b""
    place.write_console_log(UID, b"x" * (CONSOLE_LOG_READ_MAX + 10))
    assert len(await driver.read_console_log(UID, 5)) == CONSOLE_LOG_READ_MAX


async def test_capacity_and_paths(place: Place) -> None:
    driver = place.open()
    assert await driver.disk_capacity_gib() > 1
    assert (await driver.observe_storage()).free_bytes > GIB
    files = driver.instance_files(UID)
    assert {Path(path).parent.name for path in (files.disk, files.seed, files.console_log)} == {UID}
    assert Path(driver.image_path("ab" * 32)).name == "ab" * 32


# What only a real file system shows


async def test_the_guest_sees_the_larger_of_its_size_and_the_images(
    real_place: RealPlace, qcow2: bytes
) -> None:
    driver, file = await with_image(real_place, qcow2)
    sizes = {}
    for uid, size_gib in ((UID, 0), (OTHER, 3)):
        await driver.ensure_disk(DiskSpec(uid, file, size_gib))
        disk = driver.instance_files(uid).disk
        facts = json.loads(qemu_img("info", "--output=json", disk))
        sizes[uid] = facts["virtual-size"]
        assert (facts["format"], facts["backing-filename-format"]) == ("qcow2", "qcow2")
        assert facts["backing-filename"] == driver.image_path(file.sha256)
    assert sizes == {UID: 64 << 20, OTHER: 3 * GIB}


async def test_a_disk_with_data_is_never_touched(real_place: RealPlace, qcow2: bytes) -> None:
    driver, file = await with_image(real_place, qcow2)
    await driver.ensure_disk(DiskSpec(UID, file, 1))
    disk = Path(driver.instance_files(UID).disk)
    write(disk, b"precious")
    await real_place.open().ensure_disk(DiskSpec(UID, file, 2))
    assert read(disk) == b"precious"


async def test_half_made_files_of_a_killed_agent_are_made_anew(real_place: RealPlace, qcow2: bytes) -> None:
    driver, file = await with_image(real_place, qcow2)
    disk = Path(driver.instance_files(UID).disk)
    disk.parent.mkdir()
    for name in (disk.name + ".new", "seed.iso.new"):
        (disk.parent / name).write_bytes(b"half")
    assert (await driver.observe_storage()).instances == {UID: frozenset()}
    await driver.ensure_disk(DiskSpec(UID, file, 1))
    await driver.ensure_seed(SEED)
    assert sorted(os.listdir(disk.parent)) == ["disk.qcow2", "seed.iso"]


async def test_only_what_libvirt_hands_out_can_be_read_by_others(real_place: RealPlace, qcow2: bytes) -> None:
    driver, file = await with_image(real_place, qcow2)
    await driver.ensure_disk(DiskSpec(UID, file, 1))
    await driver.ensure_seed(SEED)
    files = driver.instance_files(UID)
    modes = {
        path: stat.S_IMODE(os.stat(path).st_mode)
        for path in (files.disk, files.seed, driver.image_path(file.sha256), Path(files.disk).parent)
    }
    assert list(modes.values()) == [0o600, 0o600, 0o444, 0o711]


async def test_a_seed_changes_only_with_its_content(real_place: RealPlace) -> None:
    driver = real_place.open()
    path = Path(driver.instance_files(UID).seed)
    await driver.ensure_seed(SEED)
    first = inode(path)
    await real_place.open().ensure_seed(SEED)
    assert inode(path) == first
    await driver.ensure_seed(replace(SEED, hostname="web-2"))
    meta = json.loads((parse_iso(read(path)) or {})["meta-data"])
    assert meta["local-hostname"] == "web-2"
    write(path, b"torn")
    await driver.ensure_seed(SEED)
    assert parse_iso(read(path)) is not None


@pytest.mark.parametrize("hostile", ["backing_file", "data_file", "vmdk"])
async def test_images_that_open_other_files_are_refused(
    real_place: RealPlace, tmp_path: Path, hostile: str
) -> None:
    canary = tmp_path / "canary"
    canary.write_bytes(b"secret".ljust(65536))
    path = tmp_path / "image"
    extra = {
        "backing_file": ["-f", "qcow2", "-b", str(canary), "-F", "raw"],
        "data_file": ["-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}"],
        "vmdk": ["-f", "vmdk"],
    }[hostile]
    qemu_img("create", "-q", *extra, str(path), "1M")
    data = read(path)
    driver = real_place.open()
    for claimed in (image_pb2.FILE_FORMAT_QCOW2, image_pb2.FILE_FORMAT_RAW):
        with pytest.raises(DriverError) as refused:
            await driver.ensure_image(image_of(data, claimed), source(data))
        assert refused.value.permanent
        assert refused.value.reason in ("ImageUnsafe", "ImageFormatMismatch")
    assert not os.listdir(real_place.state_dir / "images")


async def test_a_false_virtual_size_is_refused(real_place: RealPlace, qcow2: bytes) -> None:
    file = image_of(qcow2)
    file.virtual_size_bytes = 1 << 20
    with pytest.raises(DriverError) as refused:
        await real_place.open().ensure_image(file, source(qcow2))
    assert refused.value.reason == "ImageFormatMismatch"


async def test_a_full_disk_is_said_before_it_is_full(place: Place) -> None:
    file = image_pb2.ImageFile(sha256="ab" * 32, size_bytes=1 << 60, format=image_pb2.FILE_FORMAT_RAW)
    with pytest.raises(DriverError) as refused:
        await place.open().ensure_image(file, source(b""))
    assert refused.value.reason == "DiskFull"


@pytest.mark.parametrize("name", ["../../etc", "", "a/b", "a\n", "x" * 65, "-rf"])
async def test_names_that_leave_the_folder_are_refused(real_place: RealPlace, name: str) -> None:
    driver = real_place.open()
    for use in (driver.instance_files, driver.image_path):
        with pytest.raises(DriverError, match=r"is no"):
            use(name)
    with pytest.raises(DriverError):
        await driver.ensure_absent(name)


async def test_the_log_before_the_rotation_is_read_too(real_place: RealPlace) -> None:
    driver = real_place.open()
    real_place.write_console_log(UID, b"three\n")
    log = Path(driver.instance_files(UID).console_log)
    log.with_name("console.log.0").write_bytes(b"one\ntwo\n")
    assert await driver.read_console_log(UID, 2) == b"two\nthree\n"
