"""Kernel settings of the namespace that the calling thread is in.

**Edge**: /proc/sys/net shows the reading thread's namespace.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_NET: Final = Path("/proc/sys/net")
_IGNORE_ALL: Final = "8"  # ip-sysctl: do not reply to ARP for any local address


def forwarding_is_on() -> bool:
    return (_NET / "ipv4/ip_forward").read_text().strip() == "1"


def set_forwarding(on: bool) -> None:
    (_NET / "ipv4/ip_forward").write_text("1" if on else "0")


def silence_link(name: str) -> None:
    """A link that carries guests' frames is no way to the host: no IPv6, no answer to ARP."""
    disable_ipv6(name)
    (_NET / f"ipv4/conf/{name}/arp_ignore").write_text(_IGNORE_ALL)


def disable_ipv6(scope: str) -> None:
    """`scope` is a link, "all" or "default"."""
    if (_NET / "ipv6").exists():  # a kernel without IPv6 has nothing to disable
        (_NET / f"ipv6/conf/{scope}/disable_ipv6").write_text("1")


def make_router() -> None:
    """A new namespace becomes a network's IPv4 router."""
    for scope in ("all", "default"):
        disable_ipv6(scope)
        (_NET / f"ipv4/conf/{scope}/send_redirects").write_text("0")
    set_forwarding(True)
