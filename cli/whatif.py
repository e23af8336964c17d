"""`whatif`: what would become of the cloud, step by step, in the order in which the steps are given.

**Edge**: asks the controller, which asks its own planner; writes the picture's file. Nothing is changed.
Exit code 7 when somebody would find no place, so that a script can ask before it acts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from cli.forms import Parsed, parse_amount, parse_pair
from cli.output import to_dict, write_json
from cli.session import Session, connection_options
from cumulet.errors import ExitCode
from cumulet.units import parse_gib, parse_mib

PICTURES: Final = {".svg": 1, ".png": 2}  # PictureFormat: constants of the protocol, here without its module
SCOPES: Final = {"node": 1, "rack": 2, "zone": 3}  # PlacementScope
COUNT_MAX: Final = 2**31 - 1  # what the protocol carries; the controller says how many are sensible
ROWS: Final = 10  # of each list; who wants all of them wants JSON
_ORDER: Final = "cli.whatif.order"


class Step(NamedTuple):
    """A step as the protocol has it: the field of WhatIfStep, its values, and how it is told."""

    field: str
    values: Mapping[str, Any]
    words: str


class StepCommand(click.Command):
    """A command that remembers in which order its options were given, across different ones."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[_ORDER] = [param.name for param in order]
        return super().parse_args(ctx, args)


def parse_add(text: str) -> Step:
    """`50:small`."""
    count, flavor = _counted(text, "COUNT:FLAVOR, as in 50:small")
    return Step("add_instances", {"count": count, "flavor": flavor}, f"add {count} {flavor}")


def parse_lose_nodes(text: str) -> Step:
    """`n1` or `n1,n2`, which fail at once."""
    names = [name for name in text.split(",") if name]
    if not names:
        raise ValueError("the name of a node is missing")
    return Step("lose_nodes", {"nodes": names}, f"lose {', '.join(names)}")


def parse_survive(text: str) -> Step:
    """`1`, `2/rack`."""
    count, slash, scope = text.partition("/")
    if slash and scope not in SCOPES:
        raise ValueError(f"{scope!r} in {text!r} is none of {', '.join(SCOPES)}")
    number, scope = _number(count), scope or "node"
    words = f"survive the loss of {number} {scope}{'s' if number > 1 else ''}"
    return Step("check_failures", {"count": number, "scope": SCOPES[scope]}, words)


def parse_nodes(text: str) -> Step:
    """`4:64x192GiB`, `4:64x192GiBx2TiB+gpu=4@rack=r9`, `4:like=n1`."""
    shape, at, labels = text.partition("@")
    count, shape = _counted(shape, "COUNT:SHAPE, as in 4:64x192GiBx2TiB or 4:like=n1")
    values: dict[str, Any] = {"count": count}
    like = shape.removeprefix("like=")
    if like != shape:
        if not like:
            raise ValueError(f"{text!r} does not say which node the new ones are like")
        values["like"] = like
    else:
        values["capacity"] = parse_shape(shape)
    if at:
        values["labels"] = dict(parse_pair(pair) for pair in labels.split(","))
    shown = f"like {like}" if like != shape else shape
    return Step("add_nodes", values, f"add {count} node(s) {shown}{at}{labels}")


def parse_shape(text: str) -> dict[str, Any]:
    """`VCPUxMEMORY[xDISK][+NAME=AMOUNT...]`: memory in MiB and disk in GiB, or with units."""
    amounts, *extended = text.split("+")
    vcpu, *sizes = amounts.split("x")
    if not 1 <= len(sizes) <= 2 or not all(sizes):
        raise ValueError(f"{text!r} is no shape: VCPUxMEMORY[xDISK][+NAME=AMOUNT], as in 64x192GiBx2TiB")
    return {
        "vcpu": _number(vcpu),
        "memory_mib": parse_mib(sizes[0]),
        "disk_gib": parse_gib(sizes[1]) if sizes[1:] else 0,
        "extended": dict(parse_amount(one) for one in extended),
    }


def _counted(text: str, wanted: str) -> tuple[int, str]:
    count, colon, rest = text.partition(":")
    if not colon or not rest:
        raise ValueError(f"{text!r} is not {wanted}")
    return _number(count), rest


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:11]) <= COUNT_MAX):
        raise ValueError(f"{text!r} is no number from 1 on")
    return int(text)


def _one_name(field: str, name: str, verb: str, **more: Any) -> Callable[[str], Step]:
    """A parser of steps that name one thing."""

    def parse(text: str) -> Step:
        if not text:
            raise ValueError("a name is missing")
        return Step(field, {name: text, **more}, f"{verb} {text}")

    return parse


class _Flag(NamedTuple):
    parse: Callable[[str], Step]
    metavar: str
    help: str


_STEPS: Final[dict[str, _Flag]] = {
    "add": _Flag(parse_add, "N:FLAVOR", "New instances of a flavor are asked for."),
    "lose-node": _Flag(parse_lose_nodes, "A[,B]", "Nodes fail at once; what ran there is placed again."),
    "lose-rack": _Flag(
        _one_name("lose_domain", "name", "lose rack", scope=SCOPES["rack"]),
        "NAME",
        "Every node with label rack=NAME fails.",
    ),
    "lose-zone": _Flag(
        _one_name("lose_domain", "name", "lose zone", scope=SCOPES["zone"]),
        "NAME",
        "Every node with label zone=NAME fails.",
    ),
    "drain": _Flag(_one_name("drain_node", "node", "drain"), "NODE", "A node is cordoned and emptied."),
    "add-nodes": _Flag(
        parse_nodes,
        "N:SHAPE",
        "Empty nodes join: SHAPE is VCPUxMEMORY[xDISK][+NAME=N] or like=NODE; @KEY=VALUE,... adds labels.",
    ),
    "policy": _Flag(
        _one_name("change_policy", "policy", "policy"), "NAME", "From here on another policy decides."
    ),
    "survive": _Flag(parse_survive, "N[/rack]", "Which losses of N nodes, racks or zones are not absorbed."),
}
_ANEW: Final = Step("place_anew", {}, "place everything anew")


def step_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each kind of step, all of which may be repeated."""
    command = click.option("--place-anew", count=True, help="Everything is placed again on empty nodes.")(
        command
    )
    for name, flag in reversed(_STEPS.items()):
        command = click.option(
            f"--{name}", multiple=True, metavar=flag.metavar, type=Parsed(name, flag.parse), help=flag.help
        )(command)
    return command


def steps_in_order(order: list[str], given: Mapping[str, Any]) -> Iterator[Step]:
    """**Pure.** The steps as they were given: the order has an option's name for each time it was given."""
    left = {name: iter(given[name]) for name in map(_key, _STEPS)}
    for name in order:
        if name in left:
            yield next(left[name])
        elif name == "place_anew":
            yield _ANEW


def _key(name: str) -> str:
    return name.replace("-", "_")


def _picture(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Refused before anything is asked, not afterwards."""
    if value is not None and value.suffix not in PICTURES:
        raise click.BadParameter(f"{value} must end in {' or '.join(PICTURES)}", ctx, param)
    if value is not None and not value.parent.is_dir():
        raise click.BadParameter(f"there is no folder {value.parent}", ctx, param)
    return value


@click.command(
    "whatif", cls=StepCommand, epilog="Example: cumulet whatif --add 50:small --lose-rack r1 --survive 1"
)
@step_options
@click.option(
    "--image", default="", metavar="NAME", help="Image of new instances, for what it asks of a node."
)
@click.option(
    "--revision", type=click.IntRange(0), default=0, help="The fleet as it was then; of the store, 0: now."
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=_picture,
    help="Draw the fleet before and after into this .svg or .png file.",
)
@click.option("--rows", type=click.IntRange(0), default=ROWS, show_default=True, help="Of each list.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Format.")
@connection_options
def whatif(
    session: Session, image: str, revision: int, picture: Path | None, rows: int, output: str, **given: Any
) -> int:
    """Ask the scheduler what would happen: instances come, nodes fail, are drained or join.

    Steps are taken in the order in which they are given, and the scheduler that runs the cloud decides after
    each. Nothing is changed. Without steps: the fleet as it is, and how many of each flavor it has room for.
    Exit code 7: somebody finds no place in the end, or a loss is not absorbed.
    """
    steps = list(steps_in_order(click.get_current_context().meta[_ORDER], given))
    found = session.client.what_if(
        [{step.field: step.values} for step in steps],
        image=image,
        revision=revision,
        picture=PICTURES[picture.suffix] if picture else 0,
    )
    if picture is not None:
        _write_picture(picture, found.picture)
    if output == "json":
        found.ClearField("picture")  # it is in its file
        write_json(to_dict(found))
    else:
        from cli.whatif_text import render

        click.echo("\n".join(render([step.words for step in steps], found, session.context.project, rows)))
    _tell(found)
    return ExitCode.OK if found.fits else ExitCode.NO_CAPACITY


def _write_picture(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}") from error
    click.echo(f"Drawn into {path}.", err=True)


def _tell(found: Any) -> None:
    """What is left out, and the commands that would help, on stderr."""
    for note in found.notes:
        click.echo(f"Note: {note}.", err=True)
    waiting = [group for outcome in found.outcomes[-1:] for group in outcome.waiting]
    commands = [change.command for group in waiting for change in group.changes if change.command]
    for command in dict.fromkeys(commands):
        click.echo(f"try: {command}", err=True)
