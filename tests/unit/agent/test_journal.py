"""The journal: what was written is read, what is torn reads as nothing, and the version never goes back.

**Edge**: files in a temporary directory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.journal import FileJournal, JournalError, is_newer, order_of, pack, unpack
from cumulet.v1 import agent_pb2 as pb

from .build import instance, plan

VERSIONS = st.builds(
    pb.PlanVersion,
    restore_generation=st.integers(0, 3),
    leader_epoch=st.integers(0, 3),
    revision=st.integers(0, 2**40),
)


@given(VERSIONS, VERSIONS, VERSIONS)
def test_versions_are_totally_ordered(a: pb.PlanVersion, b: pb.PlanVersion, c: pb.PlanVersion) -> None:
    assert is_newer(a, b) + is_newer(b, a) + (order_of(a) == order_of(b)) == 1
    assert not (is_newer(a, b) and is_newer(b, c)) or is_newer(a, c)


def test_restore_counts_more_than_leader_and_leader_more_than_revision() -> None:
    def version(*parts: int) -> pb.PlanVersion:
        return pb.PlanVersion(restore_generation=parts[0], leader_epoch=parts[1], revision=parts[2])

    assert is_newer(version(1, 0, 0), version(0, 9, 9))
    assert is_newer(version(0, 1, 0), version(0, 0, 9))
    assert is_newer(version(0, 0, 1), pb.PlanVersion())


@given(st.binary(max_size=200))
def test_a_journal_file_holds_any_payload(payload: bytes) -> None:
    assert unpack(pack(payload)) == payload


@given(st.binary(min_size=1, max_size=60), st.data())
def test_a_torn_or_changed_file_holds_nothing(payload: bytes, data: st.DataObject) -> None:
    content = pack(payload)
    assert unpack(content[: data.draw(st.integers(0, len(content) - 1))]) is None
    at = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[at] ^= data.draw(st.integers(1, 255))
    assert unpack(bytes(flipped)) is None


@given(st.lists(VERSIONS, min_size=1, max_size=4))
@settings(max_examples=30)
def test_the_version_is_the_highest_ever_written(versions: list[pb.PlanVersion]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for version in versions:
            written = pb.NodePlan(version=version, node="n1")
            FileJournal(Path(directory)).write_plan(written)
            assert FileJournal(Path(directory)).read_plan() == written
        assert order_of(FileJournal(Path(directory)).read_acted()) == max(map(order_of, versions))


@pytest.mark.parametrize("damage", ["plan", "acted", "both"])
def test_a_damaged_file_is_no_plan_and_the_other_file_still_fences(tmp_path: Path, damage: str) -> None:
    FileJournal(tmp_path).write_plan(plan(instance(1), revision=7))
    for name in ("plan", "acted") if damage == "both" else (damage,):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1])
    fresh = FileJournal(tmp_path)
    assert (fresh.read_plan() is None) == (damage != "acted")
    assert fresh.read_acted().revision == (0 if damage == "both" else 7)
    fresh.write_plan(plan(revision=8))
    assert FileJournal(tmp_path).read_acted().revision == 8


def test_a_crash_between_the_two_files_keeps_the_old_plan_and_the_new_fence(tmp_path: Path) -> None:
    FileJournal(tmp_path).write_plan(plan(instance(1), revision=7))
    old = (tmp_path / "plan").read_bytes()
    FileJournal(tmp_path).write_plan(plan(revision=9))
    (tmp_path / "plan").write_bytes(old)
    fresh = FileJournal(tmp_path)
    kept = fresh.read_plan()
    assert kept is not None
    assert (kept.version.revision, fresh.read_acted().revision) == (7, 9)


def test_a_leftover_of_an_interrupted_write_is_harmless(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    journal.write_plan(plan(revision=3))
    (tmp_path / ".plan.new").write_bytes(b"half")
    journal.write_plan(plan(revision=4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acted", "plan"]


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JournalError, match="file/journal"):
        FileJournal(tmp_path / "file" / "journal").write_plan(plan())
    assert FileJournal(tmp_path / "file" / "journal").read_plan() is None


def test_links_that_were_proven_outlive_the_agent_and_damage_proves_nothing(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    assert journal.read_proven() == {}
    journal.write_proven({"office=eth1": 3})
    assert FileJournal(tmp_path).read_proven() == {"office=eth1": 3}
    file = tmp_path / "proven"
    file.write_bytes(file.read_bytes()[:-1])
    assert FileJournal(tmp_path).read_proven() == {}
