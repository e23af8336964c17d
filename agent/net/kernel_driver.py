"""The network driver over the kernel: netlink, nftables, network namespaces, dnsmasq.

**Edge.** All work runs in one thread of the driver's own, in call order: it moves between namespaces, which
the event loop's thread must never do, and the kernel serialises such changes anyway.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from agent.errors import DriverError, DriverUnavailableError
from agent.net import kernel_observe, kernel_stats, netns
from agent.net.balancer import Probed
from agent.net.balancer_state import BalancerState
from agent.net.driver import (
    GroupIntent,
    IPAddress,
    NetworkIntent,
    ObservedNet,
    PortIntent,
    RemotePort,
    RouterDirectory,
    RouterIntent,
)
from agent.net.ears import Ear, Ears, Place
from agent.net.elements import Element
from agent.net.group_state import GroupState
from agent.net.intent_check import check_group, check_network, check_port, check_router, check_uid
from agent.net.kernel_balancer import KernelBalancers
from agent.net.kernel_directory import KernelDirectory
from agent.net.kernel_external import KernelExternal
from agent.net.kernel_groups import KernelGroups
from agent.net.kernel_host import KernelHost
from agent.net.kernel_network import KernelNetwork
from agent.net.kernel_router import KernelRouters, recorded_elements
from agent.net.kernel_segment import KernelSegments
from agent.net.listeners import Listeners
from agent.net.probe import open_sockets
from agent.net.router_state import RouterState
from agent.net.rules_reader import RulesReader
from agent.net.state import State
from agent.net.stats import NetStats
from cumulet.addresses import part_address, part_address6

NETNS_DIR: Final = Path("/run/netns")  # where iproute2 looks: `ip netns exec cumulet-UID …` works
_SAFE_PATH: Final = re.compile(r"/[A-Za-z0-9._/-]+")  # it is written into dnsmasq's files
T = TypeVar("T")


class KernelNet:
    """Networks of the namespace that the creating thread is in, or of `host_netns`.

    `underlay` is where tunnels end; without it no network spans. `uplinks`: links to external networks by the
    name that plans use.

    Raises DriverError when `state_dir` cannot serve. Two drivers on one machine need namespaces, state
    directories and `netns_dir`s of their own.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        netns_dir: Path = NETNS_DIR,
        host_netns: Path = netns.OWN_NAMESPACE,
        underlay: IPAddress | None = None,
        uplinks: Mapping[str, str] | None = None,
    ) -> None:
        if not _SAFE_PATH.fullmatch(str(state_dir.absolute())):
            raise DriverError(
                "InvalidStateDir",
                f"network state {state_dir}: use letters, digits, dots, hyphens and underscores only",
                permanent=True,
            )
        self._state = State(state_dir.absolute())
        self._state.prepare()
        self._netns_dir = netns_dir
        self._home = netns.open_namespace(host_netns)
        self._thread = ThreadPoolExecutor(1, "net", netns.enter, (self._home,))
        reader = RulesReader()
        self._directory = KernelDirectory()
        group_state = GroupState(state_dir.absolute() / "groups")
        router_state = RouterState(state_dir.absolute() / "routers")
        self._host = KernelHost(
            self._state,
            reader,
            underlay,
            self._peers,
            group_state,
            lambda: recorded_elements(router_state, underlay),
        )
        self._groups = KernelGroups(group_state, self._host, self._state.networks, self._state.find_intent)
        self._routers = KernelRouters(
            router_state,
            netns_dir,
            self._host,
            reader,
            lambda uid: self._network.stop_servers(uid),
            KernelExternal(uplinks or {}),
            KernelBalancers(BalancerState(state_dir.absolute() / "balancers"), reader, underlay),
        )
        self._network = KernelNetwork(
            self._state,
            netns_dir,
            self._host,
            reader,
            self._directory,
            self._groups,
            KernelSegments(self._state, reader, uplinks or {}),
            self._routers.check_ready,
        )
        self._reader = reader
        self._listeners = Listeners()
        self._ears = Ears(uplinks or {})

    async def observe_net(self) -> ObservedNet:
        return await self._run(
            "observing networks",
            lambda: kernel_observe.observe(
                self._state,
                self._netns_dir,
                self._host,
                self._reader,
                self._directory,
                self._groups,
                self._routers,
                self._network.segments,
            ),
        )

    async def net_stats(self) -> NetStats:
        return await self._run(
            "reading counters",
            lambda: kernel_stats.read_stats(self._host.zones.known, self._routers.namespaces()),
        )

    async def ensure_network(self, network: NetworkIntent) -> None:
        check_network(network)
        await self._run(f"network {network.uid}", lambda: self._network.ensure(network))

    async def ensure_port(self, port: PortIntent) -> None:
        check_port(port)
        await self._run(f"port {port.uid}", lambda: self._network.ensure_port(port))

    async def ensure_port_absent(self, uid: str) -> None:
        check_uid("port", uid)
        await self._run(f"removal of port {uid}", lambda: self._network.ensure_port_absent(uid))

    async def ensure_network_absent(self, uid: str) -> None:
        check_uid("network", uid)
        await self._run(f"removal of network {uid}", lambda: self._network.ensure_absent(uid))

    async def ensure_directory(self, network_uid: str, remotes: frozenset[RemotePort]) -> None:
        check_uid("network", network_uid)
        await self._run(
            f"directory of network {network_uid}",
            lambda: self._network.ensure_directory(network_uid, remotes),
        )

    async def ensure_group(self, group: GroupIntent) -> None:
        check_group(group)
        await self._run(f"security group {group.uid}", lambda: self._groups.ensure(group))

    async def ensure_group_absent(self, uid: str) -> None:
        check_uid("security group", uid)
        await self._run(f"removal of security group {uid}", lambda: self._groups.ensure_absent(uid))

    async def ensure_router(self, router: RouterIntent) -> None:
        check_router(router)
        await self._run(f"router {router.uid}", lambda: self._routers.ensure(router))

    async def ensure_router_directory(self, uid: str, directory: RouterDirectory) -> None:
        check_uid("router", uid)
        await self._run(f"directory of router {uid}", lambda: self._routers.ensure_directory(uid, directory))

    async def ensure_health(self, router_uid: str, balancer_uid: str, down: frozenset[Probed]) -> None:
        check_uid("router", router_uid)
        check_uid("load balancer", balancer_uid)
        path = self._network.namespace(router_uid)
        await self._run(
            f"health of load balancer {balancer_uid}",
            lambda: self._routers.balancers.ensure_health(router_uid, balancer_uid, down, path),
        )

    async def balancer_health(self, router_uid: str) -> dict[str, frozenset[Probed]]:
        return await self._run("health of balancers", lambda: self._routers.balancers.down(router_uid))

    async def ensure_router_absent(self, uid: str) -> None:
        check_uid("router", uid)
        await self._run(f"removal of router {uid}", lambda: self._routers.ensure_absent(uid))

    async def metadata_sockets(self, domain_uids: Collection[str]) -> dict[str, socket.socket]:
        """What listens at the metadata address in the namespaces of these routing domains, where they are.

        The same sockets for as long as their namespaces are there and nobody closed them. The caller closes
        them: a namespace lives as long as a socket in it.
        """
        for uid in domain_uids:
            check_uid("routing domain", uid)
        namespaces = {uid: self._network.namespace(uid) for uid in domain_uids}
        return await self._run("metadata sockets", lambda: self._listeners.ensure(namespaces))

    async def ears(self, places: Collection[Place]) -> dict[Place, Ear]:
        """What hears announcements on these links to external networks, as far as they are there.

        The same for as long as the links are and nobody closed them. The caller closes them.
        """
        return await self._run("ears for announcements", lambda: self._ears.ensure(places))

    async def announce(self, uplink: str, address: IPAddress) -> None:
        """Say once more that this node has the address."""
        await self._run(f"announcing {address}", lambda: self._routers.external.announce(uplink, address))

    async def probe_sockets(self, router_uid: str, ip_version: int, count: int) -> list[socket.socket]:
        """Which speak from the router's part here. The caller closes them. Raises OSError.

        In a thread of its own: whether members live does not wait for what the driver has to do.
        """
        check_uid("router", router_uid)
        namespace, underlay = self._network.namespace(router_uid), self._host.underlay
        source = part_address(underlay) if ip_version == 4 else part_address6(underlay)
        return await asyncio.to_thread(open_sockets, namespace, source, count)

    def _peers(self) -> frozenset[Element]:
        return self._directory.peers() | self._routers.peers()

    async def close(self) -> None:
        """What was begun is finished; networks, taps and DHCP servers stay."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        self._directory.close()
        self._routers.close()
        home, self._home = self._home, -1
        if home >= 0:
            os.close(home)

    async def _run(self, attempt: str, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._attempt, attempt, work)

    def _attempt(self, attempt: str, work: Callable[[], T]) -> T:
        """In the thread. Starts in the host's namespace, whatever an earlier failure left."""
        try:
            netns.enter(self._home)
        except OSError as err:
            raise DriverUnavailableError("HostNamespaceLost", f"{attempt}: {err}; restart the agent") from err
        try:
            self._directory.follow()  # from the first effect on
            return work()
        except (OSError, subprocess.SubprocessError) as err:
            raise DriverError(
                "NetworkEffectFailed", f"{attempt}: {err}; it is tried again, see `cumulet doctor`"
            ) from err
