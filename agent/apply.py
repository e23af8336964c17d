"""Executes works: each key on its own, failures kept per key and tried again later.

**Edge**: calls the drivers. One object's failure, slowness or hang never holds up another's work.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

import structlog

from agent.actions import (
    Action,
    Decision,
    DropImages,
    EnsureDirectory,
    EnsureDisk,
    EnsureGroup,
    EnsureImage,
    EnsureNetwork,
    EnsurePort,
    EnsureRouter,
    EnsureRouterDirectory,
    EnsureSeed,
    ForceOff,
    Need,
    RemoveDomain,
    RemoveFiles,
    RemoveGroup,
    RemoveNetwork,
    RemovePort,
    RemoveRouter,
    RequestShutdown,
    StartDomain,
    Work,
)
from agent.drivers import Drivers, FileSource, build_domain_spec
from agent.errors import DriverError, DriverUnavailableError
from cumulet.clock import Clock

# libvirt, netlink and qemu-img each work on a few things at once; more only queues inside them.
ACTIONS_MAX: Final = 16
# Two downloads fill a 10G link already; the image cache's disk prefers few writers.
DOWNLOADS_MAX: Final = 2
# Above the drivers' own deadlines, whose errors say more (libvirt's start: 120 s): beyond it a call hangs.
ACTION_TIMEOUT_S: Final = 300.0
# 100 GiB over a slow 1G link, with room.
DOWNLOAD_TIMEOUT_S: Final = 3600.0
# A failure that may pass is tried soon, then less and less often; people look again within a minute.
RETRY_FIRST_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
# One that cannot pass by itself is still tried now and then, since somebody may have mended the host.
RETRY_PERMANENT_S: Final = 300.0
_log = structlog.get_logger("agent")

JITTER: Final = 0.2  # of every wait, so that nodes and objects do not march in step


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failure of one key."""

    action: Action
    reason: str
    message: str
    attempts: int
    retry_at: float


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[None]
    work: Work


class Applier:
    """Runs works as tasks of a group that the caller owns.

    `may_start` is the fence: asked immediately before each start. `on_try` hears of each action before it
    is tried, `on_done` whenever a key is free again, and of which.
    """

    def __init__(
        self,
        drivers: Drivers,
        source: FileSource,
        clock: Clock,
        rng: random.Random,
        *,
        may_start: Callable[[StartDomain], bool],
        on_try: Callable[[Action], None],
        on_done: Callable[[str], None],
    ) -> None:
        self._drivers = drivers
        self._source = source
        self._clock = clock
        self._rng = rng
        self._may_start = may_start
        self._on_try = on_try
        self._on_done = on_done
        self._running: dict[str, _Running] = {}
        self._actions = asyncio.Semaphore(ACTIONS_MAX)
        self._downloads = asyncio.Semaphore(DOWNLOADS_MAX)
        self.failures: dict[str, Failure] = {}
        self.results: Counter[tuple[str, str]] = Counter()  # (kind of action, result), for metrics

    def busy(self) -> frozenset[str]:
        """Keys that are being worked on."""
        return frozenset(self._running)

    def dispatch(self, decision: Decision, stale: frozenset[str], group: asyncio.TaskGroup) -> int:
        """Start what can be started now of all that is to be done; how many. `stale`: keys that were worked
        on during the look."""
        wanted = {work.key: work for work in decision.works}
        self._forget(wanted, stale)
        self._cancel_downloads(wanted)
        return len(self.start(decision.works, stale, group))

    def start(self, works: Iterable[Work], stale: frozenset[str], group: asyncio.TaskGroup) -> list[str]:
        """Start those of some works that can be started now; their keys."""
        ready = [work for work in works if work.key not in stale and self._is_due(work)]
        for work in ready:
            task = group.create_task(self._run(work), name=work.key)
            self._running[work.key] = _Running(task, work)
        return [work.key for work in ready]

    def next_retry_at(self) -> float | None:
        """When the next failed work is due."""
        return self._due_at(self.failures.keys())

    def next_retry_of(self, works: Iterable[Work]) -> float | None:
        """When the next of these works that failed is due."""
        return self._due_at(self.failures.keys() & {work.key for work in works})

    def _due_at(self, failed: Collection[str]) -> float | None:
        return min((self.failures[key].retry_at for key in failed if key not in self._running), default=None)

    def _is_due(self, work: Work) -> bool:
        if work.key in self._running:
            return False
        failure = self.failures.get(work.key)
        if failure is None or failure.action not in work.actions:
            return True  # something else is asked for now
        return self._clock.monotonic() >= failure.retry_at

    def _forget(self, wanted: dict[str, Work], stale: frozenset[str]) -> None:
        """A failure ends when its object needs nothing any more."""
        for key in self.failures.keys() - wanted.keys() - self._running.keys() - stale:
            del self.failures[key]

    def _cancel_downloads(self, wanted: dict[str, Work]) -> None:
        for key, running in self._running.items():
            if key not in wanted and isinstance(running.work.actions[0], EnsureImage):
                running.task.cancel()

    async def _run(self, work: Work) -> None:
        """Held up by what it needs, it ends in silence: the end of that, or of its next try, starts a round.

        Else rounds would follow each other as fast as they can while something is made or fails.
        """
        is_held_up = False
        try:
            for action in work.actions:
                if not self._may_go_on(action):
                    is_held_up = isinstance(action, Need)
                    return
                if not await self._try(work.key, action):
                    return
            self.failures.pop(work.key, None)
        finally:
            del self._running[work.key]
            if not is_held_up:
                self._on_done(work.key)

    def _may_go_on(self, action: Action) -> bool:
        if isinstance(action, Need):
            return action.key not in self._running and action.key not in self.failures
        if isinstance(action, StartDomain):
            return self._may_start(action)
        return True

    async def _try(self, key: str, action: Action) -> bool:
        if isinstance(action, Need):
            return True
        kind = type(action).__name__
        try:
            async with self._slot(action):
                # Asked again: the wait for a slot may have been long.
                if not self._may_go_on(action):
                    return False
                self._on_try(action)
                async with asyncio.timeout(_timeout_s(action)):
                    await self._perform(action)
        except DriverUnavailableError:
            self.results[kind, "unavailable"] += 1
            return False  # nothing is known: the next look says what is to be done
        except TimeoutError:
            message = f"{kind} of {key} did not end within {_timeout_s(action):.0f} s; it is tried again"
            self._fail(key, action, DriverError("Timeout", message))
            return False
        except DriverError as err:
            self._fail(key, action, err)
            return False
        except Exception as err:
            # A driver broke its contract: a fault of ours that still must not hold up other objects.
            _log.error("an action broke", key=key, action=kind, exc_info=err)
            message = f"{kind} of {key} failed with {err!r}; see the agent's log"
            self._fail(key, action, DriverError("Internal", message))
            return False
        self.results[kind, "ok"] += 1
        return True

    def _slot(self, action: Action) -> AbstractAsyncContextManager[None]:
        return self._downloads if isinstance(action, EnsureImage) else self._actions

    def _fail(self, key: str, action: Action, err: DriverError) -> None:
        self.results[type(action).__name__, "error"] += 1
        before = self.failures.get(key)
        same = before is not None and before.action == action
        attempts = before.attempts + 1 if before is not None and same else 1
        delay = RETRY_PERMANENT_S if err.permanent else min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** (attempts - 1))
        retry_at = self._clock.monotonic() + delay * self._rng.uniform(1 - JITTER, 1 + JITTER)
        self.failures[key] = Failure(action, err.reason, err.message, attempts, retry_at)

    async def _perform(self, action: Action) -> None:
        hypervisor, net, storage = self._drivers.hypervisor, self._drivers.net, self._drivers.storage
        match action:
            case EnsureImage(file):
                await storage.ensure_image(file, lambda offset: self._fetch(file.sha256, offset))
            case EnsureDisk(spec):
                await storage.ensure_disk(spec)
            case EnsureSeed(seed):
                await storage.ensure_seed(seed)
            case EnsureNetwork(network):
                await net.ensure_network(network)
            case EnsurePort(port):
                await net.ensure_port(port)
            case EnsureDirectory(network_uid, remotes):
                await net.ensure_directory(network_uid, remotes)
            case EnsureGroup(group):
                await net.ensure_group(group)
            case EnsureRouter(router):
                await net.ensure_router(router)
            case EnsureRouterDirectory(router_uid, directory):
                await net.ensure_router_directory(router_uid, directory)
            case StartDomain(intent):
                await hypervisor.ensure_running(build_domain_spec(intent, storage, kvm=self._drivers.kvm))
            case RequestShutdown(uid):
                await hypervisor.request_shutdown(uid)
            case ForceOff(uid):
                await hypervisor.ensure_off(uid)
            case RemoveDomain(uid):
                await hypervisor.ensure_absent(uid)
            case RemovePort(uid):
                await net.ensure_port_absent(uid)
            case RemoveFiles(uid):
                await storage.ensure_absent(uid)
            case RemoveNetwork(uid):
                await net.ensure_network_absent(uid)
            case RemoveGroup(uid):
                await net.ensure_group_absent(uid)
            case RemoveRouter(uid):
                await net.ensure_router_absent(uid)
            case DropImages(unused):
                await storage.drop_images(unused)

    def _fetch(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        return self._source.read(sha256, offset)


def _timeout_s(action: Action) -> float:
    return DOWNLOAD_TIMEOUT_S if isinstance(action, EnsureImage) else ACTION_TIMEOUT_S
