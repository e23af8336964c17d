"""A real Prometheus on a node of the lab asks its agent what real guests of two nodes did.

**Edge**: `prometheus` (Debian) in the node's namespaces; its HTTP API.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cumulet.v1 import port_pb2
from deploy.lab.lab import Lab
from tests.e2e.lab_cloud import ailment, phases
from tests.support.guest import in_guest
from tests.support.waiting import wait_until

NETWORK = "watched"
GUESTS = ("watched-a", "watched-b")
PINGS, SIZE_BYTES = 20, 1000
FRAME_BYTES = SIZE_BYTES + 8 + 20 + 14  # ICMP, IPv4, Ethernet
FORGED = 15
NOBODYS = "10.78.0.250"
_PROMETHEUS_PORT = 9090
_ASK = (
    "import sys, urllib.parse, urllib.request; "
    f"url = 'http://127.0.0.1:{_PROMETHEUS_PORT}/api/v1/query?query=' + urllib.parse.quote(sys.argv[1]); "
    "print(urllib.request.urlopen(url, timeout=5).read().decode())"
)


class Prometheus:
    """Of one node; it has scraped the node's agent at least once."""

    def __init__(self, lab: Lab, node: str) -> None:
        self._lab = lab
        self._node = node

    def value(self, query: str) -> float | None:
        """Of a query with one result; None while there is none."""
        done = self._lab.call(self._node, ["python3", "-c", _ASK, query])
        if done.returncode:
            return None
        result: list[dict[str, Any]] = json.loads(done.stdout)["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    def wait_grown(self, query: str, before: float, by: float) -> None:
        """Until a counter is that much above what it was."""

        def missing() -> str:
            now = self.value(query)
            return "" if now is not None and now - before >= by else f"{query}: {before}, then {now}"

        wait_until(missing)


@contextmanager
def watching(lab: Lab, node: str, directory: Path) -> Iterator[Prometheus]:
    port = lab.layout.machine(node).layout.ports.agent_metrics
    config = directory / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: cumulet, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
    )
    arguments = (
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{_PROMETHEUS_PORT}",
    )
    with (directory / "prometheus.log").open("wb") as log:
        argv = lab.enter_argv(node, ["prometheus", *arguments])
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        made = Prometheus(lab, node)
        wait_until(lambda: made.value("up") != 1 and (directory / "prometheus.log").read_text()[-500:])
        yield made
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def ports(lab: Lab) -> Iterator[dict[str, port_pb2.Port]]:
    """By instance: a guest on each of two nodes, in one network."""
    with lab.client() as cloud:
        cloud.create("network", {"meta": {"name": NETWORK}, "spec": {}})
        cloud.create(
            "subnet", {"meta": {"name": NETWORK}, "spec": {"network": NETWORK, "cidr": "10.78.0.0/24"}}
        )
        group = {"rule": "PLACEMENT_RULE_ANTI_AFFINITY", "scope": "PLACEMENT_SCOPE_NODE"}
        cloud.create("placement-group", {"meta": {"name": NETWORK}, "spec": group})
        for guest in GUESTS:
            spec = {"flavor": "tiny", "image": "cumulet-guest", "networks": [{"network": NETWORK}]}
            spec |= {"placement_groups": [NETWORK]}
            cloud.create("instance", {"meta": {"name": guest}, "spec": spec})
    try:
        wait_until(lambda: "".join(ailment(lab, guest) for guest in GUESTS))
        with lab.client() as cloud:
            found = {port.spec.instance: port for port in cloud.list("port")}
        yield {guest: found[guest] for guest in GUESTS}
    finally:
        _remove(lab)


def _remove(lab: Lab) -> None:
    with lab.client() as cloud:
        for guest in GUESTS:
            cloud.delete("instance", guest)
    wait_until(lambda: set(phases(lab)) & set(GUESTS))
    with lab.client() as cloud:
        for noun in ("subnet", "network", "placement-group"):
            cloud.delete(noun, NETWORK)


def test_prometheus_sees_what_guests_do(lab: Lab, ports: dict[str, port_pb2.Port], tmp_path: Path) -> None:
    sender, receiver = GUESTS
    target = ports[receiver].status.addresses[0]
    of_sender = f'{{instance_name="{sender}",project="default",network_name="{NETWORK}"}}'
    sent, got = (f"cumulet_port_{way}_bytes_total{of_sender}" for way in ("transmit", "receive"))
    through = f'cumulet_network_tunnel_transmit_packets_total{{network_name="{NETWORK}"}}'
    judged = 'sum(cumulet_security_rule_packets_total{security_group_name="default"})'
    refused = f"cumulet_port_refused_frames_total{of_sender}"
    dropped = 'cumulet_net_dropped_packets_total{stage="anti-spoofing"}'
    with watching(lab, ports[sender].status.node, tmp_path) as prometheus:
        queries = (sent, got, through, judged, refused, dropped)
        wait_until(lambda: [query for query in queries if prometheus.value(query) is None])
        before = {query: prometheus.value(query) or 0.0 for query in queries}

        assert _says(lab, sender, f"ping -c {PINGS} -i 0.1 -s {SIZE_BYTES} -q {target}") == 0
        for query, by in ((sent, PINGS * FRAME_BYTES), (got, PINGS * FRAME_BYTES), (through, PINGS)):
            prometheus.wait_grown(query, before[query], by)
        prometheus.wait_grown(judged, before[judged], 1)
        # Only the first packet of what is one connection is judged, and nothing of it was forged.
        assert (prometheus.value(judged) or 0.0) - before[judged] < PINGS
        assert (prometheus.value(refused) or 0.0) - before[refused] < FORGED

        forged = f"ip addr add {NOBODYS}/24 dev eth0; ping -c {FORGED} -i 0.1 -W 1 -I {NOBODYS} -q {target}"
        assert _says(lab, sender, forged) != 0
        for query in (refused, dropped):
            prometheus.wait_grown(query, before[query], FORGED)
        assert prometheus.value(f'cumulet_network_ports{{network_name="{NETWORK}"}}') == 1
        assert (prometheus.value("cumulet_net_connections") or 0.0) > 0


def _says(lab: Lab, guest: str, command: str) -> int:
    with lab.client() as cloud:
        return in_guest(cloud, guest, command).code
