"""Pings between real guests of two nodes while agents, controller and etcd are killed in turn; a takeover.

**Edge**: a lab of its own with real VMs. The control of the same run: the same pings while the nodes' link is
cut. At last the node that announces a floating IP of forwards loses its power, and the other one takes it
over.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from cli.rules import parse_rule
from controller.reconcile.sessions import TAKEOVER_S
from deploy.lab.lab import Lab
from deploy.lab.layout import OUTSIDE, Settings
from deploy.lab.services import EXTERNAL_NETWORK
from deploy.lab.wiring import outside_gateway
from tests.bench.report import Suite
from tests.e2e.conftest import opened_lab
from tests.e2e.lab_cloud import ailment, differences
from tests.support.guest import in_guest
from tests.support.waiting import wait_until

GUESTS: Final = ("left", "right")
# A killed process is back after a second or two; each victim gets a second round when all is ready again.
VICTIMS: Final = (("n1", "agent"), ("n2", "agent"), ("control", "controller"), ("control", "etcd"))
ROUNDS: Final = 3
INTERVAL_S: Final = 0.1
CUT_S: Final = 3.0  # of the control
FORWARDS: Final = dict(zip((8001, 8002), GUESTS, strict=True))
_HTTP: Final = 80  # the small guest serves its name
_LOG: Final = "/tmp/pings"
_COUNTS: Final = re.compile(r"(\d+) packets transmitted, (\d+) packets received")


@dataclass(frozen=True, slots=True)
class Pings:
    sent: int
    received: int

    @property
    def lost(self) -> int:
        return self.sent - self.received


def measure(suite: Suite, rounds: int = ROUNDS) -> None:
    with opened_lab(Settings(nodes=2), context="failover") as lab:
        target = _launch(lab)
        found = _pings_while(lab, target, lambda: _kill_all(lab, rounds))
        cut = _pings_while(lab, target, lambda: _cut(lab))
        wait_until(lambda: differences(lab))
        took_s, announcer = _take_over(lab)
    context = {"trials": found.sent, "interval_s": INTERVAL_S, "guests": "VMs on two nodes"}
    killed = [f"{service} of {machine}" for machine, service in VICTIMS]
    suite.figure("failover_lost_pings", found.lost, "1", **context, killed=killed, rounds=rounds)
    suite.figure(
        "vip_failover_s", took_s, "s", killed=announcer, waits_s=TAKEOVER_S, answers="a guest's HTTP"
    )
    suite.figure("failover_lost_pings_control", cut.lost, "1", trials=cut.sent, link=f"cut for {CUT_S:g} s")


def _launch(lab: Lab) -> str:
    """Two guests, each on a node; the second one's address."""
    apart: dict[str, Any] = {"rule": "PLACEMENT_RULE_ANTI_AFFINITY", "scope": "PLACEMENT_SCOPE_NODE"}
    spec = {
        "flavor": "tiny",
        "image": "cumulet-guest",
        "networks": [{"network": "default"}],
        "placement_groups": ["apart"],
        "security_groups": ["open"],
    }
    rules = [parse_rule(text) for text in ("out any", "in any")]
    with lab.client() as cloud:
        cloud.create("security-group", {"meta": {"name": "open"}, "spec": {"rules": rules}})
        cloud.create("placement-group", {"meta": {"name": "apart"}, "spec": apart})
        for guest in GUESTS:
            cloud.create("instance", {"meta": {"name": guest}, "spec": spec})
    wait_until(lambda: "".join(ailment(lab, guest) for guest in GUESTS))
    with lab.client() as cloud:
        return str(cloud.get("instance", GUESTS[1]).status.addresses[0])


def _pings_while(lab: Lab, target: str, work: Callable[[], None]) -> Pings:
    """The guest counts by itself: consoles end with the controller."""
    _say(lab, f"ping -c 3 -W 5 {target}")  # neighbours are known, the flow is not yet
    _say(lab, f"rm -f {_LOG}; (ping -i {INTERVAL_S} {target} > {_LOG} 2>&1 & echo $! > {_LOG}.pid)")
    work()
    lab.wait_ready()
    _say(lab, f"kill -INT $(cat {_LOG}.pid); while kill -0 $(cat {_LOG}.pid); do :; done 2> /dev/null; true")
    text = _say(lab, f"tail -n 3 {_LOG}")
    counts = _COUNTS.search(text)
    if counts is None:
        raise RuntimeError(f"the guest's pings have no result: {text[-500:]}")
    return Pings(int(counts[1]), int(counts[2]))


def _say(lab: Lab, command: str) -> str:
    with lab.client() as cloud:
        return in_guest(cloud, GUESTS[0], command).text


def _kill_all(lab: Lab, rounds: int) -> None:
    for _ in range(rounds):
        for machine, service in VICTIMS:
            lab.kill_service(machine, service)
            lab.wait_ready()


def _take_over(lab: Lab) -> tuple[float, str]:
    """Seconds from the power cut of the announcing node until the outside is answered again; which node."""
    gateway = outside_gateway(lab.layout)
    outside = {
        "uplink": EXTERNAL_NETWORK,
        "cidr": str(gateway.network),
        "gateway": str(gateway.ip),
        "ranges": [f"{gateway.network[64]}-{gateway.network[127]}"],
    }
    forwards = [
        {"protocol": "tcp", "port": port, "target": guest, "target_port": _HTTP}
        for port, guest in FORWARDS.items()
    ]
    spec = {"external_network": "internet", "forwards": forwards}
    with lab.client() as cloud:
        cloud.create("router", {"meta": {"name": "r"}, "spec": {"networks": ["default"]}})
        cloud.create("external-network", {"meta": {"name": "internet"}, "spec": outside})
        address = cloud.create("floating-ip", {"meta": {"name": "vip"}, "spec": spec}).spec.address
        for port in FORWARDS:
            wait_until(lambda port=port: "" if _answers(lab, address, port) else "no answer")  # type: ignore[misc]
        announcer = str(cloud.get("floating-ip", "vip").status.node)
        places = {guest: cloud.get("instance", guest).status.node for guest in GUESTS}
    survivor = next(port for port, guest in FORWARDS.items() if places[guest] != announcer)
    started = time.monotonic()
    lab.kill(announcer)
    wait_until(lambda: "" if _answers(lab, address, survivor) else "no answer")
    return time.monotonic() - started, announcer


def _answers(lab: Lab, address: str, port: int) -> bool:
    url = f"http://{address}:{port}/"
    return lab.call(OUTSIDE, ["curl", "-s", "-o", "/dev/null", "-m", "0.5", url]).returncode == 0


def _cut(lab: Lab) -> None:
    lab.cut("n1", "n2")
    time.sleep(CUT_S)  # how long is the control's definition
    lab.heal()


if __name__ == "__main__":
    measure(Suite("net-failover"))
