"""What-ifs through a real etcd, controller and API: what they say is what then happens; what they refuse.

**Edge**: sockets, etcd.
"""

from __future__ import annotations

import asyncio
import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.store.lease import LeaseTask
from controller.store.memory import MemoryStore
from controller.store.protocol import Put, Txn
from cumulet.clock import SystemClock
from cumulet.errors import InvalidArgumentError, NotFoundError, RevisionGoneError, UnavailableError
from cumulet.kinds import FLAVOR, INSTANCE, NODE
from cumulet.v1 import (
    instance_pb2,
    meta_pb2,
    node_pb2,
    placement_pb2,
    placementgroup_pb2,
    whatif_pb2,
    whatif_pb2_grpc,
)
from cumulet.wire_errors import from_rpc_error
from scheduler.policy import policy_named
from tests.scenario.serving import Cloud, agent_of, refusal, sample, serving, until_true

on_etcd = pytest.mark.parametrize("cloud", ["etcd"], indirect=True)
Step = whatif_pb2.WhatIfStep
Resources = meta_pb2.Resources
GPUS = tuple(placement_pb2.Device(address=f"0000:3{index}:00.0", model="gpu-a100") for index in range(2))
RACK = placementgroup_pb2.PLACEMENT_SCOPE_RACK
UNKNOWN_SCOPE = Step.FromString(b"\x42\x04\x08\x01\x10\x07")  # check_failures, as a newer client may send it
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def add(count: int, flavor: str = "small") -> Step:
    return Step(add_instances=Step.AddInstances(count=count, flavor=flavor))


def drain(node: str) -> Step:
    return Step(drain_node=Step.DrainNode(node=node))


def survive(count: int) -> Step:
    return Step(check_failures=Step.CheckFailures(count=count))


async def ask(cloud: Cloud, *steps: Step, **fields: Any) -> whatif_pb2.WhatIfResponse:
    request = whatif_pb2.WhatIfRequest(steps=steps, **fields)
    try:
        return await whatif_pb2_grpc.WhatIfServiceStub(cloud.channel).WhatIf(request)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


async def launch(cloud: Cloud, *names: str, **spec: Any) -> list[str]:
    """The nodes that new instances get, in order."""
    for name in names:
        wanted = sample(INSTANCE, name)
        wanted.spec.MergeFrom(instance_pb2.InstanceSpec(**spec))
        await cloud.create(INSTANCE, wanted)

    async def placed() -> bool:
        return all([(await cloud.get(INSTANCE, name)).status.node for name in names])

    await until_true(placed)
    return [(await cloud.get(INSTANCE, name)).status.node for name in names]


async def add_flavor(cloud: Cloud, name: str, vcpu: int, memory_mib: int) -> None:
    flavor = sample(FLAVOR, name)
    flavor.spec.resources.CopyFrom(Resources(vcpu=vcpu, memory_mib=memory_mib, disk_gib=5))
    await cloud.create(FLAVOR, flavor)


async def label(cloud: Cloud, name: str, **labels: str) -> None:
    node = node_pb2.Node(meta=meta_pb2.Meta(name=name, labels=labels))
    await cloud.update(NODE, node, "meta.labels")


@on_etcd
async def test_what_it_says_is_what_the_scheduler_then_does(cloud: Cloud) -> None:
    """Flavors of several sizes, so that neither the first nor the emptiest node is the answer by chance."""
    await cloud.seed()
    await add_flavor(cloud, "big", 16, 20_000)
    await add_flavor(cloud, "odd", 6, 5_000)
    async with agent_of(cloud, "n1"), agent_of(cloud, "n2"), agent_of(cloud, "n3"):
        await launch(cloud, "a", "b", "c", flavor="big")
        await launch(cloud, "d", flavor="odd")
        for number, flavor in enumerate(("odd", "small", "big", "odd")):
            said = await ask(cloud, add(3, flavor), image="blank")
            assert said.fits
            foretold = [one.node for one in said.outcomes[0].placed]
            names = [f"new-{number}-{index}" for index in range(3)]
            assert await launch(cloud, *names, flavor=flavor) == foretold
        assert said.revision <= cloud.controller.state.revision
        now = await ask(cloud)
        assert (now.before.instances, now.before.waiting, now.fits) == (16, 0, True)
        assert not now.outcomes
        assert not now.notes


@pytest.mark.parametrize("policy", ["spread", "slots", "dot-product", "gpu"])
async def test_it_decides_as_the_policy_does_that_is_in_use(directory: Path, policy: str) -> None:
    """Also with devices, of which a part is asked for: the policies look at what the others hold."""
    clock = SystemClock().monotonic
    store = MemoryStore(clock)
    await store.txn(Txn([], [Put(b"/of-another-program", b"")], "before"))
    async with serving(
        store, lambda lease, at: LeaseTask(store, lease, at, clock=clock), directory, policy_named(policy)
    ) as cloud:
        await cloud.seed()
        await add_flavor(cloud, "odd", 6, 5_000)
        for name, share in (("half", 500), ("fifth", 200)):
            flavor = sample(FLAVOR, name)
            flavor.spec.devices.add(models=["gpu-a100"], share_milli=share)
            await cloud.create(FLAVOR, flavor)
        async with agent_of(cloud, "n1", GPUS), agent_of(cloud, "n2", GPUS[:1]), agent_of(cloud, "n3"):
            for number, flavor_name in enumerate(("odd", "fifth", "small", "half", "fifth", "odd")):
                said = await ask(cloud, add(2, flavor_name), image="blank")
                assert (said.policy, said.fits) == (policy, True)
                names = [f"i{number}-{index}" for index in range(2)]
                foretold = [one.node for one in said.outcomes[0].placed]
                assert await launch(cloud, *names, flavor=flavor_name) == foretold


@on_etcd
async def test_what_fits_no_more_waits_and_the_change_that_is_named_helps(cloud: Cloud) -> None:
    await cloud.seed()
    await add_flavor(cloud, "big", 16, 40_000)
    async with agent_of(cloud, "n1"), agent_of(cloud, "n2"):
        await cloud.call(NODE, "CordonNode", name="n2", reason="fans")
        said = await ask(cloud, add(2, "big"))
        (outcome,) = said.outcomes
        assert not said.fits
        assert (outcome.placed_count, outcome.waiting_count) == (1, 1)
        (waiting,) = outcome.waiting
        assert "cordoned on 1" in waiting.reason
        assert list(waiting.instances) == ["big-0-1"]
        assert ("uncordon node n2", "cumulet node uncordon n2") in [
            (one.description, one.command) for one in waiting.changes
        ]
        await cloud.call(NODE, "UncordonNode", name="n2")
        assert (await ask(cloud, add(2, "big"))).fits
        # Nobody is told to take back what the scenario itself has done.
        drained = await ask(cloud, drain("n2"), add(2, "big"))
        changes = [one for group in drained.outcomes[1].waiting for one in group.changes]
        assert changes
        assert not [one for one in changes if "uncordon" in one.description]


@on_etcd
async def test_the_fleet_is_that_of_the_revision_and_nothing_is_written(cloud: Cloud) -> None:
    await cloud.seed()
    async with agent_of(cloud, "n1"), agent_of(cloud, "n2"):
        await label(cloud, "n1", rack="r1")
        await label(cloud, "n2", rack="r2")
        (first,) = await launch(cloud, "a")
        then = await ask(cloud)
        other = "n2" if first == "n1" else "n1"
        moved = await ask(cloud, drain(first))
        assert [(one.instance, one.source, one.target) for one in moved.outcomes[0].moved] == [
            ("a", first, other)
        ]
        assert moved.outcomes[0].moved[0].uid == (await cloud.get(INSTANCE, "a")).meta.uid
        lost = Step(lose_domain=Step.LoseDomain(scope=RACK, name="r1" if first == "n1" else "r2"))
        assert (await ask(cloud, lost)).outcomes[0].moved_count == 1
        await launch(cloud, "b", "c")
        past = await ask(cloud, revision=then.revision)
        assert (past.revision, past.before.instances) == (then.revision, 1)
        assert (await ask(cloud)).before.instances == 3
        assert (await cloud.get(NODE, first)).spec.cordoned is False


@on_etcd
async def test_who_is_being_deleted_is_not_placed_again(cloud: Cloud) -> None:
    await cloud.seed()
    async with agent_of(cloud, "n2"):
        async with agent_of(cloud, "n1"):
            await cloud.call(NODE, "CordonNode", name="n2", reason="later")
            assert await launch(cloud, "stays", "goes") == ["n1", "n1"]
            await cloud.call(NODE, "UncordonNode", name="n2")
        await cloud.delete(INSTANCE, "goes")  # its agent is gone, so it stays on its way
        said = await ask(cloud, survive(1), drain("n1"))
        assert said.before.instances == 2
        assert [one.instance for one in said.outcomes[1].moved] == ["stays"]
        assert said.fits


async def test_new_nodes_offer_what_the_cloud_offers_and_take_what_its_ratios_allow(cloud: Cloud) -> None:
    """16 threads at the default ratio of four take 64 vcpus; without ratio and machine they take fewer."""
    await cloud.seed()
    await add_flavor(cloud, "wide", 16, 512)
    nodes = Step.AddNodes(count=1, capacity=Resources(vcpu=16, memory_mib=65_536, disk_gib=100))
    copies = Step.AddNodes(count=2, like="n1", labels={"rack": "r9"})
    async with agent_of(cloud, "n1"):
        said = await ask(cloud, add(8, "wide"), Step(add_nodes=nodes), image="blank")
        assert [one.placed_count for one in said.outcomes] == [4, 4]
        assert {one.node for one in said.outcomes[1].placed} == {"new-1-00000"}
        assert said.outcomes[1].placed[0].uid == ""
        said = await ask(cloud, Step(add_nodes=copies), add(12, "wide"), survive(1), survive(2))
        assert (said.after.nodes, said.after.open_nodes) == (3, 3)
        assert [one.waiting_count for one in said.outcomes] == [0, 0, 0, 0]
        assert said.outcomes[2].resilience.failures_count == 3
        assert not said.fits


async def test_pictures(cloud: Cloud) -> None:
    await cloud.seed()
    async with agent_of(cloud, "n1"):
        svg = await ask(cloud, add(1), picture=whatif_pb2.PICTURE_FORMAT_SVG)
        assert ET.fromstring(svg.picture).tag.endswith("svg")
        png = await ask(cloud, add(1), picture=whatif_pb2.PICTURE_FORMAT_PNG)
        assert png.picture.startswith(PNG_MAGIC)
        assert (await ask(cloud, add(1))).picture == b""


@pytest.mark.parametrize(
    ("step", "field"),
    [
        (Step(), "steps[1]"),
        (add(0), "steps[1].add_instances.count"),
        (add(-3), "steps[1].add_instances.count"),
        (add(2**31 - 1), "steps[1].add_instances.count"),
        (add(1, ""), "steps[1].add_instances.flavor"),
        (drain(""), "steps[1].drain_node.node"),
        (survive(5), "steps[1].check_failures.count"),
        (UNKNOWN_SCOPE, "steps[1].check_failures.scope"),
        (Step(lose_nodes=Step.LoseNodes()), "steps[1].lose_nodes.nodes"),
        (Step(lose_domain=Step.LoseDomain(name="r1")), "steps[1].lose_domain.scope"),
        (Step(lose_domain=Step.LoseDomain(scope=RACK)), "steps[1].lose_domain.name"),
        (Step(add_nodes=Step.AddNodes(count=1)), "steps[1].add_nodes"),
        (Step(add_nodes=Step.AddNodes(count=1, capacity=Resources(), like="n1")), "steps[1].add_nodes"),
        (Step(add_nodes=Step.AddNodes(count=1, capacity=Resources())), "steps[1].add_nodes.capacity"),
        (
            Step(add_nodes=Step.AddNodes(count=1, capacity=Resources(vcpu=-1))),
            "steps[1].add_nodes.capacity.vcpu",
        ),
        (
            Step(add_nodes=Step.AddNodes(count=1, capacity=Resources(vcpu=2**62, memory_mib=1))),
            "steps[1].add_nodes.capacity.vcpu",
        ),
        (
            Step(add_nodes=Step.AddNodes(count=1, like="n1", labels={"a b": "c"})),
            "steps[1].add_nodes.labels",
        ),
        (Step(change_policy=Step.ChangePolicy(policy="hope")), "steps[1].change_policy.policy"),
    ],
)
async def test_what_cannot_be_asked_is_refused_with_its_field(cloud: Cloud, step: Step, field: str) -> None:
    error = await refusal(ask(cloud, survive(1), step))
    assert isinstance(error, InvalidArgumentError)
    assert [violation.field for violation in error.violations] == [field]


async def test_too_much_at_once_is_refused(cloud: Cloud) -> None:
    error = await refusal(ask(cloud, *[survive(1)] * 33))
    assert "33 are given, at most 32" in str(error)
    error = await refusal(ask(cloud, *[add(9_999)] * 2))
    assert "add 19998 instances together, at most 10000" in str(error)
    assert isinstance(error, InvalidArgumentError)


@on_etcd
async def test_unknown_names_and_revisions_are_refused_with_what_there_is(cloud: Cloud) -> None:
    await cloud.seed()
    async with agent_of(cloud, "n1"):
        rack = Step(lose_domain=Step.LoseDomain(scope=RACK, name="r1"))
        like = Step(add_nodes=Step.AddNodes(count=1, like="x"))
        for step, said, noun in (
            (add(1, "smal"), "add=1xsmal: there is no flavor smal; did you mean small?", "flavor"),
            (drain("n9"), "drain=n9: there is no node n9; there is n1", "node"),
            (rack, "lose-rack=r1: no node has the label rack=r1", "node"),
            (like, "add-like=1xx: there is no node x; there is n1", "node"),
        ):
            error = await refusal(ask(cloud, survive(1), step))
            assert isinstance(error, NotFoundError)
            assert str(error) == f"step 2, {said}"
            assert error.hints == (f"cumulet {noun} list",)
        assert isinstance(await refusal(ask(cloud, project="nobody")), NotFoundError)
        assert isinstance(await refusal(ask(cloud, image="none")), InvalidArgumentError)
        now = cloud.controller.state.revision
        for revision in (-1, now + 1_000_000):
            error = await refusal(ask(cloud, revision=revision))
            assert [violation.field for violation in error.violations] == ["revision"]
        await launch(cloud, "a")
        await cloud.controller.store.compact(cloud.controller.state.revision)
        error = await refusal(ask(cloud, revision=now))
        assert isinstance(error, RevisionGoneError)
        assert f"no longer keeps revision {now}" in str(error)


async def test_whoever_comes_while_many_are_answered_is_told_to_ask_again(cloud: Cloud) -> None:
    await cloud.seed()
    async with agent_of(cloud, "n1"):
        answers = await asyncio.gather(*(ask(cloud, survive(1)) for _ in range(40)), return_exceptions=True)
    answered = [one for one in answers if isinstance(one, whatif_pb2.WhatIfResponse)]
    refused = [one for one in answers if isinstance(one, UnavailableError)]
    assert len(answered) + len(refused) == 40
    assert len(answered) >= 8
    assert refused


@on_etcd
async def test_as_many_as_it_says_find_room_on_a_node_that_then_joins(cloud: Cloud) -> None:
    await cloud.seed()
    await add_flavor(cloud, "big", 16, 30_000)
    async with agent_of(cloud, "n1"):
        await launch(cloud, "a", "b", flavor="big")
        for name in ("c", "d", "e"):
            wanted = sample(INSTANCE, name)
            wanted.spec.flavor = "big"
            await cloud.create(INSTANCE, wanted)
        said = await ask(cloud, Step(add_nodes=Step.AddNodes(count=1, like="n1")))
        (outcome,) = said.outcomes
        assert (said.before.waiting, outcome.placed_count, outcome.waiting_count) == (3, 2, 1)
        assert said.fits  # who waits has waited before
        foretold = {one.uid for one in outcome.placed}
        async with agent_of(cloud, "n2"):

            async def joined() -> bool:
                instances = (await cloud.list(INSTANCE)).instances
                return [one.status.node for one in instances].count("n2") == 2

            await until_true(joined)
            found = (await cloud.list(INSTANCE)).instances
            assert {one.meta.uid for one in found if one.status.node == "n2"} == foretold


@on_etcd
async def test_the_command_asks_and_its_exit_code_answers(cloud: Cloud) -> None:
    await cloud.seed()
    async with agent_of(cloud, "n1"), agent_of(cloud, "n2"):
        await launch(cloud, "a")
        code, out = await command(cloud, "--drain", "n1", "--drain", "n2")
        assert code == 7
        assert "2. drain n2: 1 waits" in out.splitlines()
        code, out = await command(cloud, "--add", "3:small", "--survive", "1")
        assert code == 0
        assert "2. survive the loss of 1 node: yes, every loss is absorbed (2 of 2 tried)" in out.splitlines()


async def command(cloud: Cloud, *words: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cli.main",
        "whatif",
        *words,
        env={**os.environ, "PYTHONPATH": ".:proto", "CUMULET_ENDPOINTS": cloud.address},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()
