"""How all tests run: side by side where they may, and without deadlines that a busy machine breaks."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

# Of a single example: how long one takes says more of the machine than of the code.
hypothesis.settings.register_profile("cumulet", deadline=None)
hypothesis.settings.load_profile("cumulet")

_E2E = Path(__file__).parent / "e2e"
# Of these one runs at a time: they share a lab, or use what a machine has one of.
_ALONE = ("test_lab", "test_demo", "test_cloud_init", "test_controller_faults", "test_guest_image")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups that pytest-xdist gives to one process each (`--dist loadgroup`): the rest by file."""
    for item in items:
        is_alone = item.path.parent == _E2E and item.path.name.startswith(_ALONE)
        item.add_marker(pytest.mark.xdist_group("alone" if is_alone else str(item.path)))
