"""`whatif`: what it asks, in which order; what it makes of the answer; what it does not even ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import json_format

from cumulet.errors import NotFoundError
from cumulet.v1 import whatif_pb2

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Run
    from tests.unit.cli.fake_cloud import FakeCloud

SUMMARY = {
    "nodes": 3,
    "open_nodes": 2,
    "empty_nodes": 1,
    "instances": 7,
    "usages": [
        {"resource": "vcpu", "capacity": 192, "allocated": 67, "fragmentation": 0.06},
        {"resource": "memory_mib", "capacity": 196608, "allocated": 81536},
        {"resource": "gpu", "capacity": 0, "allocated": 1},
    ],
    "headroom": [{"flavor": "small", "count": 119}],
}
WAITING = {
    "reason": "none of 3 nodes fits (resource:vcpu on 2, cordoned on 1)",
    "count": 34,
    "instances": ["small-0-16", "small-0-17", "small-0-18", "small-0-19"],
    "changes": [
        {"description": "uncordon node n3", "command": "cumulet node uncordon n3"},
        {"description": "add 1 node(s) like n1"},
    ],
}


def answer(**fields: Any) -> whatif_pb2.WhatIfResponse:
    found = whatif_pb2.WhatIfResponse(revision=41, policy="pack", fits=True)
    json_format.ParseDict({"before": SUMMARY, "after": SUMMARY, **fields}, found)
    return found


def steps_of(cloud: FakeCloud) -> list[dict[str, Any]]:
    (request,) = cloud.called("WhatIf")
    return [json_format.MessageToDict(one, preserving_proto_field_name=True) for one in request.steps]


def test_every_step_is_asked_in_the_order_in_which_it_is_given(run: Run, cloud: FakeCloud) -> None:
    cloud.forecast = answer(outcomes=[{"after": SUMMARY}] * 13)
    words = "--survive 1 --add 50:small --lose-rack r1 --drain n3 --add 1:big --place-anew --survive 2/rack"
    more = "--add-nodes 4:64x192GiBx2TiB+gpu=4@rack=r9,zone=a --add-nodes=2:like=n1 --policy spread"
    last = "--lose-node n1,n2 --lose-zone b --place-anew"
    assert run("whatif", *f"{words} {more} {last}".split(), "-p", "web", "--revision", "40").code == 0
    assert steps_of(cloud) == [
        {"check_failures": {"count": 1, "scope": "PLACEMENT_SCOPE_NODE"}},
        {"add_instances": {"count": 50, "flavor": "small"}},
        {"lose_domain": {"scope": "PLACEMENT_SCOPE_RACK", "name": "r1"}},
        {"drain_node": {"node": "n3"}},
        {"add_instances": {"count": 1, "flavor": "big"}},
        {"place_anew": {}},
        {"check_failures": {"count": 2, "scope": "PLACEMENT_SCOPE_RACK"}},
        {
            "add_nodes": {
                "count": 4,
                "capacity": {
                    "vcpu": "64",
                    "memory_mib": "196608",
                    "disk_gib": "2048",
                    "extended": {"gpu": "4"},
                },
                "labels": {"rack": "r9", "zone": "a"},
            }
        },
        {"add_nodes": {"count": 2, "like": "n1"}},
        {"change_policy": {"policy": "spread"}},
        {"lose_nodes": {"nodes": ["n1", "n2"]}},
        {"lose_domain": {"scope": "PLACEMENT_SCOPE_ZONE", "name": "b"}},
        {"place_anew": {}},
    ]
    (request,) = cloud.called("WhatIf")
    assert (request.project, request.revision, request.image) == ("web", 40, "")


def test_the_answer_is_told_step_by_step_and_what_helps_is_on_stderr(run: Run, cloud: FakeCloud) -> None:
    placed = [{"instance": f"small-0-{i}", "node": f"n{1 + i % 2}"} for i in range(16)]
    moved = [
        {"instance": f"i{i}", "source": "n3", "target": "n1", "project": "default" if i else "web"}
        for i in range(4)
    ]
    loss = {"lost": ["n1", "n2"], "evacuees": 8, "unplaced_count": 5, "unplaced": ["a", "b", "c", "d", "e"]}
    cloud.forecast = answer(
        fits=False,
        notes=["left out, since it cannot be read: instance web/bad"],
        outcomes=[
            {"moved_count": 4, "moved": moved, "after": SUMMARY},
            {"resilience": {"checked": 3, "possible": 5, "failures_count": 3, "failures": [loss]}},
            {
                "placed_count": 16,
                "placed": placed,
                "waiting_count": 34,
                "waiting": [WAITING],
                "after": {**SUMMARY, "waiting": 34},
            },
        ],
    )
    code, out, err = run("whatif", "--drain", "n3", "--survive", "2", "--add", "50:small", "--rows", "2")
    assert code == 7
    assert out.splitlines() == [
        "Fleet at revision 41, policy pack.",
        "",
        "1. drain n3: 4 moved, nobody waits",
        "   INSTANCE   FROM   TO",
        "   web/i0     n3     n1",
        "   i1         n3     n1",
        "   ... and 2 more (--rows, or -o json)",
        "",
        "2. survive the loss of 2 nodes: no, 3 losses are not absorbed (3 of 5 tried, those of the fullest)",
        "   WITHOUT   RAN THERE   FIND NO PLACE   SUCH AS",
        "   n1, n2    8           5               a, b, c ...",
        "   ... and 2 more (--rows, or -o json)",
        "",
        "3. add 50 small: 16 placed, 34 wait",
        "   NODE   PLACED",
        "   n1     8",
        "   n2     8",
        "   small-0-16, small-0-17, small-0-18 and 31 more: none of 3 nodes fits (resource:vcpu on 2,"
        " cordoned on 1)",
        "      it fits if you uncordon node n3; or add 1 node(s) like n1",
        "",
        "                           BEFORE                      AFTER 1                     AFTER 3",
        "nodes                      3                           3                           3",
        "  that take instances      2                           2                           2",
        "  of them empty            1                           1                           1",
        "instances placed           7                           7                           7",
        "instances waiting          0                           0                           34",
        "vcpu allocated             67 of 192 (35%)             67 of 192 (35%)             67 of 192 (35%)",
        "vcpu free but unusable     6%                          6%                          6%",
        "memory allocated           79.6 GiB of 192 GiB (41%)   79.6 GiB of 192 GiB (41%)"
        "   79.6 GiB of 192 GiB (41%)",
        "memory free but unusable   0%                          0%                          0%",
        "gpu allocated              1 of 0                      1 of 0                      1 of 0",
        "gpu free but unusable      0%                          0%                          0%",
        "room for more small        119                         119                         119",
    ]
    assert err.splitlines() == [
        "Note: left out, since it cannot be read: instance web/bad.",
        "try: cumulet node uncordon n3",
    ]


def test_without_steps_it_shows_the_fleet(run: Run, cloud: FakeCloud) -> None:
    cloud.forecast = answer()
    code, out, err = run("whatif")
    assert (code, err) == (0, "")
    assert out.splitlines()[2].split() == ["NOW"]
    assert not steps_of(cloud)


@pytest.mark.parametrize(("count", "titles"), [(1, "BEFORE AFTER"), (4, "BEFORE AFTER")])
def test_only_as_many_fleets_as_fit_are_side_by_side(
    run: Run, cloud: FakeCloud, count: int, titles: str
) -> None:
    cloud.forecast = answer(outcomes=[{"after": SUMMARY}] * count)
    out = run("whatif", *["--drain=n1"] * count).out
    assert next(line for line in out.splitlines() if "BEFORE" in line).split() == titles.split()


def test_no_name_reaches_the_terminal_as_an_escape_sequence(run: Run, cloud: FakeCloud) -> None:
    evil = "\x1b]0;x\x07"
    moved = [{"instance": evil, "source": evil, "target": "n1"}]
    cloud.forecast = answer(outcomes=[{"moved_count": 1, "moved": moved, "after": SUMMARY}])
    assert "\x1b" not in run("whatif", "--drain", "n1").out


def test_json_is_the_reply_without_the_picture(run: Run, cloud: FakeCloud, tmp_path: Path) -> None:
    cloud.forecast = answer(picture="PHN2Zy8+", outcomes=[{"step": "drain=n1", "after": SUMMARY}])
    path = tmp_path / "fleet.svg"
    code, out, err = run("whatif", "--drain", "n1", "-o", "json", "--picture", str(path))
    found = json.loads(out)
    assert (code, found["fits"], found["outcomes"][0]["step"]) == (0, True, "drain=n1")
    assert not found["picture"]
    assert path.read_bytes() == b"<svg/>"
    assert str(path) in err
    (request,) = cloud.called("WhatIf")
    assert request.picture == whatif_pb2.PICTURE_FORMAT_SVG


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--add", "50"), "'50' is not COUNT:FLAVOR"),
        (("--add", "0:small"), "'0' is no number from 1 on"),
        (("--add", "-1:small"), "'-1' is no number"),
        (("--add", "5:"), "is not COUNT:FLAVOR"),
        (("--add", f"{'9' * 5000}:small"), "is no number"),
        (("--drain", ""), "a name is missing"),
        (("--lose-node", ","), "the name of a node is missing"),
        (("--survive", "x"), "'x' is no number"),
        (("--survive", "1/row"), "'row' in '1/row' is none of node, rack, zone"),
        (("--add-nodes", "4"), "is not COUNT:SHAPE"),
        (("--add-nodes", "4:64"), "'64' is no shape"),
        (("--add-nodes", "4:64x"), "is no shape"),
        (("--add-nodes", "4:64x1x1x1"), "is no shape"),
        (("--add-nodes", "4:64x1GB"), "unknown unit 'GB', write GiB"),
        (("--add-nodes", "4:64x1GiB@rack"), "'rack' is not KEY=VALUE"),
        (("--add-nodes", "4:64x1GiB+gpu"), "'gpu' is not KEY=VALUE"),
        (("--add-nodes", "4:like="), "does not say which node"),
        (("--revision", "-1"), "-1"),
        (("--picture", "fleet.jpg"), "must end in .svg or .png"),
        (("--picture", "/no/such/folder/fleet.svg"), "there is no folder /no/such/folder"),
        (("n1",), "unexpected extra argument"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_and_nothing_is_asked(
    run: Run, cloud: FakeCloud, words: tuple[str, ...], said: str
) -> None:
    code, out, err = run("whatif", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert not cloud.calls


def test_a_refusal_has_its_own_code_and_hint(run: Run, cloud: FakeCloud) -> None:
    cloud.fail("WhatIf", NotFoundError("step 1, drain=n9: there is no node n9", hints=["cumulet node list"]))
    code, out, err = run("whatif", "--drain", "n9")
    assert (code, out) == (3, "")
    assert "try: cumulet node list" in err


def test_a_picture_that_cannot_be_written_is_a_failure(run: Run, cloud: FakeCloud) -> None:
    cloud.forecast = answer(picture="PHN2Zy8+")
    code, _, err = run("whatif", "--picture", "/proc/fleet.svg")
    assert code == 1
    assert "cannot write /proc/fleet.svg" in err
