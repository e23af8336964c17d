"""Domain XML: goldens, libvirt's own schema, and hostile text in every field."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.errors import DriverError
from agent.hypervisor.domain_xml import Mark, parse_mark, parse_metadata, render_domain, render_mark
from agent.hypervisor.driver import DirectBoot, DomainSpec, Nic

GOLDEN = Path(__file__).with_name("golden")
STATE = "/var/lib/cumulet"
DIRECT = DomainSpec(
    uid="7c9e6679-7425-40de-944b-e07fc1f90ae7",
    name="web-1",
    epoch=7,
    boots=2,
    vcpu=2,
    memory_mib=512,
    kvm=False,
    disk_path=f"{STATE}/instances/web/disk.qcow2",
    seed_path=f"{STATE}/instances/web/seed.iso",
    nics=(Nic("tap-1a2b3c", "52:54:00:12:34:56"), Nic("tap-4d5e6f", "52:54:00:ab:cd:ef")),
    console_log_path=f"{STATE}/instances/web/console.log",
    boot=DirectBoot(f"{STATE}/images/aa", f"{STATE}/images/bb", "console=ttyS0 root=/dev/vda rw"),
)
FROM_DISK = replace(DIRECT, kvm=True, nics=(), boot=None, name="Ünïcode & <friends>")
SPECS = {"direct-tcg": DIRECT, "disk-kvm": FROM_DISK}

HOSTILE = st.text(max_size=60) | st.sampled_from(
    [
        "]]><evil/>",
        '"/><evil a="',
        "'/><evil/>",
        "<!--",
        "&evil;",
        "<evil/>",
        "a\r\nb",
        "\x00",
        "\ud800",
        "\ufffe",
    ]
)


def put_boot(field: str) -> Callable[[DomainSpec, str], DomainSpec]:
    def put(spec: DomainSpec, text: str) -> DomainSpec:
        assert spec.boot
        changed: dict[str, Any] = {field: text}
        return replace(spec, boot=replace(spec.boot, **changed))

    return put


def put_field(field: str) -> Callable[[DomainSpec, str], DomainSpec]:
    def put(spec: DomainSpec, text: str) -> DomainSpec:
        changed: dict[str, Any] = {field: text}
        return replace(spec, **changed)

    return put


PUTS: dict[str, Callable[[DomainSpec, str], DomainSpec]] = {
    field: put_field(field) for field in ("uid", "name", "disk_path", "seed_path", "console_log_path")
} | {
    "tap": lambda spec, text: replace(spec, nics=(Nic(text, "52:54:00:12:34:56"), spec.nics[1])),
    "mac": lambda spec, text: replace(spec, nics=(Nic("tap", text), spec.nics[1])),
    "kernel": put_boot("kernel_path"),
    "initrd": put_boot("initrd_path"),
    "kernel_args": put_boot("kernel_args"),
}


def shape(xml: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(node.tag, tuple(sorted(node.attrib))) for node in ET.fromstring(xml).iter()]


def values(xml: str) -> set[str]:
    root = ET.fromstring(xml)
    return {text for node in root.iter() for text in (node.text or "", *node.attrib.values())}


@pytest.mark.parametrize("case", SPECS)
def test_golden(case: str) -> None:
    golden = GOLDEN / f"{case}.xml"
    assert render_domain(SPECS[case]) == golden.read_text(), f"if meant, write it anew to {golden}"


@pytest.mark.parametrize("case", SPECS)
def test_libvirts_schema_accepts_it(case: str, tmp_path: Path) -> None:
    assert shutil.which("virt-xml-validate"), "apt-get install libvirt-clients"
    assert shutil.which("xmllint"), "apt-get install libxml2-utils"
    file = tmp_path / "domain.xml"
    file.write_text(render_domain(SPECS[case]))
    told = subprocess.run(["virt-xml-validate", str(file), "domain"], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_schema_check_refuses_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "domain.xml"
    file.write_text(render_domain(DIRECT).replace('managed="no"', 'managed="perhaps"'))
    command = ["virt-xml-validate", str(file), "domain"]
    assert subprocess.run(command, capture_output=True).returncode != 0


@pytest.mark.parametrize("field", PUTS)
@given(text=HOSTILE)
@example(text="plain")
def test_hostile_text_injects_nothing(field: str, text: str) -> None:
    """Every field's text arrives as it is, or is refused; the tree never changes. The title is cleaned."""
    spec = PUTS[field](DIRECT, text)
    if field != "name" and not text.isprintable():
        with pytest.raises(DriverError) as refused:
            render_domain(spec)
        assert (refused.value.reason, refused.value.permanent) == ("InvalidDomainSpec", True)
        return
    xml = render_domain(spec)
    assert shape(xml) == shape(render_domain(DIRECT))
    assert field == "name" or text in values(xml)
    assert parse_metadata(xml) == (spec.uid, spec.epoch, spec.boots)


@given(st.text(max_size=200))
def test_foreign_text_has_no_mark(text: str) -> None:
    assert parse_metadata(text) is None
    assert parse_mark(text) is None


@pytest.mark.parametrize(
    "inner",
    [
        "",
        "<metadata/>",
        "<metadata><instance uid='u' epoch='1' boots='1'/></metadata>",
        "<metadata><i:instance xmlns:i='urn:other' uid='u' epoch='1' boots='1'/></metadata>",
        "<metadata><i:instance xmlns:i='urn:cumulet:domain:1' uid='u' epoch='x' boots='1'/></metadata>",
        "<metadata><i:instance xmlns:i='urn:cumulet:domain:1' uid='u' boots='1'/></metadata>",
    ],
)
def test_a_mark_that_is_not_ours_or_broken_is_none(inner: str) -> None:
    assert parse_metadata(f"<domain>{inner}</domain>") is None


@given(
    st.builds(
        Mark,
        uid=st.uuids().map(str),
        epoch=st.integers(0, 2**63 - 1),
        boots=st.integers(0, 2**31),
        off_reason=st.sampled_from(["", "GuestPoweredOff", "HostDown"]),
    )
)
def test_a_mark_is_read_back(mark: Mark) -> None:
    assert parse_mark(render_mark(mark)) == mark
