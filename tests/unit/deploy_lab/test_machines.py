"""What each machine of a lab gets: mounts, cables, links, services, libvirt's configuration.

**Pure**.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from deploy.lab.hypervisor_config import render_files, render_values
from deploy.lab.layout import CONTROL, FABRIC, OUTSIDE, LabLayout, Machine, Role, Settings
from deploy.lab.mounts import BOOT_ID, plan_mounts
from deploy.lab.services import machine_services
from deploy.lab.wiring import (
    FABRIC_BRIDGE,
    OUTSIDE_BRIDGE,
    Cable,
    outside_addresses,
    plan_cables,
    plan_links,
    plug,
    unplug,
)
from deploy.local.services import Service

LAB = LabLayout(Path("/labs/one"), Settings(nodes=3, mtu=1600))
IFNAMSIZ = 16  # linux/if.h, with the final zero


def service(machine: str, name: str) -> Service:
    found = machine_services(LAB, LAB.machine(machine), "/venv/bin/python")
    return next(one for one in found if one.name == name)


def option(argv: tuple[str, ...], name: str) -> list[str]:
    return [value for word, value in pairwise(argv) if word == name]


def cables() -> list[Cable]:
    return [cable for machine in LAB.machines for cable in plan_cables(machine)]


@pytest.mark.parametrize("machine", LAB.machines, ids=lambda machine: str(machine.name))
def test_a_machines_files_are_its_own(machine: Machine) -> None:
    mounts = plan_mounts(machine)
    sources = [Path(mount.source) for mount in mounts if mount.kind == "bind"]
    assert sources
    assert all(source.is_relative_to(machine.state_dir) for source in sources)
    targets = [mount.target for mount in mounts]
    assert len(set(targets)) == len(targets)
    assert {Path("/run"), Path("/sys"), BOOT_ID} <= set(targets)
    libvirt = {target for target in targets if target.name == "libvirt"}
    assert len(libvirt) == (4 if machine.role is Role.NODE else 0)


def test_no_mount_hides_what_a_later_one_needs() -> None:
    for machine in LAB.machines:
        hidden = [mount.target for mount in plan_mounts(machine)]
        assert not any(LAB.state_dir.is_relative_to(target) for target in hidden)


def test_a_mount_is_a_command() -> None:
    run, _, boot_id, etc, *_ = plan_mounts(LAB.machine("n1"))
    assert run.argv == ("mount", "-t", "tmpfs", "-o", "mode=0755,size=67108864", "tmpfs", "/run")
    assert boot_id.argv == ("mount", "--bind", "/labs/one/machines/n1/boot_id", str(BOOT_ID))
    assert etc.argv == ("mount", "--bind", "/labs/one/machines/n1/libvirt/etc", "/etc/libvirt")


def test_every_node_has_a_cable_to_the_fabric_and_one_to_the_outside() -> None:
    ends = [(cable.machine, cable.switch) for cable in cables()]
    nodes = [node.name for node in LAB.nodes]
    assert sorted(ends) == sorted(
        [(CONTROL, FABRIC), *((name, FABRIC) for name in nodes), *((name, OUTSIDE) for name in nodes)]
    )


def test_cables_have_addresses_of_their_own_and_names_that_fit() -> None:
    macs = [cable.mac for cable in cables()]
    assert len(set(macs)) == len(macs)
    for mac in macs:
        first = int(mac.split(":")[0], 16)
        assert len(mac.split(":")) == 6
        assert first & 0b11 == 0b10, "unicast, locally administered"
    names = {name for cable in cables() for name in (cable.link, cable.bridge, cable.port)}
    assert max(map(len, names)) < IFNAMSIZ


def test_laying_and_taking_away_name_the_same_end() -> None:
    cable = plan_cables(LAB.machine("n1"))[0]
    add, attach = plug(cable, 42, 1600)
    assert option(add, "add") == option(attach, "set") == option(unplug(cable), "delete") == ["n1"]
    assert option(add, "netns") == ["42"]
    assert option(add, "mtu") == ["1600", "1600"], "both ends"
    assert option(attach, "master") == [FABRIC_BRIDGE]


def test_links_of_the_machines() -> None:
    made = {name: plan_links(LAB, LAB.machine(name)) for name in (FABRIC, OUTSIDE, CONTROL, "n2")}
    assert all(words[0] == ("ip", "link", "set", "lo", "up") for words in made.values())
    assert option(made["n2"][1], "add") == ["10.98.0.12/24"]
    assert option(made[CONTROL][1], "add") == ["10.98.0.1/24"]
    bridges = [
        option(words, "add") for name in (FABRIC, OUTSIDE) for words in made[name] if words[-1] == "bridge"
    ]
    assert bridges == [[FABRIC_BRIDGE], [OUTSIDE_BRIDGE]]
    assert outside_addresses(LAB) == ("203.0.113.1", "2001:db8:ffff::1", "198.51.100.1", "2001:db8:fffe::1")


@pytest.mark.parametrize("machine", LAB.machines, ids=lambda machine: str(machine.name))
def test_every_need_is_met_by_an_earlier_service_of_the_machine(machine: Machine) -> None:
    met: set[str] = set()
    for one in machine_services(LAB, machine, "/venv/bin/python"):
        assert set(one.needs) <= met, one.name
        met.add(one.address)


def test_agents_find_the_controller_on_the_underlay() -> None:
    controller = service(CONTROL, "controller").argv
    assert "--insecure" in controller
    assert LAB.api_address == "10.98.0.1:7440"
    assert LAB.api_address in option(controller, "--listen")
    assert option(controller, "--advertise") == [LAB.api_address]
    agent = service("n3", "agent").argv
    assert option(agent, "--controller") == [LAB.api_address]
    assert option(agent, "--node") == ["n3"]
    assert option(agent, "--underlay-address") == option(agent, "--address") == ["10.98.0.13"]
    assert option(agent, "--state-dir") == ["/labs/one/machines/n3/agent"]


def test_libvirt_may_be_reached_by_the_other_nodes() -> None:
    assert service("n1", "libvirtd").argv == ("libvirtd", "--listen")


def test_libvirts_files_differ_in_the_host_only() -> None:
    first, second = (render_files(node) for node in LAB.nodes[:2])
    assert first["qemu.conf"] == second["qemu.conf"]
    assert 'security_driver = "none"\ncgroup_controllers = [ ]\n' in first["qemu.conf"]
    (mine, *rest), (other, *others) = (files["libvirtd.conf"].splitlines() for files in (first, second))
    assert mine.startswith('host_uuid = "')
    assert mine != other
    assert rest == others
    assert "listen_tcp = 1" in rest


def test_values_of_libvirts_files() -> None:
    assert render_values({"a": 1, "b": "x y", "c": ("p", "q"), "d": ()}) == (
        'a = 1\nb = "x y"\nc = [ "p", "q" ]\nd = [ ]\n'
    )
    for hostile in ('"', "a\nb = 1"):
        with pytest.raises(ValueError, match="cannot be quoted"):
            render_values({"a": hostile})
