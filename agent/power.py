"""Power of one instance: start, stop, reboot and restart after a crash, decided from facts and time.

**Pure.** `now` is monotonic. What is remembered here may be lost at any moment: a lost press starts a
stop's deadline again, a lost crash history allows some more restarts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from agent.hypervisor.driver import ObservedDomain
from agent.intent import InstanceIntent
from agent.observed import is_active
from cumulet.v1 import agent_pb2 as pb

# A guest ignores the power button until its ACPI daemon runs, so one press is not enough.
SHUTDOWN_PRESS_EVERY_S: Final = 5.0

# Waiting times before each automatic restart. The first is free: most crashes are single. After the
# last one the fault is in the guest or its host, and further restarts only hide it.
CRASH_DELAYS_S: Final = (0.0, 5.0, 15.0, 30.0, 60.0)
CRASH_RESTARTS_MAX: Final = len(CRASH_DELAYS_S)

# A run of this length ends a crash loop; several times the longest delay above.
CRASH_FORGIVEN_AFTER_S: Final = 600.0

GUEST_POWERED_OFF: Final = "GuestPoweredOff"
CRASH_LOOP: Final = "CrashLoop"


@dataclass(frozen=True, slots=True)
class Press:
    """The power button's presses during the run that `boots` started."""

    boots: int
    first_at: float
    last_at: float


@dataclass(frozen=True, slots=True)
class CrashHistory:
    """Crashes since the boot `boots` was asked for. `recent` restarts count towards giving up."""

    boots: int
    recent: int = 0
    total: int = 0
    crashed_at: float | None = None
    restarted_at: float | None = None

    @property
    def gave_up(self) -> bool:
        return self.crashed_at is not None and self.recent >= CRASH_RESTARTS_MAX


@dataclass(frozen=True, slots=True)
class Start:
    after_crash: bool = False


@dataclass(frozen=True, slots=True)
class PressButton:
    pass


@dataclass(frozen=True, slots=True)
class CutPower:
    """`then_start`: a reboot."""

    then_start: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until`; None: not before something changes."""

    until: float | None = None


PowerStep = Start | PressButton | CutPower | Wait
STAY: Final = Wait()


def wants_stop(intent: InstanceIntent, domain: ObservedDomain | None) -> bool:
    """It runs and must not, or must not go on in this boot."""
    if domain is None or not is_active(domain):
        return False
    return not intent.power_on or domain.boots < intent.boots


def next_step(
    intent: InstanceIntent,
    domain: ObservedDomain | None,
    press: Press | None,
    crashes: CrashHistory | None,
    now: float,
) -> PowerStep:
    """What the instance's power needs now."""
    if domain is not None and wants_stop(intent, domain):
        return _stop_step(intent, domain, press, now)
    if not intent.power_on or is_active(domain):
        return STAY
    if domain is None or domain.boots < intent.boots:
        return Start()
    if domain.state == pb.DOMAIN_STATE_CRASHED:
        return _crash_step(intent, crashes, now)
    return STAY if domain.reason == GUEST_POWERED_OFF else Start()


def _stop_step(intent: InstanceIntent, domain: ObservedDomain, press: Press | None, now: float) -> PowerStep:
    if press is not None and press.boots != domain.boots:
        press = None
    if intent.stop_timeout_s <= 0:
        return CutPower(then_start=intent.power_on)
    if press is None:
        return PressButton()
    deadline = press.first_at + intent.stop_timeout_s
    if now >= deadline:
        return CutPower(then_start=intent.power_on)
    again = press.last_at + SHUTDOWN_PRESS_EVERY_S
    return PressButton() if now >= again else Wait(min(again, deadline))


def _crash_step(intent: InstanceIntent, crashes: CrashHistory | None, now: float) -> PowerStep:
    if crashes is None or crashes.boots != intent.boots:
        return Start(after_crash=True)
    if crashes.recent >= CRASH_RESTARTS_MAX:
        return STAY
    since = now if crashes.crashed_at is None else crashes.crashed_at
    due = since + CRASH_DELAYS_S[crashes.recent]
    return Start(after_crash=True) if now >= due else Wait(due)


def after_press(press: Press | None, boots: int, now: float) -> Press:
    """The presses with one more, at `now`."""
    if press is None or press.boots != boots:
        return Press(boots, now, now)
    return replace(press, last_at=now)


def after_look(crashes: CrashHistory | None, domain: ObservedDomain, now: float) -> CrashHistory | None:
    """The crash history after a look at the domain; None while there is nothing to remember."""
    if crashes is not None and crashes.boots != domain.boots:
        crashes = None
    if domain.state == pb.DOMAIN_STATE_CRASHED:
        crashes = crashes or CrashHistory(domain.boots)
        return crashes if crashes.crashed_at is not None else replace(crashes, crashed_at=now)
    if crashes is None:
        return None
    ran_long = crashes.restarted_at is not None and now - crashes.restarted_at >= CRASH_FORGIVEN_AFTER_S
    return replace(crashes, crashed_at=None, recent=0 if ran_long and is_active(domain) else crashes.recent)


def after_restart(crashes: CrashHistory | None, boots: int, now: float) -> CrashHistory:
    """The crash history with one automatic restart more."""
    if crashes is None or crashes.boots != boots:
        crashes = CrashHistory(boots)
    return CrashHistory(boots, crashes.recent + 1, crashes.total + 1, None, now)
