"""The three drivers of a node, one look through all of them, and what they are given.

**Edge**: `observe` asks the host. Builds a domain's specification from the plan and the drivers' paths.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from agent.hypervisor.driver import DirectBoot, DomainSpec, Hypervisor, Nic
from agent.intent import InstanceIntent
from agent.net.driver import Net
from agent.net.names import tap_name
from agent.observed import Observed
from agent.storage.driver import Storage


class FileSource(Protocol):
    """Where the bytes of image files come from."""

    def read(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """Bytes from an offset on. Raises DriverError."""


@dataclass(frozen=True, slots=True)
class Drivers:
    hypervisor: Hypervisor
    net: Net
    storage: Storage
    kvm: bool  # else every domain is emulated

    async def observe(self) -> Observed:
        """One look. Raises DriverError: then nothing is known."""
        async with asyncio.TaskGroup() as group:
            domains = group.create_task(self.hypervisor.observe_domains())
            storage = group.create_task(self.storage.observe_storage())
            net = group.create_task(self.net.observe_net())
        by_uid = {domain.uid: domain for domain in domains.result()}
        return Observed(by_uid, storage.result(), net.result())

    async def close(self) -> None:
        """Let go of the host. Guests run on."""
        await self.hypervisor.close()
        await self.net.close()
        await self.storage.close()


def build_domain_spec(intent: InstanceIntent, storage: Storage, *, kvm: bool) -> DomainSpec:
    """Pure but for the paths, which the storage driver derives from uids and digests."""
    files = storage.instance_files(intent.uid)
    return DomainSpec(
        uid=intent.uid,
        name=f"{intent.project}/{intent.name}",
        epoch=intent.epoch,
        boots=intent.boots,
        vcpu=intent.vcpu,
        memory_mib=intent.memory_mib,
        kvm=kvm,
        disk_path=files.disk,
        seed_path=files.seed,
        nics=tuple(Nic(tap_name(port.uid), port.mac) for port in intent.ports),
        console_log_path=files.console_log,
        boot=_direct_boot(intent, storage),
    )


def _direct_boot(intent: InstanceIntent, storage: Storage) -> DirectBoot | None:
    if intent.kernel is None:
        return None
    initrd = storage.image_path(intent.initrd.sha256) if intent.initrd is not None else ""
    return DirectBoot(storage.image_path(intent.kernel.sha256), initrd, intent.kernel_args)
