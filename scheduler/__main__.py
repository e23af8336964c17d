"""`python -m scheduler`: what-ifs, simulations and benches of the planner on files.

**Edge**: reads files, writes tables, JSON and pictures, and is the only place of the scheduler with a clock.
Decisions come from the pure modules; what they refuse becomes one line on stderr and exit code 2.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from scheduler.answer import Placement
from scheduler.charts import draw_runs
from scheduler.columns import Columns
from scheduler.files import FileError, read_nodes, read_trace, read_world, write_world
from scheduler.model import ModelError, Request, View
from scheduler.pictures import SUFFIXES, draw_report, write_picture
from scheduler.policy import BY_NAME, PACK, Policy, PolicyError, policy_named
from scheduler.report_document import plain, report_document, result_document
from scheduler.report_text import compare_summaries, result_rows, tell_outcome
from scheduler.seats import Seats, open_seats
from scheduler.simulate import SAMPLES_DEFAULT, SAMPLES_MAX, replay, simulate
from scheduler.steps import StepError, parse_step
from scheduler.suggest import explain_refusal
from scheduler.trace import Trace, TraceError, shape_key
from scheduler.whatif import what_if
from scheduler.world import IncompleteViewError, World

REFUSED: Final = 2  # as of a wrong command line: nothing was done, the message says what to change
WIDTH: Final = 160  # of tables that go into a file or a pipe; narrower, rich would cut cells
ROWS_DEFAULT: Final = 10  # of moves, reasons and failures; the rest is counted, JSON has them all
SUGGESTED_MAX: Final = 3  # shapes that wait for which changes are looked for: each judges the whole fleet
POLICIES_MAX: Final = 6  # as many lines as a picture has colours for
US_PER_S: Final = 1e6
_KNOWN: Final = (FileError, StepError, PolicyError, TraceError, ModelError, IncompleteViewError)

Rows = Sequence[Sequence[str]]


class Refused(click.ClickException):
    """One line on stderr."""

    exit_code = REFUSED


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """What the scheduler refuses by a typed error is told in one line."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except _KNOWN as error:
            raise Refused(" ".join(str(error).split())) from None

    return run


def _picture(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Refused before anything is computed, not afterwards."""
    if value is not None and value.suffix not in SUFFIXES:
        raise click.BadParameter(f"{value} must end in {' or '.join(SUFFIXES)}")
    return value


def _policy(context: click.Context, parameter: click.Parameter, value: str) -> Policy:
    return policy_named(value)


def _policies(context: click.Context, parameter: click.Parameter, value: Sequence[str]) -> list[Policy]:
    if len(value) > POLICIES_MAX:
        raise click.BadParameter(f"{len(value)} are given, at most {POLICIES_MAX} are compared at once")
    return [policy_named(name) for name in dict.fromkeys(value or (PACK.name,))]


_POLICY = click.Choice(list(BY_NAME))
_seed = click.option("--seed", type=click.IntRange(0), default=0, help="Of the random orders of gangs.")
_output = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
_plot = click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_picture,
    help="Draw it into this .svg or .png file.",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """Which instances come to which nodes."""

    title: str
    view: View
    trace: Trace


def _with_workload(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a workload; the command gets it as its first argument."""

    @wraps(command)
    def run(trace: Path, nodes: str, copies: int, first: int | None, **options: Any) -> None:
        loaded = read_trace(trace)
        chosen = loaded.first(len(loaded) if first is None else first).copies(copies)
        command(Workload(f"{trace.name} on {nodes}", read_nodes(nodes), chosen), **options)

    for option in (
        click.option("--first", type=click.IntRange(1), help="Only so many instances of the trace."),
        click.option("--copies", type=int, default=1, show_default=True, help="Of every instance."),
        click.option("--nodes", required=True, help="VCPUxMEMORY_MIB[xDISK_GIB]:COUNT, or a file of nodes."),
        click.option("--trace", required=True, type=click.Path(path_type=Path, dir_okay=False)),
    ):
        run = option(run)
    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Ask the planner that runs the cloud what it would do, without a cloud.

    \b
    Files and formats: docs/reference/traces.md
    How a decision is made, and recipes: docs/howto/scheduling.md
    """


@cli.command(name="whatif")
@one_line_errors
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("steps", nargs=-1, metavar="[STEP]...")
@_seed
@_output
@_plot
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the fleet afterwards.")
@click.option("--rows", type=click.IntRange(0), default=ROWS_DEFAULT, show_default=True, help="Of each list.")
def whatif_command(
    file: Path, steps: Sequence[str], seed: int, output: str, plot: Path | None, save: Path | None, rows: int
) -> None:
    """What becomes of the fleet in FILE, STEP by STEP.

    \b
    Steps:
      add=50xsmall                      instances of a flavor are asked for
      lose-node=n1,n2                   nodes fail at once
      lose-rack=r1, lose-zone=a         every node with that label fails
      drain=n1                          the node is cordoned and emptied
      add-nodes=3x64x196608@rack=r9     nodes join; what waits is placed
      add-like=3xn1                     nodes join that are as one that is there
      policy=spread                     decisions from here on follow it
      place-anew                        everybody is placed again
      n-plus=1, n-plus=2/rack           which failures cannot be absorbed

    \b
    Examples:
      python -m scheduler whatif fleet.yaml
      python -m scheduler whatif fleet.yaml add=50xsmall n-plus=1
      python -m scheduler whatif fleet.yaml lose-rack=r1 --plot rack.svg
      python -m scheduler whatif fleet.yaml drain=n1 --save later.yaml
    """
    report = what_if(read_world(file), [parse_step(step) for step in steps], seed)
    if save is not None:
        write_world(save, report.end)
    if plot is not None:
        write_picture(plot, draw_report(report))
    help_by_request = list(_suggestions(report.end))
    if output == "json":
        _print_json(report_document(report, help_by_request))
        return
    for outcome in report.outcomes:
        click.echo("\n".join(tell_outcome(outcome, rows)))
    for request, changes in help_by_request:
        click.echo(f"For {request.name} it would help to: {'; or '.join(changes)}")
    _print_table(("", "BEFORE", "AFTER"), list(compare_summaries(report.before, report.after)))


@cli.command(name="simulate")
@one_line_errors
@_with_workload
@click.option(
    "--policy", "policies", type=_POLICY, multiple=True, callback=_policies, help="Several are compared."
)
@click.option("--samples", type=click.IntRange(2, SAMPLES_MAX), default=SAMPLES_DEFAULT, show_default=True)
@_seed
@_output
@_plot
def simulate_command(
    work: Workload, policies: Sequence[Policy], samples: int, seed: int, output: str, plot: Path | None
) -> None:
    """Replay a trace on empty nodes, or on those of a file, under one policy or several.

    \b
    Examples:
      python -m scheduler simulate --trace day.csv --nodes 64x196608:40
      python -m scheduler simulate --trace day.csv --nodes fleet.yaml \\
          --policy pack --policy spread --plot day.svg
    """
    runs = [simulate(work.view, work.trace, policy, seed, samples) for policy in policies]
    if plot is not None:
        write_picture(plot, draw_runs(work.title, runs))
    results = [result for result, _ in runs]
    if output == "json":
        _print_json([result_document(result) for result in results])
        return
    columns = [dict(result_rows(result)) for result in results]
    titles = dict.fromkeys(title for column in columns for title in column)
    _print_table(
        ("", *(result.policy for result in results)),
        [(title, *(column.get(title, "") for column in columns)) for title in titles],
    )


@cli.command(name="bench")
@one_line_errors
@_with_workload
@click.option("--policy", type=_POLICY, default=PACK.name, show_default=True, callback=_policy)
@_seed
@_output
def bench_command(work: Workload, policy: Policy, seed: int, output: str) -> None:
    """How fast the planner decides a trace, and how well.

    Speed and packing are of two replays, which decide alike: counting what is where would be timed, too.

    \b
    Examples:
      python -m scheduler bench --trace day.csv --nodes 64x196608:40
      python -m scheduler bench --trace day.csv.gz --nodes 64x196608:720 --policy spread -o json
    """
    speed = measure(work.view, work.trace, policy, seed)
    result, _ = simulate(work.view, work.trace, policy, seed)
    if output == "json":
        _print_json({"speed": plain(speed)} | result_document(result))
        return
    _print_table(("", policy.name), [*_speed_rows(speed), *result_rows(result)])


@dataclass(frozen=True, slots=True)
class Speed:
    """`prepare_s`: building the index. `decisions_per_s` counts departures' work, not their number."""

    decisions: int
    departures: int
    prepare_s: float
    decisions_per_s: float
    decision_p50_us: float
    decision_p99_us: float
    decision_max_us: float


class TimedSeats:
    """Seats that note how long each decision and each departure takes."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self.place_s: list[float] = []
        self.leave_s: list[float] = []

    def place(self, requests: Sequence[Request], rng: random.Random) -> list[Placement | None]:
        begun_s = time.perf_counter()
        found = self._seats.place(requests, rng)
        self.place_s.append(time.perf_counter() - begun_s)
        return found

    def leave(self, request: Request, placement: Placement) -> None:
        begun_s = time.perf_counter()
        self._seats.leave(request, placement)
        self.leave_s.append(time.perf_counter() - begun_s)

    def enter(self, request: Request, placement: Placement) -> None:
        self._seats.enter(request, placement)

    def advance(self, at_s: int) -> None:
        self._seats.advance(at_s)

    def close(self, nodes: Iterable[str]) -> None:
        self._seats.close(nodes)

    def reopen(self, nodes: Iterable[str]) -> None:
        self._seats.reopen(nodes)


def measure(view: View, trace: Trace, policy: Policy, seed: int) -> Speed:
    """Replay the trace against the clock."""
    begun_s = time.perf_counter()
    seats = TimedSeats(open_seats(view, policy, trace.shapes))
    prepare_s = time.perf_counter() - begun_s
    index = {node.name: at for at, node in enumerate(view.nodes)}
    for _ in replay(seats, index, trace, random.Random(seed)):
        pass
    spent_s = sum(seats.place_s) + sum(seats.leave_s)
    p50, p99, largest = np.percentile(seats.place_s or [0.0], (50, 99, 100)).tolist()
    return Speed(
        decisions=len(seats.place_s),
        departures=len(seats.leave_s),
        prepare_s=prepare_s,
        decisions_per_s=len(seats.place_s) / spent_s if spent_s else 0.0,
        decision_p50_us=p50 * US_PER_S,
        decision_p99_us=p99 * US_PER_S,
        decision_max_us=largest * US_PER_S,
    )


def _suggestions(world: World) -> Iterator[tuple[Request, tuple[str, ...]]]:
    """What would help those that wait in the end, one of each shape; a gang's needs are another question."""
    waiting = {shape_key(request): request for request in reversed(world.waiting) if request.gang is None}
    chosen = list(waiting.values())[:SUGGESTED_MAX]
    columns = Columns(world.view)
    for request in chosen:
        refused = explain_refusal(columns, request)
        if refused is not None and refused.changes:
            yield request, tuple(map(str, refused.changes))


def _speed_rows(speed: Speed) -> Iterator[tuple[str, str]]:
    yield "decisions a second", f"{speed.decisions_per_s:,.0f}"
    yield "a decision, p50", f"{speed.decision_p50_us:.1f} us"
    yield "a decision, p99", f"{speed.decision_p99_us:.1f} us"
    yield "a decision, longest", f"{speed.decision_max_us:.1f} us"
    yield "building the index", f"{speed.prepare_s * 1e3:.1f} ms"


def _print_table(titles: Sequence[str], rows: Rows) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(Text(title), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # names may have brackets, which rich would take for markup
    console.print(table)


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    cli(prog_name="python -m scheduler")
