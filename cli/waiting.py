"""Waiting for an instance to become what was asked for, with progress on stderr.

**Edge**: follows the instance's watch. `judge` is pure and decides. An instance that ended in error, or that
ended as something else than was asked for, is a failure; one that nothing fits is waited for until the
timeout, and then NO_CAPACITY.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from cli.forms import Parsed
from cli.refs import Ref
from cumulet.errors import (
    CumuletError,
    ExitCode,
    NoCapacityError,
    NotFoundError,
    OperationFailedError,
    RevisionGoneError,
    TimedOutError,
)
from cumulet.kinds import INSTANCE

if TYPE_CHECKING:
    from cumulet.client import Client

Function = TypeVar("Function", bound=Callable[..., Any])
TIMEOUT_S: Final = 300.0  # a first boot under emulation on a busy machine takes two minutes
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}


class Goal(StrEnum):
    """What to wait for."""

    PLACED = "placed"
    RUNNING = "running"
    IP = "ip"
    STOPPED = "stopped"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Wait:
    """What a command was told about waiting; no goal means not to wait."""

    goal: Goal | None
    timeout_s: float = TIMEOUT_S


class WaitCommand(click.Command):
    """A command whose `--wait` alone means its default goal, whatever argument follows."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        head = ["--wait=default" if arg == "--wait" else arg for arg in args[:cut]]
        return super().parse_args(ctx, head + args[cut:])


def parse_duration(text: str) -> float:
    """`90`, `90s`, `5m`, `1h`."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _SECONDS else (text, "s")
    if not number.isascii() or not number.isdigit():
        raise ValueError(f"{text!r} is not a duration: write it like 90s or 5m")
    return float(int(number) * _SECONDS[unit])


def wait_options(default: Goal, *others: Goal) -> Callable[[Function], Function]:
    """--wait, --no-wait and --timeout; the command gets a `wait`."""
    goals = (default, *others)
    metavar = "[=" + "|".join(goals) + "]" if others else ""

    def decorate(command: Function) -> Function:
        @wraps(command)
        def run(*args: Any, wait_for: str | None, no_wait: bool, timeout_s: float, **more: Any) -> Any:
            if wait_for and no_wait:
                raise click.UsageError("--wait and --no-wait exclude each other")
            wanted = not no_wait and (bool(wait_for) or sys.stdout.isatty())
            goal = default if wait_for in (None, "default") else Goal(wait_for)
            return command(*args, wait=Wait(goal if wanted else None, timeout_s), **more)

        decorated: Any = run
        for option in (
            click.option(
                "--timeout",
                "timeout_s",
                type=Parsed("duration", parse_duration),
                default=f"{TIMEOUT_S:.0f}s",
                show_default=True,
                metavar="TIME",
                help="How long to wait.",
            ),
            click.option("--no-wait", is_flag=True, help="Return at once; so without a terminal."),
            click.option(
                "--wait",
                "wait_for",
                type=click.Choice(["default", *(goal.value for goal in goals)]),
                metavar=metavar,
                help=f"Wait until it is {default}" + (" or as given." if others else "."),
            ),
        ):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def judge(instance: Any, goal: Goal, goal_boots: int = 0) -> CumuletError | bool:
    """**Pure.** True when the goal is reached, False when not yet, an error when it never will be."""
    from cumulet.v1 import instance_pb2 as pb

    name, status = instance.meta.name, instance.status
    if goal is Goal.GONE:
        return False
    if instance.meta.HasField("deleted_at"):
        return _ended(name, "is being deleted", instance)
    if status.phase == pb.INSTANCE_PHASE_FAILED:
        return _ended(name, "failed", instance)
    if goal is Goal.PLACED:
        return bool(status.node)
    if goal is Goal.STOPPED:
        if instance.spec.power == pb.POWER_STATE_ON:
            return _ended(name, "was started meanwhile", instance)
        return bool(status.phase == pb.INSTANCE_PHASE_STOPPED)
    if status.phase == pb.INSTANCE_PHASE_STOPPED:
        return _ended(name, "stopped instead of running", instance)
    running = status.phase == pb.INSTANCE_PHASE_RUNNING and status.boots >= goal_boots
    return running and (goal is Goal.RUNNING or _has_ip(instance))


def wait_for(client: Client, ref: Ref, uid: str, wait: Wait, goal_boots: int = 0, operation: str = "") -> Any:
    """The instance when the goal is reached, None when it is gone. Raises the error that it ended with."""
    if wait.goal is None:
        raise ValueError("nothing to wait for")
    progress = _Progress(ref.name)
    deadline = time.monotonic() + wait.timeout_s
    latest: Any = None
    try:
        for latest in _states(client, ref, uid, deadline):
            if latest is None:
                return _gone(ref, wait.goal)
            progress.tell(latest)
            verdict = judge(latest, wait.goal, goal_boots)
            if isinstance(verdict, CumuletError):
                raise verdict
            if verdict:
                return latest
    except TimedOutError as error:
        raise _timed_out(ref, wait, latest, operation) from error
    except KeyboardInterrupt:
        again = f"cumulet operation wait {operation}" if operation else f"cumulet explain instance/{ref.name}"
        click.echo(f"\nDetached: {ref.name} goes on without you. Look again: {again}", err=True)
        raise click.exceptions.Exit(ExitCode.DETACHED) from None


def latest_message(instance: Any) -> str:
    """**Pure.** What the newest condition says."""
    told = [condition for condition in instance.status.conditions if condition.message]
    newest = max(told, key=lambda condition: condition.changed_at.ToNanoseconds(), default=None)
    return str(newest.message) if newest is not None else ""


def phase_word(instance: Any) -> str:
    """**Pure.** `Running`."""
    from cli.cells import plain

    return plain(instance, "status.phase") or "Unknown"


def _states(client: Client, ref: Ref, uid: str, deadline: float) -> Iterator[Any]:
    """The instance now and after each change; None when it is gone. Raises TimedOutError."""
    from cumulet.v1 import meta_pb2

    kept_from = 0
    while True:
        try:
            now = client.get(INSTANCE, ref.name, project=ref.project)
        except NotFoundError:
            now = None
        if now is None or now.meta.uid != uid:
            yield None
            return
        yield now
        try:
            changes = client.watch(
                INSTANCE,
                project=ref.project,
                from_revision=max(now.meta.revision, kept_from),
                timeout_s=max(0.0, deadline - time.monotonic()),
            )
            for change in changes:
                if change.instance.meta.uid == uid:
                    yield None if change.type == meta_pb2.CHANGE_TYPE_DELETE else change.instance
        except RevisionGoneError:
            # Unchanged for longer than history is kept: look again, and watch from before that look.
            kept_from = client.cloud().revision


class _Progress:
    """One line on stderr for each change of what the instance says."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = time.monotonic()
        self._said = ""

    def tell(self, instance: Any) -> None:
        message = latest_message(instance)
        line = phase_word(instance) + (f": {message}" if message else "")
        if line != self._said:
            self._said = line
            click.echo(f"[{time.monotonic() - self._started:5.1f} s] {self._name} {line}", err=True)


def _gone(ref: Ref, goal: Goal) -> None:
    if goal is not Goal.GONE:
        raise OperationFailedError(
            f"instance {ref.name} was deleted meanwhile", hints=(f"cumulet events instance/{ref.name}",)
        )


def _ended(name: str, how: str, instance: Any) -> CumuletError:
    message = latest_message(instance)
    return OperationFailedError(
        f"instance {name} {how}" + (f": {message}" if message else ""),
        hints=(f"cumulet explain instance/{name}", f"cumulet logs {name}"),
    )


def _timed_out(ref: Ref, wait: Wait, latest: Any, operation: str) -> CumuletError:
    from cumulet.v1 import instance_pb2 as pb

    waited = f"after {wait.timeout_s:.0f} s instance {ref.name} is not {wait.goal}"
    explain = f"cumulet explain instance/{ref.name}"
    if latest is None:
        return TimedOutError(waited, hints=(explain,))
    told = latest_message(latest)
    what = f"{waited} but {phase_word(latest)}" + (f": {told}" if told else "") + "; it goes on"
    if latest.status.phase == pb.INSTANCE_PHASE_PENDING and _unplaceable(latest.status.conditions):
        return NoCapacityError(what, hints=(explain, "cumulet node list"))
    return TimedOutError(what, hints=(f"cumulet operation wait {operation}" if operation else explain,))


def _unplaceable(conditions: Iterable[Any]) -> bool:
    from cumulet.v1 import meta_pb2

    return any(
        condition.type == "Placed" and condition.status == meta_pb2.CONDITION_STATUS_FALSE
        for condition in conditions
    )


def _has_ip(instance: Any) -> bool:
    """The guest took its address: readiness of its own, since Running only says that it was booted."""
    from cumulet.v1 import meta_pb2

    return any(
        condition.type == "AddressReady" and condition.status == meta_pb2.CONDITION_STATUS_TRUE
        for condition in instance.status.conditions
    )
