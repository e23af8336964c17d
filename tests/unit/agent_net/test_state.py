"""Records on disk: what is written comes back, and what is damaged is as if it were not there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import DriverError
from agent.net.driver import NetworkIntent, digest_of
from agent.net.state import HostRecord, NetworkRecord, State
from tests.unit.agent_net.cases import FEWER, NETWORK, networks


@pytest.fixture
def state() -> Iterator[State]:
    with tempfile.TemporaryDirectory(prefix="agent-net-") as directory:
        made = State(Path(directory))
        made.prepare()
        yield made


@FEWER
@given(networks())
def test_a_network_comes_back(network: NetworkIntent) -> None:
    with tempfile.TemporaryDirectory() as directory:
        state = State(Path(directory))
        state.files(network.uid).directory.mkdir(parents=True)
        record = NetworkRecord(network, digest_of(network), "p", "r")
        state.write_network(record)
        assert state.find_network(network.uid) == record
        state.forget_completion(network.uid)
        assert state.find_network(network.uid) is None
        assert state.network_uids() == [network.uid]
        state.forget_network(network.uid)
        assert state.network_uids() == []


@given(st.one_of(st.text(max_size=30), st.sampled_from(['{"uid": 1}', "[]", "7", '{"subnets": [[]]}'])))
def test_a_damaged_record_is_no_record(text: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        state = State(Path(directory))
        path = state.files(NETWORK.uid).directory
        path.mkdir(parents=True)
        (path / "intent.json").write_text(text)
        (Path(directory) / "host.json").write_text(text)
        assert state.find_network(NETWORK.uid) is None
        assert state.find_host() is None


def test_the_host_comes_back(state: State) -> None:
    record = HostRecord("p", "r", True)
    state.write_host(record)
    assert state.find_host() == record
    state.forget_host()
    assert state.find_host() is None


def test_other_secrets_in_the_directory_are_not_listed(state: State) -> None:
    assert state.directory.stat().st_mode & 0o777 == 0o711


def test_a_directory_that_dnsmasq_cannot_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    with pytest.raises(DriverError, match="chmod") as refused:
        State(tmp_path / "closed" / "net").prepare()
    assert (refused.value.reason, refused.value.permanent) == ("StateDirNotTraversable", True)
