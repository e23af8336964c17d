"""The process `cumulet-agent`: options, log, lock, and the composition of the agent.

**Edge**: the only module that imports concrete drivers. SIGTERM ends the process and touches no guest.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import random
import re
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import structlog

from agent.conflicts import Conflicts
from agent.drivers import Drivers
from agent.errors import DriverError, DriverUnavailableError
from agent.health import Health
from agent.hypervisor.driver import DeviceClass, HostDevice, HostFacts, Hypervisor
from agent.hypervisor.libvirt_driver import LibvirtHypervisor
from agent.journal import FileJournal
from agent.leader import Leader
from agent.link_grpc import GrpcDialer, address_error
from agent.metadata import Metadata
from agent.metrics import AgentCollector, MetricsServer, Sampler
from agent.net.driver import IPAddress
from agent.net.kernel_driver import KernelNet
from agent.net.kernel_external import check_uplinks
from agent.net.underlay import find_underlay_mtu
from agent.reconcile import Agent
from agent.session import NodeIdentity, Uplink
from agent.storage.driver import Storage
from agent.storage.qemu_img_driver import QemuImgStorage
from cumulet.clock import SystemClock
from cumulet.errors import ExitCode
from cumulet.names import LABELS_MAX, label_error, name_error
from cumulet.v1 import meta_pb2, node_pb2, placement_pb2

DEFAULT_STATE_DIR: Final = "/var/lib/cumulet/agent"
DEFAULT_METRICS_ADDRESS: Final = "127.0.0.1:9477"
DEFAULT_LIBVIRT_URI: Final = "qemu:///system"
# At start libvirtd may come up a little later than the agent; it is asked again until it answers.
_LINK: Final = re.compile(r"[^\s/:]{1,15}")  # IFNAMSIZ, and what the kernel refuses in names
_DEVICE_NAME: Final = re.compile(
    r"([0-9a-f]{4}:[0-9a-f]{4})=([A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)"
)
FACTS_AGAIN_S: Final = 2.0

_log = structlog.get_logger("agent.main")


@dataclass(frozen=True, slots=True)
class Options:
    controllers: tuple[str, ...]
    node: str
    address: str
    state_dir: Path
    metrics_address: tuple[str, int] | None
    libvirt_uri: str
    allow_tcg: bool
    labels: tuple[tuple[str, str], ...]
    device_names: tuple[tuple[str, str], ...] = ()
    underlay_address: IPAddress | None = None
    uplinks: tuple[tuple[str, str], ...] = ()


class StartError(Exception):
    """The agent cannot start; the message is one line with the next step."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def parse_options(arguments: Sequence[str]) -> Options:
    """Options of the command line. Ends the process with exit code 2 when one is wrong."""
    parser = _build_parser()
    given = parser.parse_args(arguments)
    for address in given.controller:
        if (error := address_error(address)) is not None:
            parser.error(f"--controller {address!r} {error}")
    if (error := name_error(given.node)) is not None:
        parser.error(f"--node {error}; give a name with --node")
    try:
        return Options(
            controllers=tuple(dict.fromkeys(given.controller)),
            node=given.node,
            address=given.address,
            state_dir=Path(given.state_dir).absolute(),
            metrics_address=_parse_listen(given.metrics_address),
            libvirt_uri=given.libvirt_uri,
            allow_tcg=given.allow_tcg,
            labels=_parse_labels(given.label),
            device_names=_parse_device_names(given.device_name),
            underlay_address=_parse_address(given.underlay_address),
            uplinks=_parse_uplinks(given.uplink),
        )
    except ValueError as err:
        parser.error(str(err))


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cumulet-agent",
        description="Looks after the instances of one node. Ending it touches no instance.",
        epilog="example: cumulet-agent --controller 10.0.0.1:7443 --label rack=a",
    )
    add = parser.add_argument
    add(
        "--controller",
        action="append",
        required=True,
        metavar="ADDRESS",
        help="host:port or unix:/path of a controller; repeat it for each",
    )
    add("--node", default=_default_node(), help="name of this node (default: the host name, %(default)s)")
    add("--address", default="", help="management address of this node, shown to operators")
    add(
        "--underlay-address",
        default="",
        metavar="ADDRESS",
        help="address of this node at which tunnels of networks end; without one no network spans to it",
    )
    add(
        "--uplink",
        action="append",
        default=[],
        metavar="NAME=LINK",
        help="link of this node to an external network, by the name that the cloud's external networks use, "
        "as in internet=eth1; it stays as it is. Repeat it",
    )
    add("--state-dir", default=DEFAULT_STATE_DIR, help="images, disks, journal (default: %(default)s)")
    add(
        "--metrics-address",
        default=DEFAULT_METRICS_ADDRESS,
        metavar="HOST:PORT",
        help="where /metrics is served; empty for nowhere (default: %(default)s)",
    )
    add("--libvirt-uri", default=DEFAULT_LIBVIRT_URI, help="(default: %(default)s)")
    add(
        "--allow-tcg",
        action="store_true",
        help="run guests in software emulation where KVM is missing: slow, and not for tenants who do not "
        "trust each other",
    )
    add("--label", action="append", default=[], metavar="KEY=VALUE", help="label of this node; repeat it")
    add(
        "--device-name",
        action="append",
        default=[],
        metavar="VENDOR:PRODUCT=NAME",
        help="what instances call a PCI device, as in 10de:20b5=gpu-a100; repeat it",
    )
    return parser


def _default_node() -> str:
    return socket.gethostname().partition(".")[0].lower()


def _parse_listen(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"--metrics-address {text!r} must be HOST:PORT, as in {DEFAULT_METRICS_ADDRESS}")
    return host.strip("[]"), int(port)


def _parse_address(text: str) -> IPAddress | None:
    try:
        return ip_address(text) if text else None
    except ValueError as err:
        raise ValueError(f"--underlay-address {text!r} must be an address, as in 192.0.2.1") from err


def _parse_uplinks(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    links: dict[str, str] = {}
    for text in given:
        name, equals, link = text.partition("=")
        error = name_error(name) if equals else "must be NAME=LINK, as in internet=eth1"
        if error is None and not _LINK.fullmatch(link):
            error = f"{link!r} is not a link's name"
        if error is None and name in links:
            error = f"{name} is there twice"
        if error is not None:
            raise ValueError(f"--uplink {text!r}: {error}")
        links[name] = link
    return tuple(sorted(links.items()))


def _parse_labels(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    labels: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        error = label_error(key, value) if equals else "must be KEY=VALUE, as in rack=a"
        if error is not None:
            raise ValueError(f"--label {text!r}: {error}")
        labels[key] = value
    if len(labels) > LABELS_MAX:
        raise ValueError(f"--label: {len(labels)} labels, at most {LABELS_MAX}")
    return tuple(sorted(labels.items()))


def _parse_device_names(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    names: dict[str, str] = {}
    for text in given:
        match = _DEVICE_NAME.fullmatch(text)
        if match is None:
            raise ValueError(f"--device-name {text!r} must be VENDOR:PRODUCT=NAME, as in 10de:20b5=gpu-a100")
        names[match[1]] = match[2]
    return tuple(sorted(names.items()))


def configure_log() -> None:
    """To stderr: for people on a terminal, else one JSON object a line."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(
                [structlog.dev.ConsoleRenderer()]
                if sys.stderr.isatty()
                else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def lock_state_dir(state_dir: Path) -> int:
    """A descriptor that holds the directory for this process. Raises StartError."""
    try:
        state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise StartError(
            f"cannot use --state-dir {state_dir}: {err.strerror}; run as root or give another"
        ) from err
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise StartError(
            f"another agent (pid {holder or 'unknown'}) uses {state_dir}; "
            "stop it, or give another --state-dir",
            ExitCode.CONFLICT,
        ) from err
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


async def _host_facts(hypervisor: Hypervisor) -> HostFacts:
    """The host's facts, as soon as libvirtd answers."""
    while True:
        try:
            return await hypervisor.host_facts()
        except DriverUnavailableError as err:
            _log.warning("waiting for the hypervisor", reason=err.reason, message=err.message)
            await asyncio.sleep(FACTS_AGAIN_S)


def check_virtualization(facts: HostFacts, *, allow_tcg: bool) -> None:
    """Raise StartError where guests would be emulated and nobody has allowed it."""
    if facts.kvm:
        return
    if not allow_tcg:
        raise StartError(
            f"KVM cannot be used: {facts.kvm_message.rstrip('.')}; "
            "correct that, or give --allow-tcg for a trial with slow, less isolated guests"
        )
    _log.warning("guests are emulated (TCG)", why=facts.kvm_message)


async def _identify(options: Options, facts: HostFacts, storage: Storage, underlay_mtu: int) -> NodeIdentity:
    return NodeIdentity(
        node=options.node,
        agent_version=_version(),
        boot_id=facts.boot_id,
        capacity=meta_pb2.Resources(
            vcpu=facts.vcpu, memory_mib=facts.memory_mib, disk_gib=await storage.disk_capacity_gib()
        ),
        virt_type=node_pb2.VIRT_TYPE_KVM if facts.kvm else node_pb2.VIRT_TYPE_TCG,
        labels=options.labels,
        address=options.address,
        underlay_address=str(options.underlay_address or ""),
        underlay_mtu=underlay_mtu,
        uplinks=tuple(name for name, _ in options.uplinks),
        capabilities=facts.capabilities,
        cells=tuple(placement_pb2.NumaCell(vcpu=one.vcpu, memory_mib=one.memory_mib) for one in facts.cells),
        devices=tuple(map(_device, facts.devices)),
    )


def _device(found: HostDevice) -> placement_pb2.Device:
    device = placement_pb2.Device(address=found.address, model=found.model, product=found.product)
    gpu = found.kind is DeviceClass.GPU
    setattr(
        device, "class", placement_pb2.DEVICE_CLASS_GPU if gpu else placement_pb2.DEVICE_CLASS_ACCELERATOR
    )
    if found.cell is not None:
        device.cell = found.cell
    return device


def _version() -> str:
    try:
        return version("cumulet-server")
    except PackageNotFoundError:  # run from a checkout
        return "0.0.0"


async def run_agent(options: Options) -> None:
    """Compose and run until cancelled. Raises StartError, DriverError."""
    underlay_mtu = find_underlay_mtu(options.underlay_address) if options.underlay_address else 0
    hypervisor = LibvirtHypervisor(options.libvirt_uri, device_names=dict(options.device_names))
    uplinks = dict(options.uplinks)
    check_uplinks(uplinks)
    net = KernelNet(options.state_dir / "net", underlay=options.underlay_address, uplinks=uplinks)
    storage = QemuImgStorage(options.state_dir)
    dialer = GrpcDialer()
    drivers: Drivers | None = None
    try:
        facts = await _host_facts(hypervisor)
        check_virtualization(facts, allow_tcg=options.allow_tcg)
        drivers = Drivers(hypervisor, net, storage, kvm=facts.kvm)
        identity = await _identify(options, facts, storage, underlay_mtu)
        await _serve(options, drivers, net, identity, dialer)
    finally:
        await dialer.close()
        await hypervisor.close()
        await net.close()
        await storage.close()


async def _serve(
    options: Options, drivers: Drivers, net: KernelNet, identity: NodeIdentity, dialer: GrpcDialer
) -> None:
    clock, rng = SystemClock(), random.Random()
    leader = Leader(dialer)
    journal = FileJournal(options.state_dir / "journal")
    agent = Agent(options.node, drivers, journal, leader, clock, rng, dict(options.uplinks))
    uplink = Uplink(options.controllers, identity, agent, dialer, leader, clock, rng)
    with ExitStack() as stack:
        if options.metrics_address is not None:
            collector = AgentCollector(Sampler(agent, uplink, clock), identity, asyncio.get_running_loop())
            stack.callback(_serve_metrics(options.metrics_address, collector).close)
        _log.info("agent runs", node=options.node, controllers=options.controllers)
        async with asyncio.TaskGroup() as group:
            group.create_task(agent.run())
            group.create_task(Metadata(agent, net).run())
            group.create_task(Conflicts(agent, net, clock).run())
            group.create_task(Health(agent, net, agent.health).run())
            group.create_task(uplink.run())


def _serve_metrics(address: tuple[str, int], collector: AgentCollector) -> MetricsServer:
    try:
        server = MetricsServer(*address, collector)
    except OSError as err:
        raise StartError(
            f"cannot serve metrics at {address[0]}:{address[1]}: {err.strerror}; "
            "give another --metrics-address"
        ) from err
    _log.info("metrics", address=f"{address[0]}:{server.port}")
    return server


async def _until_signal(options: Options) -> None:
    """Run; SIGTERM and SIGINT end it. Guests run on."""
    work = asyncio.create_task(run_agent(options))  # the process's one top task: its parent is main()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    with suppress(asyncio.CancelledError):
        await work
    _log.info("agent ends; instances run on")


def main() -> None:
    """Entry point of `cumulet-agent`."""
    options = parse_options(sys.argv[1:])
    configure_log()
    try:
        lock_state_dir(options.state_dir)
        asyncio.run(_until_signal(options))
    except StartError as err:
        print(f"cumulet-agent: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
    except DriverError as err:
        print(f"cumulet-agent: {err.reason}: {err.message}", file=sys.stderr)
        sys.exit(ExitCode.FAILED)


if __name__ == "__main__":
    main()
