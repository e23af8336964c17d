"""The table of supervised processes: what is run, what it needs, where it answers.

**Pure**.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local.layout import LOOPBACK, Layout

SUPERVISOR: Final = "supervisor"
LIBVIRT_SOCKET: Final = "unix:/run/libvirt/libvirt-sock"
VIRTLOGD_SOCKET: Final = "unix:/run/libvirt/virtlogd-sock"
LIBVIRT_RUN: Final = Path("/run/libvirt")
# libvirtd writes a status file of some 20 KiB per guest there; without room a restart kills the guests.
ROOM_MIN_BYTES: Final = 4 << 20
# A thousand nodes' state is below 100 MiB; etcd turns read-only at the quota, so it is generous.
ETCD_QUOTA_BYTES: Final = 2 << 30
# Longer than any watcher's outage that is worth resuming instead of listing again.
ETCD_RETENTION: Final = "1h"
STOP_GRACE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Service:
    """One supervised process."""

    name: str
    argv: tuple[str, ...]
    # It answers here: `unix:PATH` or `HOST:PORT`.
    address: str
    # Not started before these answer.
    needs: tuple[str, ...] = ()
    # The host may run it by itself (systemd); then it is left alone.
    shared: bool = False
    # Not started while the file system of this directory is full.
    room_in: Path | None = None


def build_services(layout: Layout, python: str) -> tuple[Service, ...]:
    """All services of a cloud in the order of starting. `python`: the interpreter that has them installed."""
    return (
        *hypervisor_services(),
        etcd_service(layout),
        controller_service(layout, python),
        agent_service(layout, python, layout.controller_target),
    )


def hypervisor_services(*libvirtd_options: str) -> tuple[Service, ...]:
    """libvirt's daemons."""
    argv = ("libvirtd", *libvirtd_options)
    return (
        Service("virtlogd", ("virtlogd",), VIRTLOGD_SOCKET, shared=True),
        Service("libvirtd", argv, LIBVIRT_SOCKET, (VIRTLOGD_SOCKET,), shared=True, room_in=LIBVIRT_RUN),
    )


def etcd_service(layout: Layout) -> Service:
    """One member, reached by this machine only."""
    client, peer = f"http://{layout.etcd_address}", f"http://{LOOPBACK}:{layout.ports.etcd_peer}"
    argv = (
        *("etcd", "--name", "cumulet", "--data-dir", str(layout.etcd_dir)),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"cumulet={peer}", "--initial-cluster-token", "cumulet"),
        *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", ETCD_RETENTION),
        *("--quota-backend-bytes", str(ETCD_QUOTA_BYTES)),
        *("--logger", "zap", "--log-outputs", "stderr"),
    )
    return Service("etcd", argv, layout.etcd_address)


def controller_service(layout: Layout, python: str, advertise: str = "", *options: str) -> Service:
    """A controller. `advertise`: where agents are sent; the Unix socket unless it is given."""
    argv = (
        *(python, "-m", "controller.main", "--etcd", layout.etcd_address),
        *("--listen", layout.controller_target, "--listen", layout.api_address),
        *("--advertise", advertise or layout.controller_target, "--data-dir", str(layout.controller_dir)),
        *("--metrics-address", f"{LOOPBACK}:{layout.ports.controller_metrics}"),
        *options,
    )
    return Service("controller", argv, layout.controller_target, (layout.etcd_address,))


def agent_service(layout: Layout, python: str, controller: str, *options: str) -> Service:
    """The agent of the node that the layout names."""
    argv = (
        *(python, "-m", "agent.main", "--controller", controller),
        *("--node", layout.node, "--state-dir", str(layout.agent_dir)),
        *("--metrics-address", f"{LOOPBACK}:{layout.ports.agent_metrics}"),
        # One person's machine has no tenants to keep apart; `up` and the node's condition say when it is TCG.
        "--allow-tcg",
        *options,
    )
    return Service("agent", argv, f"{LOOPBACK}:{layout.ports.agent_metrics}", (LIBVIRT_SOCKET,))
