"""IPv4 addresses to give away: all of a range, or some ranges within it; of subnets and external networks.

**Pure.**
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Final

from controller.admit.common import Violations
from cumulet.v1 import externalnetwork_pb2, subnet_pb2

RANGES_MAX: Final = 64
POOLS_KEPT: Final = 4096  # parsed ones: an instance asks for its subnet's at each port
DRAWS: Final = 32  # random tries before the ranges are searched in order

Span = tuple[IPv4Address, IPv4Address]  # first, last


@dataclass(frozen=True, slots=True)
class Pool:
    """`spans` rise and do not overlap. The gateway is nobody's, though it may lie in one."""

    spans: tuple[Span, ...]
    gateway: IPv4Address | None

    @property
    def size(self) -> int:
        """Addresses that can be given away."""
        return self._count - (self.gateway is not None and self._covers(self.gateway))

    @property
    def _count(self) -> int:
        return sum(int(high) - int(low) + 1 for low, high in self.spans)

    def _covers(self, address: IPv4Address) -> bool:
        return any(low <= address <= high for low, high in self.spans)

    def holds(self, address: IPv4Address) -> bool:
        """Whether the address can be given away."""
        return address != self.gateway and self._covers(address)

    def find_free(self, rng: random.Random, taken: Collection[str]) -> IPv4Address | None:
        """One that is not taken. Random draws, so that concurrent controllers rarely choose the same."""
        for address in itertools.chain(self._draws(rng), self._every()):
            if address != self.gateway and str(address) not in taken:
                return address
        return None

    def _draws(self, rng: random.Random) -> Iterator[IPv4Address]:
        count = self._count
        for _ in range(DRAWS if count else 0):
            index = rng.randrange(count)
            for low, high in self.spans:
                length = int(high) - int(low) + 1
                if index < length:
                    yield low + index
                    break
                index -= length

    def _every(self) -> Iterator[IPv4Address]:
        for low, high in self.spans:
            yield from (IPv4Address(number) for number in range(int(low), int(high) + 1))

    def shared_with(self, other: Pool) -> str:
        """The first addresses that both would give away, as 10.0.0.1-10.0.0.9; empty for none."""
        for low, high in self.spans:
            for first, last in other.spans:
                if low <= last and first <= high:
                    return f"{max(low, first)}-{min(high, last)}"
        return ""

    def __str__(self) -> str:
        return ", ".join(f"{low}-{high}" for low, high in self.spans)


def pool_of(spec: subnet_pb2.SubnetSpec | externalnetwork_pb2.ExternalNetworkSpec) -> Pool:
    """Of a stored external network, or IPv4 subnet."""
    return _stored_pool(spec.cidr, spec.gateway, tuple(spec.ranges))


@lru_cache(maxsize=POOLS_KEPT)
def _stored_pool(cidr: str, gateway: str, ranges: tuple[str, ...]) -> Pool:
    router = IPv4Address(gateway) if gateway else None
    return parse_pool(ranges, IPv4Network(cidr), router, Violations())


def parse_pool(
    texts: Iterable[str], cidr: IPv4Network, gateway: IPv4Address | None, violations: Violations
) -> Pool:
    """Of `spec.ranges`, such as 10.0.0.100-10.0.0.199 or one address; without any, the range's hosts."""
    given = list(texts)
    if not given:
        return Pool(((cidr.network_address + 1, cidr.broadcast_address - 1),), gateway)
    if len(given) > RANGES_MAX:
        violations.add("spec.ranges", f"{len(given)} ranges, at most {RANGES_MAX}")
        return Pool((), gateway)
    spans = sorted(
        found
        for index, text in enumerate(given)
        if (found := _parse_span(text, f"spec.ranges[{index}]", cidr, violations))
    )
    for (_, last), (first, high) in itertools.pairwise(spans):
        if first <= last:
            violations.add("spec.ranges", f"{first}-{high} overlaps the range that ends with {last}")
    pool = Pool(tuple(spans), gateway)
    if len(spans) == len(given) and not pool.size:
        violations.add("spec.ranges", "there is no address to give away")
    return pool


def _parse_span(text: str, field: str, cidr: IPv4Network, violations: Violations) -> Span | None:
    first, dash, last = text.partition("-")
    try:
        low = IPv4Address(first.strip())
        high = IPv4Address(last.strip()) if dash else low
    except AddressValueError as error:
        violations.add(field, f"{text!r} is not a range such as {cidr[1]}-{cidr[2]} ({error})")
        return None
    if high < low:
        violations.add(field, f"{text} ends before it begins")
    elif not (cidr.network_address < low and high < cidr.broadcast_address):
        violations.add(field, f"{text} is not within the host addresses of {cidr}")
    else:
        return low, high
    return None
