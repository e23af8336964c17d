"""The table of supervised processes: each answers where another one needs it, and none is run unsafely.

**Pure**.
"""

from __future__ import annotations

from pathlib import Path

from deploy.local.layout import Layout, Ports
from deploy.local.services import LIBVIRT_SOCKET, Service, build_services

LAYOUT = Layout(Path("/state"), Path("/run/c"), "n1", Ports(1001, 1002, 1003, 1004, 1005))


def services() -> dict[str, Service]:
    return {service.name: service for service in build_services(LAYOUT, "/venv/bin/python")}


def option(service: Service, name: str) -> list[str]:
    return [value for word, value in zip(service.argv, service.argv[1:], strict=False) if word == name]


def test_every_need_is_met_by_an_earlier_service() -> None:
    met: set[str] = set()
    for service in services().values():
        assert set(service.needs) <= met, service.name
        met.add(service.address)


def test_etcd_listens_on_loopback_only_and_is_bounded() -> None:
    etcd = services()["etcd"]
    assert option(etcd, "--listen-client-urls") == ["http://127.0.0.1:1004"]
    assert option(etcd, "--listen-peer-urls") == ["http://127.0.0.1:1005"]
    assert option(etcd, "--auto-compaction-retention") == ["1h"]
    assert int(option(etcd, "--quota-backend-bytes")[0]) == 2 * 1024**3
    assert not [word for word in etcd.argv if "unsafe" in word or "force-new" in word]


def test_the_controller_serves_a_socket_and_loopback() -> None:
    controller = services()["controller"]
    assert controller.argv[:3] == ("/venv/bin/python", "-m", "controller.main")
    assert option(controller, "--listen") == ["unix:/run/c/controller.sock", "127.0.0.1:1001"]
    assert option(controller, "--etcd") == ["127.0.0.1:1004"]


def test_the_agent_dials_the_socket() -> None:
    agent = services()["agent"]
    assert option(agent, "--controller") == ["unix:/run/c/controller.sock"]
    assert option(agent, "--node") == ["n1"]
    assert agent.needs == (LIBVIRT_SOCKET,)


def test_only_libvirt_may_be_the_hosts_own() -> None:
    assert {name for name, service in services().items() if service.shared} == {"virtlogd", "libvirtd"}
