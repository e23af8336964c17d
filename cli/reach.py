"""`explain reach`: whether packets from one end to another arrive, told step by step.

**Edge**: one call. The rendering is pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from cli import cells
from cli.output import aligned, to_dict, write_json
from cli.session import Session
from cumulet.errors import ExitCode


class Question(NamedTuple):
    """What is asked besides the two ends."""

    protocol: str
    port: int
    ip_version: int
    live: bool


def explain_reach(session: Session, ends: tuple[str, ...], asked: Question, output: str) -> ExitCode:
    """Print the answer; FAILED when packets do not arrive, so that scripts can ask."""
    if len(ends) != 2:
        raise click.UsageError("give two ends: cumulet explain reach FROM TO")
    found = session.client.explain_reach(*ends, **asked._asdict())
    if output == "json":
        write_json(to_dict(found))
    else:
        click.echo("\n".join([*render_reach(found), *(render_live(found) if asked.live else [])]))
    whole = found.reachable and not found.differences and not found.silent_nodes
    return ExitCode.OK if whole else ExitCode.FAILED


def render_reach(found: Any) -> Iterator[str]:
    """**Pure.** The answer in one line, then each IP version's way."""
    yield found.summary
    for path in found.paths:
        yield ""
        verdict = "arrives" if path.reachable else "does not arrive"
        ends = f"{path.source_address or cells.NOTHING} to {path.target_address or cells.NOTHING}"
        yield f"IPv{path.ip_version}: {ends} {verdict}"
        rows = [("", "STEP", "NODE", "WHAT HAPPENS", "RULE")]
        rows += [
            (
                "ok" if step.passes else "no",
                cells.enum_word(step.DESCRIPTOR.fields_by_name["kind"], step.kind),
                step.node or cells.NOTHING,
                step.message,
                step.rule_id or cells.NOTHING,
            )
            for step in path.steps
        ]
        yield from aligned(rows)


def render_live(found: Any) -> Iterator[str]:
    """**Pure.** What the nodes said."""
    yield ""
    if found.differences:
        rows = [(one.node, one.kind, one.name, one.message) for one in found.differences]
        yield from aligned([("NODE", "KIND", "NAME", "WHAT DIFFERS"), *rows])
    nodes = ", ".join(found.asked_nodes) or "no node"
    yield f"{len(found.differences)} differences on the way ({nodes} answered)"
    if found.silent_nodes:
        yield f"No answer from {', '.join(found.silent_nodes)}: nothing is proved of them."
