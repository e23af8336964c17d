"""Taking a cloud away: only what is ours, and never a directory that is no cloud's.

**Edge**: files in a temporary directory; links and tables in a network namespace of the test's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from deploy.local import traces
from deploy.local.down import FORWARDING, remove_files, render_deletion, was_off
from deploy.local.layout import Layout, save_layout
from deploy.local.traces import Table

# Runs in namespaces of its own: makes what an agent makes beside what others make; tells what stays.
_IN_A_NAMESPACE = """
import json, subprocess, sys
from pyroute2 import IPRoute, netns
from deploy.local import traces
from deploy.local.down import remove_network

with IPRoute() as netlink:
    for name, alias in (("ours", "cumulet:bridge:u1"), ("theirs", "my cumulet:bridge"), ("plain", None)):
        netlink.link("add", ifname=name, kind="bridge")
        if alias:
            netlink.link("set", index=netlink.link_lookup(ifname=name)[0], ifalias=alias)
    netlink.link("add", ifname="va", kind="veth", peer={"ifname": "vb"})
    netlink.link("set", index=netlink.link_lookup(ifname="va")[0], ifalias="cumulet:uplink:u1")
for name in ("cumulet-u1", "cumulet", "other"):
    netns.create(name)
names = (("inet", "cumulet"), ("bridge", "cumulet-guard"), ("inet", "filter"), ("ip", "cumulet2"))
for family, name in names:
    table = {"family": family, "name": name}
    traces.run_nft(["-f", "-"], json.dumps({"nftables": [{"add": {"table": table}}]}))
found = traces.Traces(
    links=traces.list_links(), namespaces=traces.list_namespaces(), tables=traces.list_tables()
)
remove_network(found)
remove_network(found)
with IPRoute() as netlink:
    links = sorted(link.get("ifname") for link in netlink.link("dump"))
tables = [e["table"] for e in json.loads(traces.run_nft(["list", "tables"]))["nftables"] if "table" in e]
print(json.dumps({"found": found.describe(), "links": links, "namespaces": sorted(netns.listnetns()),
                  "tables": sorted(t["family"] + " " + t["name"] for t in tables)}))
"""


def test_only_what_carries_our_mark_is_taken_away(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # A tmpfs over /run keeps the names of these namespaces away from the host's.
    inside = ["mount", "-t", "tmpfs", "none", "/run"]
    script = tmp_path / "inside.py"
    prelude = f"import subprocess\nsubprocess.run({inside!r}, check=True)\n"
    script.write_text(prelude + _IN_A_NAMESPACE)
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["found"] == [
        "link ours",
        "link va",
        "namespace cumulet-u1",
        "nft table inet cumulet",
        "nft table bridge cumulet-guard",
    ]
    assert {"theirs", "plain"} <= set(told["links"])
    assert not {"ours", "va", "vb"} & set(told["links"])
    assert told["namespaces"] == ["cumulet", "other"]
    assert told["tables"] == ["inet filter", "ip cumulet2"]


def test_tables_are_deleted_in_one_transaction() -> None:
    rendered = json.loads(render_deletion([Table("inet", "cumulet"), Table("bridge", "cumulet")]))
    assert [entry["delete"]["table"]["family"] for entry in rendered["nftables"]] == ["inet", "bridge"]


def test_files_of_a_cloud_go_and_others_stay(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run", "n1")
    save_layout(layout)
    for path in (layout.etcd_dir, layout.agent_dir / "instances", layout.log_dir, layout.runtime_dir):
        path.mkdir(parents=True)
    (layout.state_dir / "notes.txt").write_text("somebody's")
    remove_files(layout)
    assert [entry.name for entry in layout.state_dir.iterdir()] == ["notes.txt"]
    assert not layout.runtime_dir.exists()


def test_a_cloud_alone_in_its_directory_leaves_none(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "state" / "run", "n1")
    save_layout(layout)
    layout.runtime_dir.mkdir()
    remove_files(layout)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_no_clouds_is_not_touched(tmp_path: Path) -> None:
    layout = Layout(tmp_path, tmp_path / "run", "n1")
    for part in ("etcd", "run", "log"):
        (tmp_path / part).mkdir()
    remove_files(layout)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["etcd", "log", "run"]


def test_domain_files_are_known_by_our_metadata(tmp_path: Path) -> None:
    (tmp_path / "foreign.xml").write_text("<domain><name>cumulet</name></domain>")
    assert not traces.has_domain_files((tmp_path, tmp_path / "missing"))
    (tmp_path / "ours.xml").write_text(f'<metadata><c:instance xmlns:c="{traces.METADATA_URI}"/></metadata>')
    assert traces.has_domain_files((tmp_path,))


def test_the_marks_are_those_that_the_agent_sets() -> None:
    # deploy imports no agent, so the two spellings are held together here.
    from agent.hypervisor import domain_xml
    from agent.net import names

    assert domain_xml.METADATA_NAMESPACE == traces.METADATA_URI
    assert names.ALIAS_PREFIX == traces.ALIAS_PREFIX
    assert names.namespace_name("u").startswith(traces.NAMESPACE_PREFIX)


def test_forwarding_is_restored_only_when_the_agent_turned_it_on() -> None:
    from agent.net.state import HostRecord

    record = HostRecord("program", "rules", forwarding_was_off=True, opened_ipv6=False)
    for before in (record, replace(record, forwarding_was_off=False, opened_ipv6=True)):
        assert {field: was_off(json.dumps(asdict(before)), field) for field in FORWARDING} == {
            "forwarding_was_off": before.forwarding_was_off,
            "opened_ipv6": before.opened_ipv6,
        }
    assert not any(was_off(text, field) for text in ("", "[]", "{}", "null", "7") for field in FORWARDING)
