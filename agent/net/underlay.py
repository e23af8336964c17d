"""The link that tunnels leave by: it has the node's underlay address, and its MTU bounds the guests'.

**Edge**, reading only: of the calling thread's namespace.
"""

from __future__ import annotations

from agent.errors import DriverError
from agent.net.driver import IPAddress
from agent.net.rtnetlink import Netlink


def find_underlay_mtu(address: IPAddress) -> int:
    """Raises DriverError when no link has the address: nothing sent to it would arrive here."""
    with Netlink() as netlink:
        holders = {one.link for one in netlink.addresses() if one.address == address}
        mtus = [link.mtu for link in netlink.links() if link.index in holders]
    if not mtus:
        raise DriverError(
            "UnderlayAddressMissing",
            f"no link of this node has the underlay address {address}; give --underlay-address one that "
            "`ip address` shows, or leave it out for a node whose networks do not span",
            permanent=True,
        )
    return min(mtus)
