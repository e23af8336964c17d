"""The suite `net`: what a change of the network costs, and what its data plane does to packets.

**Edge**: prints, writes build/bench/net.jsonl.

    python -m tests.bench.net [--quick]
"""

from __future__ import annotations

import argparse

from tests.bench import net_ports
from tests.bench.report import Suite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small networks only")
    quick = parser.parse_args().quick
    suite = Suite("net")
    net_ports.measure(suite, net_ports.PORTS[: 2 if quick else None])


if __name__ == "__main__":
    main()
