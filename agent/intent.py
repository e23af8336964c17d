"""The node's plan, parsed into the values that drivers take.

**Pure.** A bad object in a plan becomes a Refusal of that object and holds up no other (correctness.md
I21). Uids and digests become paths and names on the host, so their form is checked here, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv6Address
from typing import Final, Literal

from agent.net.balancer import answered_in
from agent.net.driver import IPAddress, NetworkIntent, PortIntent, RouterIntent, RuleIntent
from agent.net_intent import (
    RouterPlan,
    parse_network,
    parse_port,
    parse_router,
    parse_rules,
)
from agent.planned import IntentError, check_uid
from agent.storage.driver import DiskSpec, SeedSpec
from cumulet.v1 import agent_pb2 as pb
from cumulet.v1 import image_pb2, instance_pb2

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An object of the plan that the agent does not act on, and why."""

    uid: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class InstanceIntent:
    """One instance as it is to be here. `stop_timeout_s` 0 or less: cut the power at once.

    The controller fills in the default of the API's stop_timeout_s and sends 0 for a forced stop or
    reboot, so that an agent never needs to know a default.
    """

    uid: str
    name: str
    project: str
    epoch: int
    power_on: bool
    boots: int
    stop_timeout_s: int
    vcpu: int
    memory_mib: int
    disk: DiskSpec
    kernel: image_pb2.ImageFile | None
    initrd: image_pb2.ImageFile | None
    kernel_args: str
    seed: SeedSpec
    ports: tuple[PortIntent, ...]

    def image_files(self) -> tuple[image_pb2.ImageFile, ...]:
        """Everything that it needs of the image cache."""
        return tuple(file for file in (self.disk.base, self.kernel, self.initrd) if file is not None)


@dataclass(frozen=True)
class PlanIntent:
    """A whole plan. `networks` carry no ports; `networks_here` do, those of this plan.

    `groups` are the rules of security groups; who is in them, and where other nodes' ports are, is told apart
    (`directory.py`).

    `refused` are uids that the plan names but that could not be parsed: they are neither made nor removed.
    No uid is both planned and tombstoned: the higher epoch counts, at the same one the tombstone.

    `names` of networks, routers, balancers and security groups, by uid: for people, and no part of what is
    compared with the node.
    """

    instances: Mapping[str, InstanceIntent]
    networks: Mapping[str, NetworkIntent]
    tombstones: Mapping[str, int]
    refusals: tuple[Refusal, ...]
    groups: Mapping[str, tuple[RuleIntent, ...]] = field(default_factory=dict)
    routers: Mapping[str, RouterPlan] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def refused(self) -> frozenset[str]:
        return frozenset(refusal.uid for refusal in self.refusals)

    @cached_property
    def networks_here(self) -> Mapping[str, NetworkIntent]:
        """Those with ports, by uid. Made once: a plan outlives many looks."""
        return networks_with(self.networks, iter_ports(self))

    @cached_property
    def port_uids(self) -> frozenset[str]:
        """Of all planned instances."""
        return frozenset(port.uid for port in iter_ports(self))


External = tuple[str, IPAddress]  # uplink and address of the outside


def without_address(plan: PlanIntent, external: External) -> PlanIntent:
    """The plan, but for an address of the outside that the node is to answer for."""
    routers = {
        uid: replace(router, intent=_without(router.intent, external))
        for uid, router in plan.routers.items()
        if external in router.intent.answered
    }
    return replace(plan, routers={**plan.routers, **routers})


def _without(router: RouterIntent, external: External) -> RouterIntent:
    uplink, address = external
    floating = tuple(one for one in router.floating if (one.uplink, one.address) != external)
    routed = tuple(
        replace(one, addresses=tuple(own for own in one.addresses if own != address))
        if one.uplink == uplink
        else one
        for one in router.routed
    )
    return replace(router, floating=floating, routed=routed)


NOTHING: Final = PlanIntent({}, {}, {}, ())


def parse_plan(plan: pb.NodePlan) -> PlanIntent:
    """Every object that can be acted on, and a refusal for each that cannot."""
    refusals: list[Refusal] = []
    networks, routers = _parse_networks(plan, refusals)
    groups: dict[str, tuple[RuleIntent, ...]] = {}
    for group in plan.security_groups:
        try:
            groups[group.uid] = parse_rules(group)
        except ValueError as err:
            refusals.append(_refusal("security group", group.uid, "", err))
    instances: dict[str, InstanceIntent] = {}
    for instance in plan.instances:
        try:
            instances[instance.uid] = _parse_instance(instance)
        except ValueError as err:
            refusals.append(_refusal("instance", instance.uid, instance.name, err))
    tombstones: dict[str, int] = {}
    for tombstone in plan.tombstones:
        tombstones[tombstone.uid] = max(tombstone.epoch, tombstones.get(tombstone.uid, tombstone.epoch))
    _drop_bad_tombstones(tombstones, refusals)
    for uid in tombstones.keys() & instances.keys():
        if instances[uid].epoch > tombstones[uid]:
            del tombstones[uid]
        else:
            del instances[uid]
    routers = _with_addresses(routers, networks, instances.values())
    names = {one.uid: one.name for one in plan.networks}
    names |= {one.uid: one.name for one in plan.routers}
    names |= {one.uid: one.name for one in plan.security_groups}
    names |= {one.uid: one.name for router in plan.routers for one in router.load_balancers}
    return PlanIntent(instances, networks, tombstones, tuple(refusals), groups, routers, names)


def _parse_networks(
    plan: pb.NodePlan, refusals: list[Refusal]
) -> tuple[dict[str, NetworkIntent], dict[str, RouterPlan]]:
    """A router says whether its networks lead outside; without their router they have no place to be in."""
    networks: dict[str, NetworkIntent] = {}
    for network in plan.networks:
        try:
            networks[network.uid] = parse_network(network)
        except ValueError as err:
            refusals.append(_refusal("network", network.uid, network.name, err))
    routers: dict[str, RouterPlan] = {}
    for router in plan.routers:
        try:
            joined = [network for network in networks.values() if network.router_uid == router.uid]
            routers[router.uid] = parse_router(router, joined)
        except ValueError as err:
            refusals.append(_refusal("router", router.uid, "", err))
    for uid, parsed in list(networks.items()):
        if parsed.router_uid and parsed.router_uid not in routers:
            del networks[uid]
            problem = IntentError(f"router_uid: router {parsed.router_uid} of the plan cannot be made here")
            refusals.append(_refusal("network", uid, "", problem))
        elif parsed.router_uid:
            joins = routers[parsed.router_uid].intent
            answered = answered_in((subnet.cidr for subnet in parsed.subnets), joins.balancers)
            networks[uid] = replace(parsed, outbound_nat=joins.outbound_nat, answered=answered)
    return networks, routers


def _with_addresses(
    routers: Mapping[str, RouterPlan],
    networks: Mapping[str, NetworkIntent],
    instances: Iterable[InstanceIntent],
) -> dict[str, RouterPlan]:
    """Routed subnets with the addresses that ports here have in them."""
    held: dict[str, list[IPv6Address]] = {}  # by router
    for port in (port for instance in instances for port in instance.ports):
        network = networks.get(port.network_uid)
        if network is not None and network.router_uid:
            own = (address for address in port.addresses if isinstance(address, IPv6Address))
            held.setdefault(network.router_uid, []).extend(own)
    found = dict(routers)
    for uid, router in routers.items():
        if router.intent.routed:
            here = sorted(held.get(uid, ()))
            routed = tuple(
                replace(one, addresses=tuple(address for address in here if address in one.subnet))
                for one in router.intent.routed
            )
            found[uid] = replace(router, intent=replace(router.intent, routed=routed))
    return found


def networks_with(
    networks: Mapping[str, NetworkIntent], ports: Iterable[PortIntent]
) -> dict[str, NetworkIntent]:
    """Networks that have some of these ports, with them."""
    found: dict[str, list[PortIntent]] = {}
    for port in ports:
        found.setdefault(port.network_uid, []).append(port)
    return {
        uid: replace(network, ports=tuple(sorted(found[uid], key=lambda port: port.uid)))
        for uid, network in sorted(networks.items())
        if uid in found
    }


def iter_ports(plan: PlanIntent) -> Iterator[PortIntent]:
    """All ports of all planned instances."""
    for instance in plan.instances.values():
        yield from instance.ports


def _refusal(kind: str, uid: str, name: str, err: ValueError) -> Refusal:
    return Refusal(uid, "BadPlan", f"{kind} {name or uid!r} of the plan: {err}; correct it at the controller")


def _drop_bad_tombstones(tombstones: dict[str, int], refusals: list[Refusal]) -> None:
    for uid in list(tombstones):
        try:
            check_uid("tombstones.uid", uid)
        except IntentError as err:
            del tombstones[uid]
            refusals.append(_refusal("tombstone", uid, uid, err))


def _parse_instance(planned: pb.PlannedInstance) -> InstanceIntent:
    uid = check_uid("uid", planned.uid)
    if planned.power not in (instance_pb2.POWER_STATE_ON, instance_pb2.POWER_STATE_OFF):
        raise IntentError(f"power {planned.power} is neither on nor off")
    if planned.resources.vcpu <= 0 or planned.resources.memory_mib <= 0:
        raise IntentError("resources.vcpu and resources.memory_mib must be above zero")
    hostname = planned.hostname or planned.name
    return InstanceIntent(
        uid=uid,
        name=planned.name,
        project=planned.project,
        epoch=planned.epoch,
        power_on=planned.power == instance_pb2.POWER_STATE_ON,
        boots=planned.boots,
        stop_timeout_s=planned.stop_timeout_s,
        vcpu=planned.resources.vcpu,
        memory_mib=planned.resources.memory_mib,
        disk=DiskSpec(uid, _parse_file("image.disk", planned.image.disk), planned.resources.disk_gib),
        kernel=_parse_boot_file(planned.image, "kernel"),
        initrd=_parse_boot_file(planned.image, "initrd"),
        kernel_args=planned.image.kernel_args,
        seed=SeedSpec(uid, hostname, tuple(planned.authorized_keys), planned.user_data),
        ports=tuple(parse_port(port, hostname) for port in planned.ports),
    )


def _parse_file(field: str, file: image_pb2.ImageFile) -> image_pb2.ImageFile:
    if not _SHA256.fullmatch(file.sha256):
        raise IntentError(f"{field}.sha256 {file.sha256!r} is not a SHA-256 in lower-case hex")
    return file


def _parse_boot_file(
    image: image_pb2.ImageSpec, field: Literal["kernel", "initrd"]
) -> image_pb2.ImageFile | None:
    """Absent where the disk boots by itself."""
    if not image.HasField(field):
        return None
    return _parse_file(f"image.{field}", image.kernel if field == "kernel" else image.initrd)
