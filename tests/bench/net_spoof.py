"""Frames in somebody else's name, honest ones, and a flood from the moment of plug: what is delivered.

**Edge**: one node in a namespace with the kernel's own rules (tests/support/spoof_stage.py). Controls of the
same run: without the node's rules every class of forged frames arrives, with a rule against everything honest
ones are lost, and a newcomer whose groups allow everything is heard.
"""

from __future__ import annotations

import asyncio

from tests.bench.report import Suite
from tests.support.spoof_stage import (
    TRIALS,
    Stage,
    drop_everything,
    open_stage,
    plug_newcomers,
    remove_filters,
)
from tests.unit.agent_net.spoofs import HONEST, SPOOFS


def measure(suite: Suite) -> None:
    asyncio.run(_measure(suite))


async def _measure(suite: Suite) -> None:
    async with open_stage() as stage:
        await _flood(suite, stage)
        before = _lost(await stage.delivered(HONEST))
        forged = await stage.delivered(SPOOFS)
        lost = before + _lost(await stage.delivered(HONEST))
        await drop_everything(stage)
        lost_control = _lost(await stage.delivered(HONEST))
        await remove_filters(stage)
        control = await stage.delivered(SPOOFS)
    context = {"classes": len(SPOOFS), "trials_per_class": TRIALS, "trials": len(SPOOFS) * TRIALS}
    through = sorted(name for name, count in forged.items() if count)
    suite.figure("spoof_delivered", sum(forged.values()), "frames", **context, through=through)
    silent = sorted(name for name, count in control.items() if not count)
    suite.figure(
        "spoof_delivered_control", sum(control.values()), "frames", **context, rules="flushed", silent=silent
    )
    context = {"classes": len(HONEST), "trials": 2 * len(HONEST) * TRIALS}
    suite.figure("legitimate_lost", lost, "frames", **context)
    suite.figure("legitimate_lost_control", lost_control, "frames", **context, rules="drop everything")


def _lost(delivered: dict[str, int]) -> int:
    return sum(TRIALS - count for count in delivered.values())


async def _flood(suite: Suite, stage: Stage) -> None:
    *newcomers, control = await plug_newcomers(stage)
    early = sum(one.arrived_from + one.arrived_at for one in newcomers)
    sent = sum(one.sent for one in newcomers)
    suite.figure("packets_before_policy", early, "frames", trials=sent, plugs=len(newcomers))
    heard = control.arrived_from + control.arrived_at
    suite.figure(
        "packets_before_policy_control", heard, "frames", trials=control.sent, groups="all is allowed"
    )


if __name__ == "__main__":
    measure(Suite("net-spoof"))
