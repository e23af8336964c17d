"""Operations, events and explanations of an instance's life, through the API.

**Edge**: gRPC over a Unix socket, etcd.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from controller.journal import check_journal
from controller.reconcile import export
from controller.store import keys
from cumulet import lifecycle
from cumulet.errors import (
    InvalidArgumentError,
    NotFoundError,
    RevisionGoneError,
)
from cumulet.kinds import INSTANCE, NODE, OPERATION
from cumulet.v1 import (
    event_pb2,
    event_pb2_grpc,
    operation_pb2,
    system_pb2,
    system_pb2_grpc,
)
from cumulet.wire_errors import from_rpc_error
from tests.scenario.serving import WAIT_S, Cloud, agent_of, refusal, sample, until, until_true

both_stores = pytest.mark.parametrize("cloud", ["memory", "etcd"], indirect=True)


@both_stores
async def test_the_life_of_an_instance_on_an_agent(cloud: Cloud) -> None:
    await cloud.seed()
    async with agent_of(cloud):
        done = await cloud.wait(await cloud.create(INSTANCE, sample(INSTANCE, "web")))
        assert (done.done, done.error.reason) == (True, "")
        shown = await cloud.get(INSTANCE, "web")
        assert (shown.status.phase, shown.status.node, shown.status.boots) == (
            lifecycle.RUNNING,
            "sim-0001",
            1,
        )
        for verb, boots, phase in (
            ("Reboot", 2, lifecycle.RUNNING),
            ("Stop", 2, lifecycle.STOPPED),
            ("Start", 3, lifecycle.RUNNING),
        ):
            asked = await cloud.call(INSTANCE, f"{verb}Instance", project="default", name="web")
            done = await cloud.wait(asked)
            assert (done.done, done.error.reason) == (True, ""), verb
            shown = await cloud.get(INSTANCE, "web")
            assert (shown.status.boots, shown.status.phase) == (boots, phase), verb
        verified = await system_pb2_grpc.SystemServiceStub(cloud.channel).Verify(system_pb2.VerifyRequest())
        assert list(verified.nodes) == ["sim-0001"]
        assert not verified.differences
        assert verified.items_compared > 0
        done = await cloud.wait(await cloud.delete(INSTANCE, "web"))
        assert (done.done, done.error.reason) == (True, "")
        assert isinstance(await refusal(cloud.get(INSTANCE, "web")), NotFoundError)
        node = await cloud.get(NODE, "sim-0001")
        assert (node.status.instances, node.status.allocated.vcpu) == (0, 0)


async def test_a_create_waits_for_room_and_says_why(cloud: Cloud) -> None:
    await cloud.seed()
    operation = await cloud.create(INSTANCE, sample(INSTANCE, "web"))
    await until(lambda: bool(cloud.controller.state.rows(keys.INSTANCE_STATUS)))
    explained = await cloud.call(INSTANCE, "ExplainInstance", project="default", name="web")
    assert "fits nowhere" in explained.summary
    assert explained.revision
    assert "cumulet node list" in list(getattr(explained, "try"))
    assert [event.reason for event in explained.events] == ["Created", "NoCapacity"]
    async with agent_of(cloud):
        assert (await cloud.wait(operation)).done
        explained = await cloud.call(INSTANCE, "ExplainInstance", project="default", name="web")
        (verdict,) = explained.nodes
        assert (verdict.node, verdict.fits, verdict.current, verdict.rank) == ("sim-0001", True, True, 1)
        assert verdict.score_terms
        await cloud.call(NODE, "CordonNode", name="sim-0001", reason="disk")
        await cloud.create(INSTANCE, sample(INSTANCE, "db"))
        explained = await cloud.call(INSTANCE, "ExplainInstance", project="default", name="db")
        assert next(iter(getattr(explained, "try"))) == "cumulet node uncordon sim-0001"
        assert "disk" in explained.nodes[0].reasons[0]


async def test_waiting_ends_with_the_operation_or_the_time(cloud: Cloud) -> None:
    await cloud.seed()
    operation = await cloud.create(INSTANCE, sample(INSTANCE, "web"))
    waiting = asyncio.create_task(cloud.wait(operation))
    started = time.monotonic()
    assert not (await cloud.wait(operation, seconds=1)).done
    assert 0.9 < time.monotonic() - started < 10
    assert not waiting.done()
    await cloud.delete(INSTANCE, "web")
    ended = await waiting
    assert (ended.done, ended.error.reason) == (True, "CONFLICT")
    missing = operation_pb2.WaitOperationRequest(project="default", name="op-none")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await OPERATION.stub(cloud.channel).WaitOperation(missing)
    assert isinstance(from_rpc_error(failed.value), NotFoundError)


def _reason(event: Any) -> str:
    return str(event.reason)


async def test_events_are_listed_in_order_by_page_and_target_and_watched(cloud: Cloud) -> None:
    stub = event_pb2_grpc.EventServiceStub(cloud.channel)
    watch = stub.WatchEvents(event_pb2.WatchEventsRequest(target="instance/web"))
    await until(lambda: bool(cloud.controller.events._listeners))  # nothing tells a client
    await cloud.seed()
    await cloud.create(INSTANCE, sample(INSTANCE, "web"))
    await cloud.delete(INSTANCE, "web")
    async with asyncio.timeout(WAIT_S):
        seen = [_reason(await watch.read()) for _ in range(3)]
    watch.cancel()
    assert seen[0] == "Created"
    assert "DeleteRequested" in seen
    await until(lambda: not cloud.controller.state.rows(keys.INSTANCES))
    everything = (await stub.ListEvents(event_pb2.ListEventsRequest(project="-"))).events
    revisions = [event.revision for event in everything]
    assert revisions == sorted(revisions)
    assert {event.target.kind for event in everything} >= {
        "project",
        "flavor",
        "image",
        "network",
        "instance",
    }
    paged: list[str] = []
    token = ""
    while True:
        request = event_pb2.ListEventsRequest(project="-", page_size=2, page_token=token)
        page = await stub.ListEvents(request)
        paged += [event.uid for event in page.events]
        token = page.next_page_token
        if not token:
            break
    assert paged == [event.uid for event in everything]
    for request, kind in (
        (event_pb2.ListEventsRequest(page_size=-1), InvalidArgumentError),
        (event_pb2.ListEventsRequest(page_token="ä"), InvalidArgumentError),
        (event_pb2.ListEventsRequest(page_token="Zm9yZ290dGVu"), RevisionGoneError),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.ListEvents(request)
        assert isinstance(from_rpc_error(failed.value), kind)


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the cloud is made: its leader exports every 15 s otherwise."""
    monkeypatch.setattr(export, "EXPORT_S", 0.2)


@pytest.mark.usefixtures("quick_export")
async def test_events_go_to_the_journal_and_leave_the_store(cloud: Cloud) -> None:
    await cloud.seed()
    store = cloud.controller.store
    assert (await store.list(keys.JOURNAL.prefix())).items

    async def exported() -> bool:
        return not (await store.list(keys.JOURNAL.prefix())).items

    await until_true(exported)
    assert check_journal(cloud.directory / "journal.jsonl") is None
    listed = await event_pb2_grpc.EventServiceStub(cloud.channel).ListEvents(
        event_pb2.ListEventsRequest(project="-")
    )
    assert "Created" in {event.reason for event in listed.events}


@pytest.mark.parametrize("cloud", ["etcd"], indirect=True)
async def test_one_vm_costs_at_most_four_transactions(cloud: Cloud, request: pytest.FixtureRequest) -> None:
    """From its create to running, by etcd's own count: what its log has to agree on, refused or not."""
    server = request.getfixturevalue("etcd")
    await cloud.seed()

    async def proposals() -> float:
        return float(await asyncio.to_thread(server.metric, "etcd_server_proposals_committed_total"))

    async with agent_of(cloud):
        before = await proposals()
        done = await cloud.wait(await cloud.create(INSTANCE, sample(INSTANCE, "web"), request_id="once"))
        spent = await proposals() - before
    assert done.done
    assert 3 <= spent <= 4
