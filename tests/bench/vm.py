"""A real VM through the whole path, and the same guest started by hand as the floor.

**Edge**: a cloud of its own (`cumulet up` in a temporary state directory), then libvirt, a bridge and a
dnsmasq of the benchmark's own. Both guests have the same kernel, disk, memory and CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import libvirt

from cumulet.client import Client
from cumulet.v1 import instance_pb2
from tests.bench.report import Suite

ROOT = Path(__file__).resolve().parents[2]
RUNS = 3
TIMEOUT_S = 180.0
POLL_S = 0.05
FLOOR_BRIDGE, FLOOR_TAP = "cbench0", "cbenchtap0"
FLOOR_NETWORK, FLOOR_GATEWAY = "10.254.99.0", "10.254.99.1"
FLOOR_ADDRESS, FLOOR_MAC = "10.254.99.10", "02:00:00:be:4c:01"


def measure(suite: Suite) -> None:
    """`vm_launch_to_running_s`, `vm_launch_to_ping_s`, `vm_floor_to_ping_s`: the median of RUNS each."""
    with tempfile.TemporaryDirectory(prefix="cumulet-bench-", dir="/var/tmp") as directory:
        Path(directory).chmod(0o711)  # QEMU runs as a user of its own and must get through
        state = str(Path(directory) / "state")
        _cumulet("up", "--state-dir", state)
        try:
            _measure(suite, state)
        finally:
            _cumulet("down", "--yes", "--state-dir", state)


def _measure(suite: Suite, state: str) -> None:
    settings = json.loads((Path(state) / "cloud.json").read_text())
    running, ping = [], []
    with Client([f"unix:{settings['runtime_dir']}/controller.sock"]) as cloud:
        network = cloud.get("network", "default").meta.uid
        launch(cloud, network, "warm-up", keep=False)  # image copied, QEMU's capabilities probed
        for index in range(RUNS):
            times = launch(cloud, network, f"bench-{index}", keep=index == RUNS - 1)
            running.append(times[0])
            ping.append(times[1])
        uid = cloud.get("instance", f"bench-{RUNS - 1}").meta.uid
        with bare_network(Path(state)) as directory:
            floor = [bare_start(uid, directory) for _ in range(RUNS)]
    context = {"runs": RUNS, "accelerator": "kvm" if _kvm() else "tcg"}
    middle = RUNS // 2
    suite.figure("vm_launch_to_running_s", sorted(running)[middle], "s", **context, all=running)
    suite.figure("vm_launch_to_ping_s", sorted(ping)[middle], "s", **context, all=ping)
    suite.figure("vm_floor_to_ping_s", sorted(floor)[middle], "s", **context, all=floor)
    added = sorted(ping)[middle] - sorted(floor)[middle]
    suite.figure("vm_added_to_floor_s", added, "s", **context, aim="<= 1.5")


def launch(cloud: Client, network: str, name: str, *, keep: bool) -> tuple[float, float]:
    """(seconds to Running, seconds to the first answered ping) from the create call."""
    spec = {"flavor": "tiny", "image": "cumulet-guest", "networks": [{"network": "default"}]}
    started = time.perf_counter()
    cloud.create("instance", {"meta": {"name": name}, "spec": spec})

    def is_running() -> bool:
        return bool(cloud.get("instance", name).status.phase == instance_pb2.INSTANCE_PHASE_RUNNING)

    until(is_running)
    running = time.perf_counter() - started
    address = cloud.get("instance", name).status.addresses[0]
    until(lambda: _ping(address, f"cumulet-{network}"))
    answered = time.perf_counter() - started
    if not keep:
        operation = cloud.delete("instance", name)
        cloud.wait_operation(operation.meta.name, timeout_s=TIMEOUT_S)
    return round(running, 3), round(answered, 3)


@contextmanager
def bare_network(state: Path) -> Iterator[Path]:
    """A bridge with DHCP by hand; a folder for the overlay."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="floor-", dir=state)))
        directory.chmod(0o711)
        _run("ip", "link", "add", FLOOR_BRIDGE, "type", "bridge")
        stack.callback(_run, "ip", "link", "del", FLOOR_BRIDGE)
        _run("ip", "addr", "add", f"{FLOOR_GATEWAY}/24", "dev", FLOOR_BRIDGE)
        _run("ip", "link", "set", FLOOR_BRIDGE, "up")
        _run("ip", "tuntap", "add", FLOOR_TAP, "mode", "tap", "vnet_hdr")
        stack.callback(_run, "ip", "link", "del", FLOOR_TAP)
        _run("ip", "link", "set", FLOOR_TAP, "master", FLOOR_BRIDGE, "up")
        dnsmasq = subprocess.Popen(
            [
                *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--no-ping"),
                *(f"--interface={FLOOR_BRIDGE}", "--bind-interfaces", "--dhcp-authoritative"),
                *(
                    f"--dhcp-range={FLOOR_NETWORK},static",
                    f"--dhcp-host={FLOOR_MAC},{FLOOR_ADDRESS}",
                ),
                f"--dhcp-leasefile={directory}/leases",
            ],
            stderr=subprocess.DEVNULL,
        )
        stack.callback(dnsmasq.wait)
        stack.callback(dnsmasq.terminate)
        yield directory


def bare_start(uid: str, directory: Path) -> float:
    """Seconds from `virsh create` of a copy of the instance's domain to its first answered ping."""
    connection = libvirt.open("qemu:///system")
    try:
        document = ET.fromstring(connection.lookupByUUIDString(uid).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        overlay = directory / "disk.qcow2"
        overlay.unlink(missing_ok=True)
        backing = json.loads(_run("qemu-img", "info", "-U", "--output=json", _disk(document)))[
            "backing-filename"
        ]
        _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", str(overlay))
        file = directory / "domain.xml"
        file.write_text(_by_hand(document, overlay))
        started = time.perf_counter()
        _run("virsh", "--quiet", "create", str(file))
        until(lambda: _ping(FLOOR_ADDRESS, ""))
        answered = time.perf_counter() - started
        connection.lookupByName("cumulet-bench-floor").destroy()
    finally:
        connection.close()
    return round(answered, 3)


def _by_hand(document: ET.Element, overlay: Path) -> str:
    """The instance's own hardware with another name, disk, tap and MAC, and without what is ours."""
    for tag in ("metadata", "title"):
        found = document.find(tag)
        if found is not None:
            document.remove(found)
    _child(document, "name").text = "cumulet-bench-floor"
    _child(document, "uuid").text = str(uuid.uuid4())
    devices = _child(document, "devices")
    disks = devices.findall("disk")
    _child(disks[0], "source").set("file", str(overlay))
    for seed in disks[1:]:
        devices.remove(seed)
    interface = _child(devices, "interface")
    _child(interface, "mac").set("address", FLOOR_MAC)
    _child(interface, "target").set("dev", FLOOR_TAP)
    for log in devices.findall(".//log/.."):
        log.remove(_child(log, "log"))
    for address in document.findall(".//address/.."):
        address.remove(_child(address, "address"))
    return ET.tostring(document, encoding="unicode")


def _disk(document: ET.Element) -> str:
    return _child(_child(_child(document, "devices"), "disk"), "source").get("file", "")


def _child(parent: ET.Element, tag: str) -> ET.Element:
    found = parent.find(tag)
    if found is None:
        raise RuntimeError(f"the domain has no {tag} in {parent.tag}")
    return found


def until(holds: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + TIMEOUT_S
    while not holds():
        if time.perf_counter() > deadline:
            raise TimeoutError(f"not within {TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)  # between two looks


def _ping(address: str, namespace: str) -> bool:
    inside = ["ip", "netns", "exec", namespace] if namespace else []
    tried = subprocess.run([*inside, "ping", "-c", "1", "-W", "0.3", address], capture_output=True)
    return tried.returncode == 0


def _kvm() -> bool:
    words = Path("/proc/cpuinfo").read_text().split()
    return os.path.exists("/dev/kvm") and bool({"vmx", "svm"} & set(words))


def _run(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _cumulet(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).parent / "cumulet"), *arguments], check=True)


if __name__ == "__main__":
    measure(Suite("vm"))
