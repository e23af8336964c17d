"""The lab: nodes that come, are cut off, lose power and come back, with real VMs; and down without a trace.

**Edge**: everything is real. The tests tell one story in order and share one lab of their own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lab.faults import Way
from deploy.lab.lab import Lab
from deploy.lab.layout import FABRIC, OUTSIDE, Settings
from deploy.lab.services import ECHO_PORT
from deploy.lab.wiring import outside_addresses, uplink_address
from deploy.local import process
from deploy.local.errors import SetupError
from deploy.local.progress import Progress
from tests.e2e.conftest import bring_up, opened_lab
from tests.e2e.lab_cloud import address, ailment, differences, emulators, guests, phases, pings, ready
from tests.support.guest import in_guest
from tests.support.waiting import wait_until

BIN = Path(sys.executable).parent
NODES = ("n1", "n2", "n3")
ASK = """
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
with socket.socket(socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET, kind) as asking:
    asking.settimeout(10)
    asking.connect((sys.argv[2], int(sys.argv[3])))
    asking.send(b"who am I?")
    print(asking.recv(100).decode())
"""

OWNER = """
import sys
from pathlib import Path
from deploy.lab.lab import Lab
from deploy.lab.layout import Settings
from deploy.local.progress import Progress
lab = Lab(Path(sys.argv[1]), leashed=True)
lab.ensure_machines(Settings(nodes=1), Progress())
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A configuration of the command line of their own, for this process and for commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUMULET_CONFIG", str(tmp_path_factory.mktemp("config") / "config.yaml"))
        yield dict(os.environ)


@pytest.fixture(scope="module")
def story(environment: dict[str, str]) -> Iterator[Lab]:
    """Two nodes; a third one joins in the story."""
    with opened_lab(Settings(nodes=2), context="story") as lab:
        environment.update(CUMULET_LABS=str(lab.state_dir.parent), CUMULET_LAB_NAME="story")
        yield lab


@pytest.fixture
def mended(story: Lab) -> Iterator[Lab]:
    """The lab, without faults afterwards."""
    yield story
    story.heal()


def cumulet(environment: dict[str, str], *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [str(BIN / "cumulet"), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_two_nodes_are_ready_and_the_command_line_finds_them(story: Lab, environment: dict[str, str]) -> None:
    listed = json.loads(cumulet(environment, "node", "list", "-o", "json"))
    assert [node["meta"]["name"] for node in listed] == ["n1", "n2"]
    assert ready(story) == {"n1": "TRUE", "n2": "TRUE"}
    rows = json.loads(cumulet(environment, "lab", "status", "-o", "json"))
    assert [row["name"] for row in rows] == ["fabric", "outside", "control", "n1", "n2"]


def test_a_third_node_joins_and_nothing_else_changes(story: Lab) -> None:
    known = story.running()
    bring_up(story, Settings(nodes=3))
    now = story.running()
    assert ready(story) == dict.fromkeys(NODES, "TRUE")
    assert {name: now[name] for name in known} == known
    assert set(now) - set(known) == {"n3"}


def test_each_node_has_a_kernel_view_of_its_own(story: Lab) -> None:
    assert [story.run(name, ["hostname"]).strip() for name in NODES] == list(NODES)
    uuids = {_host_uuid(story, name) for name in NODES}
    boots = {story.run(name, ["cat", "/proc/sys/kernel/random/boot_id"]) for name in NODES}
    assert len(uuids) == len(boots) == 3
    uri = f"qemu+tcp://{address(story, 'n2')}/system"
    assert story.run("n1", ["virsh", "-c", uri, "hostname"]).strip() == "n2", "the way of migrations"
    story.run("n1", ["ip", "link", "add", "mine", "type", "bridge"])
    links = [story.run(name, ["ip", "-br", "link"]) for name in NODES]
    assert ["mine" in listed for listed in links] == [True, False, False]
    story.run("n1", ["ip", "link", "delete", "mine"])


def _host_uuid(lab: Lab, node: str) -> str:
    found = re.search(r"<uuid>(.*)</uuid>", lab.run(node, ["virsh", "capabilities"]))
    assert found
    return found[1]


def test_an_instance_runs_on_each_node(story: Lab, environment: dict[str, str]) -> None:
    cumulet(environment, "placement-group", "create", "apart", "--rule", "anti-affinity", "--scope", "node")
    cumulet(
        environment, "launch", "guest", "--flavor", "tiny", "--group", "apart", "--count", "3", "--no-wait"
    )
    wait_until(lambda: {name: one for name, one in phases(story).items() if one != "RUNNING"})
    assert {one.status.node for one in guests(story).values()} == set(NODES)
    for name in NODES:
        (mine,) = (one for one in guests(story).values() if one.status.node == name)
        assert story.run(name, ["virsh", "list", "--uuid"]).split() == [mine.meta.uid]
        assert len(emulators(story, name)) == 1


def test_the_outside_answers_who_asks(story: Lab) -> None:
    mine = str(uplink_address(story.layout, story.layout.machine("n1")).ip)
    gateway, _, behind, _ = outside_addresses(story.layout)  # the others are IPv6
    for protocol in ("tcp", "udp"):
        for host in (gateway, behind):
            told = story.run("n1", [sys.executable, "-c", ASK, protocol, host, str(ECHO_PORT)])
            assert told.split()[0] == mine
    assert "n1" in story.run(OUTSIDE, ["ip", "-br", "link"])


def test_a_part_of_the_frames_is_lost_until_it_is_mended(mended: Lab, environment: dict[str, str]) -> None:
    assert pings(mended, "n1", "n2", 100) == 100
    cumulet(environment, "lab", "loss", "n1", "0.5", "--peer", "n2", "--way", "out")
    # Of 100 at one half, fewer than 20 or more than 80 come less often than once in 10**9 times.
    assert 20 <= pings(mended, "n1", "n2", 100) <= 80
    assert pings(mended, "n1", "n3", 100) == 100, "the others hear all"
    cumulet(environment, "lab", "heal", "n1")
    assert pings(mended, "n1", "n2", 100) == 100


def test_a_cut_of_one_way_leaves_the_other(mended: Lab, environment: dict[str, str]) -> None:
    assert pings(mended, "n1", "n3") == pings(mended, "n3", "n1") == 1  # they know each other's MAC now
    cumulet(environment, "lab", "cut", "n3", "--peer", "n1", "--way", "in")
    assert [fault.way for fault in mended.faults()] == [Way("n1", "n3")]
    heard = {name: _echoes_heard(mended, name) for name in ("n1", "n3")}
    assert pings(mended, "n1", "n3") == pings(mended, "n3", "n1") == 0, "no answer either way"
    assert _echoes_heard(mended, "n1") == heard["n1"] + 1, "n3's request has arrived"
    assert _echoes_heard(mended, "n3") == heard["n3"]


def _echoes_heard(lab: Lab, node: str) -> int:
    """ICMP's InEchos of /proc/net/snmp."""
    names, values = (
        line.split()
        for line in lab.run(node, ["cat", "/proc/net/snmp"]).splitlines()
        if line.startswith("Icmp:")
    )
    return int(values[names.index("InEchos")])


def test_a_dead_service_is_started_again(story: Lab) -> None:
    running = {name: emulators(story, name) for name in NODES}
    story.kill_service("n1", "agent")
    record = story.layout.machine("n1").layout.record_path("agent")
    wait_until(lambda: "" if json.loads(record.read_text())["restarts"] == 1 else "not started again")
    story.wait_ready()
    assert {name: emulators(story, name) for name in NODES} == running


def test_cut_off_and_killed_nodes_are_unknown_and_come_back(story: Lab, environment: dict[str, str]) -> None:
    untouched = {name: emulators(story, name) for name in ("n1", "n3")}
    dead = emulators(story, "n2")
    cumulet(environment, "lab", "cut", "n1")
    cumulet(environment, "lab", "kill", "n2")
    assert "n2: it is off" in cumulet(environment, "lab", "status", code=1)
    assert not any(map(process.is_alive, dead))
    wait_until(lambda: ready(story) != {"n1": "UNKNOWN", "n2": "UNKNOWN", "n3": "TRUE"} and ready(story))
    assert {name: emulators(story, name) for name in ("n1", "n3")} == untouched, "a cut kills no guest"

    cumulet(environment, "lab", "heal")
    story.start("n2")
    story.wait_ready()
    assert ready(story) == dict.fromkeys(NODES, "TRUE")
    assert pings(story, "n1", "n2", 20) == 20
    # n2's guest has lost its power too, and is started again. All have had the time to boot meanwhile.
    wait_until(lambda: {name: told for name in guests(story) if (told := ailment(story, name))})
    assert {name: emulators(story, name) for name in ("n1", "n3")} == untouched
    assert len(emulators(story, "n2") - dead) == 1
    wait_until(lambda: differences(story))
    cumulet(environment, "lab", "status")


def test_guests_have_come_through_it(story: Lab) -> None:
    """Each knows its name, and reaches its gateway and the guest of the next node, through the tunnel."""
    gateway = "$(ip route | grep default | cut -d' ' -f3)"
    known = sorted(guests(story).items())
    with story.client() as cloud:
        for (name, guest), (_, peer) in zip(known, known[1:] + known[:1], strict=True):
            asked = "; ".join(f"ping -q -c 2 -W 5 {target}" for target in (gateway, peer.status.addresses[0]))
            said = in_guest(cloud, name, f"hostname; {asked}; false")
            assert said.text.startswith(f"{name}\n"), guest.status.node
            assert said.text.count("2 packets received") == 2, (guest.status.node, said.text)
            assert said.code == 1, "codes are told"


def test_the_switches_are_not_for_killing(story: Lab, environment: dict[str, str]) -> None:
    known = story.running()
    for name in (FABRIC, OUTSIDE):
        with pytest.raises(SetupError, match="cables"):
            story.kill(name)
        with pytest.raises(SetupError, match="no link"):
            story.cut(name)
    with pytest.raises(SetupError, match="'n9'"):
        story.start("n9")
    assert story.running() == known
    cumulet(environment, "lab", "exec", "n1", "--", "false", code=1)


def test_down_leaves_nothing(story: Lab, environment: dict[str, str]) -> None:
    spaces = {space for running in story.running().values() for space in _namespaces(running.first.pid)}
    before = traces(story, spaces, environment)
    assert all(before.values()), before
    assert len(spaces) == 6 * 4, "six machines, each with four namespaces of its own"
    assert len(before["processes"]) > 25

    cumulet(environment, "lab", "down")
    assert not any(traces(story, spaces, environment).values())
    cumulet(environment, "lab", "down")


def test_a_lab_ends_with_its_owner_and_one_without_a_switch_is_started_anew() -> None:
    with tempfile.TemporaryDirectory(prefix="lab-") as directory:
        Path(directory).chmod(0o711)
        lab = Lab(Path(directory) / "half", leashed=True)
        argv = [sys.executable, "-c", OWNER, str(lab.state_dir)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as owner:
            assert owner.stderr is not None
            assert "machines started" in owner.stderr.readline()
            assert set(lab.running()) == {FABRIC, OUTSIDE, "control", "n1"}
            owner.kill()
        wait_until(lab.running)
        try:
            lab.ensure_machines(Settings(nodes=1), Progress())
            before = lab.running()
            process.send_signal(before[FABRIC].first, signal.SIGKILL)
            wait_until(lambda: FABRIC in lab.running())
            bring_up(lab, Settings(nodes=1))
            assert not set(before.values()) & set(lab.running().values()), "cables end with their switch"
        finally:
            lab.down()
        assert not lab.running()
        assert not lab.state_dir.exists()


def traces(lab: Lab, spaces: set[str], environment: dict[str, str]) -> dict[str, list[str]]:
    """What there is of a lab on this machine, whose namespaces are known."""
    pids = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    held = [line for line in mounts if any(space in line for space in spaces)]
    contexts = Path(environment["CUMULET_CONFIG"]).read_text()
    return {
        "processes": [pid for pid in pids if str(lab.state_dir) in _said_at_start(pid)],
        "namespaces": held + [pid for pid in pids if spaces & _namespaces(int(pid))],
        "directory": [str(lab.state_dir)] if lab.state_dir.exists() else [],
        "contexts": re.findall("story", contexts),
    }


def _said_at_start(pid: str) -> str:
    """Arguments and environment of a process; nothing when it has ended."""
    try:
        return "".join(
            Path(f"/proc/{pid}/{name}").read_text(errors="replace") for name in ("cmdline", "environ")
        )
    except OSError:
        return ""


def _namespaces(pid: int) -> set[str]:
    """Those that a machine has of its own, such as net:[4026532281]."""
    try:
        return {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("net", "mnt", "uts", "pid")}
    except OSError:
        return set()
