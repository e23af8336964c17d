"""The one error of this room: an image could not be built, and what to do about it.

**Pure**.
"""

from __future__ import annotations


class ImageBuildError(Exception):
    """`what` names the step and the object that failed, `fix` the next thing to do."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}; {fix}")
        self.what = what
        self.fix = fix
