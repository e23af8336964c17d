"""All elements of the host's tables, by owner: a change of one port costs what it changes on any node.

**Pure.** Treated as a value: `changed` gives another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import chain

from agent.net.elements import Element

_NOTHING: frozenset[Element] = frozenset()


class Holdings(Set[Element]):
    """`targets`: how many elements lead to each chain."""

    def __init__(self, elements: Iterable[Element] = ()) -> None:
        self._by_owner: dict[str, frozenset[Element]] = {}
        self._owners: dict[str, frozenset[str]] = {}  # by network, itself and its ports
        self._count = 0
        self.targets: Mapping[str, int] = {}
        self._apply(frozenset(), frozenset(elements))

    def changed(self, stale: Set[Element], missing: Set[Element]) -> Holdings:
        """Without the first and with the second."""
        other = Holdings()
        other._by_owner, other._owners = dict(self._by_owner), dict(self._owners)
        other._count, other.targets = self._count, self.targets
        gone = {element for element in stale if element in self}
        other._apply(gone, {element for element in missing if element not in self or element in gone})
        return other

    def of_owner(self, uid: str) -> frozenset[Element]:
        """A port's, or a network's own."""
        return self._by_owner.get(uid, _NOTHING)

    def ports_of(self, network_uid: str) -> frozenset[str]:
        """Ports of a network that have elements."""
        return self._owners.get(network_uid, frozenset()) - {network_uid}

    def of_network(self, uid: str) -> Iterator[Element]:
        """Its own and its ports'."""
        found = chain.from_iterable(map(self.of_owner, self._owners.get(uid, ())))
        return (element for element in found if element.network_uid == uid)

    def __contains__(self, element: object) -> bool:
        return isinstance(element, Element) and element in self.of_owner(element.owner)

    def __iter__(self) -> Iterator[Element]:
        return chain.from_iterable(self._by_owner.values())

    def __len__(self) -> int:
        return self._count

    def _apply(self, stale: Set[Element], missing: Set[Element]) -> None:
        gone, come = _by_owner(stale), _by_owner(missing)
        for owner in gone.keys() | come.keys():
            own = self.of_owner(owner) - gone.get(owner, set()) | come.get(owner, set())
            self._count += len(own) - len(self.of_owner(owner))
            self._by_owner[owner] = own
        networks: dict[str, set[str]] = {}
        for element in chain(stale, missing):
            networks.setdefault(element.network_uid, set()).add(element.owner)
        for network, owners in networks.items():
            self._owners[network] = self._owners.get(network, frozenset()) | owners
        self._forget_empty(gone.keys(), networks)
        self.targets = _counted(self.targets, stale, missing)

    def _forget_empty(self, owners: Iterable[str], networks: Iterable[str]) -> None:
        empty = {owner for owner in owners if not self._by_owner[owner]}
        for owner in empty:
            del self._by_owner[owner]
        for network in networks if empty else ():
            self._owners[network] -= empty


def _by_owner(elements: Iterable[Element]) -> dict[str, set[Element]]:
    found: dict[str, set[Element]] = {}
    for element in elements:
        found.setdefault(element.owner, set()).add(element)
    return found


def _counted(before: Mapping[str, int], stale: Set[Element], missing: Set[Element]) -> dict[str, int]:
    targets = dict(before)
    for elements, step in ((stale, -1), (missing, 1)):
        for element in elements:
            if element.target:
                targets[element.target] = targets.get(element.target, 0) + step
    return {target: count for target, count in targets.items() if count}
