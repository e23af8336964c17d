"""How fast a port may be.

**Pure.**
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.net.driver import PortIntent


@dataclass(frozen=True, slots=True)
class Rates:
    """In bits per second towards the guest and away from it; 0 is no limit."""

    towards: int = 0
    away: int = 0


def wanted_rates(port: PortIntent) -> Rates:
    """The kernel counts in bytes."""
    return Rates(port.ingress_bps // 8 * 8, port.egress_bps // 8 * 8)
