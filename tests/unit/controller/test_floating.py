"""Floating IPs: what is refused, where they lead, and that no two nodes ever answer for one address."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import externalnetwork as admit_external
from controller.admit import floatingip as admit
from controller.admit import loadbalancer as admit_balancer
from controller.assemble import assemble
from controller.floating import find_way
from controller.reconcile.announcer import Announcer
from controller.reconcile.concern import floating_concerned
from controller.reconcile.nodeplan import compile_plan
from controller.reconcile.queue import Queue
from controller.state import Changed
from controller.store import keys
from cumulet.errors import CumuletError, FailedPreconditionError, InvalidArgumentError, QuotaExceededError
from cumulet.v1 import externalnetwork_pb2, floatingip_pb2, loadbalancer_pb2, meta_pb2, node_pb2
from tests.unit.controller.cloud import ATTACH, Paper, SetClock
from tests.unit.controller.test_routers import add_network, add_router

NODES = ("n1", "n2", "n3")
CIDR = "203.0.113.0/24"
RANGE = "203.0.113.64-203.0.113.67"


def external_message(name: str = "internet", **spec: Any) -> externalnetwork_pb2.ExternalNetwork:
    fields = {"uplink": "internet", "cidr": CIDR, "gateway": "203.0.113.1", "ranges": [RANGE], **spec}
    made = externalnetwork_pb2.ExternalNetworkSpec(**fields)
    return externalnetwork_pb2.ExternalNetwork(meta=meta_pb2.Meta(name=name), spec=made)


def floating_message(name: str = "f", **spec: Any) -> floatingip_pb2.FloatingIP:
    forwards = spec.pop("forwards", ())
    made = floatingip_pb2.FloatingIPSpec(external_network="internet", **spec)
    for protocol, port, target, target_port in forwards:
        made.forwards.add(protocol=protocol, port=port, target=target, target_port=target_port)
    return floatingip_pb2.FloatingIP(meta=meta_pb2.Meta(name=name), spec=made)


def set_node(paper: Paper, node: str, *, ready: bool = True, uplink: bool = True) -> None:
    number = NODES.index(node) + 1
    status = node_pb2.NodeStatus(underlay_address=f"192.0.2.{number}", underlay_mtu=1500)
    truth = meta_pb2.CONDITION_STATUS_TRUE if ready else meta_pb2.CONDITION_STATUS_UNKNOWN
    status.conditions.add(type="Ready", status=truth, reason="X")
    status.uplinks.extend(["internet"] if uplink else [])
    paper.put(keys.NODE_STATUS, (node,), status)


def with_internet() -> Paper:
    """Network `a` behind router `r`, `lonely` behind none; web and db on n1 and n2, `away` in lonely."""
    paper = Paper(seed=7).seed()
    paper.lead()
    add_network(paper, "a", "10.1.0.0/24")
    add_network(paper, "lonely", "10.2.0.0/24")
    add_router(paper, "r", "a")
    for node in NODES:
        paper.add_node(node)
        set_node(paper, node)
    paper.do(admit_external.create(paper.state, paper.context, "", external_message()))
    for name, network in (("web", "a"), ("db", "a"), ("away", "lonely")):
        paper.add_instance(name, networks=[ATTACH(network=network)])
    paper.place("web", "n1")
    paper.place("db", "n2")
    return paper


def add(paper: Paper, name: str = "f", **spec: Any) -> floatingip_pb2.FloatingIP:
    paper.do(admit.create(paper.state, paper.context, "p1", floating_message(name, **spec)))
    return find(paper, name)


def find(paper: Paper, name: str = "f") -> floatingip_pb2.FloatingIP:
    row = paper.state.find(keys.FLOATING_IPS, "p1", name)
    assert row is not None
    found: floatingip_pb2.FloatingIP = row.message
    return found


def shown(paper: Paper, name: str = "f") -> floatingip_pb2.FloatingIP:
    row = paper.state.find(keys.FLOATING_IPS, "p1", name)
    assert row is not None
    found: floatingip_pb2.FloatingIP = assemble(paper.state, keys.FLOATING_IPS, ("p1", name), row)
    return found


def retarget(paper: Paper, target: str, name: str = "f") -> None:
    given = floating_message(name, target=target)
    mask = FieldMask(paths=["spec.target"])
    paper.do(admit.update(paper.state, paper.context, ("p1", name), given, mask))


@pytest.mark.parametrize(
    ("spec", "field", "problem"),
    [
        ({"cidr": "203.0.113.0"}, "spec.cidr", "between"),
        ({"cidr": "203.0.113.7/24"}, "spec.cidr", "host bits"),
        ({"cidr": "2001:db8::/64"}, "spec.cidr", "not an IPv4 range"),
        ({"cidr": "100.64.0.0/24", "gateway": "", "ranges": []}, "spec.cidr", "reserved"),
        ({"gateway": "198.51.100.1"}, "spec.gateway", "not in"),
        ({"gateway": "next door"}, "spec.gateway", "not an IPv4 address"),
        ({"uplink": "eth0; reboot"}, "spec.uplink", ""),
        ({"ranges": ["203.0.113.9-203.0.113.4"]}, "spec.ranges[0]", "ends before it begins"),
        ({"ranges": ["203.0.113.0-203.0.113.9"]}, "spec.ranges[0]", "within the host addresses"),
        ({"ranges": ["203.0.113.4-203.0.113.9", "203.0.113.9"]}, "spec.ranges", "overlaps the range"),
        ({"ranges": ["a-b"]}, "spec.ranges[0]", "not a range"),
        ({"ranges": ["203.0.113.1"]}, "spec.ranges", "no address to give away"),
        ({"ranges": ["203.0.113.66"]}, "spec.ranges", "external network internet gives away"),
    ],
)
def test_an_external_network_is_refused(spec: dict[str, Any], field: str, problem: str) -> None:
    paper = with_internet()
    with pytest.raises(InvalidArgumentError) as refused:
        admit_external.create(paper.state, paper.context, "", external_message("other", **spec))
    found = {violation.field: violation.description for violation in refused.value.violations}
    assert problem in found[field]


@pytest.mark.parametrize(
    ("spec", "field", "problem"),
    [
        ({"target": "nobody"}, "spec.target", "does not exist"),
        ({"target": "away"}, "spec.target", "has no router"),
        ({"target": "taken"}, "spec.target", "has floating IP first"),
        ({"address": "203.0.113.9"}, "spec.address", "not one that external network internet gives away"),
        ({"address": "203.0.113.64"}, "spec.address", "is taken"),
        ({"address": "here"}, "spec.address", "not an IPv4 address"),
        ({"target": "web", "forwards": [("tcp", 1, "web", 0)]}, "spec.forwards", "not both"),
        ({"forwards": [("icmp", 1, "web", 0)]}, "spec.forwards[0].protocol", "tcp or udp"),
        ({"forwards": [("tcp", 0, "web", 0)]}, "spec.forwards[0].port", "not a port"),
        ({"forwards": [("tcp", 1, "web", 70_000)]}, "spec.forwards[0].target_port", "not a port"),
        ({"forwards": [("tcp", 1, "web", 0), ("tcp", 1, "db", 0)]}, "spec.forwards[1].port", "already"),
        ({"forwards": [("tcp", 1, "nobody", 0)]}, "spec.forwards[0].target", "does not exist"),
        ({"forwards": [("tcp", 1, "web", 0), ("tcp", 2, "other", 0)]}, "spec.forwards", "several routers"),
    ],
)
def test_a_floating_ip_is_refused(spec: dict[str, Any], field: str, problem: str) -> None:
    paper = with_internet()
    for name, network in (("taken", "a"), ("other", "b")):
        if network == "b":
            add_network(paper, "b", "10.3.0.0/24")
            add_router(paper, "r2", "b")
        paper.add_instance(name, networks=[ATTACH(network=network)])
    add(paper, "first", target="taken", address="203.0.113.64")
    with pytest.raises(InvalidArgumentError) as refused:
        admit.create(paper.state, paper.context, "p1", floating_message(**spec))
    found = {violation.field: violation.description for violation in refused.value.violations}
    assert problem in found[field]


def test_addresses_are_given_once_until_none_is_left_and_come_back() -> None:
    paper = with_internet()
    given = {add(paper, f"f{number}").spec.address for number in range(4)}
    assert given == {f"203.0.113.{number}" for number in range(64, 68)}
    with pytest.raises(FailedPreconditionError, match="all 4 addresses"):
        admit.create(paper.state, paper.context, "p1", floating_message("more"))
    with pytest.raises(FailedPreconditionError, match="has 4 floating IP"):
        admit_external.delete(paper.state, paper.context, ("internet",), "")
    smaller = external_message(ranges=["203.0.113.64"])
    mask = FieldMask(paths=["spec.ranges"])
    with pytest.raises(InvalidArgumentError, match="was not changed"):
        admit_external.update(paper.state, paper.context, ("internet",), smaller, mask)
    freed = find(paper, "f2").spec.address
    paper.do(admit.delete(paper.state, paper.context, ("p1", "f2"), ""))
    assert add(paper, "again").spec.address == freed


def test_two_that_choose_the_same_address_at_once_cannot_both_have_it() -> None:
    paper = with_internet()
    changes = [
        admit.create(paper.state, paper.context, "p1", floating_message(name, address="203.0.113.65"))
        for name in ("one", "other")
    ]
    paper.do(changes[0])
    assert not paper.holds(changes[1])


def test_the_quota_bounds_them() -> None:
    paper = with_internet()
    row = paper.state.find(keys.PROJECTS, "p1")
    assert row is not None
    row.message.spec.quota.floating_ips = 1
    add(paper, "one")
    with pytest.raises(QuotaExceededError, match="floating_ips: 1 of 1 are used"):
        admit.create(paper.state, paper.context, "p1", floating_message("more"))


def test_why_an_address_leads_nowhere() -> None:
    paper = with_internet()
    add(paper)
    assert find_way(paper.state, find(paper)).reason == "Unused"
    retarget(paper, "web")
    assert find_way(paper.state, find(paper)).node == "n1"
    set_node(paper, "n1", uplink=False)
    assert find_way(paper.state, find(paper)).reason == "NoUplink"
    set_node(paper, "n1")
    uid = paper.instance().meta.uid
    paper.write({keys.PLACEMENTS.key("n1", uid): None})
    assert find_way(paper.state, find(paper)).reason == "NotPlaced"
    paper.write({keys.ROUTERS.key("p1", "r"): None})
    assert find_way(paper.state, find(paper)).reason == "NoRouter"
    paper.write({keys.INSTANCES.key("p1", "web"): None})
    assert find_way(paper.state, find(paper)).reason == "TargetMissing"
    condition = shown(paper).status.conditions[0]
    assert (condition.type, condition.status) == ("Active", meta_pb2.CONDITION_STATUS_FALSE)
    assert condition.reason == "TargetMissing"


def test_forwards_stay_where_they_are_while_that_node_answers() -> None:
    paper = with_internet()
    add(paper, forwards=[("tcp", 80, "web", 8080), ("udp", 53, "db", 0)])
    way = find_way(paper.state, find(paper))
    assert way.node == "n1"
    assert [(one.port, one.target_port, one.node) for one in way.forwards] == [
        (80, 8080, "n1"),
        (53, 53, "n2"),
    ]
    announce(paper, "n1")
    set_node(paper, "n1", ready=False)
    assert find_way(paper.state, find(paper)).node == "n2"
    announce(paper, "n2")
    set_node(paper, "n1")
    assert find_way(paper.state, find(paper)).node == "n2"


def announce(paper: Paper, node: str, name: str = "f") -> None:
    """The record, as the announcer writes it when the last node has let go."""
    world, uid = World(paper, hasty=True), find(paper, name).meta.uid
    paper.do(world.announcer.decide(paper.state, uid))
    row = paper.state.find(keys.ANNOUNCEMENTS, uid)
    assert row is not None
    assert row.message.node == node


def test_a_plan_has_the_address_while_the_record_names_the_node() -> None:
    paper = with_internet()
    floating = add(paper, target="web")
    assert planned(paper) == {}
    announce(paper, "n1")
    assert planned(paper) == {"n1": {floating.spec.address}}
    plan = compile_plan(paper.state, "n1", "nonce").routers[0].floating_addresses[0]
    address = paper.state.ports_of("p1", "web")[0].message.spec.addresses[0].address
    assert (plan.fixed_address, plan.uplink, plan.gateway) == (address, "internet", "203.0.113.1")
    retarget(paper, "db")
    assert planned(paper) == {}
    assert shown(paper).status.conditions[0].reason == "Moving"


def test_replies_go_back_by_the_node_that_announces_forwards() -> None:
    paper = with_internet()
    add(paper, forwards=[("tcp", 80, "web", 0), ("tcp", 81, "db", 0)])
    announce(paper, "n1")
    vteps = {node: list(compile_plan(paper.state, node, "").routers[0].announcer_vteps) for node in NODES[:2]}
    assert vteps == {"n1": ["192.0.2.2"], "n2": ["192.0.2.1"]}  # n2 may take it over


def test_a_load_balancer_is_announced_by_a_node_of_its_router() -> None:
    paper = with_internet()
    message = loadbalancer_pb2.LoadBalancer(meta=meta_pb2.Meta(name="front"))
    message.spec.network = "a"
    message.spec.listeners.add(protocol="tcp", port=80)
    message.spec.members.add(instance="web")
    paper.do(admit_balancer.create(paper.state, paper.context, "p1", message))
    add(paper, target="front")
    way = find_way(paper.state, find(paper))
    both = frozenset(("n1", "n2"))
    assert (way.node, way.targets, way.heirs) == ("n1", both, both)
    announce(paper, "n1")
    routers = {node: compile_plan(paper.state, node, "").routers[0] for node in NODES[:2]}
    (planned_address,) = routers["n1"].floating_addresses
    (planned_balancer,) = routers["n1"].load_balancers
    assert planned_address.load_balancer_uid == planned_balancer.uid
    assert not planned_address.fixed_address
    assert list(routers["n2"].announcer_vteps) == ["192.0.2.1"]
    set_node(paper, "n1", ready=False)
    assert find_way(paper.state, find(paper)).node == "n2"
    paper.write({keys.LOAD_BALANCERS.key("p1", "front"): None})
    assert find_way(paper.state, find(paper)).reason == "TargetMissing"


def planned(paper: Paper) -> dict[str, set[str]]:
    found = {
        node: {
            one.address
            for router in compile_plan(paper.state, node, "nonce").routers
            for one in router.floating_addresses
        }
        for node in NODES
    }
    return {node: addresses for node, addresses in found.items() if addresses}


@dataclass
class Agent:
    """A node that acts on plans when it gets to it, and says then what it answers for."""

    alive: bool = True
    holds: set[str] = field(default_factory=set)
    told: tuple[int, set[str]] = (0, set())  # the newest plan: its revision and addresses
    acted: int = 0
    reported: set[str] | None = None


class Collected(Queue[str]):
    """Whatever is queued, now or later, without a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[str] = set()

    def add(self, key: str) -> None:
        self.keys.add(key)

    def add_later(self, key: str, delay_s: float) -> None:
        self.keys.add(key)


class World:
    """Agents under an announcer. `hasty`: it never waits until a node has let go."""

    def __init__(self, paper: Paper, *, hasty: bool = False) -> None:
        self.paper = paper
        self.hasty = hasty
        self.agents = {node: Agent() for node in NODES}
        self.announcer = Announcer(paper.state, None, self, SetClock(), random.Random(1))  # type: ignore[arg-type]
        self.announcer.queue = self.queue = Collected()

    @property
    def queued(self) -> set[str]:
        return self.queue.keys

    def is_silent(self, node: str) -> bool:
        return not self.agents[node].alive

    def has_let_go(self, node: str, uplink: str, address: str, told: int) -> bool:
        agent = self.agents[node]
        if self.hasty or not agent.alive:
            return True
        return agent.acted >= told and agent.reported is not None and address not in agent.reported

    def want_plan(self, node: str) -> None:
        self.tell(node)

    def tell(self, node: str) -> None:
        self.agents[node].told = (self.paper.state.revision, planned(self.paper).get(node, set()))

    def act(self, node: str) -> None:
        agent = self.agents[node]
        if agent.alive:
            agent.acted, agent.holds = agent.told[0], set(agent.told[1])
            agent.reported = set(agent.holds)
            self.announcer.note_report(node)

    def settle(self) -> None:
        for uid in sorted(self.queued):
            self.queued.discard(uid)
            change = self.announcer.decide(self.paper.state, uid)
            if change is not None:
                self.apply(change.writes)

    def apply(self, writes: dict[bytes, bytes | None]) -> None:
        state, stop = self.paper.state, self.paper.state.listen(self.announcer.note_change)
        try:
            self.paper.write(writes)
        finally:
            stop()
        assert state is self.paper.state

    def holders(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for node, agent in self.agents.items():
            for address in agent.holds if agent.alive else ():
                found.setdefault(address, []).append(node)
        return found


def _history(seed: int, *, hasty: bool = False, steps: int = 120) -> int:
    """Random moves of targets, plans and words; how many live nodes answered for one address at most."""
    rng = random.Random(seed)
    world = World(with_internet(), hasty=hasty)
    paper, worst = world.paper, 0
    forwards = [("tcp", 80, "web", 0), ("tcp", 81, "db", 0)]
    for name, spec in (("f", {"target": "web"}), ("g", {"forwards": forwards})):
        world.apply(admit.create(paper.state, paper.context, "p1", floating_message(name, **spec)).writes)
    for _ in range(steps):
        match rng.randrange(6):
            case 0:
                _move(world, rng)
            case 1 | 2:
                world.tell(rng.choice(NODES))
            case 3 | 4:
                world.act(rng.choice(NODES))
            case 5:
                world.settle()
        worst = max([worst, *map(len, world.holders().values())])
    for _ in range(8):
        world.queued.update(
            row.message.meta.uid for row in paper.state.rows(keys.FLOATING_IPS, "p1").values()
        )
        world.settle()
        for node in NODES:
            world.tell(node)
            world.act(node)
    for row in paper.state.rows(keys.FLOATING_IPS, "p1").values():
        wanted = find_way(paper.state, row.message).node
        assert world.holders().get(row.message.spec.address, []) == ([wanted] if wanted else [])
    return worst


def _move(world: World, rng: random.Random) -> None:
    """Something that may change where an address belongs."""
    paper = world.paper
    try:
        match rng.randrange(4):
            case 0:
                given = floating_message("f", target=rng.choice(["web", "db", ""]))
                mask = FieldMask(paths=["spec.target"])
                world.apply(admit.update(paper.state, paper.context, ("p1", "f"), given, mask).writes)
            case 1:
                name = rng.choice(["web", "db"])
                uid, node = paper.instance(name).meta.uid, rng.choice(NODES)
                for known in NODES:
                    if paper.state.find(keys.PLACEMENTS, known, uid) is not None:
                        world.apply({keys.PLACEMENTS.key(known, uid): None})
                paper.place(name, node)
                world.queued.update(_uids(paper))
            case 2:
                world.apply(admit.delete(paper.state, paper.context, ("p1", "f"), "").writes)
            case 3:
                address = rng.choice(["203.0.113.64", "203.0.113.65"])
                message = floating_message("f", target=rng.choice(["web", "db"]), address=address)
                world.apply(admit.create(paper.state, paper.context, "p1", message).writes)
    except CumuletError:
        return


def _uids(paper: Paper) -> list[str]:
    return [row.message.meta.uid for row in paper.state.rows(keys.FLOATING_IPS).values()]


@pytest.mark.parametrize("seed", range(60))
def test_never_do_two_nodes_answer_for_an_address(seed: int) -> None:
    assert _history(seed) <= 1


def test_the_control_an_announcer_that_does_not_wait_is_seen() -> None:
    assert max(_history(seed, hasty=True) for seed in range(60)) > 1


def test_a_silent_node_holds_up_nothing() -> None:
    paper = with_internet()
    world = World(paper)
    add(paper, target="web")
    uid = find(paper).meta.uid
    world.queued.add(uid)
    world.settle()
    world.tell("n1")
    world.act("n1")
    world.agents["n1"].alive = False
    retarget(paper, "db")
    world.queued.add(uid)
    world.settle()
    assert planned(paper) == {"n2": {find(paper).spec.address}}


def test_a_change_names_the_floating_ips_that_it_concerns() -> None:
    paper = with_internet()
    first, other = add(paper, "f", target="web"), add(paper, "g", forwards=[("tcp", 80, "db", 0)])
    seen: list[Changed] = []
    paper.state.listen(seen.append)
    paper.write({keys.PLACEMENTS.key("n1", paper.instance("web").meta.uid): None})
    paper.place("db", "n3")
    paper.write({keys.ROUTERS.key("p1", "r"): None})
    named = [set(floating_concerned(paper.state, changed)) for changed in seen]
    assert named[0] == {first.meta.uid}
    assert named[1] == {other.meta.uid}
    assert named[-1] == {first.meta.uid, other.meta.uid}
