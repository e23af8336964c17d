"""A cloud, and a way to run the command against it, for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cli.main import main

if TYPE_CHECKING:
    from tests.unit.cli.fake_cloud import FakeCloud


class Outcome(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    from tests.unit.cli.fake_cloud import FakeCloud

    made = FakeCloud()
    yield made
    made.closing.set()


@pytest.fixture
def endpoint(cloud: FakeCloud) -> Iterator[str]:
    from tests.unit.cli.fake_cloud import serve

    server, address = serve(cloud)
    yield address
    cloud.closing.set()
    server.stop(None).wait()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty configuration, and no environment of the person who runs the tests."""
    for name in ("CUMULET_CONTEXT", "CUMULET_ENDPOINTS", "CUMULET_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUMULET_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def run(
    settings: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command line against the cloud."""
    monkeypatch.setenv("CUMULET_ENDPOINTS", endpoint)
    return offline_runner(capsys)


@pytest.fixture
def offline(settings: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line that has no cloud."""
    return offline_runner(capsys)


def offline_runner(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> Outcome:
        code = main(words)
        told = capsys.readouterr()
        return Outcome(int(code), told.out, told.err)

    return run
