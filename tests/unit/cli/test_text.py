"""Cells, tables, the console's escape and the log's filter, as properties."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from cli import cells
from cli.console import Escape, SafeLog
from cli.fields import FILE, generate
from cli.output import aligned
from cli.reference import FOLDER, render_commands, render_exit_codes
from cumulet.kinds import KINDS
from cumulet.v1 import instance_pb2, node_pb2

TYPED = st.lists(st.sampled_from([b"~", b".", b"\r", b"\n", b"a", b"ls"]), max_size=12)
PIECES = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [b"\x1b", b"[", b"\x1b[2J", b"\x1b]0;title\x07", b"\x1b[31m", b"m", b"\x1b(0", b"\x1bc"]
        ),
    ),
    max_size=12,
)


@given(st.integers(0, 2**62))
def test_sizes_are_short_and_right(amount: int) -> None:
    text = cells.size(amount, 0)
    number, unit = text.split(" ")
    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].index(unit)
    assert abs(float(number) * factor - amount) <= 0.051 * factor
    assert len(text) <= 10


@given(st.floats(-10, 1e9))
def test_ages_are_whole_and_short(seconds: float) -> None:
    assert re.fullmatch(r"[0-9]+[smhd]", cells.age(seconds))


def test_words_of_enums() -> None:
    instance, node = instance_pb2.Instance(), node_pb2.Node()
    instance.status.phase = instance_pb2.INSTANCE_PHASE_RUNNING
    node.status.virt_type = node_pb2.VIRT_TYPE_KVM
    assert cells.human(instance, "status.phase", 0) == "Running"
    assert cells.human(node, "status.virt_type", 0) == "KVM"
    assert cells.human(instance_pb2.Instance(), "status.phase", 0) == "-"
    assert cells.human(node, "status.conditions[Ready]", 0) == "-"


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_escape_sequence_gets_into_a_table(name: str, address: str) -> None:
    instance = instance_pb2.Instance()
    instance.meta.name = name.encode("utf-8", "replace").decode()
    instance.status.addresses.append(address.encode("utf-8", "replace").decode())
    for column in next(kind for kind in KINDS if kind.name == "Instance").columns:
        cell = cells.human(instance, column.path, 1.0)
        assert cell
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", cell)


@given(st.lists(st.lists(st.text("ab ", max_size=8), min_size=3, max_size=3), min_size=1, max_size=6))
def test_columns_begin_at_the_same_place(rows: list[list[str]]) -> None:
    lines = aligned(rows)
    starts = [0, 0, 0]
    for index in (1, 2):
        starts[index] = starts[index - 1] + max(len(row[index - 1]) for row in rows) + 3
    for row, line in zip(rows, lines, strict=True):
        for start, cell in zip(starts, row, strict=True):
            assert line[start : start + len(cell)].ljust(len(cell)) == cell


def _reference_escape(typed: bytes) -> tuple[bytes, bool]:
    """The same in one piece: a tilde at the beginning of a line, looked up in the whole text."""
    out, index, start = b"", 0, True
    while index < len(typed):
        here = typed[index : index + 2]
        if start and here == b"~.":
            return out, True
        if start and here == b"~":
            return out, False  # undecided yet
        if start and here == b"~~":
            index += 1
        start = typed[index : index + 1] in (b"\r", b"\n")
        out += typed[index : index + 1]
        index += 1
    return out, False


@given(TYPED)
def test_the_escape_is_found_however_it_is_typed(pieces: list[bytes]) -> None:
    escape, out = Escape(), b""
    detached = False
    for piece in pieces:
        sent, detached = escape.feed(piece)
        out += sent
        if detached:
            break
    assert (out, detached) == _reference_escape(b"".join(pieces))


@given(PIECES)
def test_a_log_cannot_take_over_the_terminal(pieces: list[bytes]) -> None:
    whole, cut = SafeLog(), SafeLog()
    shown = whole.feed(b"".join(pieces))
    by_piece = b"".join(cut.feed(piece) for piece in pieces)
    for text in (shown, by_piece):
        left = re.sub(rb"\x1b\[[0-?]*[ -/]*m", b"", text)
        assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", left)
    assert by_piece == shown


def test_an_endless_sequence_is_not_held_for_ever() -> None:
    log = SafeLog()
    assert log.feed(b"\x1b]" + b"x" * 1000) != b""


def test_the_reference_pages_are_current() -> None:
    """After a wanted change: `python -m cli.reference`."""
    assert (FOLDER / "cli.md").read_text(encoding="utf-8") == render_commands()
    assert (FOLDER / "exit-codes.md").read_text(encoding="utf-8") == render_exit_codes()


def test_the_offline_fields_are_current() -> None:
    """After a change of the protos: `python -m cli.fields`."""
    from importlib import resources

    assert resources.files("cli").joinpath(FILE).read_text(encoding="utf-8") == generate()
