"""Random clouds of two tenants with the same ranges, change after change, and what decided each answer.

**Edge** only through the world that it changes. Everything is drawn from one seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask

from cli.rules import parse_rule, render_rule
from controller.admit import externalnetwork as admit_external
from controller.admit import flavor, image
from controller.admit import floatingip as admit_floating
from controller.admit import instance as admit_instance
from controller.admit import loadbalancer as admit_balancer
from controller.admit import network as admit_network
from controller.admit import port as admit_port
from controller.admit import project as admit_project
from controller.admit import router as admit_router
from controller.admit import securitygroup as admit_group
from controller.admit import subnet as admit_subnet
from controller.admit.subnet import addresses_of
from controller.reach_steps import BALANCER, FLOATING_IP, SEGMENT
from controller.reach_steps import Path as Way
from controller.store import keys
from cumulet.errors import CumuletError
from cumulet.v1 import (
    externalnetwork_pb2,
    floatingip_pb2,
    instance_pb2,
    loadbalancer_pb2,
    meta_pb2,
    network_pb2,
    node_pb2,
    port_pb2,
    reach_pb2,
    router_pb2,
    securitygroup_pb2,
    store_pb2,
    subnet_pb2,
)
from tests.support.reach_world import PORTS, Outcome, Probe, ReachWorld
from tests.unit.agent_net.span import WORLD, WORLD_CIDR, WORLD_CIDR6, WORLD_GATEWAY, WORLD_GATEWAY6
from tests.unit.controller.cloud import flavor_message, held, image_message, project_message

PROJECTS: Final = ("p1", "p2")
# Both tenants have all of them: they overlap. Two IPv4 ranges in one network are joined by a router only.
RANGES: Final = {"net-a": ("10.1.0.0/24", "fd00:a::/64"), "net-b": ("10.2.0.0/24", "10.3.0.0/24")}
# Provider networks on the outside's wire, of one tenant untagged and of the other a VLAN: the same addresses.
OFFICE: Final = "office"
OFFICE_RANGE: Final = "198.51.100.130-198.51.100.150"
OFFICE_VLANS: Final = {"p1": 0, "p2": 20}
GROUPS: Final = {"web": ("out any", "in tcp"), "db": ("out any", "in any ipv4")}  # as they begin
INSTANCES_MAX: Final = 8  # of one project: each is a namespace and a thread
FLOATING_NAMES: Final = ("f", "g")
FLOATING_RANGE: Final = "198.51.100.64-198.51.100.127"
BALANCED: Final = "10.1.0.250"  # of both tenants
BALANCERS: Final = ("lb", "lb6")  # of IPv4, and of IPv6
RULES: Final = (
    "in any",
    "in tcp",
    "in tcp:80",
    "in tcp:8080",
    "in tcp:8000-9000",
    "in udp:80",
    "in udp",
    "in icmp",
    "in icmp:8 ipv4",
    "in icmp:128 ipv6",
    "in any ipv4",
    "in any ipv6",
    "in any 10.1.0.0/24",
    "in tcp 10.1.0.0/25",
    "in tcp 10.1.0.128/25",
    "in tcp 10.2.0.0/23",
    "in any 10.2.0.0/23",
    "in any fd00:a::/64",
    "in any group:web",
    "in tcp:80 group:db",
    "in tcp group:web",
    "in tcp:8080 group:default",
    "in tcp:80 0.0.0.0/0",
    "in any group:default",
    "in any 198.51.100.0/24",
    "in any 2001:db8:100::/48",
    "in tcp 2001:db8:100::1/128",
    "out any",
    "out tcp",
    "out udp:80",
    "out icmp",
    "out any 10.1.0.0/24",
    "out any ipv6",
    "out any group:db",
)


@dataclass
class Tally:
    """What the probes said."""

    outcomes: int = 0
    arrived: int = 0
    retried: int = 0
    wrong: list[Outcome] = field(default_factory=list)
    leaked: list[Outcome] = field(default_factory=list)  # answered by another tenant's guest
    decided: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome, foreign: bool, decided: str) -> None:
        self.outcomes += 1
        self.arrived += bool(outcome.expected)
        self.retried += outcome.tries > 1
        self.decided[decided] += 1
        if not outcome.right:
            self.wrong.append(outcome)
        if foreign:
            self.leaked.append(outcome)

    def by_rule(self) -> Counter[str]:
        """What decided, whatever services stood between the ends."""
        found: Counter[str] = Counter()
        for decided, times in self.decided.items():
            answer, _, what = decided.partition(": ")
            found[f"{answer.partition(' ')[0]}: {what}"] += times
        return found


class Topologies:
    """A cloud that changes at random; `step` changes it once, `probe` asks at random."""

    def __init__(self, world: ReachWorld, rng: random.Random, *, routers: bool) -> None:
        self.world = world
        self._rng = rng
        self._routers = routers
        self._number = 0
        self.tally = Tally()
        self._seed()

    def _seed(self) -> None:
        paper = self.world.paper
        state, context = paper.state, paper.context
        paper.do(flavor.create(state, context, "", flavor_message()))
        paper.do(image.create(state, context, "", image_message(), held=held))
        if self._routers:
            spec_of_world = externalnetwork_pb2.ExternalNetworkSpec(
                uplink=WORLD,
                cidr=str(WORLD_CIDR),
                gateway=str(WORLD_GATEWAY),
                ranges=[FLOATING_RANGE],
                cidr6=str(WORLD_CIDR6),
                gateway6=str(WORLD_GATEWAY6),
            )
            world = externalnetwork_pb2.ExternalNetwork(meta=meta_pb2.Meta(name=WORLD), spec=spec_of_world)
            paper.do(admit_external.create(state, context, "", world))
        for project in PROJECTS:
            paper.do(admit_project.create(state, context, "", project_message(project)))
            for name, texts in GROUPS.items():
                group = _group_message(name, texts)
                paper.do(admit_group.create(state, context, project, group))
            for name, cidrs in RANGES.items():
                spec = network_pb2.NetworkSpec(outbound_nat=True)
                made = network_pb2.Network(meta=meta_pb2.Meta(name=name), spec=spec)
                paper.do(admit_network.create(state, context, project, made))
                for number, cidr in enumerate(cidrs):
                    subnet = subnet_pb2.SubnetSpec(network=name, cidr=cidr)
                    message = subnet_pb2.Subnet(meta=meta_pb2.Meta(name=f"{name}-{number}"), spec=subnet)
                    paper.do(admit_subnet.create(state, context, project, message))
            if self._routers:
                routed = subnet_pb2.SubnetSpec(network="net-b", external_network=WORLD)
                message = subnet_pb2.Subnet(meta=meta_pb2.Meta(name="net-b-out"), spec=routed)
                paper.do(admit_subnet.create(state, context, project, message))
                router = router_pb2.Router(meta=meta_pb2.Meta(name="r"))
                paper.do(admit_router.create(state, context, project, router))
                self._seed_office(project)

    def _seed_office(self, project: str) -> None:
        paper = self.world.paper
        state, context = paper.state, paper.context
        segment = network_pb2.ProviderSegment(uplink=WORLD, vlan=OFFICE_VLANS[project])
        network = network_pb2.Network(
            meta=meta_pb2.Meta(name=OFFICE), spec=network_pb2.NetworkSpec(provider=segment)
        )
        paper.do(admit_network.create(state, context, project, network))
        spec = subnet_pb2.SubnetSpec(
            network=OFFICE, cidr=str(WORLD_CIDR), gateway=str(WORLD_GATEWAY), ranges=[OFFICE_RANGE]
        )
        subnet = subnet_pb2.Subnet(meta=meta_pb2.Meta(name=OFFICE), spec=spec)
        paper.do(admit_subnet.create(state, context, project, subnet))

    # -- changes ------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One random change, often of what decides: rules and who is in which group."""
        project = self._rng.choice(PROJECTS)
        changes: list[Callable[[str], None]] = [self._rewrite, self._rewrite, self._regroup, self._create]
        if self._routers:
            changes += [self._reroute, self._refloat, self._rebalance, self._relink]
        if len(self._instances(project)) < 4:
            changes = [self._create]
        elif self._rng.random() < 0.1:
            changes = [self._delete]
        self._rng.choice(changes)(project)

    def _instances(self, project: str) -> list[str]:
        return [parts[1] for parts in sorted(self.world.state.rows(keys.INSTANCES, project))]

    def _create(self, project: str) -> None:
        if len(self._instances(project)) >= INSTANCES_MAX:
            self._regroup(project)
            return
        paper, self._number = self.world.paper, self._number + 1
        name = f"i{self._number}"
        network = self._rng.choice((*RANGES, OFFICE) if self._routers else tuple(RANGES))
        spec = instance_pb2.InstanceSpec(flavor="small", image="debian", security_groups=self._some_groups())
        spec.networks.add(network=network)
        message = instance_pb2.Instance(meta=meta_pb2.Meta(name=name), spec=spec)
        paper.do(admit_instance.create(paper.state, paper.context, project, message))
        row = paper.state.find(keys.INSTANCES, project, name)
        assert row is not None
        nodes = [node for node in ("n1", "n2") if network != OFFICE or self._is_linked(node)]
        node, uid = self._rng.choice(nodes), row.message.meta.uid
        resources = row.message.spec.resources
        record = store_pb2.PlacementRecord(
            instance_uid=uid, project=project, name=name, node=node, epoch=1, resources=resources
        )
        paper.put(keys.PLACEMENTS, (node, uid), record)

    def _delete(self, project: str) -> None:
        """As the leader does when the node has reported that nothing is left."""
        paper, name = self.world.paper, self._rng.choice(self._instances(project))
        row = paper.state.find(keys.INSTANCES, project, name)
        assert row is not None
        uid = row.message.meta.uid
        writes: dict[bytes, bytes | None] = {keys.INSTANCES.key(project, name): None}
        for port_row in paper.state.ports_of(project, name):
            port = port_row.message
            network = paper.state.find(keys.NETWORKS, project, port.spec.network)
            assert network is not None
            writes[keys.PORTS.key(project, port.meta.name)] = None
            writes[keys.MACS.key(network.message.meta.uid, port.spec.mac)] = None
            for fixed in port.spec.addresses:
                writes[keys.ADDRESSES.key(network.message.meta.uid, fixed.address)] = None
        placed = paper.state.placement_of(uid)
        assert placed is not None
        writes[keys.PLACEMENTS.key(placed.message.node, uid)] = None
        writes[keys.TOMBSTONES.key(placed.message.node, uid)] = placed.message.SerializeToString()
        paper.write(writes)

    def _some_groups(self) -> list[str]:
        return self._rng.choice((["default"], ["web"], ["db"], ["web", "db"], ["default", "web"]))

    def _regroup(self, project: str) -> None:
        paper, name = self.world.paper, self._rng.choice(self._instances(project))
        port = paper.state.ports_of(project, name)[0].message
        spec = port_pb2.PortSpec(security_groups=self._some_groups())
        mask = FieldMask(paths=["spec.security_groups"])
        changed = port_pb2.Port(meta=port.meta, spec=spec)
        paper.do(admit_port.update(paper.state, paper.context, (project, port.meta.name), changed, mask))

    def _rewrite(self, project: str) -> None:
        paper, name = self.world.paper, self._rng.choice(tuple(GROUPS))
        texts = self._rng.sample(RULES, self._rng.randint(2, 6))
        for text, share in (("out any", 0.9), ("in any", 0.3)):
            if text not in texts and self._rng.random() < share:
                texts.append(text)
        group = _group_message(name, texts)
        mask = FieldMask(paths=["spec.rules"])
        paper.do(admit_group.update(paper.state, paper.context, (project, name), group, mask))

    def _reroute(self, project: str) -> None:
        paper = self.world.paper
        networks = self._rng.choice(([], ["net-a"], ["net-b"], list(RANGES), list(RANGES)))
        for where, row in list(paper.state.rows(keys.LOAD_BALANCERS, project).items()):
            if row.message.spec.network not in networks:  # it needs a router
                paper.do(admit_balancer.delete(paper.state, paper.context, where, ""))
        spec = router_pb2.RouterSpec(networks=networks)
        router = router_pb2.Router(meta=meta_pb2.Meta(name="r"), spec=spec)
        mask = FieldMask(paths=["spec.networks"])
        paper.do(admit_router.update(paper.state, paper.context, (project, "r"), router, mask))

    def _is_linked(self, node: str) -> bool:
        row = self.world.state.find(keys.NODE_STATUS, node)
        return row is not None and WORLD in row.message.uplinks

    def _relink(self, project: str) -> None:
        """The second node loses its link to the outside, or has it again: on paper, so not while there are
        guests of the operator's network, whom paper does not cut off."""
        paper = self.world.paper
        offices = [port.message for one in PROJECTS for port in paper.state.ports_in(one, OFFICE)]
        if any(paper.state.places.node_of(port) == "n2" for port in offices):
            self._regroup(project)
            return
        row = paper.state.find(keys.NODE_STATUS, "n2")
        assert row is not None
        status = node_pb2.NodeStatus()
        status.CopyFrom(row.message)
        status.uplinks[:] = [] if status.uplinks else [WORLD]
        paper.put(keys.NODE_STATUS, ("n2",), status)

    def _rebalance(self, project: str) -> None:
        """One load balancer of some instances. Where its network has no router it is refused.

        That of IPv6 may be in a subnet that is the outside's, too.
        """
        paper, balancer = self.world.paper, self._rng.choice(BALANCERS)
        spec = loadbalancer_pb2.LoadBalancerSpec(network="net-a", address=BALANCED)
        if balancer == "lb6":
            spec = loadbalancer_pb2.LoadBalancerSpec(network=self._rng.choice(list(RANGES)), ip_version=6)
        for protocol in ("tcp", "udp"):
            spec.listeners.add(protocol=protocol, port=PORTS[0])
        for name in self._rng.sample(self._instances(project), self._rng.randint(1, 3)):
            spec.members.add(instance=name, port=self._rng.choice((0, PORTS[1])))
        message = loadbalancer_pb2.LoadBalancer(meta=meta_pb2.Meta(name=balancer), spec=spec)
        with contextlib.suppress(CumuletError):
            if paper.state.find(keys.LOAD_BALANCERS, project, balancer) is None:
                paper.do(admit_balancer.create(paper.state, paper.context, project, message))
            else:
                mask = FieldMask(paths=["spec.members"])
                where = (project, balancer)
                paper.do(admit_balancer.update(paper.state, paper.context, where, message, mask))

    def _refloat(self, project: str) -> None:
        """A floating IP gets another target. What has no router, or an address already, is refused."""
        paper, name = self.world.paper, self._rng.choice(FLOATING_NAMES)
        spec = floatingip_pb2.FloatingIPSpec(external_network=WORLD)
        kind = self._rng.choice(("target", "forwards", "balancer"))
        if kind == "target":
            spec.target = self._rng.choice(self._instances(project))
        elif kind == "balancer":
            spec.target = self._rng.choice(BALANCERS)  # that of IPv6 is refused
        else:
            for protocol, port in (("tcp", 80), ("udp", 80), ("tcp", 8080)):
                target = self._rng.choice(self._instances(project))
                spec.forwards.add(
                    protocol=protocol, port=port, target=target, target_port=self._rng.choice(PORTS)
                )
        message = floatingip_pb2.FloatingIP(meta=meta_pb2.Meta(name=name), spec=spec)
        with contextlib.suppress(CumuletError):
            if paper.state.find(keys.FLOATING_IPS, project, name) is None:
                paper.do(admit_floating.create(paper.state, paper.context, project, message))
            else:
                mask = FieldMask(paths=["spec.target", "spec.forwards"])
                where = (project, name)
                paper.do(admit_floating.update(paper.state, paper.context, where, message, mask))

    async def explore(self, steps: int, probes: int) -> None:
        """Each step is a topology of its own, asked about so often."""
        for _ in range(steps):
            self.step()
            await self.world.settle()
            await self.ask(probes)

    async def ask(self, probes: int) -> None:
        for outcome in await asyncio.gather(*map(self.world.probe, self.questions(probes))):
            self.note(outcome)

    # -- questions ----------------------------------------------------------------------------------------

    def questions(self, count: int) -> list[Probe]:
        """Addresses of one's own project's ports mostly; they are the other tenant's as well."""
        probes = []
        for _ in range(count):
            project = self._rng.choice(PROJECTS)
            ports = [row.message for row in self.world.state.rows(keys.PORTS, project).values()]
            if len(ports) < 2:
                continue
            probes += self._questions_of_services(project, ports)
            source, target = self._rng.sample(ports, 2)
            near = [port for port in ports if port.spec.network == source.spec.network]
            if self._rng.random() < 0.6:
                target = self._rng.choice(near)
            if self._rng.random() < 0.15:  # an address that may be the other tenant's only
                others = [row.message for row in self.world.state.rows(keys.PORTS).values()]
                target = self._rng.choice(others)
            if (
                OFFICE in (source.spec.network, target.spec.network)
                and source.spec.network != target.spec.network
            ):
                continue  # the operator's router decides
            protocol = self._rng.choice(("tcp", "tcp", "tcp", "udp", "icmp", "icmp"))
            addresses = list(map(ip_address, addresses_of(self.world.state, target)))
            if protocol == "icmp":  # of which IPv6 has types of its own, and rules for them
                addresses += 2 * [one for one in addresses if one.version == 6]
            address = self._rng.choice(addresses)
            port = 0 if protocol == "icmp" else self._rng.choice(PORTS)
            probes.append(Probe(source, address, protocol, port))
        return probes

    def _questions_of_services(self, project: str, ports: list[port_pb2.Port]) -> list[Probe]:
        """Now and then of a floating IP, from the outside, or of a load balancer."""
        protocol = self._rng.choice(("tcp", "tcp", "udp"))
        desks = [port for port in ports if port.spec.network == OFFICE and not OFFICE_VLANS[project]]
        if desks and self._rng.random() < 0.3:
            address = ip_address(self._rng.choice(desks).spec.addresses[0].address)
            return [Probe(None, address, protocol, self._rng.choice(PORTS))]
        routed = [one for port in ports for one in self._routed_addresses(port)]
        is_joined = self.world.state.router_of(project, "net-b") is not None
        if routed and self._rng.random() < (0.4 if is_joined else 0.05):
            return [Probe(None, self._rng.choice(routed), protocol, self._rng.choice(PORTS))]
        rows = sorted(self.world.state.rows(keys.FLOATING_IPS).items())
        if rows and self._rng.random() < 0.4:
            address = ip_address(self._rng.choice(rows)[1].message.spec.address)
            if self._rng.random() < 0.2:
                return [Probe(None, address, "icmp", 0)]
            return [Probe(None, address, protocol, self._rng.choice(PORTS))]
        return self._questions_of_balancers(project, ports, protocol)

    def _questions_of_balancers(self, project: str, ports: list[port_pb2.Port], protocol: str) -> list[Probe]:
        """Now and then by whom it does not serve: the other tenant, or the outside."""
        owner = project if self._rng.random() < 0.9 else self._rng.choice(PROJECTS)
        addresses = [
            ip_address(row.message.spec.address)
            for _, row in sorted(self.world.state.rows(keys.LOAD_BALANCERS, owner).items())
        ]
        if not addresses or self._rng.random() < 0.7:
            return []
        address, port = self._rng.choice(addresses), self._rng.choice(PORTS)
        if address in WORLD_CIDR6 and self._rng.random() < 0.2:
            return [Probe(None, address, protocol, port)]
        if self._rng.random() < 0.1:
            return [Probe(self._rng.choice(ports), address, "icmp", 0)]
        return [Probe(self._rng.choice(ports), address, protocol, port)]

    def _routed_addresses(self, port: port_pb2.Port) -> list[IPv6Address]:
        """Those that are the outside's, too."""
        held = (ip_address(text) for text in addresses_of(self.world.state, port))
        return [one for one in held if isinstance(one, IPv6Address) and one in WORLD_CIDR6]

    def note(self, outcome: Outcome) -> None:
        foreign = False
        if outcome.answered and outcome.answered != "somebody" and outcome.probe.source is not None:
            found = self.world.state.find_uid(outcome.answered)
            others = found is not None and found[1][0] != outcome.probe.source.meta.project
            foreign = others and outcome.answered not in outcome.expected  # tenants may meet outside
        self.tally.add(outcome, foreign, self._decided_by(outcome))

    def _decided_by(self, outcome: Outcome) -> str:
        """The step that ended the way, or the kind of rule that let it in."""
        last = outcome.way.steps[-1]
        kind = reach_pb2.ReachStepKind.Name(last.kind).removeprefix("REACH_STEP_KIND_").lower()
        if not last.passes:
            return f"no: {kind}"
        if last.kind == reach_pb2.REACH_STEP_KIND_OUTSIDE:
            return "no: outside"  # where nobody answers
        rule_id = next((step.rule_id for step in reversed(outcome.way.steps) if step.rule_id), "")
        for row in self.world.state.rows(keys.SECURITY_GROUPS).values():
            for rule in row.message.spec.rules:
                if rule.id == rule_id:
                    return f"yes{_services(outcome.way)}: {_kind_of(render_rule(rule))}"
        return f"yes{_services(outcome.way)}: no rule"


def _services(way: Way) -> str:
    """What stands between the ends, but for routers."""
    named = ((FLOATING_IP, " by floating IP"), (BALANCER, " by balancer"), (SEGMENT, " by segment"))
    kinds = {step.kind for step in way.steps}
    return "".join(name for kind, name in named if kind in kinds)


def _group_message(name: str, texts: Iterable[str]) -> securitygroup_pb2.SecurityGroup:
    spec = securitygroup_pb2.SecurityGroupSpec()
    spec.rules.extend(securitygroup_pb2.SecurityRule(**parse_rule(text)) for text in texts)
    return securitygroup_pb2.SecurityGroup(meta=meta_pb2.Meta(name=name), spec=spec)


def _kind_of(text: str) -> str:
    """`in tcp:80 10.0.0.0/8` is a rule of ports and a range: `in port cidr`."""
    words = text.split()
    protocol, colon, _ = words[1].partition(":")
    what = ("type" if protocol == "icmp" else "port") if colon else protocol
    remotes = [
        "group" if word.startswith("group:") else "cidr" if "/" in word else word for word in words[2:]
    ]
    return " ".join([words[0], what, *remotes])
