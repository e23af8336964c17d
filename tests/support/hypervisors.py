"""The machines that the hypervisor contract runs on: the fake, libvirt's test driver, and real QEMU.

**Edge**: `QemuMachine` starts emulators below a PrivateLibvirt. A machine does what drivers cannot: it kills
emulators, stops daemons, loses power.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import libvirt

from agent.errors import DriverError
from agent.hypervisor.domain_xml import domain_name
from agent.hypervisor.driver import DirectBoot, DomainSpec, Hypervisor
from agent.hypervisor.fake import FakeHost, FakeHypervisor
from agent.hypervisor.libvirt_driver import Deadlines, LibvirtHypervisor
from agent.storage.driver import DiskSpec, SeedSpec
from agent.storage.qemu_img_driver import QemuImgStorage
from cumulet.v1 import image_pb2
from deploy.images import build_image
from tests.support.libvirt import PrivateLibvirt, wait_for_end

TEST_URI = "test:///default"


def make_spec(folder: Path, uid: str = "") -> DomainSpec:
    """A domain that stays in the firmware: it runs, and boots nothing."""
    return DomainSpec(
        uid=uid or str(uuid.uuid4()),
        name="contract",
        epoch=3,
        boots=1,
        vcpu=1,
        memory_mib=64,
        kvm=False,
        disk_path=str(folder / "disk.qcow2"),
        seed_path=str(folder / "seed.iso"),
        nics=(),
        console_log_path=str(folder / "console.log"),
        boot=None,
    )


async def import_file(
    storage: QemuImgStorage, path: Path, kind: image_pb2.FileFormat.ValueType
) -> image_pb2.ImageFile:
    data = await asyncio.to_thread(path.read_bytes)

    async def fetch(offset: int) -> AsyncIterator[bytes]:
        yield data[offset:]

    digest = hashlib.sha256(data).hexdigest()
    file = image_pb2.ImageFile(sha256=digest, size_bytes=len(data), format=kind)
    await storage.ensure_image(file, fetch)
    return file


class Machine(Protocol):
    def open(self) -> Hypervisor: ...

    def spec(self) -> DomainSpec: ...

    async def close(self) -> None: ...


class FakeMachine:
    def __init__(self) -> None:
        self.host = FakeHost(kvm=False)

    def open(self) -> Hypervisor:
        return FakeHypervisor(self.host)

    def spec(self) -> DomainSpec:
        return make_spec(Path("/fake"))

    async def power_off_by_guest(self, uid: str) -> None:
        self.host.power_off_by_guest(uid)

    async def kill_emulator(self, uid: str) -> None:
        self.host.crash(uid)

    async def stop_libvirtd(self) -> None:
        self.host.stop_libvirtd()

    async def start_libvirtd(self) -> None:
        self.host.start_libvirtd()

    async def lose_power(self) -> None:
        self.host.reboot_host()

    async def break_start(self, spec: DomainSpec) -> None:
        message = f"Start instance {spec.uid}: planted"
        self.host.fail_next("ensure_running", DriverError("StartFailed", message))

    async def close(self) -> None:
        """Nothing outlives a fake."""


class LibvirtTestMachine:
    """libvirt's own in-memory driver: its real API without a hypervisor. It brings a foreign domain along."""

    def __init__(self) -> None:
        self._driver = LibvirtHypervisor(TEST_URI, domain_type="test")  # starts the event loop first
        self.connection = libvirt.open(TEST_URI)  # its state lives as long as one connection does

    def open(self) -> Hypervisor:
        return LibvirtHypervisor(TEST_URI, domain_type="test")

    def spec(self) -> DomainSpec:
        return make_spec(Path("/test"))

    async def power_off_by_guest(self, uid: str) -> None:
        await asyncio.to_thread(self.connection.lookupByUUIDString(uid).shutdown)

    async def close(self) -> None:
        for domain in self.connection.listAllDomains():
            if domain.name() != "test":
                domain.destroy() if domain.isActive() else None
                domain.undefine()
        self.connection.close()
        await self._driver.close()


class QemuMachine:
    """Real QEMU under a libvirtd of our own."""

    def __init__(self, daemon: PrivateLibvirt) -> None:
        self.daemon = daemon
        self.folder = daemon.root / "instances"
        self._opened: list[Hypervisor] = []

    def open(self, deadlines: Deadlines | None = None) -> Hypervisor:
        driver = LibvirtHypervisor(self.daemon.uri, run_dir=self.daemon.run_dir, deadlines=deadlines)
        self._opened.append(driver)
        return driver

    def spec(self) -> DomainSpec:
        uid = str(uuid.uuid4())
        folder = self.folder / uid
        folder.mkdir(parents=True)
        for passed in (self.folder, folder):
            passed.chmod(0o711)
        spec = make_spec(folder, uid)
        command = ["qemu-img", "create", "-q", "-f", "qcow2", spec.disk_path, "1M"]
        subprocess.run(command, check=True)
        Path(spec.seed_path).write_bytes(bytes(4096))
        for secret in (spec.disk_path, spec.seed_path):
            os.chmod(secret, 0o600)
        return spec

    async def guest(self, memory_mib: int = 192) -> DomainSpec:
        """The project's guest image on files that the real storage driver makes."""
        image = await asyncio.to_thread(build_image)
        storage = QemuImgStorage(self.daemon.root / "state")
        kinds = (
            (image.vmlinuz, image_pb2.FILE_FORMAT_BLOB),
            (image.initrd, image_pb2.FILE_FORMAT_BLOB),
            (image.disk, image_pb2.FILE_FORMAT_QCOW2),
        )
        kernel, initrd, disk = [await import_file(storage, path, kind) for path, kind in kinds]
        uid = str(uuid.uuid4())
        await storage.ensure_disk(DiskSpec(uid, disk, 1))
        await storage.ensure_seed(SeedSpec(uid, "contract-guest", (), b""))
        files = storage.instance_files(uid)
        kernel_path, initrd_path = storage.image_path(kernel.sha256), storage.image_path(initrd.sha256)
        return replace(
            make_spec(self.folder, uid),
            memory_mib=memory_mib,
            disk_path=files.disk,
            seed_path=files.seed,
            console_log_path=files.console_log,
            boot=DirectBoot(kernel_path, initrd_path, image.cmdline),
        )

    def pid(self, uid: str) -> int:
        return int(Path(self.daemon.run_dir, f"{domain_name(uid)}.pid").read_text())

    def signal_emulator(self, uid: str, number: int) -> None:
        os.kill(self.pid(uid), number)

    async def kill_emulator(self, uid: str) -> None:
        self.signal_emulator(uid, signal.SIGKILL)

    async def stop_libvirtd(self) -> None:
        await asyncio.to_thread(self.daemon.kill_daemon)

    async def start_libvirtd(self) -> None:
        await asyncio.to_thread(self.daemon.start_daemon)

    async def lose_power(self) -> None:
        await asyncio.to_thread(self._lose_power)

    def _lose_power(self) -> None:
        self.daemon.kill_daemon()
        for file in Path(self.daemon.run_dir).glob("cumulet-*.pid"):
            pid = int(file.read_text())
            os.kill(pid, signal.SIGKILL)
            wait_for_end(pid)
            self.daemon.forget_running(file.stem)
        self.daemon.start_daemon()

    async def break_start(self, spec: DomainSpec) -> None:
        await asyncio.to_thread(os.unlink, spec.disk_path)

    async def close(self) -> None:
        cleaner = self.open()  # a test may have closed its own
        for domain in await cleaner.observe_domains():
            await cleaner.ensure_absent(domain.uid)
        for opened in self._opened:
            await opened.close()
