"""Who may join a gang: one size for all, no more members than that.

**Pure**: a cloud on paper.
"""

from __future__ import annotations

import pytest

from controller.admit.common import Violations
from controller.admit.gang import join_gang
from cumulet.v1 import instance_pb2
from scheduler.model import GANG_SIZE_MAX
from tests.unit.controller.cloud import Paper, fields_of
from tests.unit.controller.placing import gang, pending, rows_of


def joined(paper: Paper, project: str, name: str, size: int) -> tuple[set[str], instance_pb2.InstanceSpec]:
    violations, spec = Violations(), instance_pb2.InstanceSpec()
    join_gang(paper.state, project, instance_pb2.InstanceSpec(gang=gang(name, size)), spec, violations)
    return fields_of(violations.found), spec


def with_members(count: int, size: int) -> Paper:
    paper = Paper()
    paper.write(dict(rows_of(pending(f"g{n}", gang=gang("ring", size)) for n in range(count))))
    return paper


def test_who_names_none_is_in_none() -> None:
    violations, spec = Violations(), instance_pb2.InstanceSpec()
    join_gang(with_members(1, 3).state, "p1", instance_pb2.InstanceSpec(), spec, violations)
    assert not violations.found
    assert not spec.HasField("gang")


@pytest.mark.parametrize("there", range(3))
def test_there_is_a_place_until_all_are_there(there: int) -> None:
    found, spec = joined(with_members(there, 3), "p1", "ring", 3)
    assert not found
    assert (spec.gang.name, spec.gang.size) == ("ring", 3)


def test_a_gang_that_is_whole_takes_nobody() -> None:
    assert joined(with_members(3, 3), "p1", "ring", 3)[0] == {"spec.gang.name"}


@pytest.mark.parametrize("size", [2, 4])
def test_all_say_one_size(size: int) -> None:
    assert joined(with_members(1, 3), "p1", "ring", size)[0] == {"spec.gang.size"}


def test_another_projects_gang_of_that_name_is_another_gang() -> None:
    assert joined(with_members(3, 3), "p2", "ring", 5)[0] == set()


@pytest.mark.parametrize("size", [-1, 0, GANG_SIZE_MAX + 1])
def test_a_size_that_no_transaction_holds_is_refused(size: int) -> None:
    assert "spec.gang.size" in joined(Paper(), "p1", "ring", size)[0]


@pytest.mark.parametrize("name", ["", "Ring", "a/b", "-a", "x" * 64])
def test_a_gangs_name_is_a_name(name: str) -> None:
    assert joined(Paper(), "p1", name, 2)[0] == {"spec.gang.name"}
