"""The controller's metrics: counts as they happen, and the State's contents at each scrape.

**Edge** in prometheus-client's registry only. Names: shared/design/interfaces.md; label values are bounded.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controller.assemble import assemble, instance_phase
from controller.state import State
from controller.store import keys
from cumulet.v1 import instance_pb2

BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._make_calls(self.registry)
        self._make_scheduler(self.registry)
        self._make_queues(self.registry)

    def _make_calls(self, make: CollectorRegistry) -> None:
        """What is asked of us, and what we ask of etcd."""
        self.rpcs = Counter(
            "grpc_server_handled",
            "RPCs by service, method and code",
            ["grpc_service", "grpc_method", "grpc_code"],
            registry=make,
        )
        self.rpc_seconds = Histogram(
            "grpc_server_handling_seconds",
            "How long unary RPCs took",
            ["grpc_service", "grpc_method"],
            buckets=BUCKETS_S,
            registry=make,
        )
        self.txns = Counter(
            "cumulet_controller_etcd_transactions",
            "Transactions by purpose and outcome",
            ["purpose", "outcome"],
            registry=make,
        )
        self.txn_seconds = Histogram(
            "cumulet_controller_etcd_transaction_seconds",
            "How long transactions took",
            ["purpose"],
            buckets=BUCKETS_S,
            registry=make,
        )

    def _make_scheduler(self, make: CollectorRegistry) -> None:
        self.decisions = Counter(
            "cumulet_scheduler_decisions", "Placements decided, by result", ["result"], registry=make
        )
        self.decision_seconds = Histogram(
            "cumulet_scheduler_batch_seconds",
            "How long planning one batch took",
            buckets=BUCKETS_S,
            registry=make,
        )
        self.batch_size = Histogram(
            "cumulet_scheduler_batch_size",
            "Requests that were planned together",
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
            registry=make,
        )
        self.wait_seconds = Histogram(
            "cumulet_scheduler_wait_seconds",
            "From when an instance was first to be placed until its placement was committed",
            buckets=BUCKETS_S,
            registry=make,
        )
        self.conflicts = Counter(
            "cumulet_scheduler_conflicts",
            "Planned placements that did not hold, by where: gate or commit",
            ["where"],
            registry=make,
        )

        self.quarantined = Counter(
            "cumulet_scheduler_quarantined",
            "Requests set apart, by why: the checker refused their plan, or they could not be planned",
            ["why"],
            registry=make,
        )

    def _make_queues(self, make: CollectorRegistry) -> None:
        self.queue_depth = Gauge(
            "cumulet_controller_queue_depth",
            "Names that waited when some were taken",
            ["queue"],
            registry=make,
        )
        self.queue_seconds = Histogram(
            "cumulet_controller_queue_seconds",
            "How long the oldest name had waited when some were taken",
            ["queue"],
            buckets=BUCKETS_S,
            registry=make,
        )

    def note_status_queue(self, depth: int, wait_s: float) -> None:
        self.queue_depth.labels("status").set(depth)
        self.queue_seconds.labels("status").observe(wait_s)

    def note_txn(self, purpose: str, seconds: float, committed: bool) -> None:
        self.txns.labels(purpose, "committed" if committed else "refused").inc()
        self.txn_seconds.labels(purpose).observe(seconds)

    def note_decisions(self, placed: int, refused: int, seconds: float) -> None:
        self.decisions.labels("placed").inc(placed)
        self.decisions.labels("refused").inc(refused)
        self.decision_seconds.observe(seconds)
        self.batch_size.observe(placed + refused)

    def note_conflicts(self, where: str, count: int) -> None:
        if count:
            self.conflicts.labels(where).inc(count)

    def note_quarantined(self, why: str, count: int) -> None:
        self.quarantined.labels(why).inc(count)

    def note_placed(self, waited_s: float) -> None:
        self.wait_seconds.observe(waited_s)


class StateCollector(Collector):
    """Objects as kube-state-metrics would show them, read from the State when scraped."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        yield from self._instances()
        yield from self._nodes()
        revision = GaugeMetricFamily("cumulet_controller_state_revision", "Store revision of the State")
        revision.add_metric([], self._state.revision)
        yield revision

    def _instances(self) -> Iterator[Metric]:
        phases: Tally[tuple[str, str]] = Tally()
        for parts, row in self._state.rows(keys.INSTANCES).items():
            phase = instance_pb2.InstancePhase.Name(instance_phase(self._state, row))
            phases[parts[0], phase.removeprefix("INSTANCE_PHASE_").title()] += 1
        family = GaugeMetricFamily(
            "cumulet_instances", "Instances by project and phase", labels=["project", "phase"]
        )
        for (project, phase), count in sorted(phases.items()):
            family.add_metric([project, phase], count)
        yield family

    def _nodes(self) -> Iterator[Metric]:
        names = ("capacity", "allocatable", "allocated")
        families = {
            name: GaugeMetricFamily(
                f"cumulet_node_{name}", f"The node's {name} by resource", labels=["node", "resource"]
            )
            for name in names
        }
        ready = GaugeMetricFamily("cumulet_node_ready", "1: the agent has a session", labels=["node"])
        for parts, row in self._state.rows(keys.NODES).items():
            node = assemble(self._state, keys.NODES, parts, row)
            for name in names:
                amounts = getattr(node.status, name)
                for resource in ("vcpu", "memory_mib", "disk_gib"):
                    families[name].add_metric([parts[0], resource], getattr(amounts, resource))
                for resource, amount in sorted(amounts.extended.items()):
                    families[name].add_metric([parts[0], resource], amount)
            up = any(c.type == "Ready" and c.status == 1 for c in node.status.conditions)
            ready.add_metric([parts[0]], int(up))
        yield from families.values()
        yield ready
