"""A full node: 1,000 networks, 10,000 ports, 1,000 rules through the real drivers; made, looked at, mended.

**Edge**: a node in namespaces with real bridges, tunnels, taps, DHCP servers and rules; the driver is in a
process of its own, whose memory is measured. The same on a tenth of it, in the same run, is the baseline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from agent.net import nft
from agent.net.directory import digest_of_directory
from agent.net.driver import (
    GroupIntent,
    NetworkIntent,
    ObservedNet,
    PortIntent,
    RemotePort,
    digest_of,
    digest_of_group,
)
from agent.net.kernel_driver import KernelNet
from tests.bench.report import Suite
from tests.unit.agent_net.lab import network_intent, new_uid, open_lab, with_port
from tests.unit.agent_net.neighbours import all_out, group, in_groups, rule, with_ports

NETWORKS: Final = 1_000
QUICK_NETWORKS: Final = 20
BASELINE_SHARE: Final = 10  # the baseline is this part of it
PORTS_PER_NETWORK: Final = 10
REMOTES_PER_NETWORK: Final = 10
RULES_PER_GROUP: Final = 10
CHANGES: Final = 10
SAMPLES: Final = 10


@dataclass(slots=True)
class Node:
    """What a node is to have; changed in place. `remotes` by network."""

    groups: list[GroupIntent]
    networks: list[NetworkIntent]
    remotes: dict[str, frozenset[RemotePort]]


def build_node(networks: int) -> Node:
    """With as many rules as networks, ten in a group; a group's members are its ports' addresses."""
    count = max(1, networks // RULES_PER_GROUP)
    uids = [new_uid() for _ in range(count)]
    made = [_network(number, uids[number % count]) for number in range(networks)]
    groups = [_group(uid, made[index::count]) for index, uid in enumerate(uids)]
    return Node(groups, made, {one.uid: _remotes(one) for one in made})


def _group(uid: str, networks: list[NetworkIntent]) -> GroupIntent:
    members = [str(port.addresses[0]) for one in networks for port in one.ports]
    others = (rule("in", remote=uid), *all_out())
    rules = [rule("in", "tcp", (at, at)) for at in range(1, RULES_PER_GROUP + 1 - len(others))]
    return group(*rules, *others, members=members, uid=uid)


def _remotes(network: NetworkIntent) -> frozenset[RemotePort]:
    cidr = network.subnets[0].cidr
    return frozenset(
        RemotePort(
            f"remote-{network.vni}-{number}",
            f"52:54:01:{network.vni >> 8:02x}:{network.vni & 0xFF:02x}:{number:02x}",
            (cidr[100 + number],),
            IPv4Address("203.0.113.100") + number,
        )
        for number in range(REMOTES_PER_NETWORK)
    )


def _network(number: int, group_uid: str) -> NetworkIntent:
    base = f"10.{number >> 8}.{number & 0xFF}.0/24"
    network = network_intent(1_000 + number, base)
    ports = [_port(network, number, at, group_uid) for at in range(PORTS_PER_NETWORK)]
    return with_ports(network, *ports)


def _port(network: NetworkIntent, number: int, at: int, group_uid: str) -> PortIntent:
    port = in_groups(with_port(network, 5 + at)[1], group_uid)
    return replace(port, mac=f"52:54:02:{number >> 8:02x}:{number & 0xFF:02x}:{at:02x}")


# -- the process that is measured -------------------------------------------------------------------------


@dataclass(slots=True)
class Cost:
    """Wall and CPU time of one step, with the processes that it started and waited for."""

    wall_s: float
    cpu_s: float


async def _timed(work: Callable[[], Awaitable[object]]) -> Cost:
    wall, cpu = time.perf_counter(), _cpu_s()
    await work()
    return Cost(time.perf_counter() - wall, _cpu_s() - cpu)


def _cpu_s() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


async def _measure_node(networks: int) -> dict[str, object]:
    before_mib = _rss_mib()
    node = build_node(networks)
    intents_mib = _rss_mib() - before_mib
    async with open_lab() as lab:
        net = lab.driver()
        try:
            made = await _timed(partial(_make, net, node))
            peak = _rss_mib()
            await net.close()
            net = lab.driver()
            first = await _timed(partial(_resync, net, node))
            again = await _timed(partial(_resync, net, node))
            changes = [await _timed(partial(_add_port, net, node, number)) for number in range(CHANGES)]
            samples = [await _timed(net.net_stats) for _ in range(SAMPLES)]
            rss_mib = _rss_mib()
            await lab.inside(lab.host, partial(nft.commit, [{"flush": {"ruleset": None}}]))
            flushed = await _timed(partial(_resync, net, node))
        finally:
            await net.close()
    costs = {"nothing": made, "restart": first, "unchanged": again, "rules flushed": flushed}
    return {
        "resync": {name: asdict(cost) for name, cost in costs.items()},
        "changes": [asdict(cost) for cost in changes],
        "samples": [asdict(cost) for cost in samples],
        "rss_mib": rss_mib,
        "rss_mib_after_making": peak,
        "rss_mib_before": before_mib,
        "rss_mib_of_intents": intents_mib,
    }


async def _make(net: KernelNet, node: Node) -> None:
    for one in node.groups:
        await net.ensure_group(one)
    for network in node.networks:
        await net.ensure_network(network)
        await net.ensure_directory(network.uid, node.remotes[network.uid])
        for port in network.ports:
            await net.ensure_port(port)


async def _resync(net: KernelNet, node: Node) -> None:
    """A look, and what is not as intended is ensured, until nothing is left: as the agent's rounds do."""
    while await _mend(net, node, await net.observe_net()):
        pass


async def _mend(net: KernelNet, node: Node, seen: ObservedNet) -> int:
    done = 0
    for one in node.groups:
        if seen.groups.get(one.uid) != digest_of_group(one):
            await net.ensure_group(one)
            done += 1
    for network in node.networks:
        found, remotes = seen.networks.get(network.uid), node.remotes[network.uid]
        if found is None or not found.complete or found.digest != digest_of(network):
            await net.ensure_network(network)
            done += 1
        if seen.directories.get(network.uid) != digest_of_directory(remotes):
            await net.ensure_directory(network.uid, remotes)
            done += 1
        for port in network.ports:
            if not seen.taps.get(port.uid):
                await net.ensure_port(port)
                done += 1
    return done


async def _add_port(net: KernelNet, node: Node, number: int) -> None:
    """One instance more on this node: its group's members, its network, its tap."""
    index = number * len(node.networks) // CHANGES
    network = node.networks[index]
    uid = network.ports[0].group_uids[0]
    port = in_groups(with_port(network, 5 + PORTS_PER_NETWORK + number)[1], uid)
    at = next(at for at, one in enumerate(node.groups) if one.uid == uid)
    node.groups[at] = replace(node.groups[at], members=node.groups[at].members | set(port.addresses))
    node.networks[index] = with_ports(network, *network.ports, port)
    await net.ensure_group(node.groups[at])
    await net.ensure_network(node.networks[index])
    await net.ensure_port(port)


# -- the figures ------------------------------------------------------------------------------------------


def measure(suite: Suite, networks: int = NETWORKS) -> None:
    small, full = (_run(count) for count in (networks // BASELINE_SHARE, networks))
    context = {"networks": networks, "ports": networks * PORTS_PER_NETWORK, "rules": networks}
    context["baseline_networks"] = networks // BASELINE_SHARE
    for start, cost in full["resync"].items():
        baseline = small["resync"][start]
        suite.figure(
            "node_full_resync_s",
            cost["wall_s"],
            "s",
            start=start,
            **context,
            cpu_s=round(cost["cpu_s"], 3),
            baseline_s=round(baseline["wall_s"], 4),
            cpu_to_baseline=round(cost["cpu_s"] / baseline["cpu_s"], 2),
        )
    now, then = (_median(run["changes"], "wall_s") for run in (full, small))
    cpu, cpu_then = (_median(run["changes"], "cpu_s") for run in (full, small))
    suite.figure(
        "node_incremental_ms",
        1000 * now,
        "ms",
        **context,
        change="one port: group, network, tap",
        changes=CHANGES,
        cpu_ms=round(1000 * cpu, 2),
        baseline_ms=round(1000 * then, 2),
        cpu_to_baseline=round(cpu / cpu_then, 2),
    )
    sample, sample_then = (1000 * _median(run["samples"], "cpu_s") for run in (full, small))
    suite.figure(
        "node_metrics_cpu_ms",
        sample,
        "ms",
        **context,
        samples=SAMPLES,
        baseline_ms=round(sample_then, 2),
        cpu_to_baseline=round(sample / sample_then, 2),
    )
    rss = {name: round(full[name], 1) for name in full if name.startswith("rss_mib_")}
    suite.figure(
        "node_driver_rss_mib",
        full["rss_mib"],
        "MiB",
        **context,
        **rss,
        baseline_mib=round(small["rss_mib"], 1),
        kib_per_port=round(1024 * _slope(full["rss_mib"], small["rss_mib"], networks), 2),
    )


def _slope(full: float, small: float, networks: int) -> float:
    """Per port."""
    return (full - small) / ((networks - networks // BASELINE_SHARE) * PORTS_PER_NETWORK)


def _median(costs: list[dict[str, float]], name: str) -> float:
    return statistics.median(cost[name] for cost in costs)


def _run(networks: int) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tests.bench.net_node", "--alone", str(networks)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=NETWORKS)
    parser.add_argument("--alone", type=int, metavar="NETWORKS", help="in this process; tells its parent")
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(asyncio.run(_measure_node(arguments.alone))))
    else:
        measure(Suite("net-node"), arguments.networks)


if __name__ == "__main__":
    main()
