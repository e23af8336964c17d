"""What the agent remembers between looks: power presses, crashes, image use, ports of known instances.

**Pure.** Frozen values in, new ones out. Losing all of it is harmless: it lives in memory only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.actions import Action, RequestShutdown, StartDomain
from agent.intent import PlanIntent
from agent.net.driver import PortIntent
from agent.observed import Observed
from agent.power import CrashHistory, Press, after_look, after_press, after_restart, wants_stop


@dataclass(frozen=True, slots=True)
class Memory:
    """By instance uid, `images_used_at` by digest (monotonic time of the last look that found it in use).

    `ports`: what each instance here had in the last plan that named it. A plan that forgets a running
    instance must not take its address away (correctness.md I6).
    """

    presses: Mapping[str, Press] = field(default_factory=dict)
    crashes: Mapping[str, CrashHistory] = field(default_factory=dict)
    images_used_at: Mapping[str, float] = field(default_factory=dict)
    ports: Mapping[str, tuple[PortIntent, ...]] = field(default_factory=dict)


def remember_look(memory: Memory, plan: PlanIntent, observed: Observed, now: float) -> Memory:
    """The memory after a look, bounded by what is on the node and in the plan."""
    return Memory(
        presses=_presses(memory, plan, observed),
        crashes=_crashes(memory, observed, now),
        images_used_at=_images(memory, plan, observed, now),
        ports=_ports(memory, plan, observed),
    )


def remember_action(memory: Memory, action: Action, now: float) -> Memory:
    """The memory with an action that is about to be tried; tries count, since a failing one must end, too."""
    if isinstance(action, RequestShutdown):
        press = after_press(memory.presses.get(action.uid), action.boots, now)
        return replace(memory, presses={**memory.presses, action.uid: press})
    if isinstance(action, StartDomain) and action.after_crash:
        uid = action.instance.uid
        history = after_restart(memory.crashes.get(uid), action.instance.boots, now)
        return replace(memory, crashes={**memory.crashes, uid: history})
    return memory


def _presses(memory: Memory, plan: PlanIntent, observed: Observed) -> dict[str, Press]:
    kept = {}
    for uid, press in memory.presses.items():
        domain, intent = observed.domains.get(uid), plan.instances.get(uid)
        if intent is not None and domain is not None and wants_stop(intent, domain):
            kept[uid] = press
    return kept


def _crashes(memory: Memory, observed: Observed, now: float) -> dict[str, CrashHistory]:
    looked = {
        uid: after_look(memory.crashes.get(uid), domain, now) for uid, domain in observed.domains.items()
    }
    return {uid: history for uid, history in looked.items() if history is not None}


def _images(memory: Memory, plan: PlanIntent, observed: Observed, now: float) -> dict[str, float]:
    used = {file.sha256 for instance in plan.instances.values() for file in instance.image_files()}
    return {
        sha256: now if sha256 in used else memory.images_used_at.get(sha256, now)
        for sha256 in observed.storage.images
    }


def _ports(memory: Memory, plan: PlanIntent, observed: Observed) -> dict[str, tuple[PortIntent, ...]]:
    taps, here = observed.net.taps, observed.uids()
    kept = {
        uid: ports
        for uid, ports in memory.ports.items()
        if uid in here or any(port.uid in taps for port in ports)
    }
    return kept | {uid: instance.ports for uid, instance in plan.instances.items()}
