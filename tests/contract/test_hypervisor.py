"""One contract for all hypervisor drivers: the fake, libvirt's test driver, and QEMU under a real libvirtd.

A test names the machines that can show it: libvirt's test driver has no emulator to kill and no console.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import libvirt
import pytest

from agent.errors import DriverError, DriverUnavailableError
from agent.hypervisor.driver import Console, Hypervisor, Nic, ObservedDomain
from agent.hypervisor.libvirt_driver import Deadlines
from agent.storage.qemu_img_driver import QemuImgStorage
from cumulet.v1 import agent_pb2
from tests.support.hypervisors import FakeMachine, LibvirtTestMachine, Machine, QemuMachine
from tests.support.libvirt import PrivateLibvirt

TAKEOVER_S = 20.0  # in which a console that was taken over must end
GUEST_DEADLINE_S = 120.0  # an emulated boot takes 6 s of an idle CPU
SEEN_DEADLINE_S = 30.0  # for what takes milliseconds on an idle machine
RUNNING, OFF = agent_pb2.DOMAIN_STATE_RUNNING, agent_pb2.DOMAIN_STATE_OFF
CRASHED = agent_pb2.DOMAIN_STATE_CRASHED
FOREIGN = (
    "<domain type='qemu'><name>cumulet-{uid}</name><memory>65536</memory><os><type>hvm</type></os></domain>"
)
NOBODY = "00000000-0000-4000-8000-000000000000"

everywhere = pytest.mark.parametrize("machine", ["fake", "test", "qemu"], indirect=True)
with_emulators = pytest.mark.parametrize("machine", ["fake", "qemu"], indirect=True)


@pytest.fixture(scope="session")
def private_libvirt() -> Iterator[PrivateLibvirt]:
    daemon = PrivateLibvirt()
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
async def qemu(private_libvirt: PrivateLibvirt) -> AsyncIterator[QemuMachine]:
    machine = QemuMachine(private_libvirt)
    yield machine
    await machine.close()


@pytest.fixture
async def machine(request: pytest.FixtureRequest) -> AsyncIterator[Machine]:
    made: Machine
    if request.param == "qemu":
        made = QemuMachine(request.getfixturevalue("private_libvirt"))
    else:
        made = FakeMachine() if request.param == "fake" else LibvirtTestMachine()
    yield made
    await made.close()


async def observe(driver: Hypervisor, uid: str) -> ObservedDomain:
    return next(domain for domain in await driver.observe_domains() if domain.uid == uid)


class Watcher:
    """Looks again whenever the driver wakes it, and only then: a lost wake-up fails the test."""

    def __init__(self, driver: Hypervisor) -> None:
        self.driver = driver
        self._woken = asyncio.Event()
        driver.on_change(self._woken.set)

    async def until(self, uid: str, wanted: Callable[[ObservedDomain], bool]) -> ObservedDomain:
        async with asyncio.timeout(SEEN_DEADLINE_S):
            while True:
                self._woken.clear()
                seen = await observe(self.driver, uid)
                if wanted(seen):
                    return seen
                await self._woken.wait()


def is_off(domain: ObservedDomain) -> bool:
    return domain.state in (OFF, CRASHED)


@everywhere
async def test_a_domain_runs_as_specified_and_is_left_alone(machine: Machine) -> None:
    driver, spec = machine.open(), machine.spec()
    await driver.ensure_running(spec)
    first = await observe(driver, spec.uid)
    assert (first.epoch, first.boots, first.state, first.reason) == (3, 1, RUNNING, "")
    await driver.ensure_running(replace(spec, boots=2))
    other = machine.open()
    assert await other.observe_domains() == (first,)  # foreign domains are not there
    await driver.close()
    await other.close()


@everywhere
async def test_power_cut_and_the_next_boot(machine: Machine) -> None:
    driver, spec = machine.open(), machine.spec()
    await driver.ensure_running(spec)
    for _ in range(2):
        await driver.ensure_off(spec.uid)
    seen = await observe(driver, spec.uid)
    assert (seen.state, seen.reason, seen.pid) == (OFF, "ForcedOff", 0)
    await driver.ensure_running(replace(spec, epoch=4, boots=2, memory_mib=80))
    seen = await observe(driver, spec.uid)
    assert (seen.epoch, seen.boots, seen.state) == (4, 2, RUNNING)
    await driver.close()


@everywhere
async def test_an_absent_domain_stays_absent(machine: Machine) -> None:
    driver, spec = machine.open(), machine.spec()
    await driver.ensure_running(spec)
    for _ in range(2):
        await driver.ensure_absent(spec.uid)
    assert await driver.observe_domains() == ()
    for effect in (driver.request_shutdown, driver.ensure_off, driver.ensure_absent):
        await effect(NOBODY)
    with pytest.raises(DriverError, match=NOBODY) as refused:
        await driver.open_console(NOBODY)
    assert refused.value.reason == "NotRunning"
    await driver.close()


@everywhere
async def test_host_facts(machine: Machine) -> None:
    driver = machine.open()
    facts = await driver.host_facts()
    assert facts.vcpu > 0
    assert facts.memory_mib > 0
    assert facts.boot_id
    assert facts.kvm == (not facts.kvm_message)
    assert {"kvm", "tcg"}.intersection(facts.capabilities) == {"kvm" if facts.kvm else "tcg"}
    assert sum(word.startswith("arch:") for word in facts.capabilities) == 1
    assert all(cell.vcpu > 0 and cell.memory_mib > 0 for cell in facts.cells)
    assert len({device.address for device in facts.devices}) == len(facts.devices)
    assert all(device.cell is None or device.cell < len(facts.cells) for device in facts.devices)
    await driver.close()


@pytest.mark.parametrize("machine", ["fake", "test"], indirect=True)
async def test_a_guests_own_power_off_wakes_and_says_so(machine: FakeMachine | LibvirtTestMachine) -> None:
    driver, spec = machine.open(), machine.spec()
    watcher = Watcher(driver)
    await driver.ensure_running(spec)
    await machine.power_off_by_guest(spec.uid)
    seen = await watcher.until(spec.uid, is_off)
    assert (seen.state, seen.reason) == (OFF, "GuestPoweredOff")
    await driver.close()


@with_emulators
async def test_a_killed_emulator_is_a_crash_and_starts_again(machine: FakeMachine | QemuMachine) -> None:
    driver, spec = machine.open(), machine.spec()
    watcher = Watcher(driver)
    await driver.ensure_running(spec)
    first = await observe(driver, spec.uid)
    await machine.kill_emulator(spec.uid)
    seen = await watcher.until(spec.uid, is_off)
    assert (seen.state, seen.reason, seen.pid) == (CRASHED, "EmulatorDied", 0)
    await driver.ensure_running(spec)
    seen = await observe(driver, spec.uid)
    assert seen.state == RUNNING
    assert seen.pid not in (0, first.pid)


@with_emulators
async def test_a_failed_start_is_told_apart_from_a_crash(machine: FakeMachine | QemuMachine) -> None:
    driver, spec = machine.open(), machine.spec()
    await machine.break_start(spec)
    with pytest.raises(DriverError, match=spec.uid) as refused:
        await driver.ensure_running(spec)
    assert refused.value.reason == "StartFailed"
    seen = await observe(driver, spec.uid)
    assert (seen.state, seen.reason, seen.boots) == (OFF, "StartFailed", 1)


@with_emulators
async def test_without_libvirtd_nothing_is_known_and_nothing_happens(
    machine: FakeMachine | QemuMachine,
) -> None:
    driver, running, stopped = machine.open(), machine.spec(), machine.spec()
    for spec in (running, stopped):
        await driver.ensure_running(spec)
    await driver.ensure_off(stopped.uid)
    before = await driver.observe_domains()
    await machine.stop_libvirtd()
    for call in (driver.observe_domains(), driver.ensure_running(running), driver.ensure_off(running.uid)):
        with pytest.raises(DriverUnavailableError):
            await call
    await machine.start_libvirtd()
    # Reconnects by itself, the emulator is the same one, and why the other is off is not forgotten.
    assert await driver.observe_domains() == before


@with_emulators
async def test_a_host_that_lost_power(machine: FakeMachine | QemuMachine) -> None:
    driver, running, stopped = machine.open(), machine.spec(), machine.spec()
    for spec in (running, stopped):
        await driver.ensure_running(spec)
    await driver.ensure_off(stopped.uid)
    assert (await observe(driver, stopped.uid)).reason == "ForcedOff"
    await machine.lose_power()
    seen = await observe(driver, running.uid)
    assert (seen.state, seen.reason, seen.pid) == (OFF, "HostDown", 0)
    assert (await observe(driver, stopped.uid)).reason == "ForcedOff"
    await driver.ensure_running(running)
    assert (await observe(driver, running.uid)).state == RUNNING


@with_emulators
async def test_statistics_are_of_running_domains(machine: FakeMachine | QemuMachine) -> None:
    driver, running, stopped = machine.open(), machine.spec(), machine.spec()
    for spec in (running, stopped):
        await driver.ensure_running(spec)
    await driver.ensure_off(stopped.uid)
    (stats,) = await driver.domain_stats()
    assert (stats.uid, stats.vcpus, stats.memory_maximum_bytes) == (running.uid, 1, 64 << 20)
    assert [disk.device for disk in stats.disks] == ["vda", "vdb"]


# What only QEMU shows


async def test_a_foreign_domain_with_our_name_is_not_ours(qemu: QemuMachine) -> None:
    driver, spec = qemu.open(), qemu.spec()
    connection = libvirt.open(qemu.daemon.uri)
    foreign = connection.defineXML(FOREIGN.format(uid=spec.uid))
    await driver.ensure_absent(spec.uid)
    assert await driver.observe_domains() == ()
    with pytest.raises(DriverError, match=spec.uid) as refused:
        await driver.ensure_running(spec)
    assert refused.value.reason == "DefineFailed"
    foreign.undefine()  # raises if the driver had removed it
    connection.close()


async def test_a_tap_is_taken_as_it_is_and_counted(qemu: QemuMachine) -> None:
    tap = "cumctr0"
    driver, spec = qemu.open(), qemu.spec()
    run_ip("tuntap", "add", "dev", tap, "mode", "tap")
    try:
        await driver.ensure_running(replace(spec, nics=(Nic(tap, "52:54:00:00:00:01"),)))
        (stats,) = await driver.domain_stats()
        assert [nic.device for nic in stats.nics] == [tap]
        await driver.ensure_off(spec.uid)
        run_ip("link", "show", "dev", tap)  # it is the network driver's to remove
    finally:
        run_ip("link", "delete", tap)


async def test_a_hanging_emulator_is_quarantined_alone(qemu: QemuMachine) -> None:
    driver = qemu.open(Deadlines(call_s=1.0))
    hanging, other = qemu.spec(), qemu.spec()
    for spec in (hanging, other):
        await driver.ensure_running(spec)
    qemu.signal_emulator(hanging.uid, signal.SIGSTOP)
    try:
        with pytest.raises(DriverError) as stuck:
            await driver.domain_stats()
        assert stuck.value.reason == "LibvirtOverdue"
        figures = {stats.uid: stats.memory_rss_bytes for stats in await driver.domain_stats()}
        assert figures[other.uid] > 0
        assert figures[hanging.uid] == 0  # QEMU would have had to say it
        for _ in range(2):  # overdue, then refused at once
            with pytest.raises(DriverError, match=hanging.uid) as refused:
                await driver.request_shutdown(hanging.uid)
            assert refused.value.reason == "LibvirtOverdue"
        assert len(await driver.observe_domains()) == 2
        await driver.ensure_off(other.uid)
    finally:
        qemu.signal_emulator(hanging.uid, signal.SIGCONT)
    await once_free(lambda: driver.request_shutdown(hanging.uid))


async def test_a_hanging_libvirtd_costs_a_deadline_once(qemu: QemuMachine) -> None:
    driver, spec = qemu.open(Deadlines(call_s=0.5, stop_s=0.5)), qemu.spec()
    await driver.ensure_running(spec)
    before = await driver.observe_domains()
    qemu.daemon.signal_daemon(signal.SIGSTOP)
    try:
        for call in (driver.observe_domains, driver.observe_domains, lambda: driver.ensure_off(NOBODY)):
            with pytest.raises(DriverError) as refused:
                await call()
            assert refused.value.reason == "LibvirtOverdue"
    finally:
        qemu.daemon.signal_daemon(signal.SIGCONT)
    assert await once_free(driver.observe_domains) == before


async def test_a_guest_boots_talks_and_obeys_its_power_button(qemu: QemuMachine) -> None:
    """Files of the real storage driver, read by QEMU as an unprivileged user; console; ACPI; console log."""
    driver, spec = qemu.open(), await qemu.guest()
    watcher = Watcher(driver)
    await driver.ensure_running(spec)
    first = await driver.open_console(spec.uid)
    await read_until(first, b"root@contract-guest:~#")
    await first.write(b"echo $((6*7))-first\n")
    await read_until(first, b"42-first")
    second = await driver.open_console(spec.uid)
    async with asyncio.timeout(TAKEOVER_S):
        while await first.read():
            pass  # what it still held; a busy machine hands it over a byte at a time
    with pytest.raises(DriverError, match=spec.uid) as refused:
        await first.write(b"x")
    assert refused.value.reason == "ConsoleClosed"
    await second.write(b"echo $((6*7))-second\n")
    await read_until(second, b"42-second")
    await driver.request_shutdown(spec.uid)
    seen = await watcher.until(spec.uid, is_off)
    assert (seen.state, seen.reason) == (OFF, "GuestPoweredOff")
    assert await second.read() is not None  # the end of the line, or the guest's last words
    await qemu.stop_libvirtd()
    await qemu.start_libvirtd()
    assert (await observe(driver, spec.uid)).reason == "GuestPoweredOff"
    log = await QemuImgStorage(qemu.daemon.root / "state").read_console_log(spec.uid, 1000)
    assert b"42-second" in log


@pytest.mark.parametrize("machine", ["fake"], indirect=True)
async def test_a_fake_console_echoes_and_is_taken_over(machine: FakeMachine) -> None:
    driver, spec = machine.open(), machine.spec()
    await driver.ensure_running(spec)
    first = await driver.open_console(spec.uid)
    await first.write(b"hello")
    await read_until(first, b"hello")
    second = await driver.open_console(spec.uid)
    assert await first.read() == b""
    with pytest.raises(DriverError) as refused:
        await first.write(b"x")
    assert refused.value.reason == "ConsoleClosed"
    await machine.power_off_by_guest(spec.uid)
    assert b"" in [await second.read() for _ in range(2)]


async def read_until(console: Console, wanted: bytes) -> None:
    seen = b""
    async with asyncio.timeout(GUEST_DEADLINE_S):
        while wanted not in seen:
            chunk = await console.read()
            assert chunk, f"the console ended; it said {seen!r}"
            seen += chunk


async def once_free(call: Callable[[], object]) -> object:
    """Call until the quarantine is over; the overdue call returns when libvirt pleases."""
    async with asyncio.timeout(SEEN_DEADLINE_S):
        while True:
            try:
                return await call()  # type: ignore[misc]
            except DriverError as err:
                if err.reason != "LibvirtOverdue":
                    raise
            await asyncio.sleep(0.05)


def run_ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, stdout=subprocess.DEVNULL)
