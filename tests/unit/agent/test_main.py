"""The process: options, the lock, virtualization, and one-line errors with a next step.

**Edge**: temporary directories; nothing of the host is touched.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agent.errors import DriverError
from agent.hypervisor.driver import HostFacts
from agent.main import StartError, check_virtualization, lock_state_dir, parse_options, run_agent
from agent.net.underlay import find_underlay_mtu
from cumulet.errors import ExitCode


def test_options_of_a_node() -> None:
    controllers = ("--controller", "10.0.0.1:7443", "--controller", "unix:/run/c.sock")
    labels = ("--label", "rack=b", "--label", "gpu=yes")
    options = parse_options(
        [*controllers, *controllers[:2], "--node", "n1", *labels, "--metrics-address", "[::1]:0"]
    )
    assert options.controllers == ("10.0.0.1:7443", "unix:/run/c.sock")
    assert options.labels == (("gpu", "yes"), ("rack", "b"))
    assert options.metrics_address == ("::1", 0)
    assert (
        parse_options(["--controller", "c:1", "--node", "n", "--metrics-address", ""]).metrics_address is None
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--controller"),
        (["--controller", "nonsense"], "host:port"),
        (["--controller", "c:1", "--node", "Not A Name"], "--node"),
        (["--controller", "c:1", "--node", "n", "--label", "rack"], "KEY=VALUE"),
        (["--controller", "c:1", "--node", "n", "--label", "a b=c"], "--label"),
        (["--controller", "c:1", "--node", "n", "--metrics-address", "9477"], "HOST:PORT"),
        (["--controller", "c:1", "--node", "n", "--underlay-address", "eth1"], "--underlay-address"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == ExitCode.USAGE
    assert said in capsys.readouterr().err


def test_two_agents_cannot_share_a_state_directory(tmp_path: Path) -> None:
    lock_state_dir(tmp_path / "state")
    with pytest.raises(StartError, match=r"another agent \(pid \d+\) uses") as refused:
        lock_state_dir(tmp_path / "state")
    assert refused.value.exit_code == ExitCode.CONFLICT


async def test_an_underlay_address_that_no_link_has_ends_the_start(tmp_path: Path) -> None:
    given = ("--controller", "c:1", "--node", "n", "--state-dir", str(tmp_path))
    options = parse_options([*given, "--underlay-address", "192.0.2.99"])
    with pytest.raises(DriverError, match="--underlay-address") as refused:
        await run_agent(options)
    assert (refused.value.reason, refused.value.permanent) == ("UnderlayAddressMissing", True)


def test_the_underlays_mtu_is_that_of_its_link() -> None:
    loopback = int(Path("/sys/class/net/lo/mtu").read_text())
    assert find_underlay_mtu(IPv4Address("127.0.0.1")) == loopback


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StartError, match="--state-dir"):
        lock_state_dir(tmp_path / "file" / "state")


def test_emulation_must_be_allowed() -> None:
    emulated = HostFacts(2, 4096, False, "no vmx or svm in /proc/cpuinfo", "b")
    with pytest.raises(StartError, match="--allow-tcg"):
        check_virtualization(emulated, allow_tcg=False)
    check_virtualization(emulated, allow_tcg=True)
    check_virtualization(HostFacts(2, 4096, True, "", "b"), allow_tcg=False)
