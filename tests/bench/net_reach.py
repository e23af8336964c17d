"""A thousand random topologies: does `explain reach` say what packets do, and does any tenant hear another?

**Edge**: nodes in namespaces with the kernel's own network, guests as namespaces
(tests/support/reach_world.py). The controls of the same run: with the nodes' rules flushed predictions fail,
and with two tenants' ports on one bridge packets leak.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from typing import Final

from agent.net import names
from agent.net.rtnetlink import Netlink
from controller.store import keys
from tests.bench.report import Suite
from tests.support.reach_world import NodeSide, ReachWorld, open_reach_world
from tests.support.topologies import PROJECTS, Tally, Topologies

TOPOLOGIES: Final = 1_000
PROBES: Final = 8
SEED: Final = 2_026
DECISIVE_MIN: Final = 20  # each kind of rule must have decided so often to count as shown


def measure(suite: Suite, topologies: int = TOPOLOGIES) -> None:
    asyncio.run(_measure(suite, topologies))


async def _measure(suite: Suite, count: int) -> None:
    async with open_reach_world(SEED) as world:
        topologies = Topologies(world, random.Random(SEED), routers=True)
        await topologies.explore(count, PROBES)
        _report(suite, count, topologies.tally)
        await _flush(world)
        suite.figure(
            "reach_mispredicted_control", len((await _again(topologies)).wrong), "1", rules="flushed"
        )
        await _join_tenants(world)
        leaked = (await _again(topologies)).leaked
        suite.figure("packets_leaked_control", len(leaked), "1", bridges="joined")


def _report(suite: Suite, count: int, tally: Tally) -> None:
    rules = tally.by_rule()
    seldom = sorted(kind for kind, times in rules.items() if times < DECISIVE_MIN)
    context = {"probes": tally.outcomes, "yes_share": round(tally.arrived / tally.outcomes, 3), "seed": SEED}
    decided = {"rules": dict(rules.most_common()), "ways": dict(tally.decided.most_common())}
    suite.figure("reach_topologies", count, "1", **context, seldom=seldom, decided=decided)
    suite.figure("reach_mispredicted", len(tally.wrong), "1", **context, retried=tally.retried)
    for outcome in tally.wrong:
        print(outcome.describe(), file=sys.stderr)
    suite.figure("packets_leaked", len(tally.leaked), "1", **context)


async def _again(topologies: Topologies) -> Tally:
    """The same questions while the nodes' agents do not repair anything."""
    topologies.tally = Tally()
    for _ in range(4):
        await topologies.ask(4 * PROBES)
    return topologies.tally


async def _flush(world: ReachWorld) -> None:
    await world.stop_agents()
    for side in world.nodes:
        await side.span.lab.run(side.span.lab.host, "nft", "flush", "ruleset")


async def _join_tenants(world: ReachWorld) -> None:
    """Every port of the second tenant's networks moves to the first one's bridge of the same range."""
    for side in world.nodes:
        await side.span.lab.inside(side.span.lab.host, lambda side=side: _move(world, side))  # type: ignore[misc]


def _move(world: ReachWorld, side: NodeSide) -> None:
    first, second = PROJECTS
    with Netlink() as netlink:
        for row in world.state.rows(keys.PORTS, second).values():
            port = row.message
            network = world.state.find(keys.NETWORKS, first, port.spec.network)
            assert network is not None
            bridge = netlink.find_link(names.bridge_name(network.message.meta.uid))
            tap = netlink.find_link(names.tap_name(port.meta.uid))
            if bridge is not None and tap is not None:
                netlink.change_link(tap.index, master=bridge.index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topologies", type=int, default=TOPOLOGIES)
    measure(Suite("net-reach"), parser.parse_args().topologies)


if __name__ == "__main__":
    main()
