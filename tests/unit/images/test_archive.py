"""The small archive that the full Debian image is installed from: what apt says becomes its index."""

from __future__ import annotations

import hashlib

import pytest

from deploy.images.full import archive

SIMULATION = """\
NOTE: this is only a simulation
Inst libc6 (2.36-9+deb12u9 Debian:12.11/oldstable [amd64])
Inst zlib1g (1:1.2.13 Debian:12.11/oldstable [amd64]) []
Conf libc6 (2.36-9+deb12u9 Debian:12.11/oldstable [amd64])
"""
LIBC = "Package: libc6\nVersion: 2.36\nFilename: pool/main/g/glibc/libc6.deb\nSHA256: aa\n"
ZLIB = "Package: zlib1g\nPriority: required\nFilename: pool/main/z/zlib1g.deb\nSHA256: bb\n"


def test_what_apt_would_install_is_read_once() -> None:
    assert archive.parse_simulation(SIMULATION) == ("libc6=2.36-9+deb12u9", "zlib1g=1:1.2.13")


def test_packages_of_a_priority_are_listed() -> None:
    lines = f"{LIBC}Priority: optional\n\n{ZLIB}".splitlines()
    assert archive.list_required(lines, "required") == ("zlib1g",)


def test_records_keep_their_digests_and_name_the_files_of_this_archive() -> None:
    index = archive.render_packages(f"{LIBC}\n{ZLIB}\n", {"libc6": r"libc6_\1.deb", "zlib1g": "z_1%3a1.deb"})
    assert r"Filename: pool/libc6_\1.deb" in index
    assert "Filename: pool/z_1%3a1.deb" in index
    assert "main/" not in index
    assert "SHA256: aa" in index
    assert index.endswith("SHA256: bb\n\n")  # debootstrap overlooks a record that no empty line ends


@pytest.mark.parametrize(
    ("records", "names"),
    [(LIBC, ("libc6", "zlib1g")), (f"{LIBC}\n{ZLIB}", ("libc6",)), (f"{LIBC}\n{LIBC}", ("libc6",))],
    ids=["lost", "foreign", "twice"],
)
def test_every_package_has_exactly_one_record(records: str, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="record"):
        archive.render_packages(records, {name: f"{name}.deb" for name in names})


def test_the_release_names_the_index_by_digest() -> None:
    release = archive.render_release("bookworm", b"index")
    assert f" {hashlib.sha256(b'index').hexdigest()} 5 main/binary-amd64/Packages" in release
    assert "Codename: bookworm" in release
