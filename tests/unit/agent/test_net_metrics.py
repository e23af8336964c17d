"""What /metrics says of the network: every family with its labels, judged by promtool; names from the plan.

**Edge**: promtool (Debian: prometheus) as a child process.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from agent.intent import parse_plan
from agent.net.stats import Count, NetStats, NetworkStats, PortStats, RouterStats, Traffic
from agent.net_metrics import NetFamily, NetNames, names_of, render_net
from cumulet.v1 import agent_pb2 as pb

from .build import instance, plan, uid

GROUP, BALANCER = uid(7, 1), uid(8, 1)
PORT, NETWORK, ROUTER = uid(3, 9), uid(2, 1), uid(6, 1)
STATS = NetStats(
    ports={PORT: PortStats(NETWORK, Traffic(1, 2, 3, 4, 5, 6), 7, 8)},
    networks={
        NETWORK: NetworkStats(1, Traffic(11, 12, 13, 14, 15, 16), 17),
        uid(2, 2): NetworkStats(uplink=Traffic(71, 72, 73, 74, 75, 76)),
    },
    routers={
        ROUTER: RouterStats(
            Traffic(21, 22, 23, 24, 25, 26),
            Traffic(31, 32, 33, 34, 35, 36),
            37,
            {f"{BALANCER}/tcp/80": Count(38, 39)},
        )
    },
    rules={(GROUP, "sgr-1-4"): 41, (GROUP, "sgr-1-6"): 42},
    dropped={"egress": 51, "anti-spoofing": 52},
    connections=61,
    connections_max=62,
)
NAMES = NetNames({PORT: ("web", "shop")}, {NETWORK: "lan", ROUTER: "r", GROUP: "front"})


class _Given(Collector):
    def __init__(self, names: NetNames) -> None:
        self._names = names

    def collect(self) -> Iterator[NetFamily]:
        return render_net(STATS, self._names)


def _text(names: NetNames = NAMES) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(names))
    return generate_latest(registry).decode()


def _values(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def _value(name: str, **labels: str) -> float:
    return _values(_text())[f"cumulet_{name}", frozenset(labels.items())]


def test_ports_are_shown_as_their_guests_see_them() -> None:
    labels = {"port": PORT, "instance_name": "web", "project": "shop", "network_name": "lan"}
    names = ("receive_bytes", "receive_packets", "receive_dropped_packets")
    sent = ("transmit_bytes", "transmit_packets", "transmit_dropped_packets", "refused_frames")
    assert [_value(f"port_{name}_total", **labels) for name in (*names, *sent)] == [1, 2, 3, 4, 5, 6, 7]
    assert _value("port_receive_over_rate_packets_total", **labels) == 8
    assert "cumulet_port_transmit_over_rate_packets_total{" not in _text()  # that way there is no limit


def test_networks_show_their_tunnel_and_one_that_does_not_span_has_none() -> None:
    labels = {"network": NETWORK, "network_name": "lan"}
    assert _value("network_ports", **labels) == 1
    assert _value("network_tunnel_receive_bytes_total", **labels) == 11
    assert _value("network_tunnel_transmit_dropped_packets_total", **labels) == 16
    assert _value("network_unmarked_packets_total", **labels) == 17
    tunnels = [labels for name, labels in _values(_text()) if name.startswith("cumulet_network_tunnel")]
    assert {dict(one)["network"] for one in tunnels} == {NETWORK}
    operators = {"network": uid(2, 2), "network_name": ""}
    assert _value("network_uplink_receive_bytes_total", **operators) == 71
    assert _value("network_uplink_transmit_dropped_packets_total", **operators) == 76


def test_routers_show_both_links_what_they_dropped_and_their_load_balancers() -> None:
    labels = {"router": ROUTER, "router_name": "r"}
    assert _value("router_transmit_packets_total", **labels, link="uplink") == 25
    assert _value("router_transmit_packets_total", **labels, link="tunnel") == 35
    assert _value("router_dropped_packets_total", **labels) == 37
    listener = {"load_balancer": BALANCER, "load_balancer_name": "", "listener": "tcp/80"}
    assert _value("load_balancer_packets_total", **listener) == 38
    assert _value("load_balancer_bytes_total", **listener) == 39


def test_rules_stages_and_connections() -> None:
    labels = {"security_group": GROUP, "security_group_name": "front"}
    assert _value("security_rule_packets_total", **labels, rule="sgr-1-4") == 41
    assert _value("security_rule_packets_total", **labels, rule="sgr-1-6") == 42
    assert [_value("net_dropped_packets_total", stage=one) for one in ("egress", "anti-spoofing")] == [51, 52]
    assert [_value("net_connections"), _value("net_connections_max")] == [61, 62]


def test_promtool_has_no_complaint_and_what_no_plan_names_is_shown_too() -> None:
    text = _text()
    check = subprocess.run(["promtool", "check", "metrics"], input=text.encode(), capture_output=True)
    assert (check.returncode, check.stdout + check.stderr) == (0, b"")
    nameless = _values(_text(NetNames()))
    assert len(nameless) == len(_values(text))
    assert f'port="{PORT}"' in text


def test_names_are_those_of_the_plan() -> None:
    made = plan(instance(1), routers={1: (1,)})
    made.routers[0].name = "r"
    made.security_groups.append(pb.PlannedSecurityGroup(uid=GROUP, name="front"))
    names = names_of(parse_plan(made))
    assert names.ports == {uid(3, 9): ("vm-1", "default")}
    assert names.others == {uid(2, 1): "net-1", uid(6, 1): "r", GROUP: "front"}
