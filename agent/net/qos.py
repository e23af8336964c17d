"""Rates of a port's tap, both ways, in the kernel's queues.

**Edge.** Towards the guest the tap's own queue is a token bucket. What comes from the guest is redirected to
a link of the port's own (`ifb`) whose queue is one: it is delayed there and not lost, as TCP likes it. A port
without limits has none of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agent.net import kernel_links, names
from agent.net.driver import NetworkIntent, PortIntent
from agent.net.netlink_link import Link
from agent.net.netlink_qos import BUCKET, SHAPER
from agent.net.queues import Queues
from agent.net.rates import Rates, wanted_rates
from agent.net.rtnetlink import Netlink

KIND: Final = "shaper"


def ensure_all_rates(host: Netlink, network: NetworkIntent) -> None:
    """Of the ports whose tap is on the network's bridge; those without limits cost two listings together.

    Of that bridge's links and of shapers alone: a node has thousands of others.
    """
    bridge = kernel_links.find_bridge(host, network.uid)
    if bridge is None:
        return
    taps = {link.name: link for link in host.links_of_bridge(bridge.index)}
    shapers = {link.name for link in host.links_of_kind(SHAPER)}
    for port in network.ports:
        tap = taps.get(names.tap_name(port.uid))
        if tap is None or tap.alias != names.alias("tap", port.uid):
            continue
        is_limited = tap.queue == BUCKET or names.shaper_name(port.uid) in shapers
        if is_limited or wanted_rates(port) != Rates():
            ensure_rates(host, port, tap)


def ensure_rates(host: Netlink, port: PortIntent, tap: Link) -> None:
    """What is as it should be is not touched: a bucket that is set again is full again."""
    wanted = wanted_rates(port)
    with Queues() as queues:
        present = _read(queues, tap)
        if present.towards != wanted.towards:
            _set_bucket(queues, tap, wanted.towards)
        if present.away != wanted.away:
            if wanted.away:
                _redirect(host, queues, port, tap)
            else:
                queues.delete_ingress(tap.index)
                delete_shaper(host, port.uid)


def delete_shaper(host: Netlink, port_uid: str) -> None:
    kernel_links.delete_ours(host, KIND, names.shaper_name(port_uid), port_uid)


def read_rates(taps: Iterable[Link]) -> dict[str, Rates]:
    """By name of the tap, as the kernel has them."""
    with Queues() as queues:
        return {tap.name: _read(queues, tap) for tap in taps}


def _read(queues: Queues, tap: Link) -> Rates:
    """A redirection to a link without a bucket is no limit."""
    shaper = queues.find_redirection(tap.index)
    return Rates(queues.find_bucket(tap.index), 0 if shaper is None else queues.find_bucket(shaper))


def _set_bucket(queues: Queues, link: Link, rate_bps: int) -> None:
    if rate_bps:
        queues.set_bucket(link.index, rate_bps)
    else:
        queues.delete_bucket(link.index)


def _redirect(host: Netlink, queues: Queues, port: PortIntent, tap: Link) -> None:
    """The shaper is ready before anything is sent there."""
    name = names.shaper_name(port.uid)
    if host.find_link(name) is None:
        queues.add_shaper(name)
    shaper = kernel_links.get_link(host, name)
    kernel_links.mark(host, shaper, KIND, port.uid)
    queues.set_bucket(shaper.index, wanted_rates(port).away)
    host.change_link(shaper.index, up=True, mtu=tap.mtu)
    if queues.find_redirection(tap.index) != shaper.index:
        queues.delete_ingress(tap.index)
        queues.redirect(tap.index, shaper.index)
