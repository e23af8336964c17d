"""What the documents point at is there: links, paths in code spans, pictures.

**Edge**: reads files of the checkout.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
PICTURES = sorted((ROOT / "docs/pictures").glob("*.svg"))
ROOMS = "agent|cext|cli|controller|deploy|docs|proto|scheduler|tests"
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(rf"(?:{ROOMS})/[\w./-]+")
# Stands for a name that the reader chooses.
PLACEHOLDER = "KIND"


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    targets = (found.partition("#")[0] for found in LINK.findall(text) if "://" not in found)
    return [target for target in targets if target and not (page.parent / target).exists()]


def missing_paths(text: str) -> list[str]:
    """Paths of the checkout in code spans that are not there."""
    named = (code for code in CODE.findall(text) if PATH.fullmatch(code) and PLACEHOLDER not in code)
    return [path for path in named if not (ROOT / path).exists()]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_named_files_exist(page: Path) -> None:
    assert missing_paths(page.read_text(encoding="utf-8")) == []


def test_a_broken_link_and_a_missing_file_are_found() -> None:
    page = ROOT / "docs/page.md"
    assert broken_links(page, "[a](gone.md) [b](adr/README.md#x) [c](#here)") == ["gone.md"]
    assert missing_paths("`controller/gone.py` `controller/commit.py` `controller/admit/KIND.py`") == [
        "controller/gone.py"
    ]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_page_is_reached_from_the_readme(page: Path) -> None:
    """Decisions by their folder, which is linked."""
    assert page in _reachable()


def _reachable() -> set[Path]:
    waiting, seen = [ROOT / "README.md"], set()
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        found = LINK.findall(page.read_text(encoding="utf-8"))
        targets = ((page.parent / link.partition("#")[0]).resolve() for link in found if "://" not in link)
        waiting += [target for target in targets if target.suffix == ".md" and target.is_file()]
    return seen | set((ROOT / "docs/adr").glob("*.md"))


@pytest.mark.parametrize("picture", PICTURES, ids=_name)
def test_a_picture_is_well_formed_and_says_what_it_shows(picture: Path) -> None:
    root = ET.parse(picture).getroot()
    namespace = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{namespace}svg"
    assert root.findtext(f"{namespace}title")
    assert root.findtext(f"{namespace}desc")
