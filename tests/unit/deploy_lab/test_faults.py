"""Cuts and losses of the underlay: how they add up, and the rules that make them.

**Pure** but for the file in a temporary directory. What the rules drop is for tests/e2e/test_lab.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.lab.faults import (
    ANYBODY,
    LOSS_STEPS,
    Fault,
    Way,
    load_faults,
    parse_faults,
    render_faults,
    render_ruleset,
    save_faults,
    ways,
    with_loss,
    without_machine,
)
from deploy.local.errors import SetupError

names = st.sampled_from([ANYBODY, "control", "n1", "n2"])
some_ways = st.builds(Way, names, names)
losses = st.floats(0, 1)
some_faults = st.lists(st.builds(Fault, some_ways, losses), unique_by=lambda fault: fault.way).map(tuple)


def rules(faults: tuple[Fault, ...]) -> list[list[dict[str, Any]]]:
    commands = json.loads(render_ruleset(faults))["nftables"]
    added = [command["add"] for command in commands if "add" in command]
    return [entry["rule"]["expr"] for entry in added if "rule" in entry]


def test_ways_are_the_machines_own_view() -> None:
    assert ways("n1") == (Way("", "n1"), Way("n1", ""))
    assert ways("n1", direction="in") == (Way("", "n1"),)
    assert ways("n1", "n2", "out") == (Way("n1", "n2"),)


@given(some_faults, some_ways, losses)
def test_a_way_has_the_loss_that_was_set_last(faults: tuple[Fault, ...], way: Way, loss: float) -> None:
    changed = with_loss(faults, [way], loss)
    assert {fault.way: fault.loss for fault in changed}.get(way, 0) == loss
    assert set(changed) - {Fault(way, loss)} == {fault for fault in faults if fault.way != way}
    assert with_loss(changed, [way], loss) == changed


@given(some_faults)
def test_a_healed_machine_has_no_fault(faults: tuple[Fault, ...]) -> None:
    left = without_machine(faults, "n1")
    assert not [fault for fault in left if "n1" in (fault.way.source, fault.way.target)]
    assert set(left) == {fault for fault in faults if "n1" not in (fault.way.source, fault.way.target)}


@pytest.mark.parametrize("loss", [-0.1, 1.1, float("nan")])
def test_a_loss_is_a_ratio(loss: float) -> None:
    with pytest.raises(SetupError, match="is not within 0 to 1"):
        with_loss((), ways("n1"), loss)


@given(some_faults)
def test_faults_are_read_back(faults: tuple[Fault, ...]) -> None:
    assert parse_faults(render_faults(faults)) == faults


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    assert load_faults(path) == ()
    faults = with_loss((), ways("n1", "n2"), 0.5)
    save_faults(path, faults)
    assert load_faults(path) == faults
    path.write_text("[1]")
    with pytest.raises(SetupError, match=r"faults\.json"):
        load_faults(path)


def test_a_cut_drops_all_that_comes_from_a_port() -> None:
    (expression,) = rules((Fault(Way("n1", ""), 1.0),))
    assert expression == [
        {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "n1"}},
        {"counter": None},
        {"drop": None},
    ]


def test_a_loss_between_two_throws_dice_after_it_has_found_them() -> None:
    (expression,) = rules((Fault(Way("n1", "n2"), 0.05),))
    source, target, dice = (entry["match"] for entry in expression[:3])
    assert [source["right"], target["right"]] == ["n1", "n2"]
    assert (dice["op"], dice["right"]) == ("<", 500)
    assert dice["left"]["numgen"]["mod"] == LOSS_STEPS


def test_a_tiny_loss_is_not_none() -> None:
    (expression,) = rules((Fault(Way("n1", ""), 1e-9),))
    assert expression[1]["match"]["right"] == 1


def test_a_ruleset_replaces_the_one_before_in_one_transaction() -> None:
    commands = json.loads(render_ruleset(()))["nftables"]
    assert [next(iter(command)) for command in commands] == ["add", "delete", "add", "add"]


def test_faults_are_told_to_people() -> None:
    assert Fault(Way("n1", ""), 1.0).describe() == "n1 -> all cut"
    assert Fault(Way("", "n1"), 0.05).describe() == "all -> n1 loses 5.00%"
