"""The standard methods of every kind, as the registry lists them, against a real server.

**Edge**: gRPC over a Unix socket; memory and, where it matters, a real etcd.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controller.admit import instance as admit_instance
from controller.admit import project as admit_project
from controller.admit.common import Context
from controller.store import keys
from controller.store.protocol import Put, Txn, absent
from cumulet.client import Client
from cumulet.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NoCapacityError,
    NotFoundError,
    QuotaExceededError,
    RevisionGoneError,
    TooLargeError,
)
from cumulet.kinds import (
    EXTERNAL_NETWORK,
    FLAVOR,
    FLOATING_IP,
    IMAGE,
    INSTANCE,
    KEY_PAIR,
    LOAD_BALANCER,
    NETWORK,
    OPERATION,
    PORT,
    PROJECT,
    ROUTER,
    SUBNET,
    Kind,
)
from cumulet.v1 import meta_pb2
from tests.scenario.serving import WRITABLE, Cloud, refusal, sample, until

PUT, DELETE = meta_pb2.CHANGE_TYPE_PUT, meta_pb2.CHANGE_TYPE_DELETE
both_stores = pytest.mark.parametrize("cloud", ["memory", "etcd"], indirect=True)
of_every_kind = pytest.mark.parametrize("kind", WRITABLE, ids=[kind.noun for kind in WRITABLE])


async def _new(cloud: Cloud, kind: Kind, name: str) -> Any:
    """A sample that can be created in the seeded cloud."""
    made = sample(kind, name)
    if kind is IMAGE:
        made.spec.disk.CopyFrom((await cloud.get(IMAGE, "blank")).spec.disk)
    if kind is LOAD_BALANCER:
        await _ensure(cloud, ROUTER, "of-lan", networks=["lan"])
    if kind is FLOATING_IP:
        await _ensure(cloud, EXTERNAL_NETWORK, "internet")
    if kind is SUBNET:
        number = sum(name.encode()) % 200 + 10
        made.spec.cidr = f"10.{number}.0.0/24"
    return made


async def _ensure(cloud: Cloud, kind: Kind, name: str, **spec: Any) -> None:
    """What objects of another kind need beside what is seeded."""
    if not await _all(cloud, kind):
        made = sample(kind, name)
        made.spec.MergeFrom(type(made.spec)(**spec))
        await cloud.create(kind, made)


async def _remove(cloud: Cloud, kind: Kind, name: str) -> None:
    reply = await cloud.delete(kind, name)
    if kind is INSTANCE:
        assert (await cloud.wait(reply)).done


@both_stores
@of_every_kind
async def test_the_life_of_an_object(cloud: Cloud, kind: Kind) -> None:
    await cloud.seed()
    watch = cloud.watch(kind)
    present, revision = await watch.until_bookmark()
    assert all(change.type == PUT for change in present)
    made = await cloud.create(kind, await _new(cloud, kind, "one"))
    if kind is INSTANCE:
        assert made.target.name == "one"
    shown = await cloud.get(kind, "one")
    assert shown.meta.uid
    assert shown.meta.generation == 1
    assert (await watch.names(1)) == [(PUT, "one")]
    changed = type(shown)()
    changed.CopyFrom(shown)
    changed.meta.labels["tier"] = "web"
    updated = await cloud.update(kind, changed, "meta.labels")
    assert dict(updated.meta.labels) == {"tier": "web"}
    stale = await refusal(cloud.update(kind, changed, "meta.labels"))
    assert isinstance(stale, ConflictError)
    assert isinstance(await refusal(cloud.delete(kind, "one", etag=shown.meta.etag)), ConflictError)
    assert [item.meta.name for item in await _all(cloud, kind, selector="tier=web")] == ["one"]
    assert "one" not in [item.meta.name for item in await _all(cloud, kind, selector="tier!=web")]
    await _remove(cloud, kind, "one")
    assert isinstance(await refusal(cloud.get(kind, "one")), NotFoundError)
    seen = [await watch.change()]
    while seen[-1].type != DELETE:
        seen.append(await watch.change())
    assert getattr(seen[-1], kind.field).meta.name == "one"
    resumed = cloud.watch(kind, from_revision=revision)
    missed, _ = await resumed.until_bookmark()
    assert [(change.type, change.revision) for change in missed][-1] == (DELETE, seen[-1].revision)
    watch.close()
    resumed.close()


async def _all(cloud: Cloud, kind: Kind, **fields: Any) -> list[Any]:
    return list(getattr(await cloud.list(kind, **fields), kind.fields))


@of_every_kind
async def test_refusals_of_every_kind_are_typed(cloud: Cloud, kind: Kind) -> None:
    await cloud.seed()
    await cloud.create(kind, await _new(cloud, kind, "one"))
    again = await refusal(cloud.create(kind, await _new(cloud, kind, "one")))
    assert isinstance(again, AlreadyExistsError)
    assert again.hints == (f"cumulet {kind.noun} show one",)
    unnamed = await refusal(cloud.create(kind, await _new(cloud, kind, "No Name")))
    assert isinstance(unnamed, InvalidArgumentError)
    assert "meta.name" in {violation.field for violation in unnamed.violations}
    missing = await refusal(cloud.get(kind, "none"))
    assert isinstance(missing, NotFoundError)
    assert missing.hints[0].startswith(f"cumulet {kind.noun} list")
    shown = await cloud.get(kind, "one")
    fixed = await refusal(cloud.update(kind, shown, "meta.uid"))
    assert isinstance(fixed, InvalidArgumentError)
    assert fixed.violations[0].field == "update_mask"
    assert isinstance(await refusal(cloud.get(kind, "../etc")), InvalidArgumentError)
    assert isinstance(await refusal(cloud.list(kind, page_size=-1)), InvalidArgumentError)
    assert isinstance(await refusal(cloud.list(kind, page_token="forged")), InvalidArgumentError)
    assert isinstance(await refusal(cloud.list(kind, selector="=")), InvalidArgumentError)


@of_every_kind
async def test_a_dry_run_shows_and_writes_nothing(cloud: Cloud, kind: Kind) -> None:
    await cloud.seed()
    revision = cloud.controller.state.revision
    wanted = cloud.create(kind, await _new(cloud, kind, "one"), validate_only=True)
    if kind is INSTANCE:
        assert isinstance(await refusal(wanted), NoCapacityError)
    else:
        shown = await wanted
        assert shown.meta.name == "one"
        assert not shown.meta.etag
    bad = await refusal(cloud.create(kind, await _new(cloud, kind, "No Name"), validate_only=True))
    assert isinstance(bad, InvalidArgumentError)
    await cloud.controller.state.reach(revision)
    assert isinstance(await refusal(cloud.get(kind, "one")), NotFoundError)
    assert not (await cloud.controller.store.list(keys.REQUESTS.prefix())).items


async def test_a_dry_update_and_delete_show_no_secret_and_write_nothing(cloud: Cloud) -> None:
    await cloud.seed()
    secret = await _new(cloud, INSTANCE, "one")
    secret.spec.user_data = b"password"
    await cloud.create(INSTANCE, secret)
    shown = await cloud.get(INSTANCE, "one")
    shown.meta.labels["a"] = "b"
    dry = await cloud.update(INSTANCE, shown, "meta.labels", validate_only=True)
    assert dict(dry.meta.labels) == {"a": "b"}
    assert b"password" not in dry.SerializeToString()
    assert (await cloud.delete(INSTANCE, "one", validate_only=True)).verb == "instance.delete"
    assert not (await cloud.get(INSTANCE, "one")).meta.labels


async def test_a_watch_never_shows_a_secret(cloud: Cloud) -> None:
    await cloud.seed()
    watch = cloud.watch(INSTANCE)
    await watch.until_bookmark()
    secret = await _new(cloud, INSTANCE, "one")
    secret.spec.user_data = b"password"
    await cloud.create(INSTANCE, secret)
    await _remove(cloud, INSTANCE, "one")
    seen = [await watch.change()]
    while seen[-1].type != DELETE:
        seen.append(await watch.change())
    assert all(b"password" not in change.SerializeToString() for change in seen)
    watch.close()


@pytest.mark.parametrize(
    ("cloud", "kind"),
    [("memory", FLAVOR), ("memory", KEY_PAIR), ("memory", INSTANCE), ("etcd", INSTANCE)],
    indirect=["cloud"],
)
async def test_a_request_id_makes_a_write_happen_once(cloud: Cloud, kind: Kind) -> None:
    """20 in parallel and one later get the same answer; the same id for something else is refused."""
    await cloud.seed()
    wanted = await _new(cloud, kind, "one")
    replies = await asyncio.gather(*(cloud.create(kind, wanted, request_id="r-1") for _ in range(20)))
    replies.append(await cloud.create(kind, wanted, request_id="r-1"))
    assert len({reply.meta.uid for reply in replies}) == 1
    other = await refusal(cloud.create(kind, await _new(cloud, kind, "two"), request_id="r-1"))
    assert isinstance(other, InvalidArgumentError)
    assert other.violations[0].field == "request_id"
    assert isinstance(await refusal(cloud.create(kind, wanted, request_id="r-2")), AlreadyExistsError)
    assert isinstance(await refusal(cloud.create(kind, wanted, request_id="/")), InvalidArgumentError)
    first = await asyncio.gather(
        *(cloud.delete(kind, "one", request_id="r-3") for _ in range(5)), return_exceptions=True
    )
    assert not [reply for reply in first if isinstance(reply, Exception)]


async def test_a_repeated_verb_happens_once(cloud: Cloud) -> None:
    await cloud.seed()
    await cloud.create(INSTANCE, await _new(cloud, INSTANCE, "one"))
    reboots = [
        cloud.call(INSTANCE, "RebootInstance", project="default", name="one", request_id="r-9")
        for _ in range(5)
    ]
    operations = {reply.meta.name for reply in await asyncio.gather(*reboots)}
    assert len(operations) == 1
    assert (await cloud.get(INSTANCE, "one")).spec.boots == 2


@both_stores
async def test_pages_show_one_revision_while_others_write(cloud: Cloud) -> None:
    await cloud.seed()
    names = [f"f{number:02}" for number in range(25)]
    await asyncio.gather(*(cloud.create(FLAVOR, sample(FLAVOR, name)) for name in names))
    page = await cloud.list(FLAVOR, page_size=10)
    seen = [item.meta.name for item in page.flavors]
    revision = page.revision
    while page.next_page_token:
        await cloud.delete(FLAVOR, names.pop())
        await cloud.create(FLAVOR, sample(FLAVOR, f"g{len(seen):02}"))
        page = await cloud.list(FLAVOR, page_size=10, page_token=page.next_page_token)
        assert page.revision == revision
        seen += [item.meta.name for item in page.flavors]
    assert seen == [*(f"f{number:02}" for number in range(25)), "small"]
    other = await cloud.list(FLAVOR, page_size=10)
    mixed = cloud.list(FLAVOR, page_size=5, selector="a=b", page_token=other.next_page_token)
    assert isinstance(await refusal(mixed), InvalidArgumentError)


@both_stores
async def test_what_is_compacted_is_said_to_be_gone(cloud: Cloud) -> None:
    await cloud.seed()
    await asyncio.gather(*(cloud.create(FLAVOR, sample(FLAVOR, f"f{number}")) for number in range(5)))
    page = await cloud.list(FLAVOR, page_size=2)
    await cloud.delete(FLAVOR, "f4")
    await cloud.controller.store.compact(cloud.controller.state.revision)
    gone = await refusal(cloud.list(FLAVOR, page_size=2, page_token=page.next_page_token))
    assert isinstance(gone, RevisionGoneError)
    watch = cloud.watch(FLAVOR, from_revision=1)
    with pytest.raises(RevisionGoneError, match="list and watch from there"):
        await watch.change()


async def test_a_watch_by_selector_sees_objects_come_and_go(cloud: Cloud) -> None:
    await cloud.seed()
    watch = cloud.watch(FLAVOR, selector="tier=web")
    assert (await watch.until_bookmark())[0] == []
    shown = await cloud.get(FLAVOR, "small")
    for labels in ({"tier": "web"}, {"tier": "web", "a": "b"}, {"tier": "db"}, {}):
        shown.meta.ClearField("labels")
        shown.meta.ClearField("etag")
        shown.meta.labels.update(labels)
        await cloud.update(FLAVOR, shown, "meta.labels")
    assert await watch.names(3) == [(PUT, "small"), (PUT, "small"), (DELETE, "small")]
    watch.close()


async def test_a_watch_without_a_project_is_of_the_default_one(cloud: Cloud) -> None:
    await cloud.seed()
    await cloud.create(PROJECT, sample(PROJECT, "other"))
    call = NETWORK.stub(cloud.channel).WatchNetworks(NETWORK.message("WatchNetworksRequest")())
    assert (await call.read()).network.meta.name == "lan"
    assert (await call.read()).type == meta_pb2.CHANGE_TYPE_BOOKMARK
    elsewhere = sample(NETWORK, "elsewhere")
    elsewhere.meta.project = "other"
    await cloud.create(NETWORK, elsewhere)
    await cloud.create(NETWORK, sample(NETWORK, "here"))
    assert (await call.read()).network.meta.name == "here"
    call.cancel()
    everywhere = await cloud.call(NETWORK, "ListNetworks", project="-")
    assert [item.meta.name for item in everywhere.networks] == ["here", "lan", "elsewhere"]


async def test_lists_of_what_nobody_writes_directly(cloud: Cloud) -> None:
    await cloud.seed()
    operation = await cloud.create(INSTANCE, await _new(cloud, INSTANCE, "one"))
    assert [item.spec.instance for item in await _all(cloud, PORT)] == ["one"]
    assert [item.meta.name for item in await _all(cloud, OPERATION)] == [operation.meta.name]
    assert (await cloud.wait(operation, seconds=0)).done is False


@both_stores
async def test_a_quota_of_ten_accepts_ten_of_two_hundred(cloud: Cloud) -> None:
    await cloud.seed(instances=10)
    accepted, refused = await _flood(cloud)
    assert (accepted, refused) == (10, 190)
    assert len(await _all(cloud, INSTANCE)) == 10


async def test_without_the_range_compare_two_replicas_accept_more(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what the quota's guard is for. Both admit on the same State before either writes."""
    await cloud.seed(instances=10)
    assert await _race(cloud, "with") == [True, False]
    monkeypatch.setattr(admit_project, "range_unchanged_since", lambda prefix, revision: absent(b"/nothing"))
    assert await _race(cloud, "without") == [True, True]


async def _race(cloud: Cloud, name: str) -> list[bool]:
    """Two creates admitted on one State, then written one after the other; which were accepted."""
    state, context = cloud.controller.state, Context(1.8e9, cloud.controller.rng)
    changes = [
        admit_instance.create(state, context, "default", sample(INSTANCE, f"{name}-{number}"))
        for number in range(2)
    ]
    results = []
    for change in changes:
        puts = [Put(key, value) for key, value in change.writes.items() if value]
        results.append(await cloud.controller.store.txn(Txn(change.compares, puts, "race")))
    await state.reach(max(result.revision for result in results))
    return [result.committed for result in results]


async def _flood(cloud: Cloud) -> tuple[int, int]:
    replies = await asyncio.gather(
        *(cloud.create(INSTANCE, sample(INSTANCE, f"vm-{number}")) for number in range(200)),
        return_exceptions=True,
    )
    accepted = sum(not isinstance(reply, BaseException) for reply in replies)
    return accepted, sum(isinstance(reply, QuotaExceededError) for reply in replies)


async def test_what_is_in_use_cannot_be_deleted(cloud: Cloud) -> None:
    await cloud.seed()
    await cloud.create(INSTANCE, await _new(cloud, INSTANCE, "one"))
    for kind, name in ((NETWORK, "lan"), (SUBNET, "lan-a"), (IMAGE, "blank"), (PROJECT, "default")):
        assert isinstance(await refusal(cloud.delete(kind, name)), FailedPreconditionError)
    await cloud.delete(FLAVOR, "small")
    await _remove(cloud, INSTANCE, "one")
    for kind, name in ((SUBNET, "lan-a"), (NETWORK, "lan"), (IMAGE, "blank"), (PROJECT, "default")):
        await cloud.delete(kind, name)
    left = [item.key for item in (await cloud.controller.store.list(keys.ADDRESSES.prefix())).items]
    assert left == []


async def test_a_thousand_ports_in_a_22_are_unique(cloud: Cloud) -> None:
    await cloud.seed(instances=2000)
    for start in range(0, 500, 100):
        await asyncio.gather(
            *(cloud.create(INSTANCE, _two_ports(f"vm-{number}")) for number in range(start, start + 100))
        )
    ports = cloud.controller.state.rows(keys.PORTS, "default").values()
    addresses = [fixed.address for row in ports for fixed in row.message.spec.addresses]
    assert len(addresses) == 1000
    assert len(set(addresses)) == 1000
    assert len({row.message.spec.mac for row in ports}) == 1000


def _two_ports(name: str) -> Any:
    made = sample(INSTANCE, name)
    made.spec.networks.add(network="lan")
    return made


async def test_an_oversized_message_is_refused_as_such(cloud: Cloud) -> None:
    await cloud.seed()
    huge = sample(FLAVOR, "huge")
    huge.spec.description = "x" * (5 * 2**20)
    assert isinstance(await refusal(cloud.create(FLAVOR, huge)), TooLargeError)
    long = sample(FLAVOR, "long")
    long.spec.description = "x" * 2000
    assert isinstance(await refusal(cloud.create(FLAVOR, long)), InvalidArgumentError)


async def test_the_sdk_speaks_to_it(cloud: Cloud) -> None:
    await cloud.seed()

    def story() -> None:
        with Client([cloud.address]) as client:
            client.create(
                "flavor",
                {
                    "meta": {"name": "big"},
                    "spec": {"resources": {"vcpu": 4, "memoryMib": 4096, "diskGib": 10}},
                },
            )
            assert client.get("flavor", "big").spec.resources.vcpu == 4
            assert [found.meta.name for found in client.list("flavor")] == ["big", "small"]
            for change in client.watch("flavor", timeout_s=20):
                if change.type == meta_pb2.CHANGE_TYPE_BOOKMARK:
                    break
            client.delete("flavor", "big")
            assert client.cloud().leading

    await asyncio.to_thread(story)
    await until(lambda: cloud.controller.state.find(keys.FLAVORS, "big") is None)
