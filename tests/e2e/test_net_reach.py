"""`explain reach` against real packets: random topologies of two tenants with the same ranges on two nodes.

`make bench-net` does a thousand of them; here are a few, and a control: a wrong answer is seen.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from controller.reach import reach_port
from tests.support import reach_world
from tests.support.reach_world import open_reach_world
from tests.support.topologies import Topologies

SEED = 20
STEPS = 25
PROBES = 8


async def test_packets_do_what_reach_foretells_and_no_tenant_hears_another() -> None:
    async with open_reach_world(SEED) as world:
        topologies = Topologies(world, random.Random(SEED), routers=True)
        await topologies.explore(STEPS, PROBES)
        tally = topologies.tally
        assert not tally.wrong, "\n".join(outcome.describe() for outcome in tally.wrong)
        assert not tally.leaked
        assert tally.outcomes > STEPS
        assert 0.2 < tally.arrived / tally.outcomes < 0.8, tally.decided


async def test_a_wrong_prediction_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: reach that forgets the receiver's groups."""

    def forgetful(*arguments: Any) -> Any:
        way = reach_port(*arguments)
        return replace(way, steps=tuple(step for step in way.steps if step.passes))

    monkeypatch.setattr(reach_world, "reach_port", forgetful)
    async with open_reach_world(SEED) as world:
        topologies = Topologies(world, random.Random(SEED), routers=False)
        await topologies.explore(10, PROBES)
        assert topologies.tally.wrong
