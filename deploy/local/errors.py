"""The one error of this room: a step of the set-up failed, and what to do next.

**Pure**.
"""

from __future__ import annotations

from collections.abc import Sequence


class SetupError(Exception):
    """`what` names the step and the object, `fix` the next thing to do, `log` the last lines that matter."""

    def __init__(self, what: str, fix: str, log: Sequence[str] = ()) -> None:
        super().__init__(f"{what}; {fix}")
        self.what = what
        self.fix = fix
        self.log = tuple(log)
