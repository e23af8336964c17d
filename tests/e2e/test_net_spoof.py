"""What a guest sends in somebody else's name, and what it sends before its policy is there: nothing arrives.

Raw frames, real kernel. Every zero has a control in the same run, without the filter, that is above zero.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.spoof_stage import TRIALS, Stage, open_stage, plug_newcomers, remove_filters
from tests.unit.agent_net.spoofs import HONEST, SPOOFS


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with open_stage() as made:
        yield made


async def test_no_spoofed_frame_is_delivered_and_no_honest_one_lost(stage: Stage) -> None:
    assert len(SPOOFS) >= 17
    assert await stage.delivered(HONEST) == dict.fromkeys(HONEST, TRIALS)
    assert await stage.delivered(SPOOFS) == dict.fromkeys(SPOOFS, 0)
    assert await stage.delivered(HONEST) == dict.fromkeys(HONEST, TRIALS)
    await remove_filters(stage)
    control = await stage.delivered(SPOOFS)
    assert {name for name, count in control.items() if not count} == set()


async def test_nothing_passes_before_its_policy(stage: Stage) -> None:
    """A port that may neither send nor receive is plugged while it sends and is sent to."""
    *newcomers, control = await plug_newcomers(stage)
    for plugged in newcomers:
        assert plugged.sent >= 4 * TRIALS
        assert (plugged.arrived_from, plugged.arrived_at) == (0, 0)
    assert control.arrived_from > 0
    assert control.arrived_at > 0
