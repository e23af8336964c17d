"""Where ports are: the index equals a count over all rows, whatever the order of changes."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.state import State
from controller.store import keys
from cumulet.v1 import meta_pb2, port_pb2, store_pb2
from tests.unit.controller.cloud import Paper

NAMES = ("a", "b", "c")
NODES = ("n1", "n2")
GROUPS = ("g1", "g2")


def counted(state: State, network: str) -> Counter[str]:
    """Ports of a network by node, from the rows."""
    node_of = {row.message.name: parts[0] for parts, row in state.rows(keys.PLACEMENTS).items()}
    ports = (row.message for row in state.rows(keys.PORTS).values())
    return Counter(
        node_of[port.spec.instance]
        for port in ports
        if port.spec.network == network and port.spec.instance in node_of
    )


def port_message(name: str, network: str, groups: tuple[str, ...]) -> port_pb2.Port:
    spec = port_pb2.PortSpec(network=network, instance=name[0], security_groups=groups)
    return port_pb2.Port(meta=meta_pb2.Meta(name=name, project="p1", uid=f"port-{name}"), spec=spec)


def step(paper: Paper, rng: random.Random) -> None:
    """Put or remove a random port, or place, move or remove a random instance; in one transaction or two."""
    name, where = rng.choice(NAMES), rng.choice(NODES)
    port, placed = (
        keys.PORTS.key("p1", f"{name}-{rng.randrange(2)}"),
        keys.PLACEMENTS.key(where, f"uid-{name}"),
    )
    other = keys.PLACEMENTS.key(*[node for node in NODES if node != where], f"uid-{name}")
    record = store_pb2.PlacementRecord(instance_uid=f"uid-{name}", project="p1", name=name, node=where)
    groups = tuple(rng.sample(GROUPS, rng.randrange(3)))
    made = port_message(port.rpartition(b"/")[2].decode(), rng.choice(("x", "y")), groups)
    choices: list[dict[bytes, bytes | None]] = [
        {port: made.SerializeToString()},
        {port: None},
        {placed: record.SerializeToString(), other: None},
        {placed: None, other: None},
        {placed: None, other: None, keys.PORTS.key("p1", f"{name}-0"): None},
    ]
    paper.write(rng.choice(choices))


@given(st.integers(0, 2**32))
@settings(max_examples=60)
def test_the_index_equals_a_count(seed: int) -> None:
    paper, rng = Paper(), random.Random(seed)
    for _ in range(40):
        step(paper, rng)
        for network in ("x", "y"):
            assert paper.state.places.of_network("p1", network) == counted(paper.state, network)
    by_group = Counter[tuple[str, str]]()
    for row in paper.state.rows(keys.PORTS).values():
        node = paper.state.places.node_of(row.message)
        by_group.update((group, node) for group in row.message.spec.security_groups if node is not None)
    for group in GROUPS:
        assert paper.state.places.of_group("p1", group) == {
            node: count for (name, node), count in by_group.items() if name == group
        }
