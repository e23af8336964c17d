"""Routers of a plan: parsed, made before their networks, and told where ports and next hops are."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from agent.actions import (
    EnsureNetwork,
    EnsureRouter,
    EnsureRouterDirectory,
    Need,
    RemoveNetwork,
    RemoveRouter,
    Work,
    network_key,
    router_key,
)
from agent.diff import diff
from agent.directory import Directory
from agent.errors import DriverError
from agent.hypervisor.driver import ObservedDomain
from agent.intent import parse_plan
from agent.memory import Memory
from agent.net.driver import (
    ObservedNet,
    ObservedNetwork,
    RouteIntent,
    RouterDirectory,
    digest_of,
)
from agent.net.router_entries import digest_of_router_directory
from agent.observed import Observed
from agent.storage.driver import ObservedStorage
from cumulet.v1 import agent_pb2 as pb
from tests.unit.agent.build import instance, plan, uid
from tests.unit.agent.lab import Lab, in_lab

ROUTER, HERE, THERE = uid(6, 1), uid(2, 1), uid(2, 2)
VTEP = "192.0.2.2"


def joined(*routes: tuple[str, str]) -> pb.NodePlan:
    """A router over network 1, which is here (10.1.0.0/16), and network 2, which is not (10.2.0.0/16)."""
    made = plan(instance(1, networks=(1,)), routers={1: (1, 2)})
    for cidr, next_hop in routes:
        made.routers[0].routes.add(cidr=cidr, next_hop=next_hop)
    return made


def told(*pieces: pb.NetworkDirectory) -> Directory:
    directory = Directory()
    directory.take(pb.DirectoryChange(networks=pieces))
    return directory


def ports_of(network: str, *addresses: str) -> pb.NetworkDirectory:
    put = [
        pb.PlannedRemotePort(uid=uid(3, at), mac=f"02:00:00:00:01:{at:02x}", addresses=[one], vtep=VTEP)
        for at, one in enumerate(addresses, start=100)
    ]
    return pb.NetworkDirectory(network_uid=network, full=True, put=put)


def works(
    made: pb.NodePlan, net: ObservedNet, directory: Directory | None = None, *, in_session: bool = True
) -> dict[str, Work]:
    seen = Observed({}, ObservedStorage({}, frozenset(), 2**40), net)
    decision = diff(parse_plan(made), seen, Memory(), 0.0, directory=directory, in_session=in_session)
    return {work.key: work for work in decision.works}


EMPTY = ObservedNet({}, {}, frozenset(), ())


def complete(made: pb.NodePlan) -> ObservedNet:
    """Router and network as planned, without any route."""
    parsed = parse_plan(made)
    network = replace(parsed.networks[HERE], ports=parsed.instances[uid(1, 1)].ports)
    return replace(
        EMPTY,
        networks={HERE: ObservedNetwork(HERE, True, digest_of(network), ROUTER)},
        routers={ROUTER: digest_of(parsed.routers[ROUTER].intent)},
        router_directories={ROUTER: digest_of_router_directory(RouterDirectory(()))},
    )


def directory_of(found: dict[str, Work]) -> RouterDirectory:
    (action,) = found[f"router-directory/{ROUTER}"].actions
    assert isinstance(action, EnsureRouterDirectory)
    return action.directory


def test_a_router_is_parsed_with_all_its_ranges_and_rules_over_its_networks() -> None:
    made = joined(("192.168.0.0/16", "10.1.0.9"))
    made.routers[0].outbound_nat = False
    made.networks[0].mtu = 1430
    parsed = parse_plan(made)
    router = parsed.routers[ROUTER]
    assert router.intent.cidrs == (ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16"))
    assert (router.intent.vni, router.intent.mtu, router.intent.outbound_nat) == (201, 1430, False)
    assert router.network_uids == (HERE, THERE)
    assert router.routes == ((ip_network("192.168.0.0/16"), ip_address("10.1.0.9")),)
    assert not parsed.networks[HERE].outbound_nat  # its own setting is true


def test_a_bad_router_is_refused_with_the_networks_that_are_in_it() -> None:
    for change in ("vni", "cidr", "route", "missing"):
        made = joined()
        made.networks.add().CopyFrom(plan(networks=(3,)).networks[0])
        if change == "vni":
            made.routers[0].vni = 1 << 24
        elif change == "cidr":
            made.routers[0].cidrs_elsewhere.append("10.2.0.1/16")
        elif change == "route":
            made.routers[0].routes.add(cidr="10.9.0.0/16", next_hop="fd00::1")
        else:
            del made.routers[:]
        parsed = parse_plan(made)
        assert not parsed.routers
        assert set(parsed.networks) == {uid(2, 3)}
        assert HERE in parsed.refused


def test_a_router_is_made_before_the_networks_in_it_and_routes_come_last() -> None:
    found = works(joined(), EMPTY, told(ports_of(HERE), ports_of(THERE, "10.2.0.5")))
    assert isinstance(found[router_key(ROUTER)].actions[0], EnsureRouter)
    need, made = found[network_key(HERE)].actions
    assert (need, type(made)) == (Need(router_key(ROUTER)), EnsureNetwork)
    *needs, routes = found[f"router-directory/{ROUTER}"].actions
    assert needs == [Need(router_key(ROUTER)), Need(network_key(HERE))]
    assert isinstance(routes, EnsureRouterDirectory)


def test_where_nothing_differs_nothing_is_done() -> None:
    made = joined()
    directory = told(ports_of(HERE), ports_of(THERE, "10.2.0.5"))
    net = complete(made)
    wanted = directory_of(works(made, net, directory))
    assert [len(remotes) for remotes in wanted.remotes] == [0, 1]
    net = replace(net, router_directories={ROUTER: digest_of_router_directory(wanted)})
    assert not {key for key in works(made, net, directory) if "router" in key}


def test_routes_wait_until_all_networks_were_told() -> None:
    made = joined()
    for directory in (None, told(ports_of(HERE)), told(ports_of(THERE, "10.2.0.5"))):
        assert not {key for key in works(made, complete(made), directory) if key.startswith("router-dir")}


def test_a_next_hop_is_found_here_on_another_node_or_nowhere() -> None:
    made = joined(
        ("192.168.1.0/24", "10.1.0.9"), ("192.168.2.0/24", "10.2.0.5"), ("192.168.3.0/24", "10.2.0.6")
    )
    directory = told(ports_of(HERE), ports_of(THERE, "10.2.0.5"))
    assert directory_of(works(made, complete(made), directory)).routes == (
        RouteIntent(ip_network("192.168.1.0/24"), next_hop=ip_address("10.1.0.9"), network_uid=HERE),
        RouteIntent(ip_network("192.168.2.0/24"), vtep=ip_address(VTEP)),
        RouteIntent(ip_network("192.168.3.0/24")),
    )
    directory.take(pb.DirectoryChange(networks=[ports_of(THERE, "10.2.0.6"), ports_of(HERE, "10.1.0.9")]))
    assert [route.vtep for route in directory_of(works(made, complete(made), directory)).routes] == [
        ip_address(VTEP),
        None,
        ip_address(VTEP),
    ]


def test_without_a_session_a_router_of_what_runs_is_repaired_and_its_routes_are_left_alone() -> None:
    made = joined()
    net = replace(complete(made), routers={ROUTER: ""})
    running = parse_plan(made).instances[uid(1, 1)]
    assert works(made, net, in_session=False) == {}
    domain = ObservedDomain(running.uid, running.epoch, running.boots, pb.DOMAIN_STATE_RUNNING, "", 1)
    seen = Observed({running.uid: domain}, ObservedStorage({}, frozenset(), 2**40), net)
    decision = diff(parse_plan(made), seen, Memory(), 0.0, in_session=False)
    assert [work.key for work in decision.works if "router" in work.key] == [router_key(ROUTER)]


def test_a_router_goes_after_the_networks_that_were_in_it() -> None:
    made = joined()
    alone = plan(instance(1, networks=(1,)))
    found = works(alone, complete(made))
    need, gone = found[router_key(ROUTER)].actions
    assert (need, gone) == (Need(network_key(HERE)), RemoveRouter(ROUTER))
    assert isinstance(found[network_key(HERE)].actions[-1], EnsureNetwork)
    found = works(plan(), complete(made))
    need, gone = found[router_key(ROUTER)].actions
    assert (need, gone) == (Need(network_key(HERE)), RemoveRouter(ROUTER))
    assert isinstance(found[network_key(HERE)].actions[-1], RemoveNetwork)


def test_a_router_stays_with_a_network_that_is_neither_planned_nor_unused() -> None:
    """A guest that no plan names runs on it: absence is not a delete."""
    made = joined()
    net = complete(made)
    parsed = parse_plan(made)
    running = parsed.instances[uid(1, 1)]
    domain = ObservedDomain(running.uid, running.epoch, running.boots, pb.DOMAIN_STATE_RUNNING, "", 1)
    seen = Observed({running.uid: domain}, ObservedStorage({}, frozenset(), 2**40), net)
    memory = Memory(ports={running.uid: running.ports})
    decision = diff(parse_plan(plan()), seen, memory, 0.0)
    assert not [work for work in decision.works if "router" in work.key or "network" in work.key]


def test_what_looks_like_a_network_and_is_a_planned_router_is_not_removed() -> None:
    made = joined()
    net = replace(EMPTY, networks={ROUTER: ObservedNetwork(ROUTER, False, "")})
    assert not [work for work in works(made, net).values() if isinstance(work.actions[-1], RemoveNetwork)]


def test_an_agent_joins_networks_and_leaves_them_alone_again() -> None:
    async def scenario(lab: Lab) -> None:
        def joins() -> bool:
            router, network = lab.kernel._routers.get(ROUTER), lab.kernel._networks.get(HERE)
            if router is None or network is None or network.intent.router_uid != ROUTER:
                return False
            return [len(remotes) for remotes in router.directory.remotes] == [0, 1] and router.complete

        def is_alone() -> bool:
            network = lab.kernel._networks.get(HERE)
            return network is not None and not network.intent.router_uid and not lab.kernel._routers

        lab.start()
        await lab.leader.set_plan(joined())
        await lab.until(lambda: lab.state(uid(1, 1)) == pb.DOMAIN_STATE_RUNNING)
        pieces = [ports_of(HERE), ports_of(THERE, "10.2.0.5")]
        told_of = pb.ControllerMessage(directory=pb.DirectoryChange(networks=pieces))
        await lab.leader.send(told_of)
        await lab.until(joins)
        for damage in (lab.kernel.lose_route, lab.kernel.flush_router, lab.kernel.lose_router):
            damage(ROUTER)
            await lab.until(joins)
        await lab.leader.set_plan(plan(instance(1, networks=(1,))))
        await lab.until(is_alone)
        await lab.leader.set_plan(joined())
        await lab.until(joins)
        await lab.leader.set_plan(plan(tombstones={1: 1}))
        await lab.until(lambda: not lab.kernel._routers and not lab.kernel._networks)
        assert lab.state(uid(1, 1)) == pb.DOMAIN_STATE_ABSENT

    in_lab(scenario)


def test_a_router_that_fails_holds_up_its_networks_and_no_others() -> None:
    async def scenario(lab: Lab) -> None:
        for _ in range(100):
            lab.kernel.fail_next("ensure_router", DriverError("Broken", "nothing helps"))
        made = plan(instance(1, networks=(1,)), instance(2, networks=(2,)), routers={1: (1,)})
        lab.start()
        await lab.leader.set_plan(made)
        await lab.until(lambda: lab.state(uid(1, 2)) == pb.DOMAIN_STATE_RUNNING)
        assert lab.state(uid(1, 1)) == pb.DOMAIN_STATE_PREPARING
        assert set(lab.kernel._networks) == {THERE}
        assert lab.agent is not None
        assert list(lab.agent.failures()) == [router_key(ROUTER)]
        lab.kernel._faults.clear()
        await lab.until(lambda: lab.state(uid(1, 1)) == pb.DOMAIN_STATE_RUNNING)

    in_lab(scenario)
