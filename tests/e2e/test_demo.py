"""The whole path on a bare machine: set-up, a real VM, kill -9 of every process, and down without a trace.

**Edge**: everything is real: etcd, libvirt, QEMU, netlink, nft, the processes, the command line. It happens
on a machine of its own (tests/support/machine.py), so a cloud that runs on this host is not touched. The
tests tell one story in order and share the machine.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.images.image import build_image
from deploy.local.services import SUPERVISOR
from tests.support.machine import Machine
from tests.support.waiting import CONVERGE_TIMEOUT_S, wait_until

BIN = Path(sys.executable).parent
STATE_DIR = "/srv/cumulet"
CUMULET = str(BIN / "cumulet")
SERVICES = ("controller", "agent", "etcd", "libvirtd", "virtlogd", SUPERVISOR)

pytestmark = pytest.mark.usefixtures("image")


@pytest.fixture(scope="module")
def image() -> None:
    """The machine has no way to Debian's mirror, so the image is in the cache before."""
    build_image()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    base = tmp_path_factory.mktemp("machine")
    with Machine(base, {"CUMULET_CONFIG": str(base / "config.yaml"), "CUMULET_STATE": STATE_DIR}) as made:
        yield made


@pytest.fixture(scope="module")
def before(machine: Machine) -> dict[str, Any]:
    """What a bare machine holds."""
    return snapshot(machine)


@pytest.fixture(scope="module")
def cloud(machine: Machine, before: dict[str, Any]) -> Machine:
    """The machine with its cloud and the instance of the demonstration."""
    assert before["processes"] == []
    done = machine.run(sys.executable, "-m", "deploy.local.demo", timeout_s=400)
    machine.environment["DEMO_OUTPUT"] = done.stdout
    return machine


def snapshot(machine: Machine) -> dict[str, Any]:
    """Everything that a cloud could leave behind."""

    def listing(*argv: str) -> list[str]:
        return sorted(machine.run(*argv).stdout.split())

    return {
        "processes": sorted(machine.pids().values()),
        "links": sorted(link["ifname"] for link in json.loads(machine.run("ip", "-j", "link").stdout)),
        "namespaces": listing("ip", "netns", "list"),
        "nft": machine.run("nft", "list", "ruleset").stdout,
        "domains": listing("find", "/etc/libvirt", "/run", "-name", "*-*-*-*.xml"),
        "state": listing("find", "/srv", "/var/log/libvirt", "-mindepth", "1", "-type", "f"),
        "sockets": listing("find", "/run", "/srv", "-path", "*cumulet*"),
        "forwarding": machine.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout,
    }


def cumulet(machine: Machine, *words: str, check: bool = True, timeout_s: float = 300) -> str:
    return machine.run(CUMULET, *words, check=check, timeout_s=timeout_s).stdout


def instance(machine: Machine, name: str = "demo") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cumulet(machine, "instance", "show", name, "-o", "json"))
    return found


def phase(machine: Machine) -> str:
    return str(instance(machine)["status"]["phase"])


def emulators(machine: Machine) -> set[tuple[int, str]]:
    """QEMU's processes by number and start time."""
    listed = machine.run("ps", "-eo", "pid=,lstart=,args=").stdout.splitlines()
    lines = (line.split() for line in listed)
    return {(int(words[0]), " ".join(words[1:6])) for words in lines if "qemu-system" in words[6]}


def ping(machine: Machine, address: str) -> str:
    """Three replies from the guest, asked for inside its network."""
    uid = json.loads(cumulet(machine, "network", "show", "default", "-o", "json"))["meta"]["uid"]
    inside = ["ip", "netns", "exec", f"cumulet-{uid}"]
    return machine.run(*inside, "ping", "-c", "3", "-i", "0.2", "-W", "10", address).stdout


def services(machine: Machine) -> dict[str, dict[str, Any]]:
    listed = json.loads(cumulet(machine, "status", "-o", "json", check=False))["services"]
    return {row["name"]: row for row in listed}


def ailments(machine: Machine) -> str:
    """What `cumulet status` finds not healthy; nothing in a healthy cloud."""
    return "; ".join(row["message"] for row in services(machine).values() if not row["healthy"])


def differences(machine: Machine) -> str:
    """What `cumulet verify` says unless it is clean: all nodes answered, nothing missing, 0 orphans."""
    done = machine.run(CUMULET, "verify", check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_demonstration_shows_a_real_vm(cloud: Machine) -> None:
    shown = cloud.environment["DEMO_OUTPUT"]
    address = instance(cloud)["status"]["addresses"][0]
    assert f"Its address is {address}." in shown
    assert re.search(rf"^demo .*{re.escape(address)}", shown, re.MULTILINE), "the instance's line"
    assert "3 packets transmitted, 3 received, 0% packet loss" in shown
    assert "cumulet-guest: ready" in shown
    assert "cumulet explain instance/demo" in shown
    assert "make down" in shown


def test_the_cloud_is_healthy_and_seeded(cloud: Machine) -> None:
    assert ailments(cloud) == ""
    names = {
        noun: set(cumulet(cloud, noun, "list", "-o", "name").split())
        for noun in ("project", "flavor", "network", "subnet", "image")
    }
    assert {name.split("/")[-1] for name in names["flavor"]} == {"tiny", "small", "medium", "large"}
    assert all(names.values())
    assert differences(cloud) == ""


def test_up_again_changes_nothing(cloud: Machine) -> None:
    pids = {name: row["pid"] for name, row in services(cloud).items()}
    started_s = time.monotonic()
    cumulet(cloud, "up")
    assert time.monotonic() - started_s < CONVERGE_TIMEOUT_S
    assert {name: row["pid"] for name, row in services(cloud).items()} == pids


def test_the_demonstration_again_uses_the_same_vm(cloud: Machine) -> None:
    running = emulators(cloud)
    done = cloud.run(sys.executable, "-m", "deploy.local.demo", timeout_s=300)
    assert "3 packets transmitted, 3 received" in done.stdout
    assert emulators(cloud) == running


@pytest.mark.parametrize("victim", SERVICES)
def test_kill_9_leaves_the_vm_alone_and_converges(cloud: Machine, victim: str) -> None:
    running, known = emulators(cloud), instance(cloud)
    killed = services(cloud)[victim]["pid"]
    cloud.run("kill", "-9", str(killed))
    if victim == SUPERVISOR:
        # It may die harmlessly; the next `up` starts one that adopts the others.
        wait_until(lambda: "the old one" if services(cloud)[victim]["state"] == "running" else "")
        cumulet(cloud, "up")
    wait_until(lambda: "" if services(cloud)[victim]["pid"] not in (None, killed) else "not started again")
    wait_until(lambda: ailments(cloud))
    assert emulators(cloud) == running
    now = instance(cloud)
    assert now["meta"]["uid"] == known["meta"]["uid"]
    wait_until(lambda: "" if phase(cloud) == "INSTANCE_PHASE_RUNNING" else phase(cloud))
    assert "3 received" in ping(cloud, now["status"]["addresses"][0])
    wait_until(lambda: differences(cloud))


def test_the_cloud_still_makes_instances_and_deleting_leaves_nothing(cloud: Machine) -> None:
    running = emulators(cloud)
    cumulet(cloud, "launch", "second", "--flavor", "tiny", "--wait=ip")
    assert "3 received" in ping(cloud, instance(cloud, "second")["status"]["addresses"][0])
    assert len(emulators(cloud) - running) == 1
    cumulet(cloud, "instance", "delete", "second", "--yes", "--wait")
    assert emulators(cloud) == running
    wait_until(lambda: differences(cloud))


def test_down_asks_before_instances_are_lost(cloud: Machine) -> None:
    refused = cloud.run(CUMULET, "down", check=False)
    assert refused.returncode == 1
    assert "1 instances would be lost" in refused.stderr
    assert "--yes" in refused.stderr
    assert ailments(cloud) == ""


def test_down_leaves_no_trace(cloud: Machine, before: dict[str, Any]) -> None:
    cumulet(cloud, "down", "--yes")
    assert snapshot(cloud) == before
    cumulet(cloud, "down", "--yes")
    assert snapshot(cloud) == before


@pytest.mark.parametrize(
    "victims",
    [("agent",), (SUPERVISOR, "controller", "agent", "etcd"), (SUPERVISOR, "libvirtd", "virtlogd", "agent")],
    ids="+".join,
)
def test_down_clears_up_half_a_cloud(
    machine: Machine, before: dict[str, Any], victims: tuple[str, ...]
) -> None:
    cumulet(machine, "up")
    cumulet(machine, "launch", "left", "--flavor", "tiny", "--wait=running")
    pids = [str(services(machine)[name]["pid"]) for name in victims]
    machine.run("kill", "-9", *pids)
    cumulet(machine, "down", "--yes")
    assert snapshot(machine) == before


def test_an_interrupted_up_is_completed_by_the_next(machine: Machine, before: dict[str, Any]) -> None:
    # timeout ends it in the middle: the supervisor and some of the processes are there already.
    machine.run("timeout", "-s", "KILL", "1.5", CUMULET, "up", check=False)
    cumulet(machine, "up")
    assert ailments(machine) == ""
    cumulet(machine, "down", "--yes")
    assert snapshot(machine) == before


def test_the_doctor_finds_this_machine_fit(machine: Machine) -> None:
    done = machine.run(CUMULET, "doctor", "-o", "json", check=False)
    findings = json.loads(done.stdout)["findings"]
    assert [finding for finding in findings if finding["level"] == "FAIL"] == []
    assert done.returncode == 0
    assert os.getuid() == 0
