"""`explain`: why an object is as it is, what a reason means, what a field is.

**Edge** for KIND/NAME, which asks the cloud; reasons and fields are explained offline.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import click

from cli import cells
from cli.output import Layout, aligned, to_dict, write_json, write_object, write_rows
from cli.reach import Question, explain_reach
from cli.reasons import REASONS
from cli.refs import Ref, by_word, parse_target
from cli.session import Session, connection_options
from cumulet.errors import ExitCode, NotFoundError
from cumulet.kinds import BY_NAME, BY_NOUN, INSTANCE, Kind

EVENTS_MAX: Final = 20  # the newest; `cumulet events KIND/NAME` has the others
_TABLE: Final = Layout()


@click.command("explain", epilog="Example: cumulet explain instance/web")
@click.argument("what", metavar="KIND/NAME|REASON|KIND.FIELD|reach")
@click.argument("ends", nargs=-1, metavar="[FROM TO]")
@click.option("--proto", default="", help="Of reach: tcp, udp, sctp, icmp or a number. Default: icmp.")
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Of reach: destination port.")
@click.option("--ip-version", type=click.Choice(["4", "6"]), default=None, help="Of reach. Default: both.")
@click.option("--live", is_flag=True, help="Of reach: ask the nodes, too, what is programmed there.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Format.")
@connection_options
def explain(
    session: Session,
    what: str,
    ends: tuple[str, ...],
    proto: str,
    port: int,
    ip_version: str | None,
    live: bool,
    output: str,
) -> int:
    """Why an object is as it is, what a reason or a field means, whether packets arrive.

    `cumulet explain instance/web` shows why it is where it is, or nowhere; `cumulet explain NO_CAPACITY` what
    the word means; `cumulet explain instance.spec.networks` what the field is; `cumulet explain reach web db
    --proto tcp --port 5432` whether packets from one instance to another arrive, and which rule decides.
    """
    if what == "reach":
        return explain_reach(session, ends, Question(proto, port, int(ip_version or 0), live), output)
    if ends:
        raise click.UsageError(f"{what} takes nothing more; two ends go with reach")
    _explain_one(session, what, output)
    return ExitCode.OK


def _explain_one(session: Session, what: str, output: str) -> None:
    noun = what.partition(".")[0]
    if "/" in what:
        kind, ref = parse_target(what)
        _explain_object(session, kind, ref, output)
    elif what in REASONS:
        _explain_reason(what, output)
    elif noun in BY_NOUN or noun in BY_NAME:
        _explain_field(what, output)
    else:
        raise NotFoundError(
            _unknown(what), hints=(f"cumulet explain instance/{what}", "cumulet explain instance")
        )


def _unknown(what: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(what, [*REASONS, *BY_NOUN], n=1)
    meant = f", did you mean {close[0]}?" if close else ""
    return f"{what!r} is no reason, no KIND/NAME and no KIND.FIELD{meant}"


def _explain_object(session: Session, kind: Kind, ref: Ref, output: str) -> None:
    client = session.client
    word = "/".join(filter(None, (ref.project, ref.name)))
    if kind is INSTANCE:
        found = by_word(client, kind, word, lambda one: client.explain(one.name, project=one.project))
        if output == "json":
            write_json(to_dict(found))
        else:
            click.echo("\n".join(render_instance(found, time.time())))
        return
    one = by_word(client, kind, word, lambda each: client.get(kind, each.name, project=each.project))
    if output == "json":
        write_json(to_dict(one))
        return
    write_object(kind, one, _TABLE)
    events = client.events(f"{kind.noun}/{one.meta.name}", project=ref.project)
    if events:
        click.echo("\n" + "\n".join(_timeline(events[-EVENTS_MAX:], time.time())))


def render_instance(found: Any, now: float) -> list[str]:
    """**Pure.** The answer, what every node says, what happened, what helps."""
    lines = [found.summary]
    if found.nodes:
        lines += ["", *_verdicts(found.nodes)]
    conditions = found.instance.status.conditions
    if conditions:
        paths = ("type", "status", "reason", "changed_at", "message")
        rows = [tuple(cells.human(one, path, now) for path in paths) for one in conditions]
        lines += ["", *aligned([("CONDITION", "STATUS", "REASON", "AGE", "MESSAGE"), *rows])]
    if found.events:
        lines += ["", *_timeline(found.events[-EVENTS_MAX:], now)]
    tries: list[str] = list(getattr(found, "try"))
    return [*lines, *([""] if tries else []), *(f"try: {one}" for one in tries)]


def _verdicts(nodes: Any) -> Iterator[str]:
    rows = [("NODE", "FITS", "RANK", "SCORE", "REASONS")]
    for one in sorted(nodes, key=lambda node: (not node.fits, node.rank, node.node)):
        score = " ".join(f"{name} {one.score_terms[name]:.3g}" for name in sorted(one.score_terms))
        rows.append(
            (
                f"{one.node} (here)" if one.current else one.node,
                "yes" if one.fits else "no",
                str(one.rank) if one.fits else cells.NOTHING,
                score or cells.NOTHING,
                "; ".join(one.reasons) or cells.NOTHING,
            )
        )
    yield from aligned(rows)


def _timeline(events: Any, now: float) -> Iterator[str]:
    paths = ("at", "source", "reason", "message")
    rows = [tuple(cells.human(one, path, now) for path in paths) for one in events]
    yield from aligned([("AGE", "SOURCE", "EVENT", "MESSAGE"), *rows])


def _explain_reason(word: str, output: str) -> None:
    meaning = REASONS[word]
    if output == "json":
        write_json({"reason": word, "text": meaning.text, "try": list(meaning.tries)})
        return
    click.echo(f"{word}: {meaning.text}")
    for one in meaning.tries:
        click.echo(f"try: {one}")


def _explain_field(path: str, output: str) -> None:
    from dataclasses import asdict

    from cli.fields import UnknownFieldError, describe

    try:
        found = describe(path)
    except UnknownFieldError as error:
        raise NotFoundError(
            str(error), hints=(f"cumulet explain {path.rpartition('.')[0] or 'instance'}",)
        ) from None
    if output == "json":
        write_json(asdict(found))
        return
    click.echo(f"{found.path} ({found.type})")
    if found.doc:
        click.echo(found.doc)
    if found.inside:
        click.echo()
        write_rows(("FIELD", "TYPE", "WHAT IT IS"), found.inside, _TABLE)
