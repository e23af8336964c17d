"""A hypervisor in memory, for simulations and for tests of everything above the driver.

**Pure** but for the event loop's clock (virtual in simulations). `FakeHost` is the machine and outlives the
agent; `FakeHypervisor` is the agent's connection to it. Passes tests/contract/test_hypervisor.py.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from agent.errors import DriverError, DriverUnavailableError
from agent.hypervisor.driver import (
    DiskStats,
    DomainSpec,
    DomainStats,
    HostCell,
    HostDevice,
    HostFacts,
    NicStats,
    ObservedDomain,
)
from cumulet.v1 import agent_pb2

CONSOLE_QUEUE_MAX: Final = 256  # chunks; what a reader does not take in time is lost, as on a real line
FIRST_PID: Final = 1000
BANNER: Final = b"fake guest console\r\n"

_State: TypeAlias = agent_pb2.DomainState.ValueType
_RUNNING: Final = agent_pb2.DOMAIN_STATE_RUNNING
_PAUSED: Final = agent_pb2.DOMAIN_STATE_PAUSED
_OFF: Final = agent_pb2.DOMAIN_STATE_OFF
_CRASHED: Final = agent_pb2.DOMAIN_STATE_CRASHED


@dataclass(slots=True)
class _Domain:
    """Mutable: one defined domain of the fake machine. `pid` is 0 unless an emulator runs."""

    spec: DomainSpec
    state: _State = _OFF
    reason: str = "StartFailed"
    pid: int = 0
    started_at: float = 0.0
    console: FakeConsole | None = None


class FakeConsole:
    """A console whose guest echoes what it is sent."""

    def __init__(self) -> None:
        self._output: asyncio.Queue[bytes] = asyncio.Queue(CONSOLE_QUEUE_MAX)
        self._ended = False
        self.feed(BANNER)

    async def read(self) -> bytes:
        if self._ended and self._output.empty():
            return b""
        return await self._output.get()

    async def write(self, data: bytes) -> None:
        if self._ended:
            raise DriverError("ConsoleClosed", "The console was closed; attach again.")
        self.feed(data)

    async def close(self) -> None:
        self.end()

    def feed(self, data: bytes) -> None:
        """The guest prints something."""
        if data and not self._ended and not self._output.full():
            self._output.put_nowait(data)

    def end(self) -> None:
        """The line is cut: a reader gets what is queued and then the end."""
        if self._ended:
            return
        self._ended = True
        if self._output.full():
            self._output.get_nowait()
        self._output.put_nowait(b"")


class FakeHost:
    """The machine: domains, processes and a boot id. Everything here survives the agent.

    Faults are methods: crash, power_off_by_guest, pause, reboot_host, stop_libvirtd, fail_next.
    """

    def __init__(
        self,
        *,
        vcpu: int = 16,
        memory_mib: int = 65536,
        kvm: bool = True,
        boot_s: float = 0.0,
        shutdown_s: float = 0.0,
        name: str = "fake",
        capabilities: tuple[str, ...] = ("arch:x86_64", "cpu:x86-64-v1", "cpu:x86-64-v2", "cpu:x86-64-v3"),
        cells: tuple[HostCell, ...] = (),
        devices: tuple[HostDevice, ...] = (),
    ) -> None:
        self.capabilities = capabilities  # besides kvm or tcg, which follows
        self.cells, self.devices = cells, devices
        self.vcpu, self.memory_mib, self.kvm, self.name = vcpu, memory_mib, kvm, name
        self.boot_s = boot_s  # from the start of a domain until it runs
        self.shutdown_s = shutdown_s  # from the power button until a guest that listens is off
        self.deaf_guests: set[str] = set()  # uids that ignore the power button
        self.domains: dict[str, _Domain] = {}
        self.host_boots = 1
        self.libvirtd_up = True
        self._next_pid = FIRST_PID
        self._wakes: dict[FakeHypervisor, list[Callable[[], None]]] = {}
        self._failures: dict[tuple[str, str], deque[DriverError]] = defaultdict(deque)

    # Oracles

    def running(self) -> list[tuple[str, int]]:
        """(uid, epoch) of every emulator process there is, paused ones and starting ones too."""
        return sorted((uid, domain.spec.epoch) for uid, domain in self.domains.items() if domain.pid)

    def pids(self) -> dict[str, int]:
        """The emulator's process id by uid; an unchanged pid proves that nobody touched the domain."""
        return {uid: domain.pid for uid, domain in sorted(self.domains.items()) if domain.pid}

    # Faults

    def crash(self, uid: str) -> None:
        """The emulator is killed."""
        self._stop(self._running_domain(uid), _CRASHED, "EmulatorDied")
        self._wake()

    def power_off_by_guest(self, uid: str) -> None:
        """The guest runs `poweroff`."""
        self._stop(self._running_domain(uid), _OFF, "GuestPoweredOff")
        self._wake()

    def pause(self, uid: str) -> None:
        """The emulator pauses the guest, as it does after an I/O error."""
        self._running_domain(uid).state = _PAUSED
        self._wake()

    def reboot_host(self) -> None:
        """The machine loses power and comes back: definitions stay, nothing runs."""
        self.host_boots += 1
        for domain in self.domains.values():
            if domain.pid:
                self._stop(domain, _OFF, "HostDown")

    def stop_libvirtd(self) -> None:
        """Calls fail until start_libvirtd; domains run on."""
        self.libvirtd_up = False

    def start_libvirtd(self) -> None:
        self.libvirtd_up = True

    def fail_next(self, method: str, error: DriverError, *, uid: str = "") -> None:
        """The next call of this driver method (for this uid, or for any) raises `error`."""
        self._failures[method, uid].append(error)

    # What the driver does

    def start(self, spec: DomainSpec, now_s: float) -> _Domain:
        domain = _Domain(spec, state=_PAUSED, reason="Starting", pid=self._next_pid, started_at=now_s)
        self._next_pid += 1
        self.domains[spec.uid] = domain
        return domain

    def finish_start(self, domain: _Domain) -> None:
        if domain.pid and domain.reason == "Starting":
            domain.state, domain.reason = _RUNNING, ""

    def press_power_button(self, uid: str, pid: int) -> None:
        domain = self.domains.get(uid)
        if domain and domain.pid == pid and uid not in self.deaf_guests:
            self.power_off_by_guest(uid)

    def cut_power(self, uid: str) -> None:
        domain = self.domains.get(uid)
        if domain and domain.pid:
            self._stop(domain, _OFF, "ForcedOff")
            self._wake()

    def undefine(self, uid: str) -> None:
        self.cut_power(uid)
        self.domains.pop(uid, None)

    def check_call(self, method: str, uid: str) -> None:
        """Raise what a test planted for this call."""
        if not self.libvirtd_up:
            message = f"libvirtd on {self.name} does not answer; start it: systemctl start libvirtd"
            raise DriverUnavailableError("LibvirtUnavailable", message)
        for key in ((method, uid), (method, "")):
            if self._failures.get(key):
                raise self._failures[key].popleft()

    def attach(self, driver: FakeHypervisor, wake: Callable[[], None]) -> None:
        self._wakes.setdefault(driver, []).append(wake)

    def detach(self, driver: FakeHypervisor) -> None:
        self._wakes.pop(driver, None)

    def _stop(self, domain: _Domain, state: _State, reason: str) -> None:
        domain.state, domain.reason, domain.pid = state, reason, 0
        if domain.console:
            domain.console.end()
            domain.console = None

    def _running_domain(self, uid: str) -> _Domain:
        domain = self.domains[uid]
        assert domain.pid, f"domain {uid} of {self.name} does not run"
        return domain

    def _wake(self) -> None:
        for wakes in list(self._wakes.values()):
            for wake in wakes:
                asyncio.get_running_loop().call_soon(wake)


class FakeHypervisor:
    """The driver: an agent's connection to a FakeHost. A killed agent's is dropped with `detach()`."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def host_facts(self) -> HostFacts:
        await self._call("host_facts")
        host = self.host
        message = "" if host.kvm else "KVM is not usable here; guests are emulated and slow."
        return HostFacts(
            host.vcpu,
            host.memory_mib,
            host.kvm,
            message,
            f"{host.name}-boot-{host.host_boots}",
            capabilities=tuple(sorted((*host.capabilities, "kvm" if host.kvm else "tcg"))),
            cells=host.cells,
            devices=host.devices,
        )

    async def observe_domains(self) -> tuple[ObservedDomain, ...]:
        await self._call("observe_domains")
        return tuple(_observed(domain) for _, domain in sorted(self.host.domains.items()))

    async def ensure_running(self, spec: DomainSpec) -> None:
        async with self._locks[spec.uid]:
            domain = self.host.domains.get(spec.uid)
            if domain and domain.pid:
                await self._call("ensure_running", spec.uid)
                return
            try:
                await self._call("ensure_running", spec.uid)
            except DriverUnavailableError:
                raise
            except DriverError:
                self.host.domains[spec.uid] = _Domain(spec)
                raise
            await self._start(spec)

    async def _start(self, spec: DomainSpec) -> None:
        loop = asyncio.get_running_loop()
        domain = self.host.start(spec, loop.time())
        if self.host.boot_s:
            # The start goes on even if the agent that asked for it dies while it waits.
            loop.call_later(self.host.boot_s, self.host.finish_start, domain)
            await asyncio.sleep(self.host.boot_s)
        self.host.finish_start(domain)

    async def request_shutdown(self, uid: str) -> None:
        async with self._locks[uid]:
            await self._call("request_shutdown", uid)
            domain = self.host.domains.get(uid)
            if domain and domain.pid:
                loop = asyncio.get_running_loop()
                loop.call_later(self.host.shutdown_s, self.host.press_power_button, uid, domain.pid)

    async def ensure_off(self, uid: str) -> None:
        async with self._locks[uid]:
            await self._call("ensure_off", uid)
            self.host.cut_power(uid)

    async def ensure_absent(self, uid: str) -> None:
        async with self._locks[uid]:
            await self._call("ensure_absent", uid)
            self.host.undefine(uid)

    async def domain_stats(self) -> tuple[DomainStats, ...]:
        await self._call("domain_stats")
        now_s = asyncio.get_running_loop().time()
        return tuple(_stats(domain, now_s) for _, domain in sorted(self.host.domains.items()) if domain.pid)

    async def open_console(self, uid: str) -> FakeConsole:
        await self._call("open_console", uid)
        domain = self.host.domains.get(uid)
        if not domain or not domain.pid:
            raise DriverError("NotRunning", f"Instance {uid} does not run: start it, then attach.")
        if domain.console:
            domain.console.end()
        domain.console = FakeConsole()
        return domain.console

    def on_change(self, wake: Callable[[], None]) -> None:
        self.host.attach(self, wake)

    async def close(self) -> None:
        self.detach()

    def detach(self) -> None:
        """Forget the wake-ups, as the kernel does with the sockets of a killed agent."""
        self.host.detach(self)

    async def _call(self, method: str, uid: str = "") -> None:
        await asyncio.sleep(0)  # a real call always lets other tasks run
        self.host.check_call(method, uid)


def _observed(domain: _Domain) -> ObservedDomain:
    spec = domain.spec
    return ObservedDomain(spec.uid, spec.epoch, spec.boots, domain.state, domain.reason, domain.pid)


def _stats(domain: _Domain, now_s: float) -> DomainStats:
    spec, ran_s = domain.spec, now_s - domain.started_at
    memory_bytes = spec.memory_mib << 20
    return DomainStats(
        uid=spec.uid,
        cpu_time_s=ran_s * spec.vcpu,
        vcpus=spec.vcpu,
        memory_maximum_bytes=memory_bytes,
        memory_rss_bytes=memory_bytes,
        disks=tuple(DiskStats(device, 0, 0, 0, 0) for device in ("vda", "vdb")),
        nics=tuple(_nic_stats(nic.tap for nic in spec.nics)),
    )


def _nic_stats(taps: Iterable[str]) -> Iterable[NicStats]:
    return (NicStats(tap, 0, 0, 0, 0) for tap in taps)
