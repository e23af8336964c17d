"""What a network's bridge does at each kind of its ports.

**Pure.** No port learns: entries are set from intent, so no frame can move them. What the bridge does not
know goes nowhere; what is for everybody goes to the guests and the gateway of this node only. An operator's
network gets both.
"""

from __future__ import annotations

from typing import Final

from agent.net.driver import PortIntent
from agent.net.netlink_link import BridgePort

# Every node has its own gateway: between it and the tunnel no frame passes, either way.
GATEWAY: Final = BridgePort(learns=False, floods_unicast=False, isolated=True)
TUNNEL: Final = BridgePort(
    learns=False,
    floods_unicast=False,
    floods_multicast=False,
    floods_broadcast=False,
    suppresses=True,
    isolated=True,
)
SEGMENT: Final = BridgePort(learns=False, isolated=True)
GUEST: Final = BridgePort(learns=False, floods_unicast=False)
_GUEST_WITH_MACS: Final = BridgePort(learns=False)
GUESTS: Final = (GUEST, _GUEST_WITH_MACS)


def guest_port(port: PortIntent) -> BridgePort:
    """A guest that may use other MACs (a virtual router's) gets what is for an unknown one."""
    own = ("", port.mac.lower())
    return _GUEST_WITH_MACS if any(pair.mac.lower() not in own for pair in port.allowed_pairs) else GUEST
