"""Files of fleets and traces: read, written, and every fault with its file, line and field.

**Edge**: reads and writes files. YAML, JSON and CSV may be compressed (`.gz`); Parquet needs pyarrow.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scheduler.document import FieldError, render_path
from scheduler.document import Path as FieldPath
from scheduler.model import ModelError, NodeView, View
from scheduler.steps import StepError, parse_shape
from scheduler.trace import Trace, TraceError
from scheduler.tracefile import (
    FORMATS,
    NODE_COLUMNS,
    Row,
    RowError,
    find_format,
    parse_openb_nodes,
    parse_rows,
    render_rows,
)
from scheduler.world import IncompleteViewError, World
from scheduler.worldfile import parse_world
from scheduler.worldtext import render_world

CSV_FIELD_CHARS_MAX: Final = 1 << 20


@dataclass
class FileError(Exception):
    """A file that cannot be used. `line` is 0 where none is concerned, `field` empty likewise."""

    file: str
    line: int
    field: str
    description: str

    def __str__(self) -> str:
        where = ":".join(filter(None, (self.file, str(self.line or ""))))
        return ": ".join(filter(None, (where, self.field, self.description)))


def read_world(path: Path) -> World:
    """A fleet file, YAML or JSON. Raises FileError."""
    text = _read_text(path)
    document = _load(path, text)
    try:
        return parse_world(document)
    except FieldError as error:
        line = _line_of(text, error.path)
        raise FileError(str(path), line, render_path(error.path), error.description) from None
    except (ModelError, IncompleteViewError) as error:
        raise FileError(str(path), 0, "", str(error)) from None


def write_world(path: Path, world: World) -> None:
    """A fleet file, JSON by its suffix, else YAML. Raises FileError."""
    document = render_world(world)
    _write_text(path, json.dumps(document, indent=1) if ".json" in path.suffixes else _yaml_text(document))


def read_nodes(text: str) -> View:
    """`--nodes`: SHAPE:COUNT, a fleet file, or openb's node list. Raises FileError or StepError."""
    path = Path(text)
    if not path.exists():
        return _shaped(text)
    if ".csv" in path.suffixes:
        rows = _csv_rows(path)
        titles = next(rows)
        if not set(titles) >= NODE_COLUMNS:
            missing = ", ".join(sorted(NODE_COLUMNS - set(titles)))
            raise FileError(str(path), 1, "", f"this is no node list, it has no column {missing}")
        try:
            return View(0, parse_openb_nodes(dict(zip(titles, row, strict=False)) for row in rows))
        except RowError as error:
            raise _of_row(path, error, 1) from None
        except ModelError as error:
            raise FileError(str(path), 0, "", str(error)) from None
    return read_world(path).view


def _shaped(text: str) -> View:
    try:
        shape = parse_shape(text)
    except StepError as error:
        raise StepError(f"{error}; and there is no file {text}") from None
    width = len(str(shape.count - 1))
    return View(0, tuple(NodeView(f"n{index:0{width}}", shape.capacity) for index in range(shape.count)))


def read_trace(path: Path) -> Trace:
    """A trace in any of the formats. Raises FileError."""
    if path.suffix == ".parquet":
        return _parse(path, *_parquet(path), header=0)
    rows = _csv_rows(path)
    titles = next(rows)
    return _parse(path, titles, (_named(path, titles, row) for row in rows), header=1)


def write_trace(path: Path, trace: Trace) -> None:
    """A trace as CSV of the documented format. Raises FileError."""
    sink = io.StringIO()
    try:
        csv.writer(sink, lineterminator="\n").writerows(render_rows(trace))
    except RowError as error:
        raise FileError(str(path), 0, error.column, error.description) from None
    _write_text(path, sink.getvalue())


def _parse(path: Path, titles: list[str], rows: Iterator[Row], *, header: int) -> Trace:
    found = find_format(titles)
    if found is None:
        known = "; ".join(f"{one.name} has {', '.join(sorted(one.columns))}" for one in FORMATS)
        raise FileError(str(path), header, "", f"these columns are of no format that is known: {known}")
    try:
        return parse_rows(rows, found)
    except RowError as error:
        raise _of_row(path, error, header) from None
    except TraceError as error:
        raise FileError(str(path), 0, "", str(error)) from None


def _of_row(path: Path, error: RowError, header: int) -> FileError:
    return FileError(str(path), error.row + header, error.column, error.description)


def _named(path: Path, titles: list[str], row: list[str]) -> Row:
    return dict(zip(titles, row, strict=False))


def _csv_rows(path: Path) -> Iterator[list[str]]:
    """The titles, then the rows; a row of another length is refused."""
    csv.field_size_limit(CSV_FIELD_CHARS_MAX)
    reader = csv.reader(io.StringIO(_read_text(path), newline=""))
    try:
        titles = [title.strip() for title in next(reader, [])]
        if not titles:
            raise FileError(str(path), 0, "", "the file is empty: its first line must name the columns")
        yield titles
        for row in reader:
            if not row:
                continue
            if len(row) != len(titles):
                told = f"{len(row)} cells, but the first line names {len(titles)} columns"
                raise FileError(str(path), reader.line_num, "", told)
            yield row
    except csv.Error as error:
        raise FileError(str(path), reader.line_num, "", str(error)) from None


def _parquet(path: Path) -> tuple[list[str], Iterator[Row]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise FileError(str(path), 0, "", "Parquet files need pyarrow: pip install pyarrow") from None
    try:
        file = ParquetFile(str(path))
        titles: list[str] = file.schema_arrow.names
        if find_format(titles) is None:  # a file of millions of rows is not read for its columns
            return titles, iter(())
        return titles, iter(file.read().to_pylist())
    except (ArrowException, OSError) as error:
        raise FileError(str(path), 0, "", f"cannot be read as Parquet: {error}") from None


def _load(path: Path, text: str) -> Any:
    if ".json" in path.suffixes:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise FileError(str(path), error.lineno, "", f"this is no JSON: {error.msg}") from None
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise FileError(str(path), line, "", f"this is no YAML: {error.problem}") from None
    except YAMLError as error:
        raise FileError(str(path), 0, "", f"this is no YAML: {error}") from None


def _line_of(text: str, path: FieldPath) -> int:
    """The line of a field, or of the nearest thing around it that is there; JSON is YAML, too."""
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import MappingNode, SequenceNode

    node: Any = YAML(typ="rt").compose(text)
    line = 1
    for step in path:
        inner = None
        if isinstance(node, SequenceNode) and isinstance(step, int) and step < len(node.value):
            inner = node.value[step]
            line = inner.start_mark.line + 1
        elif isinstance(node, MappingNode):
            for key, value in node.value:
                if key.value == str(step):
                    inner, line = value, key.start_mark.line + 1
        if inner is None:
            return line
        node = inner
    return line


def _yaml_text(document: Any) -> str:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None  # short mappings on one line
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 110
    sink = io.StringIO()
    yaml.dump(document, sink)
    return sink.getvalue()


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(str(path), 0, "", getattr(error, "strerror", None) or str(error)) from None
    except UnicodeDecodeError as error:
        raise FileError(str(path), 0, "", f"is not UTF-8 at byte {error.start}") from None


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
    except OSError as error:
        raise FileError(str(path), 0, "", error.strerror or str(error)) from None
