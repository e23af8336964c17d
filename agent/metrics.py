"""The agent's /metrics: guests under the libvirt exporters' names, their networks, and the agent's own work.

**Edge**: a listening socket with threads of its own (prometheus-client). A scrape takes one sample in the
event loop, at most every SAMPLE_EVERY_S and within SAMPLE_DEADLINE_S, else it shows the last one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector

from agent.errors import DriverError
from agent.hypervisor.driver import DomainStats
from agent.net.stats import NetStats
from agent.net_metrics import NetNames, names_of, render_net
from agent.reconcile import Agent
from agent.session import NodeIdentity, Uplink
from cumulet.clock import Clock
from cumulet.v1 import agent_pb2 as pb

Family = CounterMetricFamily | GaugeMetricFamily | SummaryMetricFamily

# Prometheus asks every 15 s or so; several scrapers and people share a sample.
SAMPLE_EVERY_S: Final = 5.0
# Far below Prometheus' own 10 s, so that a hung libvirt costs fresh figures and not the scrape.
SAMPLE_DEADLINE_S: Final = 3.0

_DOMAIN: Final = ("domain", "instance_name", "project")
_DEVICE: Final = (*_DOMAIN, "target_device")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one scrape shows. `names`: (name, project) by instance uid. `net`: None while the network
    cannot be read."""

    taken_at: float
    domains: tuple[DomainStats, ...]
    names: Mapping[str, tuple[str, str]]
    states: Mapping[str, int]  # instances by observed state
    results: Mapping[tuple[str, str], int]
    failures: int
    rounds: int
    round_s: float
    session: bool
    sessions: int
    net: NetStats | None = None
    net_names: NetNames = field(default_factory=NetNames)


class Sampler:
    """Takes samples in the event loop; `last` may be shown by any thread."""

    def __init__(self, agent: Agent, uplink: Uplink, clock: Clock) -> None:
        self._agent = agent
        self._uplink = uplink
        self._clock = clock
        self._taking = asyncio.Lock()
        self.last: Sample | None = None

    async def sample(self) -> Sample:
        """A sample that is at most SAMPLE_EVERY_S old. A driver that cannot answer shows nothing."""
        async with self._taking:
            now = self._clock.monotonic()
            if self.last is None or now - self.last.taken_at >= SAMPLE_EVERY_S:
                async with asyncio.TaskGroup() as group:
                    domains = group.create_task(self._domain_stats())
                    net = group.create_task(self._net_stats())
                self.last = self._build(now, domains.result(), net.result())
            return self.last

    async def _domain_stats(self) -> tuple[DomainStats, ...]:
        try:
            return await self._agent.drivers.hypervisor.domain_stats()
        except DriverError:
            return ()

    async def _net_stats(self) -> NetStats | None:
        try:
            return await self._agent.drivers.net.net_stats()
        except DriverError:
            return None

    def _build(self, now: float, domains: tuple[DomainStats, ...], net: NetStats | None) -> Sample:
        agent = self._agent
        snapshot = agent.snapshot
        told = {} if snapshot is None else snapshot.instances
        states = Counter(
            pb.DomainState.Name(seen.state).removeprefix("DOMAIN_STATE_") for seen in told.values()
        )
        return Sample(
            taken_at=now,
            domains=domains,
            names={uid: (intent.name, intent.project) for uid, intent in agent.intent.instances.items()},
            states={state.removeprefix("DOMAIN_STATE_").lower(): count for state, count in states.items()},
            results=agent.results,
            failures=len(agent.failures()),
            rounds=agent.rounds,
            round_s=agent.round_s,
            session=self._uplink.welcomed,
            sessions=self._uplink.sessions,
            net=net,
            net_names=names_of(agent.intent),
        )


def render(sample: Sample, identity: NodeIdentity) -> Iterator[Family]:
    """Pure: the metrics of a sample."""
    yield from _render_domains(sample)
    yield from _render_devices(sample)
    yield from _render_agent(sample)
    if sample.net is not None:
        yield from render_net(sample.net, sample.net_names)
    capacity = GaugeMetricFamily(
        "cumulet_agent_node_capacity", "What the agent found on the host, by resource.", labels=["resource"]
    )
    capacity.add_metric(["vcpu"], identity.capacity.vcpu)
    capacity.add_metric(["memory_mib"], identity.capacity.memory_mib)
    capacity.add_metric(["disk_gib"], identity.capacity.disk_gib)
    yield capacity


def _render_domains(sample: Sample) -> Iterator[Family]:
    cpu = CounterMetricFamily(
        "libvirt_domain_info_cpu_time_seconds", "CPU time used by the domain.", labels=_DOMAIN
    )
    vcpus = GaugeMetricFamily("libvirt_domain_info_virtual_cpus", "Virtual CPUs.", labels=_DOMAIN)
    maximum = GaugeMetricFamily(
        "libvirt_domain_info_maximum_memory_bytes", "Memory that the domain may use.", labels=_DOMAIN
    )
    used = GaugeMetricFamily(
        "libvirt_domain_info_memory_usage_bytes", "Memory of the host that the domain uses.", labels=_DOMAIN
    )
    for domain in sample.domains:
        labels = _labels(sample, domain.uid)
        cpu.add_metric(labels, domain.cpu_time_s)
        vcpus.add_metric(labels, domain.vcpus)
        maximum.add_metric(labels, domain.memory_maximum_bytes)
        used.add_metric(labels, domain.memory_rss_bytes)
    yield from (cpu, vcpus, maximum, used)


# (metric, help, field of DiskStats or NicStats)
_BLOCK: Final = (
    ("read_bytes", "Bytes read from a block device.", "read_bytes"),
    ("read_requests", "Read requests to a block device.", "reads"),
    ("write_bytes", "Bytes written to a block device.", "written_bytes"),
    ("write_requests", "Write requests to a block device.", "writes"),
)
_INTERFACE: Final = (
    ("receive_bytes", "Bytes received on a network interface.", "received_bytes"),
    ("receive_packets", "Packets received on a network interface.", "received_packets"),
    ("transmit_bytes", "Bytes sent on a network interface.", "transmitted_bytes"),
    ("transmit_packets", "Packets sent on a network interface.", "transmitted_packets"),
)


def _render_devices(sample: Sample) -> Iterator[Family]:
    for kind, table in (("block", _BLOCK), ("interface", _INTERFACE)):
        for metric, text, name in table:
            family = CounterMetricFamily(f"libvirt_domain_{kind}_stats_{metric}", text, labels=_DEVICE)
            for domain in sample.domains:
                devices = domain.disks if kind == "block" else domain.nics
                for device in devices:
                    labels = [*_labels(sample, domain.uid), device.device]
                    family.add_metric(labels, float(getattr(device, name)))
            yield family


def _render_agent(sample: Sample) -> Iterator[Family]:
    rounds = SummaryMetricFamily(
        "cumulet_agent_round_duration_seconds", "Rounds of observe, diff and dispatch."
    )
    rounds.add_metric([], count_value=sample.rounds, sum_value=sample.round_s)
    actions = CounterMetricFamily(
        "cumulet_agent_actions", "Actions by kind and result.", labels=["kind", "result"]
    )
    for (kind, result), count in sorted(sample.results.items()):
        actions.add_metric([kind, result], count)
    states = GaugeMetricFamily("cumulet_agent_instances", "Instances by observed state.", labels=["state"])
    for state, count in sorted(sample.states.items()):
        states.add_metric([state], count)
    failing = GaugeMetricFamily(
        "cumulet_agent_failing_objects", "Objects whose last action failed.", value=sample.failures
    )
    session = GaugeMetricFamily(
        "cumulet_agent_session_open", "1 while a leader has welcomed this agent.", value=float(sample.session)
    )
    sessions = CounterMetricFamily("cumulet_agent_sessions", "Sessions opened.", value=sample.sessions)
    yield from (rounds, actions, states, failing, session, sessions)


def _labels(sample: Sample, uid: str) -> list[str]:
    name, project = sample.names.get(uid, ("", ""))
    return [uid, name, project]


class AgentCollector(Collector):
    """What prometheus-client asks, in a thread of its own, at every scrape."""

    def __init__(self, sampler: Sampler, identity: NodeIdentity, loop: asyncio.AbstractEventLoop) -> None:
        self._sampler = sampler
        self._identity = identity
        self._loop = loop

    def collect(self) -> Iterator[Family]:
        sample = self._fresh()
        if sample is not None:
            yield from render(sample, self._identity)

    def describe(self) -> Iterator[Family]:
        """Nothing: registration must not take a sample."""
        yield from ()

    def _fresh(self) -> Sample | None:
        future = asyncio.run_coroutine_threadsafe(self._sampler.sample(), self._loop)
        try:
            return future.result(SAMPLE_DEADLINE_S)
        except FutureTimeoutError:
            future.cancel()
            return self._sampler.last


class MetricsServer:
    """Serves /metrics until closed. Raises OSError when the address is taken."""

    def __init__(self, host: str, port: int, collector: AgentCollector) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        self._server, self._thread = start_http_server(port, host, registry)
        self.port = int(self._server.server_port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
