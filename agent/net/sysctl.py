"""Kernel settings of the namespace that the calling thread is in, and one of the machine.

**Edge**: /proc/sys/net shows the reading thread's namespace.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

_NET: Final = Path("/proc/sys/net")
_GENERATE_NO_ADDRESS: Final = "1"  # IN6_ADDR_GEN_MODE_NONE
_IGNORE_ALL: Final = "8"  # ip-sysctl: do not reply to ARP for any local address
_CONF6: Final = _NET / "ipv6/conf"
_EVEN_IF_FORWARDING: Final = "2"
_INOTIFY: Final = Path("/proc/sys/fs/inotify/max_user_instances")
# Of all processes of a user. Each network's dnsmasq takes one, and the kernel's own 128 ended a node at 126
# networks. An instance that is not used costs a few hundred bytes.
SERVERS_MAX: Final = 16_384


def connections() -> tuple[int, int]:
    """(tracked now, at most). None without connection tracking."""
    directory = _NET / "netfilter"
    if not (directory / "nf_conntrack_count").exists():
        return 0, 0
    held, most = (int((directory / f"nf_conntrack_{name}").read_text()) for name in ("count", "max"))
    return held, most


def forwarding_is_on() -> bool:
    return (_NET / "ipv4/ip_forward").read_text().strip() == "1"


def set_forwarding(on: bool) -> None:
    (_NET / "ipv4/ip_forward").write_text("1" if on else "0")


def bridges_are_filtered() -> bool:
    """Frames of bridges that ask for it pass the inet rules; without the module they silently do not."""
    return (_NET / "bridge/bridge-nf-call-iptables").exists()


def allow_servers() -> None:
    """As many DHCP servers as a node may have networks. Of the machine; only ever raised.

    Where it may not be written, a container, a server that finds no room says so.
    """
    with contextlib.suppress(PermissionError):
        if int(_INOTIFY.read_text()) < SERVERS_MAX:
            _INOTIFY.write_text(str(SERVERS_MAX))


def silence_link(name: str) -> None:
    """A link that carries guests' frames is no way to the host: no IPv6, no answer to ARP."""
    disable_ipv6(name)
    _write(f"ipv4/conf/{name}/arp_ignore", _IGNORE_ALL)


def silence_bridge(name: str) -> None:
    """Without IPv6 a bridge could hold no IPv6 neighbours to answer for; without an address it is silent."""
    _write(f"ipv4/conf/{name}/arp_ignore", _IGNORE_ALL)
    if _has_ipv6():
        _write(f"ipv6/conf/{name}/addr_gen_mode", _GENERATE_NO_ADDRESS)
        _write(f"ipv6/conf/{name}/accept_ra", "0")
        _write(f"ipv6/conf/{name}/disable_ipv6", "0")


def answer_at_once(name: str) -> None:
    """Of addresses that are not the node's own; the kernel would wait up to 0.8 s for somebody better."""
    _write(f"ipv4/neigh/{name}/proxy_delay", "0")


def ipv6_forwarding_is_on() -> bool:
    path = _CONF6 / "all/forwarding"
    return path.exists() and path.read_text().strip() == "1"


def forward_ipv6() -> None:
    """Packets go from link to link. Every link stays the host, or the router, that it was towards its
    neighbours, and keeps what routers there advertised."""
    hosts = [path for path in _CONF6.glob("*/forwarding") if path.parent.name != "all" and not _is_on(path)]
    _keep_advertisements()
    (_CONF6 / "all/forwarding").write_text("1")
    for path in hosts:
        with contextlib.suppress(FileNotFoundError):  # the link went
            path.write_text("0")


def stop_forwarding_ipv6() -> None:
    _write("ipv6/conf/all/forwarding", "0")


def answer_solicitations(name: str) -> None:
    """Of addresses that are not the node's own, at once; only a link that forwards does."""
    if not answers_solicitations(name):
        _keep_advertisements()
        _write(f"ipv6/conf/{name}/forwarding", "1")
        _write(f"ipv6/conf/{name}/proxy_ndp", "1")
    _write(f"ipv6/neigh/{name}/proxy_delay", "0")


def answers_solicitations(name: str) -> bool:
    conf = _CONF6 / name
    return conf.exists() and _is_on(conf / "forwarding") and _is_on(conf / "proxy_ndp")


def ipv6_is_off(name: str) -> bool:
    """Of one link, or of the whole kernel."""
    path = _CONF6 / name / "disable_ipv6"
    return not path.exists() or _is_on(path)


def pass_ipv6(name: str) -> None:
    """A link that carries IPv6 of others: it has no address and believes nobody."""
    _write(f"ipv6/conf/{name}/addr_gen_mode", _GENERATE_NO_ADDRESS)
    for setting in ("accept_ra", "accept_redirects"):
        _write(f"ipv6/conf/{name}/{setting}", "0")
    _write(f"ipv6/conf/{name}/disable_ipv6", "0")


def _keep_advertisements() -> None:
    """Before any link begins to forward: the kernel then forgets what was advertised on all links of the
    namespace that do not accept it "even if forwarding" (ip-sysctl, accept_ra)."""
    for conf in _CONF6.iterdir():
        with contextlib.suppress(FileNotFoundError):
            accepts = (conf / "accept_ra").read_text().strip() == "1"
            if conf.name not in ("all", "default") and accepts and not _is_on(conf / "forwarding"):
                (conf / "accept_ra").write_text(_EVEN_IF_FORWARDING)


def _is_on(path: Path) -> bool:
    return path.read_text().strip() == "1"


def disable_ipv6(scope: str) -> None:
    """`scope` is a link, "all" or "default"."""
    if _has_ipv6():  # a kernel without IPv6 has nothing to disable
        _write(f"ipv6/conf/{scope}/disable_ipv6", "1")


def enable_ipv6(name: str) -> None:
    """Of a link in a router's namespace, where it is off unless asked for."""
    _write(f"ipv6/conf/{name}/disable_ipv6", "0")


def make_router() -> None:
    """A new namespace becomes a network's router."""
    for scope in ("all", "default"):
        disable_ipv6(scope)
        _write(f"ipv4/conf/{scope}/send_redirects", "0")
    set_forwarding(True)


def join_networks() -> None:
    """A router's namespace: both IP versions, and no look at the way that a source would be reached by, since
    what a guest may send as was judged where it sent it."""
    for scope in ("all", "default"):
        _write(f"ipv4/conf/{scope}/rp_filter", "0")
    if _has_ipv6():
        _write("ipv6/conf/all/forwarding", "1")


def networks_are_joined() -> bool:
    path = _NET / "ipv6/conf/all/forwarding"
    return forwarding_is_on() and (not path.exists() or path.read_text().strip() == "1")


def make_ipv6_gateway(name: str) -> None:
    """It has the addresses that it is given, at once, and says in its answers that it is a router."""
    _write(f"ipv6/conf/{name}/addr_gen_mode", _GENERATE_NO_ADDRESS)
    for setting in ("accept_ra", "accept_dad", "accept_redirects"):
        _write(f"ipv6/conf/{name}/{setting}", "0")
    _write(f"ipv6/conf/{name}/forwarding", "1")
    _write(f"ipv6/conf/{name}/disable_ipv6", "0")


def _has_ipv6() -> bool:
    return (_NET / "ipv6").exists()


def _write(setting: str, value: str) -> None:
    """Only what differs: writing "all" again would set every link again."""
    path = _NET / setting
    if path.read_text().strip() != value:
        path.write_text(value)
