"""The difference between the plan and the node, as works.

**Pure.** Absence from a plan never removes anything that could be in use: an instance goes only by a
tombstone of its epoch or by a plan of a higher epoch (a new copy, placed here again). A tap or a network
that no plan names goes only when no emulator on the node could hold it.

Files carry no epoch, a domain does. So an old copy's files are removed before its domain is forgotten,
and files without a domain belong to a copy that never ran: they hold nothing and may be used or removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from agent.actions import (
    IMAGES_KEY,
    Action,
    Decision,
    DropImages,
    EnsureDisk,
    EnsureImage,
    EnsureNetwork,
    EnsurePort,
    EnsureSeed,
    ForceOff,
    Need,
    RemoveDomain,
    RemoveFiles,
    RemoveNetwork,
    RemovePort,
    RequestShutdown,
    StartDomain,
    Work,
    image_key,
    instance_key,
    network_key,
    port_key,
    router_key,
)
from agent.directory import Directory
from agent.hypervisor.driver import ObservedDomain
from agent.intent import InstanceIntent, PlanIntent, Refusal, iter_ports, networks_with
from agent.memory import Memory
from agent.net.driver import NetworkIntent, PortIntent, digest_of
from agent.net_diff import (
    directory_works,
    group_works,
    router_directory_works,
    router_works,
    unused_groups,
    unused_routers,
)
from agent.observed import Observed, is_active
from agent.power import CutPower, PressButton, Start, Wait, next_step

# Instances are often deleted and made again from the same image; a day keeps a night's pause warm.
IMAGE_KEEP_S: Final = 24 * 3600.0


def diff(
    plan: PlanIntent,
    observed: Observed,
    memory: Memory,
    now: float,
    *,
    directory: Directory | None = None,
    in_session: bool = True,
) -> Decision:
    """What is to be done now.

    Without a session's plan (`in_session` false) only the network of what runs is repaired. `directory`: what
    this session was told of ports elsewhere, None for nothing.
    """
    return _Diff(plan, observed, memory, now, in_session, directory or Directory()).decide()


def diff_directory(
    plan: PlanIntent, observed: Observed, memory: Memory, now: float, directory: Directory
) -> tuple[Work, ...] | None:
    """Only what follows from what a session was told of ports elsewhere; nothing else is compared.

    None when that cannot be done on its own, because a network or router here has to be made first.
    """
    return _Diff(plan, observed, memory, now, True, directory).decide_directory()


def find_foreign(plan: PlanIntent, observed: Observed) -> frozenset[str]:
    """Instances here that the plan neither keeps nor destroys: they are reported, never touched."""
    return frozenset(uid for uid in observed.uids() if not _is_ruled(plan, observed.domains.get(uid), uid))


def _is_ruled(plan: PlanIntent, domain: ObservedDomain | None, uid: str) -> bool:
    doomed = plan.tombstones.get(uid)
    if doomed is not None:
        return domain is None or domain.epoch <= doomed
    return uid in plan.instances


@dataclass
class _Diff:
    """One call of diff: its arguments, and what it collects."""

    plan: PlanIntent
    observed: Observed
    memory: Memory
    now: float
    in_session: bool
    directory: Directory
    refusals: list[Refusal] = field(default_factory=list)
    wake_at: float | None = None

    def decide(self) -> Decision:
        wanted = self._wanted_networks()
        routers, networks = self._shared_works(wanted)
        images = self._image_works() if self.in_session else []
        made = frozenset(work.key for work in (*routers, *networks, *images))
        works = [*routers, *networks, *images, *self._instance_works(made)]
        if self.in_session:
            works += self._directory_works(wanted, made)
            works += self._leftover_works(wanted, networks)
        refusals = (*self.plan.refusals, *self.directory.refusals.values(), *self.refusals)
        effective = (work for work in works if any(not isinstance(action, Need) for action in work.actions))
        return Decision(tuple(effective), refusals, self.wake_at)

    def decide_directory(self) -> tuple[Work, ...] | None:
        wanted = self._wanted_networks()
        if any(self._shared_works(wanted)):
            return None
        return tuple(self._directory_works(wanted, frozenset()))

    # Networks and images: objects that instances share, so each is made once.

    def _shared_works(self, wanted: Mapping[str, NetworkIntent]) -> tuple[list[Work], list[Work]]:
        """Of routers, and of networks."""
        routers = list(router_works(self.plan, wanted, self.observed.net))
        return routers, self._network_works(wanted, frozenset(work.key for work in routers))

    def _directory_works(self, wanted: Mapping[str, NetworkIntent], made: frozenset[str]) -> list[Work]:
        net = self.observed.net
        return [
            *directory_works(wanted, self.directory, net, made),
            *router_directory_works(self.plan, wanted, self.directory, net, made),
            *group_works(self.plan, self.directory, net),
        ]

    def _network_works(self, wanted: Mapping[str, NetworkIntent], made: frozenset[str]) -> list[Work]:
        """A router is there before the networks that come into it."""
        works = []
        for network in wanted.values():
            seen = self.observed.net.networks.get(network.uid)
            if seen is None or not seen.complete or seen.digest != digest_of(network):
                key = router_key(network.router_uid)
                needs = (Need(key),) if key in made else ()
                works.append(Work(network_key(network.uid), (*needs, EnsureNetwork(network))))
        return works

    def _wanted_networks(self) -> Mapping[str, NetworkIntent]:
        """Planned networks with their ports here; out of a session only those that something uses."""
        wanted = self.plan.networks_here
        if self._foreign_ports:
            wanted = networks_with(self.plan.networks, (*iter_ports(self.plan), *self._foreign_ports))
        if self.in_session:
            return wanted
        used = self._used_networks()
        return {uid: network for uid, network in wanted.items() if uid in used}

    def _used_networks(self) -> frozenset[str]:
        running = (
            port
            for uid, instance in self.plan.instances.items()
            if is_active(self.observed.domains.get(uid))
            for port in instance.ports
        )
        return frozenset(port.network_uid for port in (*running, *self._foreign_ports))

    def _image_works(self) -> list[Work]:
        missing = {
            file.sha256: file
            for instance in self.plan.instances.values()
            for file in instance.image_files()
            if file.sha256 not in self.observed.storage.images
        }
        return [Work(image_key(sha256), (EnsureImage(file),)) for sha256, file in sorted(missing.items())]

    # Instances.

    def _instance_works(self, made: frozenset[str]) -> Iterator[Work]:
        for uid, intent in sorted(self.plan.instances.items()):
            yield Work(instance_key(uid), tuple(self._keep(intent, made)))
        if self.in_session:
            for uid, epoch in sorted(self.plan.tombstones.items()):
                yield Work(instance_key(uid), tuple(self._destroy(uid, epoch)))

    def _destroy(self, uid: str, epoch: int) -> list[Action]:
        domain = self.observed.domains.get(uid)
        if domain is not None and domain.epoch > epoch:
            self._refuse(
                uid,
                "NewerCopy",
                f"instance {uid} here is of epoch {domain.epoch}, its tombstone of {epoch}: it stays",
            )
            return []
        ports = self.memory.ports.get(uid, ())
        taps: list[Action] = [RemovePort(port.uid) for port in ports if port.uid in self.observed.net.taps]
        return [*self._cut(domain), *taps, *self._erase(uid, domain)]

    def _cut(self, domain: ObservedDomain | None) -> list[Action]:
        return [ForceOff(domain.uid)] if domain is not None and is_active(domain) else []

    def _erase(self, uid: str, domain: ObservedDomain | None) -> list[Action]:
        """Files first: while the domain is there, its epoch says whose they are."""
        files: list[Action] = [RemoveFiles(uid)] if uid in self.observed.storage.instances else []
        return [*files, RemoveDomain(uid)] if domain is not None else files

    def _keep(self, intent: InstanceIntent, made: frozenset[str]) -> list[Action]:
        domain = self.observed.domains.get(intent.uid)
        if domain is not None and domain.epoch > intent.epoch:
            self._refuse(
                intent.uid,
                "StaleEpoch",
                f"instance {intent.name} here is of epoch {domain.epoch}, the plan's of {intent.epoch}",
            )
            return []
        if not self.in_session:
            current = domain is not None and domain.epoch == intent.epoch and is_active(domain)
            return self._connect(intent, made) if current else []
        if domain is not None and domain.epoch < intent.epoch:
            replaced = [*self._cut(domain), *self._erase(intent.uid, domain)]
            return [*replaced, *self._run(intent, None, frozenset(), made)]
        return self._run(intent, domain, self.observed.files(intent.uid), made)

    def _run(
        self,
        intent: InstanceIntent,
        domain: ObservedDomain | None,
        files: frozenset[str],
        made: frozenset[str],
    ) -> list[Action]:
        """Bring one copy of the right epoch to the power that is asked for."""
        memory = self.memory
        step = next_step(
            intent, domain, memory.presses.get(intent.uid), memory.crashes.get(intent.uid), self.now
        )
        boots = intent.power_on and not isinstance(step, Wait)
        if boots and self._refuses_boot(intent, domain, files):
            return self._connect(intent, made)
        if isinstance(step, PressButton) and domain is not None:
            return [RequestShutdown(intent.uid, domain.boots)]
        if isinstance(step, CutPower):
            then = (
                self._boot(intent, files, made, Start()) if step.then_start else self._connect(intent, made)
            )
            return [ForceOff(intent.uid), *then]
        if isinstance(step, Start):
            return self._boot(intent, files, made, step)
        if isinstance(step, Wait) and step.until is not None:
            self._wake(step.until)
        if domain is None:
            return [*self._prepare(intent, files, made), *self._connect(intent, made)]
        return self._connect(intent, made)

    def _boot(
        self, intent: InstanceIntent, files: frozenset[str], made: frozenset[str], step: Start
    ) -> list[Action]:
        # The seed is written before every boot, since keys may have changed.
        ready = self._prepare(intent, files - {"seed"}, made)
        return [*ready, *self._connect(intent, made), StartDomain(intent, step.after_crash)]

    def _refuses_boot(
        self, intent: InstanceIntent, domain: ObservedDomain | None, files: frozenset[str]
    ) -> bool:
        """It could not start, or not as it was: so it is not stopped for a reboot either."""
        missing = self._missing_networks(intent)
        if domain is not None and "disk" not in files:
            self._refuse(
                intent.uid,
                "DiskLost",
                f"the disk of instance {intent.name} is gone from this node; a new one would hide that. "
                "Put it back, or delete the instance",
            )
            return True
        if missing:
            self._refuse(
                intent.uid, "NetworkMissing", f"the plan lacks network {', '.join(missing)} of {intent.name}"
            )
        return bool(missing)

    def _missing_networks(self, intent: InstanceIntent) -> list[str]:
        return [port.network_uid for port in intent.ports if port.network_uid not in self.plan.networks]

    def _prepare(self, intent: InstanceIntent, files: frozenset[str], made: frozenset[str]) -> list[Action]:
        keys = (image_key(file.sha256) for file in intent.image_files())
        actions: list[Action] = [Need(key) for key in dict.fromkeys(keys) if key in made]
        if "disk" not in files:
            actions.append(EnsureDisk(intent.disk))
        if "seed" not in files:
            actions.append(EnsureSeed(intent.seed))
        return actions

    def _connect(self, intent: InstanceIntent, made: frozenset[str]) -> list[Action]:
        """Its networks first, then the taps that are missing or not attached."""
        ports = [port for port in intent.ports if port.network_uid in self.plan.networks]
        keys = [router_key(self.plan.networks[port.network_uid].router_uid) for port in ports]
        keys = list(dict.fromkeys([*keys, *(network_key(port.network_uid) for port in ports)]))
        needs: list[Action] = [Need(key) for key in keys if key in made]
        taps = self.observed.net.taps
        missing: list[Action] = [EnsurePort(port) for port in ports if not taps.get(port.uid, False)]
        return [*needs, *missing] if missing or needs else []

    # What nothing uses any more.

    def _leftover_works(self, wanted: Mapping[str, NetworkIntent], made: list[Work]) -> list[Work]:
        works = []
        if not self._has_unknown_ports():
            stray = self._stray_taps()
            dying = [uid for uid in sorted(self.plan.tombstones) if is_active(self.observed.domains.get(uid))]
            needs = tuple(Need(instance_key(uid)) for uid in dying)
            works = [Work(port_key(uid), (*needs, RemovePort(uid))) for uid in stray]
            unused = self._unused_networks(stray)
            changing = frozenset(work.key for work in (*made, *unused))
            works += unused
            works += unused_routers(self.plan, wanted, self.observed.net, changing)
            works += unused_groups(self.plan, self.directory, self.observed.net, stray)
        images = self._unused_images()
        return [*works, Work(IMAGES_KEY, (DropImages(images),))] if images else works

    @cached_property
    def _foreign(self) -> frozenset[str]:
        return find_foreign(self.plan, self.observed)

    @cached_property
    def _active_foreign(self) -> list[str]:
        return sorted(uid for uid in self._foreign if is_active(self.observed.domains.get(uid)))

    @cached_property
    def _foreign_ports(self) -> list[PortIntent]:
        """Ports of what runs here without being in the plan, as far as an earlier plan named them."""
        known = (port for uid in self._active_foreign for port in self.memory.ports.get(uid, ()))
        return [port for port in known if port.uid not in self.plan.port_uids]

    def _has_unknown_ports(self) -> bool:
        """Something runs here whose taps nobody can tell: no tap and no network may go."""
        return any(uid not in self.memory.ports for uid in self._active_foreign)

    def _stray_taps(self) -> list[str]:
        kept = self.plan.port_uids.union(port.uid for port in self._foreign_ports)
        for uid in self.plan.tombstones:  # removed with their instance, in its own order
            kept |= {port.uid for port in self.memory.ports.get(uid, ())}
        return sorted(self.observed.net.taps.keys() - kept)

    def _unused_networks(self, stray: list[str]) -> list[Work]:
        kept = {port.network_uid for port in (*iter_ports(self.plan), *self._foreign_ports)}
        kept |= self.plan.refused | self.plan.routers.keys()  # whose namespaces look like a network's
        taps, ports = self.observed.net.taps, self.memory.ports
        dying = [uid for uid in self.plan.tombstones if any(port.uid in taps for port in ports.get(uid, ()))]
        keys = (*(port_key(uid) for uid in stray), *(instance_key(uid) for uid in sorted(dying)))
        needs = [Need(key) for key in keys]
        return [
            Work(network_key(uid), (*needs, RemoveNetwork(uid)))
            for uid in sorted(self.observed.net.networks.keys() - kept)
        ]

    def _unused_images(self) -> frozenset[str]:
        """Never while there is a disk whose base nobody can tell."""
        if self._foreign:
            return frozenset()
        used_at = self.memory.images_used_at
        used = {file.sha256 for intent in self.plan.instances.values() for file in intent.image_files()}
        return frozenset(
            sha256
            for sha256 in self.observed.storage.images - used
            if self.now - used_at.get(sha256, self.now) > IMAGE_KEEP_S
        )

    def _refuse(self, uid: str, reason: str, message: str) -> None:
        self.refusals.append(Refusal(uid, reason, message))

    def _wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)
