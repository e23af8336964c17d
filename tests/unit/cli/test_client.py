"""The SDK against a real gRPC server: paging, retries with one request id, fail-over, resumed watches."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cumulet.client import Client
from cumulet.errors import (
    ConflictError,
    InvalidArgumentError,
    NoCapacityError,
    NotFoundError,
    OperationFailedError,
    RevisionGoneError,
    TimedOutError,
    UnavailableError,
)
from cumulet.kinds import FLAVOR, INSTANCE, NETWORK, NODE, OPERATION
from cumulet.v1 import image_pb2, meta_pb2
from tests.unit.cli.fake_cloud import FakeCloud, serve


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    with Client([endpoint], timeout_s=10, pause=lambda _s: None) as made:
        yield made


def test_a_list_is_read_to_its_end(cloud: FakeCloud, client: Client) -> None:
    names = [f"n{index}" for index in range(8)]
    for name in names:
        cloud.add(INSTANCE, name)
    assert [one.meta.name for one in client.list(INSTANCE)] == names
    assert len(cloud.called("ListInstances")) == 3
    assert [one.meta.name for one in client.list("instance", limit=2)] == names[:2]


def test_a_write_keeps_its_request_id_over_retries(cloud: FakeCloud, client: Client) -> None:
    cloud.fail("CreateNetwork", UnavailableError("no leader"), UnavailableError("no leader"))
    made = client.create("network", {"meta": {"name": "web"}, "spec": {"outbound_nat": True}})
    sent = [request.request_id for request in cloud.called("CreateNetwork")]
    assert len(sent) == 3
    assert len(set(sent)) == 1
    assert made.spec.outbound_nat
    client.create("network", {"meta": {"name": "db"}})
    assert cloud.called("CreateNetwork")[-1].request_id != sent[0]


def test_only_unavailable_is_retried_and_not_for_ever(cloud: FakeCloud, client: Client) -> None:
    cloud.fail("GetNode", ConflictError("busy"))
    with pytest.raises(ConflictError):
        client.get(NODE, "n1")
    assert len(cloud.called("GetNode")) == 1
    cloud.fail("GetFlavor", *[UnavailableError("no leader")] * 50)
    with pytest.raises(UnavailableError, match="no leader"):
        client.get(FLAVOR, "small")
    assert 1 < len(cloud.called("GetFlavor")) < 10


def test_the_next_endpoint_answers_when_the_first_is_dead(cloud: FakeCloud, endpoint: str) -> None:
    cloud.add(NETWORK, "web")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but nobody listens
        dead = f"127.0.0.1:{held.getsockname()[1]}"
        with Client([dead, endpoint], pause=lambda _s: None) as client:
            assert client.get(NETWORK, "web").meta.name == "web"
        with (
            Client([dead], pause=lambda _s: None) as alone,
            pytest.raises(UnavailableError, match=dead) as caught,
        ):
            alone.get(NETWORK, "web")
    assert "cumulet up" in caught.value.hints


def test_unix_sockets_are_endpoints(cloud: FakeCloud, tmp_path: Path) -> None:
    server, path = serve(cloud, f"unix:{tmp_path}/api.sock")
    cloud.add(FLAVOR, "small")
    with Client([path]) as client:
        assert [one.meta.name for one in client.list(FLAVOR)] == ["small"]
    server.stop(None).wait()


def test_a_cut_watch_goes_on_after_the_last_bookmark(cloud: FakeCloud, client: Client) -> None:
    cloud.add(NETWORK, "web")
    changes = client.watch(NETWORK)
    seen = [next(changes), next(changes)]
    assert [change.type for change in seen] == [meta_pb2.CHANGE_TYPE_PUT, meta_pb2.CHANGE_TYPE_BOOKMARK]
    cloud.fail("WatchNetworks", UnavailableError("going down"), RevisionGoneError("compacted"))
    cloud.closing.set()
    with pytest.raises(RevisionGoneError):
        next(changes)
    assert [request.from_revision for request in cloud.called("WatchNetworks")] == [0, 10, 10]


def test_a_watch_ends_with_its_timeout(cloud: FakeCloud, client: Client) -> None:
    changes = client.watch(NETWORK, timeout_s=0.3)
    with pytest.raises(TimedOutError):
        list(changes)


def test_an_upload_arrives_whole_with_progress(cloud: FakeCloud, client: Client, tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "disk.raw").write_bytes(data)
    told: list[tuple[int, int]] = []
    stored = client.upload_file(
        tmp_path / "disk.raw", image_pb2.FILE_FORMAT_RAW, lambda sent, total: told.append((sent, total))
    )
    assert cloud.uploads == [data]
    assert stored.size_bytes == len(data)
    assert told[-1] == (len(data), len(data))
    assert told == sorted(told)


def test_an_upload_of_another_format_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"not qcow2")
    with pytest.raises(InvalidArgumentError, match="no qcow2"):
        client.upload_file(tmp_path / "disk", image_pb2.FILE_FORMAT_QCOW2)


def test_waiting_for_an_operation(cloud: FakeCloud, client: Client) -> None:
    operation = client.create(INSTANCE, {"meta": {"name": "web"}})
    stored = cloud.objects["operation", "default", operation.meta.name]
    with pytest.raises(TimedOutError) as caught:
        client.wait_operation("op-web", timeout_s=0)
    assert caught.value.hints == ("cumulet operation wait op-web",)
    stored.done = True
    assert client.wait_operation("op-web").target.name == "web"
    stored.error.reason, stored.error.message = "NO_CAPACITY", "no node fits"
    with pytest.raises(NoCapacityError, match="no node fits"):
        client.wait_operation("op-web")
    stored.error.reason = "FROM_THE_FUTURE"
    with pytest.raises(OperationFailedError, match="no node fits"):
        client.wait_operation("op-web")


def test_console_is_a_stream_both_ways(cloud: FakeCloud, client: Client) -> None:
    stream = client.console("web")
    output = iter(stream)
    assert next(output) == b"console of web\r\n"
    stream.send(b"ls")
    assert next(output) == b"LS"
    stream.close()
    assert list(output) == []


def test_bad_requests_are_refused_before_they_are_sent(cloud: FakeCloud, client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="no endpoint"):
        Client([])
    with pytest.raises(InvalidArgumentError, match="is no kind"):
        client.get("virtual-machine", "web")
    with pytest.raises(InvalidArgumentError, match="is no network"):
        client.create("network", {"meta": {"nme": "web"}})
    assert cloud.calls == []


def test_a_missing_object_names_itself(client: Client) -> None:
    with pytest.raises(NotFoundError, match="operation op-1 does not exist"):
        client.get(OPERATION, "op-1")
