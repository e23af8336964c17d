"""What a lab consists of, and its settings file.

**Pure** but for the settings file in a temporary directory.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.lab.layout import (
    HIDDEN_DIRS,
    LABS_DIR,
    MTU_MAX,
    MTU_MIN,
    NODES_MAX,
    SETTINGS_FILE,
    LabLayout,
    Role,
    Settings,
    checked,
    grown,
    lab_dir,
    load_lab,
    parse_settings,
    render_settings,
    save_lab,
)
from deploy.local.errors import SetupError

STATE = Path("/labs/one")
settings = st.builds(Settings, st.integers(1, NODES_MAX), mtu=st.integers(MTU_MIN, MTU_MAX))


@given(settings)
def test_settings_are_read_back(chosen: Settings) -> None:
    assert parse_settings(Path("/lab.json"), render_settings(chosen)) == chosen


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "knots": 3}'])
def test_damaged_settings_name_the_file(text: str) -> None:
    with pytest.raises(SetupError, match=r"/x/lab\.json") as caught:
        parse_settings(Path("/x/lab.json"), text)
    assert "make lab-down" in caught.value.fix


@given(settings)
def test_machines_are_distinct_and_addressed_within_the_underlay(chosen: Settings) -> None:
    lab = checked(LabLayout(STATE, chosen))
    names = [machine.name for machine in lab.machines]
    assert len(set(names)) == len(names) == chosen.nodes + 3
    assert len({machine.state_dir for machine in lab.machines}) == len(names)
    addresses = [machine.underlay for machine in lab.machines if machine.underlay]
    assert len(set(addresses)) == chosen.nodes + 1
    hosts = set(IPv4Network(chosen.underlay).hosts())
    assert all(address.ip in hosts for address in addresses)


def test_switches_start_first_and_have_no_address() -> None:
    machines = LabLayout(STATE).machines
    assert [machine.role for machine in machines[:3]] == [Role.FABRIC, Role.OUTSIDE, Role.CONTROL]
    assert [machine.underlay for machine in machines[:2]] == [None, None]
    assert [str(node.underlay) for node in LabLayout(STATE).nodes] == [
        "10.98.0.11/24",
        "10.98.0.12/24",
        "10.98.0.13/24",
    ]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"nodes": 0}, "nodes: 0"),
        ({"nodes": NODES_MAX + 1}, "nodes: 33"),
        ({"mtu": MTU_MIN - 1}, "mtu"),
        ({"mtu": MTU_MAX + 1}, "mtu"),
        ({"underlay": "10.0.0.1/24"}, "host bits"),
        ({"underlay": "10.0.0.0/28", "nodes": 5}, "too few addresses"),
        ({"outside": "203.0.113.0/30"}, "outside: "),
        ({"outside": "10.98.0.128/25"}, "overlap"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(SetupError, match=told):
        checked(LabLayout(STATE, replace(Settings(), **wrong)))  # type: ignore[arg-type]  # wrong on purpose


def test_the_smallest_range_that_is_accepted_has_room() -> None:
    lab = checked(LabLayout(STATE, Settings(nodes=4, underlay="10.0.0.0/28")))
    assert str(lab.nodes[-1].underlay) == "10.0.0.14/28"


@pytest.mark.parametrize("place", HIDDEN_DIRS, ids=str)
def test_a_lab_cannot_be_where_its_machines_do_not_see_it(place: Path) -> None:
    with pytest.raises(SetupError, match=str(place)):
        checked(LabLayout(place / "labs" / "one"))


def test_a_lab_may_grow_and_nothing_else() -> None:
    known = LabLayout(STATE, Settings(nodes=3))
    assert grown(known, Settings(nodes=3)) == known
    assert grown(known, Settings(nodes=5)).settings.nodes == 5
    with pytest.raises(SetupError, match="nodes 3"):
        grown(known, Settings(nodes=2))
    with pytest.raises(SetupError, match="mtu 1500"):
        grown(known, Settings(nodes=5, mtu=1600))


def test_an_unknown_machine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SetupError, match="'n4'") as caught:
        LabLayout(STATE).machine("n4")
    assert caught.value.fix == "name one of fabric, outside, control, n1, n2, n3"


def test_a_labs_name_is_a_name() -> None:
    assert lab_dir(LABS_DIR, "lab") == LABS_DIR / "lab"
    for wrong in ("", "..", "a/b", "A"):
        with pytest.raises(SetupError, match="lab name"):
            lab_dir(LABS_DIR, wrong)


def test_settings_on_disk(tmp_path: Path) -> None:
    state_dir = tmp_path / "one"
    assert load_lab(state_dir) is None
    lab = LabLayout(state_dir, Settings(nodes=2))
    save_lab(lab)
    save_lab(lab)
    assert load_lab(state_dir) == lab


def test_somebody_elses_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(SetupError, match="not empty"):
        save_lab(LabLayout(tmp_path))
    assert not (tmp_path / SETTINGS_FILE).exists()
