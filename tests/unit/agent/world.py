"""A pure model of the host: what each action does to what is observed.

**Pure.** The drivers' contract in twelve lines, for properties of the diff. Guests obey the power button
unless they are deaf.
"""

from __future__ import annotations

from dataclasses import replace

from agent.actions import (
    Action,
    Decision,
    DropImages,
    EnsureDisk,
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
    RemoveNetwork,
    RemovePort,
    RemoveRouter,
    RequestShutdown,
    StartDomain,
)
from agent.hypervisor.driver import ObservedDomain
from agent.net.driver import ObservedNet, ObservedNetwork, digest_of
from agent.net.router_entries import digest_of_router_directory
from agent.observed import Observed
from agent.storage.driver import ObservedStorage
from cumulet.v1 import agent_pb2 as pb

EMPTY = Observed({}, ObservedStorage({}, frozenset(), 2**40), ObservedNet({}, {}, frozenset(), ()))


def apply_action(seen: Observed, action: Action, *, deaf: bool = False) -> Observed:
    """The world after one action that succeeded."""
    match action:
        case EnsureImage(file):
            return _images(seen, seen.storage.images | {file.sha256})
        case DropImages(unused):
            return _images(seen, seen.storage.images - unused)
        case EnsureDisk(spec):
            assert spec.base.sha256 in seen.storage.images, "a disk needs its base"
            return _files(seen, spec.uid, seen.files(spec.uid) | {"disk"})
        case EnsureSeed(seed):
            return _files(seen, seed.uid, seen.files(seed.uid) | {"seed"})
        case RemoveFiles(uid):
            domain = seen.domains.get(uid)
            assert domain is None or domain.state in (OFF, CRASHED), "files of a running domain"
            return _files(seen, uid, frozenset())
        case EnsureNetwork(network):
            there = {"", *seen.net.routers}
            assert network.router_uid in there, "a network needs its router"
            made = ObservedNetwork(network.uid, True, digest_of(network), network.router_uid)
            return _net(seen, networks={**seen.net.networks, network.uid: made})
        case RemoveNetwork(uid):
            return _net(seen, networks={k: v for k, v in seen.net.networks.items() if k != uid})
        case EnsurePort(port):
            assert port.network_uid in seen.net.networks, "a port needs its network"
            return _net(seen, taps={**seen.net.taps, port.uid: True})
        case EnsureRouter(router):
            return _net(seen, routers={**seen.net.routers, router.uid: digest_of(router)})
        case EnsureRouterDirectory(uid, directory):
            assert uid in seen.net.routers, "routes need their router"
            routes = {**seen.net.router_directories, uid: digest_of_router_directory(directory)}
            return replace(seen, net=replace(seen.net, router_directories=routes))
        case RemoveRouter(uid):
            inside = [one.uid for one in seen.net.networks.values() if one.router_uid == uid]
            assert not inside, "networks leave a router before it goes"
            return _net(seen, routers={k: v for k, v in seen.net.routers.items() if k != uid})
        case RemovePort(uid):
            return _net(seen, taps={k: v for k, v in seen.net.taps.items() if k != uid})
        case _:
            return _power(seen, action, deaf)


OFF, RUNNING, CRASHED = pb.DOMAIN_STATE_OFF, pb.DOMAIN_STATE_RUNNING, pb.DOMAIN_STATE_CRASHED


def _power(seen: Observed, action: Action, deaf: bool) -> Observed:
    match action:
        case StartDomain(intent):
            assert {"disk", "seed"} <= seen.files(intent.uid), "a start needs disk and seed"
            assert all(seen.net.taps.get(port.uid) for port in intent.ports), "a start needs its taps"
            before = seen.domains.get(intent.uid)
            assert before is None or before.epoch == intent.epoch, "an old copy is there"
            assert before is None or before.state in (OFF, CRASHED), "it runs already"
            return _domain(seen, ObservedDomain(intent.uid, intent.epoch, intent.boots, RUNNING, "", 4711))
        case RequestShutdown(uid) if not deaf:
            return _domain(seen, replace(seen.domains[uid], state=OFF, reason="GuestPoweredOff", pid=0))
        case ForceOff(uid):
            return _domain(seen, replace(seen.domains[uid], state=OFF, reason="ForcedOff", pid=0))
        case RemoveDomain(uid):
            return replace(seen, domains={k: v for k, v in seen.domains.items() if k != uid})
    return seen


def apply_decision(seen: Observed, decision: Decision, stop_after: int | None = None) -> Observed:
    """The world after all works, or after the first `stop_after` actions of them."""
    left = stop_after
    for work in decision.works:
        for action in work.actions:
            if isinstance(action, Need):
                continue
            if left == 0:
                return seen
            left = None if left is None else left - 1
            seen = apply_action(seen, action)
    return seen


def _domain(seen: Observed, domain: ObservedDomain) -> Observed:
    return replace(seen, domains={**seen.domains, domain.uid: domain})


def _images(seen: Observed, images: frozenset[str]) -> Observed:
    return replace(seen, storage=replace(seen.storage, images=images))


def _files(seen: Observed, uid: str, files: frozenset[str]) -> Observed:
    instances = {k: v for k, v in seen.storage.instances.items() if k != uid}
    if files:
        instances[uid] = files
    return replace(seen, storage=replace(seen.storage, instances=instances))


def _net(
    seen: Observed,
    *,
    networks: dict[str, ObservedNetwork] | None = None,
    taps: dict[str, bool] | None = None,
    routers: dict[str, str] | None = None,
) -> Observed:
    net = seen.net
    return replace(
        seen,
        net=replace(
            net,
            networks=net.networks if networks is None else networks,
            taps=net.taps if taps is None else taps,
            routers=net.routers if routers is None else routers,
        ),
    )
