"""The answer of `whatif` as text: each step with its lists, then the fleet before and after in numbers.

**Pure.** No escape sequence of a name reaches the terminal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from cli import cells
from cli.output import aligned

COLUMNS_MAX: Final = 4  # fleets side by side; more than fit a terminal are in the JSON
NAMED_MAX: Final = 3  # instances named where many wait
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_UNITS: Final = {"_mib": 2, "_gib": 3}  # suffixes of resources that are sizes, and their power of 1024
_INDENT: Final = "   "

Row = tuple[str, ...]


def render(words: Sequence[str], found: Any, project: str, rows: int) -> list[str]:
    """The lines. `words`: each step as it was asked; `project`: whose instances need no prefix."""
    lines = [f"Fleet at revision {found.revision}, policy {found.policy}."]
    for number, (word, outcome) in enumerate(zip(words, found.outcomes, strict=True), 1):
        head, body = _told(outcome, project, rows)
        lines += ["", f"{number}. {word}: {head}", *(_INDENT + line for line in body)]
    lines += ["", *aligned(list(_compared(found)))]
    return [_CONTROL.sub("?", line) for line in lines]


def _told(outcome: Any, project: str, rows: int) -> tuple[str, list[str]]:
    """What a step came to in a few words, and its lists."""
    if outcome.HasField("resilience"):
        return _told_losses(outcome.resilience, rows)
    counts = [
        f"{count} {verb}"
        for count, verb in ((outcome.placed_count, "placed"), (outcome.moved_count, "moved"))
        if count
    ]
    waiting = outcome.waiting_count
    counts += [f"{waiting} {'waits' if waiting == 1 else 'wait'}" if waiting else "nobody waits"]
    body = [*_placed(outcome, rows), *_moved(outcome, project, rows)]
    for group in outcome.waiting[:rows]:
        body += _waiting(group)
    return ", ".join(counts), body


def _placed(outcome: Any, rows: int) -> Iterator[str]:
    per_node = Counter(one.node for one in outcome.placed)
    table = [(node, str(count)) for node, count in sorted(per_node.items())]
    yield from _table(("NODE", "PLACED"), table, len(table), rows)


def _moved(outcome: Any, project: str, rows: int) -> Iterator[str]:
    table = [(_name(one, project), one.source, one.target) for one in outcome.moved]
    yield from _table(("INSTANCE", "FROM", "TO"), table, outcome.moved_count, rows)


def _name(one: Any, project: str) -> str:
    return one.instance if one.project in ("", project) else f"{one.project}/{one.instance}"


def _waiting(group: Any) -> Iterator[str]:
    more = group.count - len(group.instances[:NAMED_MAX])
    named = ", ".join(group.instances[:NAMED_MAX]) + (f" and {more} more" if more else "")
    yield f"{named}: {group.reason}"
    if group.changes:
        yield f"{_INDENT}it fits if you {'; or '.join(change.description for change in group.changes)}"


def _told_losses(found: Any, rows: int) -> tuple[str, list[str]]:
    tried = f"{found.checked} of {found.possible} tried"
    tried += "" if found.checked == found.possible else ", those of the fullest"
    if not found.failures_count:
        return f"yes, every loss is absorbed ({tried})", []
    table = [
        (", ".join(one.lost), str(one.evacuees), str(one.unplaced_count), _some(one))
        for one in found.failures
    ]
    titles = ("WITHOUT", "RAN THERE", "FIND NO PLACE", "SUCH AS")
    count = found.failures_count
    head = f"no, {count} {'loss is' if count == 1 else 'losses are'} not absorbed ({tried})"
    return head, list(_table(titles, table, count, rows))


def _some(failure: Any) -> str:
    names = list(failure.unplaced[:NAMED_MAX])
    return ", ".join(names) + (" ..." if failure.unplaced_count > len(names) else "")


def _table(titles: Row, table: Sequence[Row], count: int, rows: int) -> Iterator[str]:
    """At most so many rows, and how many more there are; nothing for nothing."""
    if not count:
        return
    if table[:rows]:
        yield from aligned([titles, *table[:rows]])
    if count > len(table[:rows]):
        yield f"... and {count - len(table[:rows])} more (--rows, or -o json)"


def _compared(found: Any) -> Iterator[Row]:
    """The numbers of the fleet: before, after each step that can change it, as far as they fit."""
    changed = [
        (number, outcome.after)
        for number, outcome in enumerate(found.outcomes, 1)
        if not outcome.HasField("resilience")
    ]
    if not changed:
        sides = [("NOW", found.before)]
    elif len(changed) == 1 or len(changed) >= COLUMNS_MAX:
        sides = [("BEFORE", found.before), ("AFTER", found.after)]
    else:
        sides = [("BEFORE", found.before), *((f"AFTER {number}", after) for number, after in changed)]
    columns = [dict(_numbers(summary)) for _, summary in sides]
    yield ("", *(title for title, _ in sides))
    for title in dict.fromkeys(title for column in columns for title in column):
        yield (title, *(column.get(title, cells.NOTHING) for column in columns))


def _numbers(summary: Any) -> Iterable[tuple[str, str]]:
    yield "nodes", str(summary.nodes)
    yield "  that take instances", str(summary.open_nodes)
    yield "  of them empty", str(summary.empty_nodes)
    yield "instances placed", str(summary.instances)
    yield "instances waiting", str(summary.waiting)
    for usage in summary.usages:
        name, amount = _amount(usage.resource, usage.allocated)
        share = f" ({usage.allocated / usage.capacity:.0%})" if usage.capacity else ""
        yield f"{name} allocated", f"{amount} of {_amount(usage.resource, usage.capacity)[1]}{share}"
        yield f"{name} free but unusable", f"{usage.fragmentation:.0%}"
    for one in summary.headroom:
        yield f"room for more {one.flavor}", str(one.count)


def _amount(resource: str, amount: int) -> tuple[str, str]:
    """Name and amount, sizes in their units."""
    for suffix, power in _UNITS.items():
        if resource.endswith(suffix):
            return resource.removesuffix(suffix), cells.size(amount, power)
    return resource, str(amount)
