"""What differs between the plan and the node in routers, ports elsewhere and security groups, as works.

**Pure.** But for routers themselves in a session only: what a node was told of other nodes holds for that
long, and without it nothing is taken away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from agent.actions import (
    EnsureDirectory,
    EnsureGroup,
    EnsureRouter,
    EnsureRouterDirectory,
    Need,
    RemoveGroup,
    RemoveRouter,
    Work,
    directory_key,
    group_key,
    network_key,
    port_key,
    router_directory_key,
    router_key,
)
from agent.directory import Directory
from agent.intent import PlanIntent
from agent.net.directory import digest_of_directory
from agent.net.driver import (
    GroupIntent,
    IPAddress,
    IPNetwork,
    NetworkIntent,
    ObservedNet,
    RouteIntent,
    RouterDirectory,
    digest_of,
    digest_of_group,
)
from agent.net.router_entries import digest_of_router_directory
from agent.net_intent import RouterPlan

Networks = Mapping[str, NetworkIntent]


def router_works(plan: PlanIntent, networks: Networks, seen: ObservedNet) -> Iterator[Work]:
    """Routers of the networks that are to be here."""
    for uid in sorted({network.router_uid for network in networks.values()} - {""}):
        router = plan.routers[uid].intent
        if seen.routers.get(uid) != digest_of(router):
            yield Work(router_key(uid), (EnsureRouter(router),))


def router_directory_works(
    plan: PlanIntent, networks: Networks, directory: Directory, seen: ObservedNet, made: Collection[str]
) -> Iterator[Work]:
    """After the router, and after those of its networks that are being made: routes may lead into them."""
    for uid in sorted({network.router_uid for network in networks.values()} - {""}):
        wanted = _router_directory(plan.routers[uid], networks, directory)
        if wanted is None or seen.router_directories.get(uid) == digest_of_router_directory(wanted):
            continue
        keys = [router_key(uid)]
        keys += [network_key(one.uid) for one in networks.values() if one.router_uid == uid]
        needs = [Need(key) for key in keys if key in made]
        yield Work(router_directory_key(uid), (*needs, EnsureRouterDirectory(uid, wanted)))


def unused_routers(
    plan: PlanIntent, networks: Networks, seen: ObservedNet, changing: Collection[str]
) -> Iterator[Work]:
    """Routers that no network here is to be in, or is in without being planned. `changing`: keys of networks
    that are made or removed; they leave first."""
    kept = {network.router_uid for network in networks.values()}
    staying = (one for uid, one in seen.networks.items() if network_key(uid) not in changing)
    kept |= {one.router_uid for one in staying if one.uid not in networks}
    needs = tuple(Need(key) for key in sorted(changing))
    for uid in sorted(seen.routers.keys() - kept - plan.refused):
        yield Work(router_key(uid), (*needs, RemoveRouter(uid)))


def _router_directory(router: RouterPlan, networks: Networks, directory: Directory) -> RouterDirectory | None:
    """None while something was not told."""
    remotes = []
    for uid in router.network_uids:
        told = directory.find_remotes(uid)
        if told is None:
            return None
        remotes.append(told)
    routes = (_resolve(router, cidr, next_hop, networks, directory) for cidr, next_hop in router.routes)
    return RouterDirectory(tuple(remotes), tuple(routes))


def _resolve(
    router: RouterPlan, cidr: IPNetwork, next_hop: IPAddress, networks: Networks, directory: Directory
) -> RouteIntent:
    """A next hop that no port has here or elsewhere leads nowhere."""
    for uid in router.network_uids:
        vtep = directory.find_vtep(uid, next_hop)
        if vtep is not None:
            return RouteIntent(cidr, vtep=vtep)
        network = networks.get(uid)
        if network is not None and any(next_hop in subnet.cidr for subnet in network.subnets):
            return RouteIntent(cidr, next_hop=next_hop, network_uid=uid)
    return RouteIntent(cidr)


def directory_works(
    networks: Networks, directory: Directory, seen: ObservedNet, made: Collection[str]
) -> Iterator[Work]:
    """For the networks that are to be here. One that the kernel has no place for yet waits for its making."""
    for uid, network in networks.items():
        remotes = directory.find_remotes(uid)
        if remotes is None:
            continue  # nothing was told: what is programmed stays
        if uid in seen.directories and seen.directories[uid] == digest_of_directory(remotes):
            continue
        keys = (router_key(network.router_uid), network_key(uid))
        needs = tuple(Need(key) for key in keys if key in made)
        if needs or uid in seen.directories:
            yield Work(directory_key(uid), (*needs, EnsureDirectory(uid, remotes)))


def group_works(plan: PlanIntent, directory: Directory, seen: ObservedNet) -> Iterator[Work]:
    """Groups of ports here, and those that their rules refer to."""
    for uid, group in sorted(_wanted_groups(plan, directory).items()):
        if seen.groups.get(uid) != digest_of_group(group):
            yield Work(group_key(uid), (EnsureGroup(group),))


def unused_groups(
    plan: PlanIntent, directory: Directory, seen: ObservedNet, stray_ports: Collection[str]
) -> Iterator[Work]:
    """Groups that no port here has any more, after the ports that had them."""
    needs = tuple(Need(port_key(uid)) for uid in stray_ports)
    for uid in sorted(seen.groups.keys() - _wanted_groups(plan, directory).keys() - plan.refused):
        yield Work(group_key(uid), (*needs, RemoveGroup(uid)))


def _wanted_groups(plan: PlanIntent, directory: Directory) -> dict[str, GroupIntent]:
    referred = {rule.remote_group for rules in plan.groups.values() for rule in rules} - {""}
    return {
        uid: GroupIntent(uid, plan.groups.get(uid, ()), directory.find_members(uid) or frozenset())
        for uid in plan.groups.keys() | referred
    }
