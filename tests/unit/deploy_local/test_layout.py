"""The layout of a single-machine cloud and its settings file.

**Pure** but for the settings file in a temporary directory.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.errors import SetupError
from deploy.local.layout import (
    DEFAULT_RUNTIME_DIR,
    DEFAULT_STATE_DIR,
    Layout,
    Ports,
    checked,
    choose_ports,
    default_runtime_dir,
    load_layout,
    parse_settings,
    render_settings,
    save_layout,
)

numbers = st.integers(1, 65535)
ports = st.builds(Ports, numbers, numbers, numbers, numbers, numbers)
paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20).map(
    lambda text: Path("/run") / text.strip("/")
)


@given(paths, st.text(), ports)
def test_settings_are_read_back(runtime_dir: Path, node: str, chosen: Ports) -> None:
    layout = Layout(Path("/state"), runtime_dir, node, chosen)
    assert parse_settings(Path("/state"), render_settings(layout)) == layout


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "ports": {"api": 1}}'])
def test_damaged_settings_name_the_file(text: str) -> None:
    with pytest.raises(SetupError, match=r"/state/cloud\.json") as caught:
        parse_settings(Path("/state"), text)
    assert "cumulet up" in caught.value.fix


def test_settings_on_disk(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    assert load_layout(state_dir) is None
    layout = Layout(state_dir, tmp_path / "run", "n1")
    save_layout(layout)
    save_layout(layout)
    assert load_layout(state_dir) == layout


@given(st.sets(st.integers(7435, 7450)), st.just(set(range(7430, 7470))))
def test_chosen_ports_are_free_and_distinct(taken: set[int], free: set[int]) -> None:
    chosen = choose_ports(Ports(), taken, sorted(free))
    values = list(chosen.named().values())
    assert not taken.intersection(values)
    assert len(set(values)) == len(values)
    kept = {name for name, port in Ports().named().items() if port not in taken}
    assert all(chosen.named()[name] == Ports().named()[name] for name in kept)


def test_sockets_have_room_for_their_path() -> None:
    checked(Layout(Path("/s"), Path("/" + "r" * 90), "n"))
    with pytest.raises(SetupError, match="longer than"):
        checked(Layout(Path("/s"), Path("/" + "r" * 91), "n"))


def test_a_cloud_of_its_own_has_its_sockets_below_its_state() -> None:
    assert default_runtime_dir(DEFAULT_STATE_DIR) == DEFAULT_RUNTIME_DIR
    assert default_runtime_dir(Path("/srv/cloud")) == Path("/srv/cloud/run")
