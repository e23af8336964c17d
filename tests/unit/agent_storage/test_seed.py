"""The seed: what a guest finds in it, for any spec."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.storage.driver import SeedSpec
from agent.storage.seed import build_iso, parse_iso, render_seed

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
SPECS = st.builds(
    SeedSpec,
    uid=TEXT,
    hostname=TEXT,
    authorized_keys=st.lists(TEXT, max_size=3).map(tuple),
    user_data=st.binary(max_size=5000),
)


@settings(max_examples=30)
@given(SPECS)
def test_what_is_rendered_is_read_back_from_the_image(spec: SeedSpec) -> None:
    files = render_seed(spec)
    assert parse_iso(build_iso(files)) == files
    meta = json.loads(files["meta-data"])
    assert meta == {
        "instance-id": spec.uid,
        "local-hostname": spec.hostname,
        "public-keys": list(spec.authorized_keys),
    }
    assert files["user-data"] == (spec.user_data or b"#cloud-config\n{}\n")


@given(st.binary(max_size=4096))
def test_what_is_no_image_is_none(data: bytes) -> None:
    assert parse_iso(data) is None


def test_meta_data_has_a_key_a_line() -> None:
    spec = SeedSpec("id-1", "web-1", ("ssh-ed25519 AAAA a@b", "ssh-rsa BBBB"), b"")
    assert render_seed(spec)["meta-data"] == (
        b'{\n  "instance-id": "id-1",\n  "local-hostname": "web-1",\n'
        b'  "public-keys": [\n    "ssh-ed25519 AAAA a@b",\n    "ssh-rsa BBBB"\n  ]\n}\n'
    )


def test_the_volume_is_found_by_other_readers(tmp_path: Path) -> None:
    """blkid is what cloud-init asks for the label `cidata`."""
    image = tmp_path / "seed.iso"
    image.write_bytes(build_iso(render_seed(SeedSpec("id-1", "web-1", (), b""))))
    command = ["blkid", "-p", "-o", "export", str(image)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "LABEL=cidata" in told
    assert "TYPE=iso9660" in told
