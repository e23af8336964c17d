"""Names on the host, derived from uids: at most 15 characters, no user text.

**Pure.** Source for the limit: IFNAMSIZ in linux/if.h (16 with the terminating zero). 44 bits of a random
uid make a clash on one node with 10,000 ports a matter of 3 in a million.
"""

from __future__ import annotations

from typing import Final

_LENGTH: Final = 11
ALIAS_PREFIX: Final = "cumulet:"  # the link alias is our mark: "cumulet:<kind>:<uid>"


def _short(uid: str) -> str:
    return uid.replace("-", "")[:_LENGTH]


def tap_name(port_uid: str) -> str:
    """The tap of a port. libvirt is told to use it as it is."""
    return f"tap{_short(port_uid)}"


def shaper_name(port_uid: str) -> str:
    """The link through whose queue goes what a port's guest sends, when its rate is limited."""
    return f"csh{_short(port_uid)}"


def bridge_name(network_uid: str) -> str:
    return f"cbr{_short(network_uid)}"


def gateway_link_name(network_uid: str) -> str:
    """The bridge's end of the veth into the network's namespace."""
    return f"cgw{_short(network_uid)}"


def inner_gateway_name(network_uid: str) -> str:
    """The other end: the network's gateway, next to those of its router's other networks."""
    return f"gw{_short(network_uid)}"


def uplink_name(domain_uid: str) -> str:
    """The host's end of the veth that carries the outbound traffic of a network or of a router."""
    return f"cup{_short(domain_uid)}"


def tunnel_name(network_uid: str) -> str:
    """The VXLAN device that joins a network's bridges on several nodes."""
    return f"cvx{_short(network_uid)}"


def patch_bridge_name(network_uid: str) -> str:
    """The bridge's end of the pair between a provider network and the node's link to it."""
    return f"cpb{_short(network_uid)}"


def patch_uplink_name(network_uid: str) -> str:
    """The other end of it."""
    return f"cpu{_short(network_uid)}"


def namespace_name(domain_uid: str) -> str:
    """Of a routing domain: a router, or a network without one. Namespaces may have long names."""
    return f"cumulet-{domain_uid}"


def alias(kind: str, uid: str) -> str:
    return f"{ALIAS_PREFIX}{kind}:{uid}"


def parse_alias(text: str) -> tuple[str, str] | None:
    """(kind, uid) of a link that is ours, else None."""
    if not text.startswith(ALIAS_PREFIX):
        return None
    kind, _, uid = text.removeprefix(ALIAS_PREFIX).partition(":")
    return (kind, uid) if kind and uid else None
