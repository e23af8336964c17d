"""The guest image boots, takes its seed, answers, keeps its disk and obeys the power button.

**Edge**: real QEMU under emulation, user-mode network, a seed on an ISO made by xorriso.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.images import BuiltImage, build_image

# A boot costs 5 s of CPU under emulation; a busy machine was seen to take 35 s for it.
BOOT_DEADLINE_S = 120.0
# init gives processes a second to end and the kernel needs about one more.
POWERDOWN_DEADLINE_S = 30.0
REQUEST_DEADLINE_S = 30.0

USER_DATA = """#!/bin/sh
echo "user-data says: $(hostname)"
echo run >> /root/runs
echo "runs so far: $(wc -l < /root/runs)"
"""


@dataclass(frozen=True, slots=True)
class Seed:
    """A NoCloud seed: the ISO and the private key whose public half it holds."""

    iso: Path
    private_key: Path


class Guest:
    """A running QEMU: its serial console as a growing text, its QMP socket, its forwarded ports."""

    def __init__(self, process: asyncio.subprocess.Process, qmp: Path) -> None:
        self.process = process
        self.console = ""
        self._qmp = qmp

    async def wait_for(self, pattern: str, deadline_s: float = BOOT_DEADLINE_S) -> re.Match[str]:
        """Reads the console until the pattern is there; fails with the console's end otherwise."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(deadline_s):
                while (found := re.search(pattern, self.console)) is None:
                    data = await self.process.stdout.read(4096)
                    if not data:
                        pytest.fail(f"QEMU ended before {pattern!r}; console:\n{self.console[-3000:]}")
                    self.console += data.decode(errors="replace").replace("\r", "")
        except TimeoutError:
            pytest.fail(f"no {pattern!r} within {deadline_s} s; console:\n{self.console[-3000:]}")
        return found

    async def execute(self, command: str, **arguments: object) -> object:
        """One QMP command on a connection of its own; returns its result."""
        reader, writer = await asyncio.open_unix_connection(self._qmp)
        try:
            await reader.readline()
            for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                writer.write(json.dumps(request).encode() + b"\n")
                answer: dict[str, object] = {}
                while not {"return", "error"} & answer.keys():
                    answer = json.loads(await reader.readline())
                assert "error" not in answer, answer
        finally:
            writer.close()
        return answer["return"]

    async def forward(self, guest_port: int) -> int:
        """The host's port that leads to a port of the guest; QEMU chose it, so no one can take it before."""
        listing = await self.execute("human-monitor-command", **{"command-line": "info usernet"})
        pattern = rf"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+{guest_port}\s"
        found = re.search(pattern, str(listing))
        assert found is not None, listing
        return int(found[1])

    async def power_down(self) -> float:
        """Presses the power button; returns the seconds until QEMU has ended."""
        started_at = time.monotonic()
        await self.execute("system_powerdown")
        await self.wait_for("Power down|System halted", POWERDOWN_DEADLINE_S)
        async with asyncio.timeout(POWERDOWN_DEADLINE_S):
            await self.process.wait()
        return time.monotonic() - started_at


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    """The image of this checkout, from the machine's cache."""
    return build_image()


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """A folder with a short name: a Unix socket's path has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="cumulet-guest-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def seed(work: Path) -> Seed:
    """A seed in the form that the agent writes: meta-data as indented JSON, user-data as a script."""
    key = work / "key"
    make_key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "o'test, {user}", "-f", str(key)]
    subprocess.run(make_key, check=True)
    meta_data = {
        "instance-id": "i-0001",
        "local-hostname": "web-1",
        "public-keys": ["ssh-rsa AAAA someone else", key.with_suffix(".pub").read_text().strip()],
    }
    content = work / "seed"
    content.mkdir()
    (content / "meta-data").write_text(json.dumps(meta_data, indent=2))
    (content / "user-data").write_text(USER_DATA)
    iso = work / "seed.iso"
    command = [
        "xorriso",
        "-as",
        "mkisofs",
        "-quiet",
        "-V",
        "cidata",
        "-J",
        "-R",
        "-o",
        str(iso),
        str(content),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return Seed(iso, key)


@pytest.fixture(scope="module")
def overlay(work: Path, image: BuiltImage) -> Path:
    """A disk of 2 GiB over the image, as an agent makes it: the guest has a gigabyte to grow into."""
    path = work / "disk.qcow2"
    command = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        str(image.disk),
        str(path),
        "2G",
    ]
    subprocess.run(command, check=True)
    return path


@asynccontextmanager
async def boot(image: BuiltImage, overlay: Path, seed: Seed) -> AsyncIterator[Guest]:
    """A guest with the least memory that the image promises to run with."""
    qmp = overlay.with_name("qmp")
    network = "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=tcp:127.0.0.1:0-:80"
    process = await asyncio.create_subprocess_exec(
        *("qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-serial", "stdio", "-m", str(image.manifest["min_memory_mib"])),
        *("-kernel", str(image.vmlinuz), "-initrd", str(image.initrd), "-append", image.cmdline),
        *("-drive", f"file={overlay},if=virtio,format=qcow2,cache=unsafe"),
        *("-drive", f"file={seed.iso},if=virtio,format=raw,readonly=on"),
        *("-device", "virtio-rng-pci", "-nic", network, "-qmp", f"unix:{qmp},server=on,wait=off"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Guest(process, qmp)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def run_ssh(port: int, seed: Seed, command: str) -> str:
    """Runs a command in the guest with the seed's key and nothing of this machine's ssh configuration."""
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "LogLevel=ERROR"]
    process = await asyncio.create_subprocess_exec(
        *("ssh", "-F", "none", "-i", str(seed.private_key), "-p", str(port)),
        *(word for option in options for word in ("-o", option)),
        *("root@127.0.0.1", command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(REQUEST_DEADLINE_S):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


def fetch(port: int) -> str:
    """The guest's web page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=REQUEST_DEADLINE_S) as answer:
        return bytes(answer.read()).decode()


async def test_two_boots_of_one_instance(image: BuiltImage, overlay: Path, seed: Seed) -> None:
    async with boot(image, overlay, seed) as guest:
        ready = await guest.wait_for(r"cumulet-guest: ready hostname=(\S+) address=(\S+) boot_s=([\d.]+)\n")
        assert ready[1] == "web-1"
        assert ready[2] == "10.0.2.15"
        await guest.wait_for(r"root file system grown to 2048 MiB")
        await guest.wait_for(r"user-data says: web-1")
        await guest.wait_for(r"cumulet-guest: user-data done exit=0")
        await guest.wait_for(r"root@web-1:")

        assert await asyncio.to_thread(fetch, await guest.forward(80)) == "web-1\n"
        command = "hostname; echo precious > /root/kept; wc -l < /root/runs"
        written = await run_ssh(await guest.forward(22), seed, command)
        assert written.split() == ["web-1", "1"]
        assert await guest.power_down() < POWERDOWN_DEADLINE_S
        assert guest.process.returncode == 0

    async with boot(image, overlay, seed) as guest:
        await guest.wait_for(r"cumulet-guest: ready hostname=web-1 ")
        await guest.wait_for(r"cumulet-guest: user-data already ran for this instance")
        command = "cat /root/kept; wc -l < /root/runs; df -m / | awk 'NR==2 {print ($2 > 1900)}'"
        assert (await run_ssh(await guest.forward(22), seed, command)).split() == ["precious", "1", "1"]
        assert "grown" not in guest.console
