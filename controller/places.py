"""Where ports are: nodes by network and by security group, kept with every change of a port or a placement.

**Pure** in effect: part of the State, which feeds it. A port is where its instance is placed. Ports and
placements come and go in any order, so an instance is known here by its name, which both carry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from cumulet.v1 import port_pb2

Name = tuple[str, str]  # project, name
_NOWHERE: Final[Counter[str]] = Counter()


class Places:
    """Counts of ports. `ports_of` gives the ports of an instance, by its name."""

    def __init__(self, ports_of: Callable[[str, str], Iterator[port_pb2.Port]]) -> None:
        self._ports_of = ports_of
        self._node_of: dict[Name, str] = {}
        self._in_network: dict[Name, Counter[str]] = {}
        self._in_group: dict[Name, Counter[str]] = {}

    def node_of(self, port: port_pb2.Port) -> str | None:
        """The node that the port's instance is placed on."""
        return self._node_of.get((port.meta.project, port.spec.instance))

    def of_network(self, project: str, network: str) -> Mapping[str, int]:
        """Ports by node; only nodes with some. A live view."""
        return self._in_network.get((project, network), _NOWHERE)

    def of_group(self, project: str, security_group: str) -> Mapping[str, int]:
        """Ports by node; only nodes with some. A live view."""
        return self._in_group.get((project, security_group), _NOWHERE)

    def note_placed(self, project: str, instance: str, node: str) -> None:
        """An instance is on a node, and so on no other."""
        known = self._node_of.get((project, instance))
        if known == node:
            return
        if known is not None:
            self.note_gone(project, instance, known)
        self._node_of[project, instance] = node
        self._count_all(project, instance, node, 1)

    def note_gone(self, project: str, instance: str, node: str) -> None:
        """An instance is not on a node any more. Without effect when it is known to be on another."""
        if self._node_of.get((project, instance)) == node:
            del self._node_of[project, instance]
            self._count_all(project, instance, node, -1)

    def note_port(self, port: port_pb2.Port, by: int) -> None:
        """A port appeared (`by` 1) or went (-1)."""
        node = self.node_of(port)
        if node is not None:
            self._count(port, node, by)

    def _count_all(self, project: str, instance: str, node: str, by: int) -> None:
        for port in self._ports_of(project, instance):
            self._count(port, node, by)

    def _count(self, port: port_pb2.Port, node: str, by: int) -> None:
        project = port.meta.project
        _add(self._in_network, (project, port.spec.network), node, by)
        for group in port.spec.security_groups:
            _add(self._in_group, (project, group), node, by)


def _add(index: dict[Name, Counter[str]], key: Name, node: str, by: int) -> None:
    nodes = index.setdefault(key, Counter())
    nodes[node] += by
    if not nodes[node]:
        del nodes[node]
    if not nodes:
        del index[key]
