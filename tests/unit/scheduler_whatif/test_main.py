"""`python -m scheduler`: what its commands print is what the pure modules say; a fault is one line.

**Edge**: runs the commands in this process on files in a temporary folder.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from scheduler.__main__ import REFUSED, cli
from scheduler.files import read_nodes, read_trace, read_world
from scheduler.policy import policy_named
from scheduler.simulate import simulate
from scheduler.steps import parse_step
from scheduler.whatif import what_if

FLEET = """\
flavors:
  - {name: small, resources: {vcpu: 2, memory_mib: 4096}}
  - {name: large, resources: {vcpu: 8, memory_mib: 16384}}
  - {name: "[tiny]", resources: {vcpu: 1, memory_mib: 1024}}
nodes:
  - {name: "n{}", count: 3, capacity: {vcpu: 16, memory_mib: 32768}, labels: {rack: r1}}
  - {name: "m[x]", capacity: {vcpu: 16, memory_mib: 32768}, labels: {rack: r2}}
instances:
  - {name: "web{}", count: 4, flavor: small, node: n1}
  - {name: "app{}", count: 2, flavor: large, node: n2}
"""
TRACE = "arrival_s,duration_s,vcpu,memory_mib\n" + "".join(
    f"{10 * number},{35 + 40 * (number % 3)},{1 + number % 4},{1024 * (1 + number % 5)}\n"
    for number in range(60)
)
NODES = "8x16384:3"


@pytest.fixture
def fleet(tmp_path: Path) -> str:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    return str(path)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "day.csv"
    path.write_text(TRACE)
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


def run_json(*arguments: str) -> Any:
    result = run(*arguments, "-o", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def row(table: str, title: str) -> list[str]:
    """The cells of the table's row of that title."""
    line = next(line for line in table.splitlines() if line.startswith(f"{title}  "))
    return [cell.strip() for cell in line.removeprefix(title).split("   ") if cell.strip()]


def test_whatif_tells_every_step_and_compares(fleet: str) -> None:
    result = run("whatif", fleet, "lose-node=n2", "add=9xlarge", "n-plus=1")
    assert result.exit_code == 0
    assert "lose-node=n2: 0 placed, 2 moved, 0 wait" in result.stdout
    assert "app1 moves from n2 to" in result.stdout
    assert "add=9xlarge: 3 placed, 0 moved, 6 wait" in result.stdout
    assert "resource:vcpu on 3" in result.stdout
    assert "n-plus=1: 3 losses are not absorbed (3 of 3 sets tried)" in result.stdout
    assert "it would help to: " in result.stdout
    assert row(result.stdout, "nodes that take instances") == ["4", "3"]
    assert row(result.stdout, "waiting") == ["0", "6"]
    assert row(result.stdout, "room for large") == ["5", "0"]


def test_names_are_not_taken_for_markup(fleet: str) -> None:
    told = run("whatif", fleet, "lose-node=n2").stdout
    assert "app2 moves from n2 to m[x]" in told
    assert row(told, "room for [tiny]") == ["40", "24"]


def test_lists_are_cut_and_the_rest_is_counted(fleet: str) -> None:
    told = run("whatif", fleet, "drain=n1", "--rows", "1").stdout
    assert told.count("moves from") == 1
    assert "... and 3 more (--rows)" in told


def test_whatif_json_is_the_report(fleet: str) -> None:
    steps = ["lose-rack=r2", "add=7xlarge", "n-plus=2"]
    document = run_json("whatif", fleet, *steps)
    report = what_if(read_world(Path(fleet)), [parse_step(step) for step in steps])
    assert [step["step"] for step in document["steps"]] == steps
    for shown, outcome in zip(document["steps"], report.outcomes, strict=True):
        assert [one["uid"] for one in shown["placed"]] == [one.uid for one in outcome.placed]
        assert [one["uid"] for one in shown["waiting"]] == [one.request.uid for one in outcome.unplaced]
    resilience = report.outcomes[2].resilience
    assert resilience is not None
    assert [tuple(one["lost"]) for one in document["steps"][2]["failures"]] == [
        one.lost for one in resilience.failures
    ]
    assert document["after"]["waiting"] == report.after.waiting > 0
    assert document["would_help"][0]["changes"]


def test_a_saved_fleet_goes_on_where_it_was_left(fleet: str, tmp_path: Path) -> None:
    later = str(tmp_path / "later.json")
    first = run_json("whatif", fleet, "drain=n2", "add=2xsmall", "--save", later)
    then, now = first["after"], run_json("whatif", later)["before"]
    for usage in (*then["usages"], *now["usages"]):
        del usage["fragmentation"]  # it is of the shapes at the beginning, which are others then
    assert now == then


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_pictures(fleet: str, trace: str, tmp_path: Path, suffix: str) -> None:
    heat, curves = tmp_path / f"heat{suffix}", tmp_path / f"curves{suffix}"
    assert run("whatif", fleet, "drain=n1", "--plot", str(heat)).exit_code == 0
    given = ("--trace", trace, "--nodes", NODES, "--policy", "pack", "--policy", "spread")
    assert run("simulate", *given, "--plot", str(curves)).exit_code == 0
    for path in (heat, curves):
        if suffix == ".svg":
            assert ET.parse(path).getroot().tag.endswith("svg")
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


def test_simulate_compares_policies(trace: str) -> None:
    names = ("pack", "spread", "dot-product")
    options = [part for name in names for part in ("--policy", name)]
    told = run("simulate", "--trace", trace, "--nodes", NODES, *options).stdout
    view, loaded = read_nodes(NODES), read_trace(Path(trace))
    results = [simulate(view, loaded, policy_named(name))[0] for name in names]
    assert told.split()[:3] == list(names)
    assert row(told, "peak nodes in use") == [str(result.peak_nodes) for result in results]
    assert row(told, "average nodes in use") == [f"{result.average_nodes:.2f}" for result in results]


def test_copies_and_first_are_of_the_trace(trace: str) -> None:
    (result,) = run_json("simulate", "--trace", trace, "--nodes", NODES, "--first", "7", "--copies", "3")
    assert result["arrivals"] == 21


def test_bench_times_every_decision_and_packs_as_the_simulation(trace: str) -> None:
    given = ("--trace", trace, "--nodes", "8x16384:1")
    document = run_json("bench", *given)
    (simulated,) = run_json("simulate", *given)
    speed = document.pop("speed")
    assert speed["decisions"] == 60 == speed["departures"] + document["rejected"]
    assert 0 < speed["decision_p50_us"] <= speed["decision_p99_us"] <= speed["decision_max_us"]
    assert speed["decisions_per_s"] <= 60e6 / (60 * speed["decision_p50_us"] / 2)
    assert document == simulated
    assert document["first_failure"] is not None
    assert document["peak_over_bound"] >= 1
    told = run("bench", *given).stdout
    assert row(told, "first refusal")[0].startswith(f"instance {document['first_failure']['placed']} at")
    assert row(told, "a decision, p99")[0].endswith(" us")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("whatif", "FLEET", "drain=n9"), "there is no node n9; there is m[x], n1"),
        (("whatif", "FLEET", "add=2xhuge"), "there is no flavor huge"),
        (("whatif", "FLEET", "fly=1"), "step 'fly=1': there is no 'fly'"),
        (("whatif", "missing.yaml"), "missing.yaml: No such file or directory"),
        (("whatif", "TRACE"), "day.csv"),
        (("simulate", "--trace", "TRACE", "--nodes", "many"), "nodes 'many'"),
        (("simulate", "--trace", "FLEET", "--nodes", NODES), "of no format that is known"),
        (("simulate", "--trace", "TRACE", "--nodes", NODES, "--copies", "0"), "0 copies"),
        (("bench", "--trace", "missing.csv", "--nodes", NODES), "missing.csv: No such file"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(
    fleet: str, trace: str, arguments: tuple[str, ...], told: str
) -> None:
    result = run(*({"FLEET": fleet, "TRACE": trace}.get(one, one) for one in arguments))
    assert result.exit_code == REFUSED
    assert result.stdout == ""
    assert told in result.stderr
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_picture_of_no_kind_is_refused_before_anything_is_done(fleet: str, tmp_path: Path) -> None:
    later = tmp_path / "later.yaml"
    result = run("whatif", fleet, "--plot", "out.gif", "--save", str(later))
    assert result.exit_code == REFUSED
    assert ".svg or .png" in result.stderr
    assert not later.exists()


@pytest.mark.parametrize("command", ["whatif", "simulate", "bench"])
def test_help_has_examples(command: str) -> None:
    assert f"python -m scheduler {command}" in run(command, "--help").stdout.split("Examples:")[1]
