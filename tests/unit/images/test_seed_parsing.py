"""The guest's own parser reads what agents and people write as NoCloud meta-data.

**Edge**: runs the guest's awk program with Debian's static busybox, which is what the guest has.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.images.contents import GUEST_FILES

PARSER = GUEST_FILES / "root/etc/cumulet/meta-data.awk"
ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHk+/= "

comments = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(str.strip)
keys = comments.map(lambda comment: (ED25519 + comment).strip())
hostnames = st.from_regex(r"[a-z][a-z0-9-]{0,20}[a-z0-9]", fullmatch=True)


def parse(text: str) -> list[tuple[str, str]]:
    """(name, value) lines of the guest's parser; busybox ends a run in milliseconds."""
    command = ["busybox", "awk", "-f", str(PARSER)]
    out = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=10).stdout
    return [(name, value) for name, _, value in (line.partition("\t") for line in out.splitlines())]


@settings(max_examples=60)
@given(hostnames, hostnames, st.lists(keys, max_size=4), st.sampled_from((None, 2)))
def test_json_in_any_layout(hostname: str, instance_id: str, public: list[str], indent: int | None) -> None:
    document = {
        "instance-id": instance_id,
        "local-hostname": hostname,
        "network": {"local-hostname": "not-this", "list": ["ssh-rsa nor this"]},
        "public-keys": public,
        "launch-index": 0,
    }
    expected = [("key", key) for key in public]
    expected += [("hostname", hostname), ("instance-id", instance_id)]
    assert parse(json.dumps(document, indent=indent)) == expected


@pytest.mark.parametrize("name", ["public-keys", "public_keys"])
def test_yaml_as_people_write_it(name: str) -> None:
    text = f"instance-id: i-7\nlocal-hostname: 'db-1'\n{name}:\n  - {ED25519}me@home\n  - \"ssh-rsa AAAA\"\n"
    assert parse(text) == [
        ("key", f"{ED25519}me@home"),
        ("key", "ssh-rsa AAAA"),
        ("hostname", "db-1"),
        ("instance-id", "i-7"),
    ]


@pytest.mark.parametrize("hostname", ["$(reboot)", "a b", "-x", "a/b", "a;b", ""])
def test_a_host_name_that_is_none_is_ignored(hostname: str) -> None:
    assert parse(json.dumps({"local-hostname": hostname})) == []


def test_keys_by_name_as_the_metadata_service_groups_them() -> None:
    document = {"public-keys": {"mine": [f"{ED25519}a"], "other": f"{ED25519}b"}}
    assert parse(json.dumps(document)) == [("key", f"{ED25519}a"), ("key", f"{ED25519}b")]


def test_an_empty_file_says_nothing() -> None:
    assert parse("") == []


@pytest.mark.parametrize("script", sorted(path for path in GUEST_FILES.rglob("*") if path.is_file()), ids=str)
def test_the_guest_s_scripts_are_valid_for_its_shell(script: Path) -> None:
    if script.suffix == ".sh" or script.read_bytes().startswith(b"#!"):
        subprocess.run(["busybox", "sh", "-n", str(script)], check=True, timeout=10)
