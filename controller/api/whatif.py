"""The what-if service: the planner's own answer, computed beside the controller's work.

**Edge**: a thread, the clock. Reads the State or an old revision of the store; writes nothing. One what-if
is computed at a time, since it shares the interpreter with the leader; a few more wait, the others are told.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Final

from controller.admit import common
from controller.admit.common import unknown
from controller.api.standard import Snapshots
from controller.controller import Controller
from controller.state import State
from controller.store import keys
from controller.whatif import build_response, parse_steps, refusal_of
from controller.world import Asker, Tables, build_world, copy_tables
from cumulet.errors import (
    FieldViolation,
    InvalidArgumentError,
    RevisionGoneError,
    TooLargeError,
    UnavailableError,
)
from cumulet.names import DEFAULT_PROJECT
from cumulet.v1 import whatif_pb2
from scheduler.pictures import draw_report, render_png
from scheduler.policy import Policy
from scheduler.scene import render_svg
from scheduler.steps import Step, StepError
from scheduler.whatif import Report, what_if

ANSWER_MAX_S: Final = 30.0  # below the client's deadline; at 1,000 nodes a step takes a tenth of a second
QUEUE_MAX: Final = 8  # asked at the same time; whoever comes then is better told than left waiting


class WhatIfMethods:
    """`snapshots`: States at old revisions, shared with the lists."""

    def __init__(self, controller: Controller, snapshots: Snapshots) -> None:
        self._controller = controller
        self._snapshots = snapshots
        self._turn = asyncio.Semaphore(1)
        self._asked = 0

    async def what_if(self, request: whatif_pb2.WhatIfRequest) -> whatif_pb2.WhatIfResponse:
        """Raises InvalidArgumentError, NotFoundError, RevisionGoneError, TooLargeError, UnavailableError."""
        steps = parse_steps(request.steps)
        if request.picture not in whatif_pb2.PictureFormat.values():
            raise _refused("picture", f"is {request.picture}, must be SVG or PNG, or unspecified for none")
        if self._asked >= QUEUE_MAX:
            raise UnavailableError(f"{self._asked} what-ifs are being answered already: ask again")
        self._asked += 1
        try:
            async with self._turn:
                state = await self._state_at(request.revision)
                asker = _asker(self._controller.state, request)  # who asks is of today
                return await self._answer(copy_tables(state), asker, steps, request.picture)
        finally:
            self._asked -= 1

    async def _state_at(self, revision: int) -> State:
        """Now or then. Raises InvalidArgumentError for the future, RevisionGoneError for what is gone."""
        now = self._controller.state.revision
        if not 0 <= revision <= now:
            text = f"is {revision}, must be 1 to {now}, the newest that this controller has; or 0 for now"
            raise _refused("revision", text)
        try:
            return await self._snapshots.at(revision or now)
        except RevisionGoneError:
            raise RevisionGoneError(
                f"the store no longer keeps revision {revision}: ask about a later one, or about now",
                hints=["cumulet whatif"],
            ) from None

    async def _answer(
        self,
        tables: Tables,
        asker: Asker,
        steps: Sequence[Step],
        picture: whatif_pb2.PictureFormat.ValueType,
    ) -> whatif_pb2.WhatIfResponse:
        pulse = Pulse(self._controller.clock.monotonic)
        try:
            policy = self._controller.policy
            return await asyncio.to_thread(_compute, tables, asker, policy, steps, picture, pulse)
        except StepError as error:
            raise refusal_of(error, steps) from None
        finally:
            pulse.stop()  # a thread cannot be cancelled: when the caller goes, it ends at its next beat


class Pulse:
    """Called between parts of the work: ends it when its time is over or nobody waits for it."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._end = monotonic() + ANSWER_MAX_S
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def __call__(self) -> None:
        """Raises TooLargeError; UnavailableError, which nobody sees, once stopped."""
        if self._stopped.is_set():
            raise UnavailableError("nobody waits for this answer any more")
        if self._monotonic() > self._end:
            raise TooLargeError(
                f"the answer takes more than {ANSWER_MAX_S:.0f} s: ask fewer steps, or fewer failures at once"
            )


def _compute(
    tables: Tables,
    asker: Asker,
    policy: Policy,
    steps: Sequence[Step],
    picture: whatif_pb2.PictureFormat.ValueType,
    pulse: Callable[[], None],
) -> whatif_pb2.WhatIfResponse:
    """In a thread: from copied rows to the reply."""
    built = build_world(tables, asker, policy)
    report = what_if(built.world, steps, pulse=pulse)
    response = build_response(report, built.notes)
    if picture:
        pulse()
        response.picture = _draw(report, picture)
    return response


def _draw(report: Report, picture: whatif_pb2.PictureFormat.ValueType) -> bytes:
    scene = draw_report(report)
    return render_png(scene) if picture == whatif_pb2.PICTURE_FORMAT_PNG else render_svg(scene).encode()


def _asker(state: State, request: whatif_pb2.WhatIfRequest) -> Asker:
    """Raises NotFoundError, InvalidArgumentError."""
    project = common.get_row(state, keys.PROJECTS, request.project or DEFAULT_PROJECT).message
    if not request.image:
        return Asker(project)
    image = state.find(keys.IMAGES, request.image)
    if image is None:
        text = unknown("image", request.image, state.rows(keys.IMAGES))
        raise _refused("image", text)
    return Asker(project, image.message)


def _refused(field: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError.of("the what-if was refused", [FieldViolation(field, description)])
