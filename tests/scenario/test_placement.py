"""Placement groups, taints and devices through a real etcd, controller and API, with agents over fakes.

**Edge**: sockets, etcd.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controller.scheduling import residents_of
from controller.store import keys
from controller.store.lease import LeaseTask
from controller.store.memory import MemoryStore
from controller.store.protocol import Delete, Put, Txn
from cumulet.clock import SystemClock
from cumulet.convert import find_condition
from cumulet.errors import FailedPreconditionError, InvalidArgumentError
from cumulet.kinds import FLAVOR, INSTANCE, NETWORK, NODE, PLACEMENT_GROUP, SUBNET
from cumulet.v1 import instance_pb2, meta_pb2, node_pb2, placement_pb2
from scheduler.policy import policy_named
from tests.scenario.serving import Cloud, agent_of, refusal, sample, serving, until_true

on_etcd = pytest.mark.parametrize("cloud", ["etcd"], indirect=True)
GPU = placement_pb2.Device(address="0000:3b:00.0", model="gpu-a100")


async def create(cloud: Cloud, name: str, **spec: Any) -> None:
    wanted = sample(INSTANCE, name)
    wanted.spec.MergeFrom(type(wanted.spec)(**spec))
    await cloud.create(INSTANCE, wanted)


async def until_placed(cloud: Cloud, *names: str) -> list[Any]:
    async def placed() -> bool:
        return all([(await cloud.get(INSTANCE, name)).status.node for name in names])

    await until_true(placed)
    return [await cloud.get(INSTANCE, name) for name in names]


async def until_refused(cloud: Cloud, name: str) -> str:
    """The Placed condition's words once the scheduler has refused it."""

    async def refused() -> bool:
        found = find_condition((await cloud.get(INSTANCE, name)).status.conditions, "Placed")
        return found is not None and found.status == meta_pb2.CONDITION_STATUS_FALSE

    await until_true(refused)
    found = find_condition((await cloud.get(INSTANCE, name)).status.conditions, "Placed")
    assert found is not None
    return found.message


@on_etcd
async def test_a_hard_group_keeps_apart_and_the_third_waits(cloud: Cloud) -> None:
    await cloud.seed()
    await cloud.create(PLACEMENT_GROUP, sample(PLACEMENT_GROUP, "apart"))
    async with agent_of(cloud, "n1"), agent_of(cloud, "n2"):
        for name in ("a", "b"):
            await create(cloud, name, placement_groups=["apart"])
        first, second = await until_placed(cloud, "a", "b")
        assert {first.status.node, second.status.node} == {"n1", "n2"}
        await create(cloud, "c", placement_groups=["apart"])
        assert "group:default/apart on 2" in await until_refused(cloud, "c")
        group = await cloud.get(PLACEMENT_GROUP, "apart")
        assert dict(group.status.members) == {"n1": 1, "n2": 1}
        assert group.status.instances == 3
        error = await refusal(cloud.delete(PLACEMENT_GROUP, "apart"))
        assert isinstance(error, FailedPreconditionError)
        assert "named by 3 instance(s), such as a" in str(error)
        await cloud.wait(await cloud.delete(INSTANCE, "a"))
        (third,) = await until_placed(cloud, "c")
        assert third.status.node == first.status.node


@on_etcd
async def test_taints_keep_off_and_devices_are_given_once(cloud: Cloud) -> None:
    await cloud.seed()
    flavor = sample(FLAVOR, "gpu")
    flavor.spec.devices.add(models=["gpu-a100"])
    await cloud.create(FLAVOR, flavor)
    async with agent_of(cloud, "n1", (GPU,)):
        node = node_pb2.Node(meta=meta_pb2.Meta(name="n1"))
        node.spec.taints.add(key="gpu", value="only")
        await cloud.update(NODE, node, "spec.taints")
        await create(cloud, "plain")
        assert "taint:gpu=only on 1" in await until_refused(cloud, "plain")
        tolerating = [placement_pb2.Toleration(key="gpu")]
        await create(cloud, "one", flavor="gpu", tolerations=tolerating)
        (one,) = await until_placed(cloud, "one")
        assert [(share.address, share.share_milli) for share in one.status.devices] == [(GPU.address, 1000)]
        await create(cloud, "two", flavor="gpu", tolerations=tolerating)
        assert "devices on 1" in await until_refused(cloud, "two")


@on_etcd
async def test_an_instance_of_a_provider_network_waits_for_a_node_with_the_uplink(cloud: Cloud) -> None:
    await cloud.seed()
    network = sample(NETWORK, "office")
    network.spec.provider.uplink = "office"
    await cloud.create(NETWORK, network)
    subnet = sample(SUBNET, "office-4")
    subnet.spec.network, subnet.spec.cidr = "office", "192.168.7.0/24"
    subnet.spec.ranges.append("192.168.7.100-192.168.7.101")
    await cloud.create(SUBNET, subnet)
    async with agent_of(cloud, "n1"):
        attached = [
            instance_pb2.NetworkAttachment(network="office", uplink="another")
        ]  # not the caller's to say
        await create(cloud, "desk", networks=attached)
        told = await until_refused(cloud, "desk")
        assert "uplink:office on 1" in told
        assert "no uplink office" in told
        async with agent_of(cloud, "n2", uplinks=("office",)):
            (desk,) = await until_placed(cloud, "desk")
            second = desk.spec.networks[1]  # besides the sample's own
            assert (desk.status.node, second.uplink) == ("n2", "office")
            assert second.address in {"192.168.7.100", "192.168.7.101"}
        taken = sample(NETWORK, "twice")
        taken.spec.provider.uplink = "office"
        error = await refusal(cloud.create(NETWORK, taken))
        assert isinstance(error, InvalidArgumentError)
        assert "is network office of this project" in error.violations[0].description


async def test_contradictions_are_refused_with_their_fields(cloud: Cloud) -> None:
    await cloud.seed()
    flavor = sample(FLAVOR, "zoned")
    flavor.spec.node_selector["zone"] = "a"
    flavor.spec.numa_cells = 1
    await cloud.create(FLAVOR, flavor)
    error = await refusal(
        create(
            cloud,
            "x",
            flavor="zoned",
            node_selector={"zone": "b"},
            numa_cells=-1,
            placement_groups=["none"],
            capabilities=["kvm", "tcg"],
            devices=[placement_pb2.DeviceRequest(count=2, share_milli=500)],
        )
    )
    assert isinstance(error, InvalidArgumentError)
    fields = {violation.field for violation in error.violations}
    assert {"spec.node_selector", "spec.numa_cells", "spec.placement_groups[0]"} <= fields
    assert {"spec.capabilities", "spec.devices[0].share_milli"} <= fields


@on_etcd
async def test_a_gang_waits_for_all_and_takes_one_in_place_of_another(cloud: Cloud) -> None:
    """A replaced member once waited for ever for members that were placed long ago."""
    await cloud.seed()
    ring = placement_pb2.Gang(name="ring", size=2)
    async with agent_of(cloud, "n1"):
        await create(cloud, "a", gang=ring)
        assert "1 of its 2 members are there" in await until_refused(cloud, "a")
        await create(cloud, "b", gang=ring)
        await until_placed(cloud, "a", "b")
        await cloud.wait(await cloud.delete(INSTANCE, "a"))
        await create(cloud, "c", gang=ring)
        await until_placed(cloud, "c")


@on_etcd
async def test_an_instance_that_cannot_be_read_holds_up_nobody(cloud: Cloud) -> None:
    """What admission would refuse is in the store, as an older or a broken writer could have left it."""
    await cloud.seed()
    await create(cloud, "broken")
    row = cloud.controller.state.find(keys.INSTANCES, "default", "broken")
    assert row is not None
    poisoned = instance_pb2.Instance.FromString(row.message.SerializeToString())
    poisoned.spec.numa_cells = 99
    put = Put(keys.INSTANCES.key("default", "broken"), poisoned.SerializeToString())
    # The scheduler may have refused it before, for want of a node: words that it would keep for a minute.
    forget = Delete(keys.INSTANCE_STATUS.key(row.message.meta.uid))
    await cloud.controller.store.txn(Txn((), (put, forget), "test"))
    async with agent_of(cloud, "n1"):
        await create(cloud, "sound")
        await until_placed(cloud, "sound")
        assert "numa_cells is 99" in await until_refused(cloud, "broken")
        await cloud.wait(await cloud.delete(INSTANCE, "broken"))


@pytest.mark.parametrize(("policy", "nodes"), [("pack", 1), ("spread", 2)])
async def test_the_policy_places_and_explains(directory: Path, policy: str, nodes: int) -> None:
    clock = SystemClock().monotonic
    store = MemoryStore(clock)
    made = serving(
        store, lambda lease, at: LeaseTask(store, lease, at, clock=clock), directory, policy_named(policy)
    )
    async with made as cloud, agent_of(cloud, "n1"), agent_of(cloud, "n2"):
        await cloud.seed()
        await create(cloud, "a")
        await until_placed(cloud, "a")
        await create(cloud, "b")
        placed = await until_placed(cloud, "a", "b")
        assert len({one.status.node for one in placed}) == nodes
        told = await cloud.call(INSTANCE, "ExplainInstance", project="default", name="b")
        assert f"policy {policy} prefers it" in told.summary


async def test_shares_of_devices_go_where_they_leave_the_most_of_use(directory: Path) -> None:
    clock = SystemClock().monotonic
    store = MemoryStore(clock)
    gpus = policy_named("gpu")
    made = serving(store, lambda lease, at: LeaseTask(store, lease, at, clock=clock), directory, gpus)
    async with made as cloud, agent_of(cloud, "n1", (GPU,)), agent_of(cloud, "n2", (GPU,)):
        await cloud.seed()
        for share_milli in (470, 810, 160):
            flavor = sample(FLAVOR, f"share{share_milli}")
            flavor.spec.devices.add(share_milli=share_milli)
            await cloud.create(FLAVOR, flavor)
        for name, share_milli in (("a", 470), ("b", 810), ("c", 160), ("d", 470)):
            await create(cloud, name, flavor=f"share{share_milli}")
            await until_placed(cloud, name)
        a, b, c, d = [one.status.node for one in await until_placed(cloud, "a", "b", "c", "d")]
        assert (c, d) == (b, a)  # c would have fitted beside a, too, and left no room for d
        assert a != b
        beside_b = residents_of(cloud.controller.state.placements_on(b).values())
        assert {one.request.devices[0].share_milli for one in beside_b} == {810, 160}
        told = await cloud.call(INSTANCE, "ExplainInstance", project="default", name="d")
        assert "policy gpu prefers it" in told.summary
        assert "shares_worth_lost" in told.nodes[0].score_terms
        await create(cloud, "e", flavor="share470")
        assert "devices on 2" in await until_refused(cloud, "e")
