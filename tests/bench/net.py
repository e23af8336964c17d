"""The suite `net`: what a change of the network costs, and what its data plane does to packets.

**Edge**: prints, writes build/bench/net.jsonl.

    python -m tests.bench.net [--quick] [--only PART ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Final

from tests.bench import net_failover, net_node, net_paths, net_ports, net_reach, net_spoof
from tests.bench.report import Suite

QUICK_TOPOLOGIES: Final = 20
QUICK_KILLS: Final = 1  # of each victim

PARTS: Final[Mapping[str, Callable[[Suite, bool], None]]] = {
    "spoof": lambda suite, quick: net_spoof.measure(suite),
    "node": lambda suite, quick: net_node.measure(
        suite, net_node.QUICK_NETWORKS if quick else net_node.NETWORKS
    ),
    "paths": lambda suite, quick: net_paths.measure(
        suite, net_paths.QUICK_ROUNDS if quick else net_paths.ROUNDS
    ),
    "ports": lambda suite, quick: net_ports.measure(suite, net_ports.PORTS[: 2 if quick else None]),
    "reach": lambda suite, quick: net_reach.measure(
        suite, QUICK_TOPOLOGIES if quick else net_reach.TOPOLOGIES
    ),
    "failover": lambda suite, quick: net_failover.measure(
        suite, QUICK_KILLS if quick else net_failover.ROUNDS
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="all parts within three minutes: less of each")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    arguments = parser.parse_args()
    suite = Suite("net")
    for name in arguments.only:
        PARTS[name](suite, arguments.quick)


if __name__ == "__main__":
    main()
