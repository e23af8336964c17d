"""Objects on stdout, in the format that was asked for: table, wide, json, yaml, csv or name.

**Edge**: writes to stdout, data only; colour only on a terminal. JSON is the API's proto JSON with the
protos' field names and every field present, so that a script finds the same keys each time.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, TypeVar

import click

from cli import cells
from cumulet.kinds import Column, Kind

Function = TypeVar("Function", bound=Callable[..., Any])
FORMATS: Final = ("table", "wide", "json", "yaml", "csv", "name")
_COLOURS: Final = {
    "Running": "green",
    "True": "green",
    "Pending": "yellow",
    "Starting": "yellow",
    "Stopping": "yellow",
    "Deleting": "yellow",
    "Unknown": "magenta",
    "Failed": "red",
    "False": "red",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """How objects are to be written."""

    format: str = "table"
    columns: tuple[str, ...] = ()
    sort_by: str = ""
    headers: bool = True


def output_options(command: Function) -> Function:
    """-o, --columns, --sort-by and --no-headers; the command gets a `layout`."""

    @wraps(command)
    def run(*args: Any, output: str, columns: str, sort_by: str, no_headers: bool, **more: Any) -> Any:
        names = tuple(filter(None, map(str.strip, columns.split(","))))
        return command(*args, layout=Layout(output, names, sort_by, not no_headers), **more)

    decorated: Any = run
    for option in (
        click.option("--no-headers", is_flag=True, help="Leave out the line of titles."),
        click.option(
            "--sort-by", default="", metavar="COLUMN", help="Title or field path; -COLUMN descends."
        ),
        click.option("--columns", default="", metavar="A,B", help="Titles or field paths, as spec.flavor."),
        click.option(
            "-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True, help="Format."
        ),
    ):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def write_objects(kind: Kind, objects: Sequence[Any], layout: Layout) -> None:
    """A list of objects of one kind."""
    ordered = sort_objects(kind, objects, layout.sort_by)
    if layout.format == "json":
        write_json([to_dict(one) for one in ordered])
    elif layout.format == "yaml":
        write_yaml([to_dict(one) for one in ordered])
    elif layout.format == "name":
        for one in ordered:
            click.echo(f"{kind.noun}/{one.meta.name}")
    else:
        write_rows(*rows_of(kind, ordered, layout, time.time()), layout)


def write_object(kind: Kind, one: Any, layout: Layout) -> None:
    """One object; as a table with a line for each column, and its conditions below."""
    if layout.format in ("json", "yaml"):
        (write_json if layout.format == "json" else write_yaml)(to_dict(one))
    elif layout.format == "table" and not layout.columns:
        _write_card(kind, one)
    else:
        write_objects(kind, [one], layout)


def rows_of(
    kind: Kind, objects: Iterable[Any], layout: Layout, now: float
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """**Pure.** Titles and rows. Raises click.BadParameter for an unknown column."""
    columns = choose_columns(kind, layout)
    if layout.format == "csv":
        rows = [tuple(cells.plain(one, column.path) for column in columns) for one in objects]
    else:
        rows = [tuple(cells.human(one, column.path, now) for column in columns) for one in objects]
    return tuple(column.title for column in columns), rows


def choose_columns(kind: Kind, layout: Layout) -> tuple[Column, ...]:
    """**Pure.** The columns by name, or those of the format. Raises click.BadParameter."""
    if layout.columns:
        return tuple(_column(kind, name) for name in layout.columns)
    every = layout.format in ("wide", "csv")
    return tuple(column for column in kind.columns if every or not column.wide_only)


def sort_objects(kind: Kind, objects: Sequence[Any], by: str) -> Sequence[Any]:
    """**Pure.** In the order of a column; `-` in front turns it round."""
    if not by:
        return objects
    path = _column(kind, by.removeprefix("-")).path
    return sorted(objects, key=lambda one: cells.sort_key(one, path), reverse=by.startswith("-"))


def write_rows(titles: Sequence[str], rows: Sequence[Sequence[str]], layout: Layout) -> None:
    """A table, coloured on a terminal, or CSV."""
    if layout.format == "csv":
        _write_csv(titles, rows, layout.headers)
    elif coloured():
        _write_rich(titles, rows, layout.headers)
    else:
        lines = [*([titles] if layout.headers else []), *rows]
        for line in aligned(lines):
            click.echo(line)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """**Pure.** Columns padded to their widest cell, three spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def coloured() -> bool:
    """Whether stdout is a terminal that wants colour (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def to_dict(message: Any) -> dict[str, Any]:
    """Proto JSON with the protos' names and every field present."""
    from google.protobuf import json_format

    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def write_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON value; without an indent on one line, for streams."""
    import json

    click.echo(json.dumps(value, indent=indent, ensure_ascii=False, sort_keys=False))


def write_yaml(value: Any) -> None:
    """One YAML document."""
    from cli import yaml_text

    click.echo(yaml_text.dump(value), nl=False)


def _column(kind: Kind, name: str) -> Column:
    for column in kind.columns:
        if name.upper() == column.title:
            return column
    try:
        for path in name.split("/"):
            _check_path(kind.message().DESCRIPTOR, path)
    except KeyError:
        titles = ", ".join(column.title for column in kind.columns)
        raise click.BadParameter(
            f"{kind.noun}s have no column {name!r}; there are {titles}, and field paths such as meta.uid"
        ) from None
    return Column(name.rpartition(".")[2].upper(), name)


def _check_path(descriptor: Any, path: str) -> None:
    for step in path.split("."):
        if descriptor is None:
            raise KeyError(path)
        descriptor = descriptor.fields_by_name[step.partition("[")[0]].message_type


def _write_card(kind: Kind, one: Any) -> None:
    now = time.time()
    lines = [(f"{column.title}:", cells.human(one, column.path, now)) for column in kind.columns]
    for line in aligned(lines):
        click.echo(line)
    conditions = getattr(getattr(one, "status", None), "conditions", ())
    if conditions:
        click.echo()
        paths = ("type", "status", "reason", "changed_at", "message")
        rows = [tuple(cells.human(condition, path, now) for path in paths) for condition in conditions]
        write_rows(("CONDITION", "STATUS", "REASON", "AGE", "MESSAGE"), rows, Layout())


def _write_csv(titles: Sequence[str], rows: Sequence[Sequence[str]], headers: bool) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    if headers:
        writer.writerow(titles)
    writer.writerows(rows)


def _write_rich(titles: Sequence[str], rows: Sequence[Sequence[str]], headers: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=headers, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for title in titles:
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    # As wide as the rows are: the terminal wraps a long line, and what is copied from it stays in one piece.
    width = max(map(len, aligned([titles, *rows]))) + len(titles)
    Console(highlight=False, width=width).print(table, crop=False)
