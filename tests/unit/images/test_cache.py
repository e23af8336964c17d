"""The cache gives out complete images only, and its names follow everything that decides an image.

**Edge**: files below pytest's temporary folder; no apt and no download.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.images import find_image, recipe
from deploy.images.debian import parse_uris
from deploy.images.recipe import Package

URIS = """\
'mirror://pool/b/busybox_1.35%2bdeb12u1.deb' busybox-static_1%3a1.35-4+deb12u1_amd64.deb 928188 SHA256:{0}
W: a warning that is no package
'mirror://pool/z/zlib1g_1.2.deb' zlib1g_1.2_amd64.deb 86684 SHA256:{1}
"""
BUSYBOX = Package(
    "busybox-static", "1:1.35-4+deb12u1", "busybox-static_1%3a1.35-4+deb12u1_amd64.deb", "a" * 64
)
ZLIB = Package("zlib1g", "1.2", "zlib1g_1.2_amd64.deb", "b" * 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete image of one file."""
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    manifest = {"cmdline": "quiet", "files": {"vmlinuz": {"size_bytes": 6, "sha256": "0"}}}
    (tmp_path / "image.json").write_text(json.dumps(manifest))
    return tmp_path


def test_a_complete_image_is_found(folder: Path) -> None:
    found = find_image(folder)
    assert found is not None
    assert found.was_cached
    assert (found.vmlinuz, found.cmdline) == (folder / "vmlinuz", "quiet")


def test_a_truncated_file_makes_an_image_incomplete(folder: Path) -> None:
    (folder / "vmlinuz").write_bytes(b"kern")
    assert find_image(folder) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": {"gone": {"size_bytes": 1}}}'])
def test_a_damaged_manifest_makes_an_image_incomplete(folder: Path, text: str) -> None:
    (folder / "image.json").write_text(text)
    assert find_image(folder) is None


def test_packages_are_read_from_what_apt_prints() -> None:
    assert list(parse_uris(URIS.format("a" * 64, "b" * 64))) == [BUSYBOX, ZLIB]


def test_every_input_changes_the_digest_and_their_order_does_not() -> None:
    sources = {"recipe.py": b"1", "guest/init": b"2"}
    digest = recipe.digest_recipe(sources)
    assert digest == recipe.digest_recipe(dict(reversed(sources.items())))
    assert digest != recipe.digest_recipe({"recipe.py": b"12", "guest/init": b""})
    image = recipe.digest_inputs(digest, [BUSYBOX, ZLIB])
    assert image == recipe.digest_inputs(digest, [ZLIB, BUSYBOX])
    others = [[BUSYBOX], [BUSYBOX, Package("zlib1g", "1.3", ZLIB.filename, ZLIB.sha256)]]
    assert image not in {recipe.digest_inputs(digest, packages) for packages in others}
