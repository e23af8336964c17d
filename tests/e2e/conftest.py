"""Labs for the tests that need several nodes.

**Edge**: `lab` is a cloud of three nodes that all such tests share; each of them gets it healed and complete.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.lab.lab import Lab
from deploy.lab.layout import Settings
from deploy.local.errors import SetupError
from deploy.local.progress import Progress


@contextmanager
def opened_lab(settings: Settings, context: str = "") -> Iterator[Lab]:
    """A lab of its own, which ends with the block, and also when the tests are killed."""
    with tempfile.TemporaryDirectory(prefix="lab-") as directory:
        Path(directory).chmod(0o711)  # dnsmasq runs as a user of its own and must get through
        lab = Lab(Path(directory) / (context or "lab"), leashed=True)
        try:
            bring_up(lab, settings, context)
            yield lab
        finally:
            lab.down()


def bring_up(lab: Lab, settings: Settings, context: str = "") -> None:
    """Tells the end of the log that matters when it fails."""
    progress = Progress()
    try:
        lab.up(settings, progress, context=context)
    except SetupError as err:
        progress.failure(err)
        raise


@pytest.fixture(scope="session")
def shared_lab() -> Iterator[Lab]:
    with opened_lab(Settings(nodes=3)) as lab:
        yield lab


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """Three nodes n1, n2 and n3. Remove the objects that you make: names are shared by all tests."""
    yield shared_lab
    shared_lab.heal()
    for machine in shared_lab.layout.machines:
        if machine.name not in shared_lab.running():
            shared_lab.start(machine.name)
    shared_lab.wait_ready()
