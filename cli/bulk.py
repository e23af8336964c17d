"""The same act on several objects: all are tried, what failed is told, the exit code says so.

**Edge**: prints errors to stderr.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from cumulet.errors import CumuletError, ExitCode

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(items: Sequence[Item], act: Callable[[Item], Result]) -> tuple[list[Result], int]:
    """Results of what succeeded, and the exit code: a single object's own, 1 when some of several failed."""
    from cli.errors import report

    done: list[Result] = []
    code: int = ExitCode.OK
    for item in items:
        try:
            done.append(act(item))
        except CumuletError as error:
            own = report(error)
            code = own if len(items) == 1 else ExitCode.FAILED
    return done, code
