"""The help is what we agreed on, starts without heavy imports, and completion completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli.plugins import GROUP, parse_entry_points, plugin_entries
from cumulet.kinds import INSTANCE

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Run
    from tests.unit.cli.fake_cloud import FakeCloud

GOLDEN = Path(__file__).parent / "golden"
HEAVY = ("grpc", "google.protobuf", "rich", "ruamel", "importlib.metadata", "asyncio", "cumulet.client")


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": ".:proto", "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("words", [["--help"], ["instance", "--help"], ["launch", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = f"import sys; from cli.main import main; main({words!r}); print('loaded', *sys.modules)"
    loaded = run_python(code).splitlines()[-1].split()
    assert loaded[0] == "loaded"
    assert "click" in loaded
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cumulet", ["--help"]),
        ("instance", ["instance", "--help"]),
        ("create", ["instance", "create", "--help"]),
    ],
)
def test_help_is_what_we_agreed_on(name: str, words: list[str]) -> None:
    """After a wanted change: `UPDATE_GOLDEN=1 pytest tests/unit/cli/test_help.py`."""
    # Commands of other distributions are listed only where those are installed.
    code = (
        f"import cli.plugins; cli.plugins.plugin_entries = dict; from cli.main import main; main({words!r})"
    )
    shown = run_python(code)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(offline: Run, shell: str) -> None:
    code, out, _ = offline("completion", shell)
    assert code == 0
    assert "_CUMULET_COMPLETE" in out


def complete(line: str, endpoint: str, folder: Path) -> list[str]:
    """What bash would offer for the last word."""
    words = line.split(" ")
    shown = run_python(
        "from cli.main import cumulet; cumulet.main(prog_name='cumulet')",
        _CUMULET_COMPLETE="bash_complete",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
        CUMULET_ENDPOINTS=endpoint,
        CUMULET_CONFIG=str(folder / "config.yaml"),
        XDG_CACHE_HOME=str(folder),
    )
    return [entry.partition(",")[2] for entry in shown.splitlines() if entry]


def test_words_and_names_are_completed(cloud: FakeCloud, endpoint: str, tmp_path: Path) -> None:
    for name in ("web-1", "web-2", "db"):
        cloud.add(INSTANCE, name)
    assert complete("cumulet inst", endpoint, tmp_path) == ["instance"]
    assert complete("cumulet instance sto", endpoint, tmp_path) == ["stop"]
    assert complete("cumulet instance stop web", endpoint, tmp_path) == ["web-1", "web-2"]
    assert complete("cumulet console d", endpoint, tmp_path) == ["db"]
    assert len(cloud.called("ListInstances")) == 1  # the second time from the cache
    assert complete("cumulet node show ", "127.0.0.1:1", tmp_path) == []  # nobody there: no names, no noise


def test_plugins_are_listed_without_importing_them(tmp_path: Path) -> None:
    metadata = tmp_path / "other-1.0.dist-info"
    metadata.mkdir()
    (metadata / "entry_points.txt").write_text(
        f"[console_scripts]\nx = y:z\n\n[{GROUP}]\nup = missing.module:up\nextra = other.place:run [x]\n"
    )
    (tmp_path / "broken-1.0.dist-info").mkdir()
    found = plugin_entries([str(tmp_path), str(tmp_path / "nowhere")])
    assert list(found) == ["up", "extra"]
    assert found["up"].help.startswith("Start a one-machine cloud")
    assert found["extra"].help == "From other.place."
    with pytest.raises(ModuleNotFoundError, match="missing"):
        found["up"].load()


def test_entry_points_are_read_as_the_packaging_standard_writes_them() -> None:
    text = "[a]\nup = wrong:one\n[ cumulet.commands ]\n# no = no:no\nup=m:f\ndown = m.n:g\n"
    assert list(parse_entry_points(text, GROUP)) == [("up", "m:f"), ("down", "m.n:g")]
