"""What commands send, print and return, against a real gRPC server."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cumulet.errors import BY_REASON, CumuletError, ExitCode, FieldViolation, InvalidArgumentError
from cumulet.kinds import FLAVOR, IMAGE, INSTANCE, KEY_PAIR, NETWORK, NODE, PROJECT, SUBNET
from cumulet.v1 import event_pb2, instance_pb2, meta_pb2, system_pb2
from tests.unit.cli.fake_cloud import TRACE_ID

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Run
    from tests.unit.cli.fake_cloud import FakeCloud


@pytest.mark.parametrize("error", BY_REASON.values(), ids=lambda error: error.reason)
def test_every_error_has_its_exit_code_and_reaches_the_person(
    run: Run, cloud: FakeCloud, error: type[CumuletError]
) -> None:
    failures = [error("it did \x1b]0;not\x07 work", hints=["cumulet ls"]) for _ in range(9)]
    cloud.fail("GetFlavor", *failures)
    code, out, err = run("flavor", "show", "small")
    assert code == error.exit_code
    assert out == ""
    assert err == f"Error[{error.reason}]: it did ?]0;not? work\ntry: cumulet ls\ntrace: {TRACE_ID}\n"


def test_field_violations_are_lines_and_an_error_without_hints_gets_one(run: Run, cloud: FakeCloud) -> None:
    wrong = [FieldViolation("spec.cidr", "host bits are set"), FieldViolation("spec.network", "is missing")]
    cloud.fail("CreateSubnet", InvalidArgumentError.of("subnet s was not created", wrong))
    code, _, err = run("subnet", "create", "s", "--network", "n", "--cidr", "10.0.0.1/24")
    assert code == ExitCode.USAGE
    assert err.splitlines()[:4] == [
        "Error[INVALID_ARGUMENT]: subnet s was not created",
        "  spec.cidr: host bits are set",
        "  spec.network: is missing",
        "try: cumulet explain INVALID_ARGUMENT",
    ]


def test_nobody_at_the_endpoint_is_exit_8_and_says_how_to_start(offline: Run) -> None:
    code, out, err = offline("ls", "--endpoint", "127.0.0.1:1")
    assert (code, out) == (ExitCode.UNREACHABLE, "")
    first, *tries = err.splitlines()
    assert first.startswith("Error[UNAVAILABLE]: cannot reach 127.0.0.1:1: Connection refused")
    assert tries == ["try: cumulet up", "try: cumulet context list"]


def _five(cloud: FakeCloud) -> None:
    for index, name in enumerate(["a", "b", "c", "d", "e"]):
        one = cloud.add(INSTANCE, name, flavor="small" if index % 2 else "big")
        one.status.phase = instance_pb2.INSTANCE_PHASE_RUNNING
        one.status.addresses.append(f"10.0.0.{index + 2}")
        one.meta.labels["app"] = "web" if index < 2 else "db"


def test_a_table_is_aligned_and_short(run: Run, cloud: FakeCloud) -> None:
    _five(cloud)
    code, out, err = run("ls", "--columns", "name,phase,addresses,spec.flavor", "--sort-by", "-name")
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        "NAME   PHASE     ADDRESSES   FLAVOR",
        "e      Running   10.0.0.6    big",
        "d      Running   10.0.0.5    small",
    ]


def test_every_format_of_a_list(run: Run, cloud: FakeCloud) -> None:
    _five(cloud)
    listed = json.loads(run("ls", "-o", "json").out)
    assert [one["meta"]["name"] for one in listed] == ["a", "b", "c", "d", "e"]
    assert listed[0]["status"]["restarts"] == 0  # every field is there, also at its default
    assert listed[0]["meta"]["created_at"] == "2023-11-14T22:13:20Z"
    rows = list(csv.DictReader(io.StringIO(run("ls", "-o", "csv").out)))
    assert rows[1]["AGE"] == "2023-11-14T22:13:20Z"
    assert run("ls", "-o", "name").out == "".join(f"instance/{name}\n" for name in "abcde")
    assert "LABELS" in run("ls", "-o", "wide").out
    assert "- meta:" in run("ls", "-o", "yaml").out
    assert run("ls", "--no-headers", "--limit", "1").out.startswith("a ")


def test_selectors_and_projects_narrow_a_list(run: Run, cloud: FakeCloud) -> None:
    _five(cloud)
    cloud.add(INSTANCE, "other", project="team")
    assert run("ls", "-l", "app=web", "-o", "name").out.split() == ["instance/a", "instance/b"]
    assert run("ls", "-p", "team", "-o", "name").out == "instance/other\n"
    assert run("-p", "team", "ls", "-o", "name").out == "instance/other\n"
    everywhere = run("ls", "-A", "--columns", "project,name").out
    assert everywhere.splitlines()[-1].split() == ["team", "other"]


def test_a_wrong_column_is_refused_before_asking(run: Run, cloud: FakeCloud) -> None:
    code, _, err = run("ls", "--columns", "nme")
    assert code == ExitCode.USAGE
    assert "PHASE" in err
    assert cloud.calls == []


def test_units_for_people(run: Run, cloud: FakeCloud) -> None:
    node = cloud.add(NODE, "n1")
    node.status.allocatable.memory_mib, node.status.allocated.memory_mib = 2048, 512
    node.status.allocatable.vcpu = 8
    node.status.conditions.add(
        type="Ready", status=meta_pb2.CONDITION_STATUS_TRUE, message="it has a session"
    )
    row = re.split(" {3,}", run("node", "list").out.splitlines()[1])
    assert row[:6] == ["n1", "True", "no", "0", "0/8", "512 MiB/2 GiB"]
    card = run("node", "show", "n1").out
    assert "MEMORY:      512 MiB/2 GiB" in card
    assert "it has a session" in card


def test_names_uids_and_unique_prefixes_are_accepted(run: Run, cloud: FakeCloud) -> None:
    web, db = cloud.add(INSTANCE, "web"), cloud.add(INSTANCE, "db")
    web.meta.uid, db.meta.uid = "abcd1234-0000-4000-8000-000000000001", "abcd9999-0000-4000-8000-000000000002"
    assert run("instance", "show", "abcd1", "-o", "name").out == "instance/web\n"
    assert run("instance", "show", web.meta.uid, "-o", "name").out == "instance/web\n"
    code, _, err = run("instance", "show", "abcd")
    assert code == ExitCode.USAGE
    assert "web (abcd1234" in err
    assert "db (abcd9999" in err
    assert run("instance", "show", "abcd0").code == ExitCode.NOT_FOUND
    assert run("instance", "show", "default/web", "-o", "name").out == "instance/web\n"
    cloud.calls.clear()
    assert run("instance", "show", "nothing").code == ExitCode.NOT_FOUND
    assert [method for method, _ in cloud.calls] == ["GetInstance"]  # no listing for what is no uid


def test_create_sends_what_the_flags_say(run: Run, cloud: FakeCloud) -> None:
    command = (
        "flavor create big --vcpu 2 --memory 2GiB --disk 1TiB --extended gpu=1 --label tier=gold -o name"
    )
    assert run(*command.split()).out == "flavor/big\n"
    [request] = cloud.called("CreateFlavor")
    spec = request.flavor.spec
    assert (spec.resources.vcpu, spec.resources.memory_mib, spec.resources.disk_gib) == (2, 2048, 1024)
    assert dict(spec.resources.extended) == {"gpu": 1}
    assert dict(request.flavor.meta.labels) == {"tier": "gold"}
    assert request.request_id


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--memory", "2GB", "GiB"),
        ("--vcpu", "-1", "whole number"),
        ("--extended", "gpu", "KEY=VALUE"),
        ("--label", "=x", "KEY=VALUE"),
    ],
)
def test_bad_values_are_usage_errors(run: Run, cloud: FakeCloud, flag: str, value: str, says: str) -> None:
    line = ["flavor", "create", "f", "--vcpu", "1", "--memory", "1", "--disk", "1", f"{flag}={value}"]
    code, _, err = run(*line)
    assert code == ExitCode.USAGE
    assert says in err
    assert "try: cumulet flavor create --help" in err
    assert cloud.calls == []


def test_launch_is_create_with_defaults(run: Run, cloud: FakeCloud, tmp_path: Path) -> None:
    (tmp_path / "ud").write_bytes(b"#cloud-config\n\xff")
    line = (
        f"launch web --network lan=10.0.0.7 --network wan --user-data {tmp_path}/ud --node-selector disk=ssd"
    )
    code, out, err = run(*line.split())
    assert code == 0
    [request] = cloud.called("CreateInstance")
    spec = request.instance.spec
    assert (spec.flavor, spec.image) == ("small", "cumulet-guest")
    assert [(one.network, one.address) for one in spec.networks] == [("lan", "10.0.0.7"), ("wan", "")]
    assert spec.user_data == b"#cloud-config\n\xff"
    assert dict(spec.node_selector) == {"disk": "ssd"}
    assert out.splitlines()[1].startswith("web ")
    assert err == "web is on its way: cumulet operation wait op-web\n"  # piped: no waiting


def test_a_dry_run_shows_the_choice_and_creates_nothing(run: Run, cloud: FakeCloud) -> None:
    code, out, err = run("launch", "web", "--dry-run")
    assert (code, out) == (0, "placement: node n1, the best of 1\n")
    assert "nothing was" in err
    assert cloud.called("CreateInstance")[0].validate_only
    assert ("instance", "default", "web") not in cloud.objects


def test_a_provider_network_and_its_ranges(run: Run, cloud: FakeCloud) -> None:
    assert run("network", "create", "office", "--uplink", "office", "--vlan", "20", "--mtu", "9000").code == 0
    assert run("network", "create", "lan").code == 0
    assert run("network", "create", "flat", "--uplink", "office").code == 0
    office, lan, _ = (request.network.spec for request in cloud.called("CreateNetwork"))
    assert (office.provider.uplink, office.provider.vlan, office.provider.mtu) == ("office", 20, 9000)
    assert not office.outbound_nat
    assert not lan.HasField("provider")
    out = run("network", "list", "--columns", "NAME,PROVIDER", "--no-headers", "--sort-by", "NAME").out
    assert [line.split() for line in out.splitlines()] == [
        ["flat", "office"],
        ["lan", "-"],
        ["office", "office/20"],
    ]
    line = "subnet create s --network office --cidr 192.168.7.0/24"
    assert run(*line.split(), "--range", "192.168.7.9", "--range", "192.168.7.20-192.168.7.29").code == 0
    assert list(cloud.called("CreateSubnet")[0].subnet.spec.ranges) == [
        "192.168.7.9",
        "192.168.7.20-192.168.7.29",
    ]
    assert "192.168.7.9,192.168.7.20-192.168.7.29" in run("subnet", "list", "-o", "wide").out
    assert run("subnet", "update", "s", "--range", "192.168.7.8").code == 0
    assert list(cloud.called("UpdateSubnet")[0].update_mask.paths) == ["spec.ranges"]


def test_a_number_that_no_field_holds_is_a_wrong_word(run: Run, cloud: FakeCloud) -> None:
    code, _, err = run("network", "create", "office", "--uplink", "office", "--vlan", str(2**32))
    assert code == ExitCode.USAGE
    assert "--vlan: " in err
    assert not cloud.calls


def test_update_masks_what_was_given(run: Run, cloud: FakeCloud) -> None:
    stored = cloud.add(NETWORK, "web", description="old")
    stored.meta.labels.update({"a": "1", "b": "2"})
    assert run("network", "update", "web", "--no-outbound-nat", "--label", "c=3", "--label", "a-").code == 0
    [request] = cloud.called("UpdateNetwork")
    assert list(request.update_mask.paths) == ["spec.outbound_nat", "meta.labels"]
    assert request.network.meta.etag == "7"
    assert dict(stored.meta.labels) == {"b": "2", "c": "3"}
    assert stored.spec.description == "old"
    assert run("network", "update", "web").code == ExitCode.USAGE
    assert run("project", "update", "default", "--quota-instances", "0").code == ExitCode.NOT_FOUND
    assert cloud.called("UpdateProject")[0].project.spec.quota.HasField("instances")


def test_delete_without_a_terminal_is_as_told_but_never_broad(run: Run, cloud: FakeCloud) -> None:
    for name in ("a", "b", "c"):
        cloud.add(NETWORK, name).meta.labels["app"] = "web"
    code, out, err = run("network", "delete", "a")
    assert (code, out, err) == (0, "", "network/a is deleted.\n")
    for broad in (["network", "delete", "b", "c"], ["network", "delete", "-l", "app=web"]):
        code, _, err = run(*broad)
        assert code == ExitCode.USAGE
        assert "add --yes" in err
    assert len(cloud.called("DeleteNetwork")) == 1
    assert run("network", "delete", "-l", "app=web", "--yes").code == 0
    assert not [key for key in cloud.objects if key[0] == "network"]
    assert run("network", "delete", "-l", "app=web", "--yes").err == "No network has these labels.\n"
    assert run("network", "delete").code == ExitCode.USAGE


def test_some_of_several_failing_is_exit_1_and_each_is_told(run: Run, cloud: FakeCloud) -> None:
    cloud.add(NETWORK, "a")
    code, _, err = run("network", "delete", "a", "missing", "--yes")
    assert code == ExitCode.FAILED
    assert "network/a is deleted." in err
    assert "Error[NOT_FOUND]: network missing does not exist" in err
    assert run("network", "delete", "missing").code == ExitCode.NOT_FOUND


def test_delete_passes_etag_force_and_dry_run(run: Run, cloud: FakeCloud) -> None:
    cloud.add(NODE, "n1")
    assert run("node", "delete", "n1", "--force", "--etag", "5", "--dry-run").code == 0
    [request] = cloud.called("DeleteNode")
    assert (request.force, request.etag, request.validate_only) == (True, "5", True)


def test_power_verbs_and_cordon(run: Run, cloud: FakeCloud) -> None:
    cloud.add(INSTANCE, "web")
    cloud.add(NODE, "n1")
    assert run("instance", "stop", "web", "--force").err == "web: cumulet operation wait op-web\n"
    assert cloud.called("StopInstance")[0].force
    assert run("instance", "start", "web", "gone").code == ExitCode.FAILED
    assert run("instance", "reboot", "web").code == 0
    assert run("node", "cordon", "n1", "--reason", "new memory").code == 0
    assert cloud.called("CordonNode")[0].reason == "new memory"
    assert run("node", "uncordon", "n1").err == "node/n1 takes instances again.\n"


def test_image_import_uploads_then_creates(run: Run, cloud: FakeCloud, tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").write_bytes(b"QFI\xfb" + b"x" * 100)
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    flags = f"--kernel {tmp_path}/vmlinuz --kernel-args quiet --min-memory 256"
    line = f"image import mine {tmp_path}/disk.qcow2 {flags}"
    code, _, err = run(*line.split())
    assert (code, err) == (0, "Uploading disk.qcow2\nUploading vmlinuz\n")
    spec = cloud.called("CreateImage")[0].image.spec
    assert spec.disk.size_bytes == 104
    assert spec.kernel.size_bytes == 6
    assert not spec.HasField("initrd")
    assert (spec.kernel_args, spec.min_memory_mib) == ("quiet", 256)
    assert run(*line.split()).code == ExitCode.CONFLICT  # told before anything is sent
    assert len(cloud.uploads) == 2


def test_an_image_format_is_never_guessed(run: Run, cloud: FakeCloud, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"QFI\xfb")
    code, _, err = run("image", "import", "mine", f"{tmp_path}/disk.img")
    assert code == ExitCode.USAGE
    assert "add --format" in err
    assert cloud.uploads == []
    (tmp_path / "liar.qcow2").write_bytes(b"raw bytes")
    code, _, err = run("image", "import", "mine", f"{tmp_path}/liar.qcow2")
    assert code == ExitCode.USAGE
    assert "no qcow2" in err
    assert run("image", "import", "mine", f"{tmp_path}/none.raw").code == ExitCode.USAGE
    assert cloud.called("CreateImage") == []
    assert cloud.key(IMAGE, "", "mine") not in cloud.objects


def test_key_pair_import_refuses_private_keys(run: Run, cloud: FakeCloud, tmp_path: Path) -> None:
    (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nsecret\n")
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAA me\n")
    code, _, err = run("key-pair", "import", "laptop", f"{tmp_path}/id")
    assert code == ExitCode.USAGE
    assert "private key" in err
    assert "secret" not in err
    assert cloud.calls == []
    assert run("key-pair", "import", "laptop", f"{tmp_path}/id.pub").code == 0
    assert cloud.objects[cloud.key(KEY_PAIR, "default", "laptop")].spec.public_key == "ssh-ed25519 AAAA me"


def test_verify_counts_and_fails_on_differences_and_on_silence(run: Run, cloud: FakeCloud) -> None:
    cloud.verdict = system_pb2.VerifyResponse(nodes=["n1"], items_compared=12, revision=40)
    code, out, _ = run("verify")
    assert (code, out) == (0, "0 differences, 0 orphans (12 items on 1 nodes at revision 40)\n")
    cloud.verdict.differences.add(
        type=system_pb2.DIFFERENCE_TYPE_ORPHAN, node="n1", kind="tap", name="t1", message="nobody wants it"
    )
    code, out, _ = run("verify")
    assert code == ExitCode.FAILED
    assert "Orphan       n1     tap    t1" in out
    assert "1 differences, 1 orphans" in out
    del cloud.verdict.differences[:]
    cloud.verdict.silent_nodes.append("n2")
    code, _, err = run("verify")
    assert code == ExitCode.FAILED
    assert "n2" in err


def test_events_are_listed_and_followed_without_repeating(run: Run, cloud: FakeCloud) -> None:
    for revision, reason in enumerate(["Created", "Placed", "Running"], start=1):
        event = event_pb2.Event(reason=reason, message=f"{reason} now", source="api", revision=revision)
        event.target.kind, event.target.name = "instance", "web"
        event.at.FromSeconds(1_700_000_000 + revision)
        cloud.events.append(event)
    out = run("events", "instance/web", "--limit", "2").out.splitlines()
    assert [line.split()[3] for line in out[1:]] == ["Placed", "Running"]
    assert cloud.called("ListEvents")[0].target == "instance/web"
    followed = run("events", "-w", "-o", "json").out.splitlines()
    assert [json.loads(line)["reason"] for line in followed] == ["Created", "Placed", "Running"]
    assert run("events", "web").code == ExitCode.USAGE
    assert run("events", "-o", "name").code == ExitCode.USAGE


def test_explain_tells_why(run: Run, cloud: FakeCloud) -> None:
    cloud.add(INSTANCE, "web")
    told = cloud.explanation
    told.summary = "instance web is on n1, the best of 2 nodes that fit"
    told.nodes.add(node="n2", fits=False, reasons=["cordoned: new memory", "needs 512 MiB, has 100"])
    told.nodes.add(node="n1", fits=True, rank=1, current=True, score_terms={"fit": 0.25})
    getattr(told, "try").append("cumulet node uncordon n2")
    code, out, _ = run("explain", "instance/web")
    assert code == 0
    assert out.splitlines() == [
        "instance web is on n1, the best of 2 nodes that fit",
        "",
        "NODE        FITS   RANK   SCORE      REASONS",
        "n1 (here)   yes    1      fit 0.25   -",
        "n2          no     -      -          cordoned: new memory; needs 512 MiB, has 100",
        "",
        "try: cumulet node uncordon n2",
    ]
    assert json.loads(run("explain", "instance/web", "-o", "json").out)["nodes"][0]["node"] == "n2"
    cloud.add(SUBNET, "lan", cidr="10.0.0.0/24")
    assert "10.0.0.0/24" in run("explain", "subnet/lan").out


def test_explain_knows_reasons_and_fields_offline(offline: Run) -> None:
    assert offline("explain", "NO_CAPACITY").out.startswith("NO_CAPACITY: No node fits now.")
    assert "the first is the primary" in offline("explain", "instance.spec.networks").out
    assert "spec" in offline("explain", "instance").out
    code, _, err = offline("explain", "NO_CAPACTY")
    assert code == ExitCode.NOT_FOUND
    assert "did you mean NO_CAPACITY" in err
    assert offline("explain", "instance.spec.nics").code == ExitCode.NOT_FOUND


def test_logs_are_bytes_as_they_are_when_piped(run: Run, cloud: FakeCloud) -> None:
    cloud.add(INSTANCE, "web")
    cloud.log = b"boot\r\n\x1b[31mred\x1b[0m\n"
    assert run("logs", "web", "--tail", "2").out.encode() == cloud.log
    assert cloud.called("GetConsoleLog")[0].tail_lines == 2
    assert run("logs", "nobody").code == ExitCode.NOT_FOUND


def test_operation_wait_ends_as_the_operation_does(run: Run, cloud: FakeCloud) -> None:
    assert run("launch", "web").code == 0
    operation = cloud.objects["operation", "default", "op-web"]
    assert run("operation", "wait", "op-web", "--timeout", "0").code == ExitCode.TIMED_OUT
    operation.done = True
    assert run("operation", "wait", "op-web").err == "instance.create of web is done.\n"
    operation.error.reason, operation.error.message = "NO_CAPACITY", "no node fits"
    code, _, err = run("operation", "wait", "op-web")
    assert code == ExitCode.NO_CAPACITY
    assert "try: cumulet explain instance/web" in err


def test_version_needs_no_cloud_and_can_ask_it(run: Run, offline: Run) -> None:
    assert offline("version").out.startswith("cumulet 0.")
    assert "cloud 0.1.0 (leads" in run("version", "--cloud").out


def test_unknown_words_suggest_the_right_ones(offline: Run) -> None:
    code, _, err = offline("instnce", "list")
    assert code == ExitCode.USAGE
    assert "Did you mean `cumulet instance`?" in err
    assert "Did you mean `cumulet instance delete`?" in offline("instance", "delte").err


def test_a_kind_without_a_project_takes_none(run: Run, cloud: FakeCloud) -> None:
    cloud.add(FLAVOR, "small")
    code, _, err = run("flavor", "show", "team/small")
    assert code == ExitCode.USAGE
    assert "belongs to no project" in err
    cloud.add(PROJECT, "team")
    assert run("project", "list", "-o", "name").out == "project/team\n"
