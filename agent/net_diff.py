"""What differs between the plan and the node in ports elsewhere and security groups, as works.

**Pure.** In a session only: what a node was told of other nodes holds for that long, and without it nothing
is taken away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from agent.actions import (
    EnsureDirectory,
    EnsureGroup,
    Need,
    RemoveGroup,
    Work,
    directory_key,
    group_key,
    network_key,
    port_key,
)
from agent.directory import Directory
from agent.intent import PlanIntent
from agent.net.directory import digest_of_directory
from agent.net.driver import GroupIntent, ObservedNet, digest_of_group


def directory_works(
    networks: Collection[str], directory: Directory, seen: ObservedNet, made: Collection[str]
) -> Iterator[Work]:
    """For the networks that are to be here. One that the kernel has no place for yet waits for its making."""
    for uid in networks:
        remotes = directory.find_remotes(uid)
        if remotes is None:
            continue  # nothing was told: what is programmed stays
        if uid in seen.directories and seen.directories[uid] == digest_of_directory(remotes):
            continue
        key = network_key(uid)
        needs = (Need(key),) if key in made else ()
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
