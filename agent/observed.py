"""What one look at the host found: domains, files and network together.

**Pure**: values only. A look is never assumed to be still true; every round begins with a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agent.hypervisor.driver import ObservedDomain
from agent.net.driver import ObservedNet
from agent.storage.driver import ObservedStorage
from cumulet.v1 import agent_pb2 as pb

# States in which an emulator process may hold the disk and the taps.
ACTIVE: Final = frozenset({pb.DOMAIN_STATE_RUNNING, pb.DOMAIN_STATE_PAUSED, pb.DOMAIN_STATE_SHUTTING_DOWN})


@dataclass(frozen=True, slots=True)
class Observed:
    """One look at the node. `domains` by instance uid."""

    domains: Mapping[str, ObservedDomain]
    storage: ObservedStorage
    net: ObservedNet

    def files(self, uid: str) -> frozenset[str]:
        """Names of the files of one instance; empty if it has none."""
        return self.storage.instances.get(uid, frozenset())

    def uids(self) -> frozenset[str]:
        """Every instance that something of is here."""
        return frozenset(self.domains) | frozenset(self.storage.instances)


def is_active(domain: ObservedDomain | None) -> bool:
    """Something of it runs, so its disk and its taps must be left alone."""
    return domain is not None and domain.state in ACTIVE
