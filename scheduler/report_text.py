"""What-ifs and simulations in words: a step with what it came to, fleets and runs as rows of a table.

**Pure.** Lists are cut after so many rows, and the rest is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from scheduler.resilience import Resilience
from scheduler.simulate import FirstFailure, Result
from scheduler.summary import Summary
from scheduler.whatif import Outcome, Unplaced


def tell_outcome(outcome: Outcome, rows: int) -> Iterator[str]:
    """A step in words: what it came to, then the lists."""
    if outcome.resilience is not None:
        yield from _told_failures(outcome.resilience, rows)
        return
    yield (
        f"{outcome.step}: {len(outcome.placed)} placed, {len(outcome.moved)} moved,"
        f" {len(outcome.unplaced)} wait"
    )
    per_node = Counter(one.node for one in outcome.placed)
    yield from _some((f"{count} placed on {node}" for node, count in sorted(per_node.items())), rows)
    yield from _some((f"{one.name} moves from {one.source} to {one.target}" for one in outcome.moved), rows)
    yield from _some(_reasons(outcome.unplaced), rows)


def _reasons(unplaced: Sequence[Unplaced]) -> Iterator[str]:
    """Equal reasons once, the most frequent first."""
    grouped: dict[str, list[str]] = {}
    for one in unplaced:
        grouped.setdefault(str(one.rejection), []).append(one.request.name)
    for reason, names in sorted(grouped.items(), key=lambda pair: -len(pair[1])):
        yield (
            f"{names[0]} waits: {reason}"
            if not names[1:]
            else f"{names[0]} and {len(names) - 1} more wait: {reason}"
        )


def _told_failures(found: Resilience, rows: int) -> Iterator[str]:
    checked = f"{found.checked} of {found.possible} sets tried" + ("" if found.complete else ", the fullest")
    if not found.failures:
        yield f"{found.step}: every loss is absorbed ({checked})"
        return
    yield f"{found.step}: {len(found.failures)} losses are not absorbed ({checked})"
    told = (
        f"without {', '.join(one.lost)}, {len(one.unplaced)} of {one.evacuees} find no place"
        f" ({', '.join(request.name for request in one.unplaced[:3])}{' ...' if one.unplaced[3:] else ''})"
        for one in found.failures
    )
    yield from _some(told, rows)


def _some(lines: Iterable[str], rows: int) -> Iterator[str]:
    known = list(lines)
    yield from (f"  {line}" for line in known[:rows])
    if known[rows:]:
        yield f"  ... and {len(known) - rows} more (--rows)"


def compare_summaries(before: Summary, after: Summary) -> Iterator[tuple[str, str, str]]:
    """Title, before, after."""
    then = dict(_summary_rows(after))
    first = dict(_summary_rows(before))
    for title in dict.fromkeys((*first, *then)):
        yield title, first.get(title, "-"), then.get(title, "-")


def _summary_rows(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "nodes", str(summary.nodes)
    yield "nodes that take instances", str(summary.open_nodes)
    yield "of them empty", str(summary.empty_nodes)
    yield "instances", str(summary.instances)
    yield "waiting", str(summary.waiting)
    for usage in summary.usages:
        yield f"{usage.resource} allocated", f"{usage.allocated} of {usage.capacity} ({usage.share:.1%})"
        yield f"{usage.resource} free but unusable", f"{usage.fragmentation:.1%}"
    for one in summary.headroom:
        yield f"room for {one.flavor}", str(one.count)


def result_rows(result: Result) -> Iterator[tuple[str, str]]:
    """Title and number of all that a simulation found."""
    yield "instances", f"{result.arrivals:,}"
    yield "refused", f"{result.rejected:,} ({result.rejected_vcpu_hours:,.1f} vcpu hours)"
    yield "nodes", f"{result.nodes:,}"
    yield "peak nodes in use", f"{result.peak_nodes:,}"
    yield "peak over bound", f"{result.peak_over_bound:.4f} (bound {result.peak_bound:,})"
    yield "average nodes in use", f"{result.average_nodes:.2f}"
    yield "average over bound", f"{result.average_over_bound:.4f} (bound {result.average_bound:.2f})"
    yield "peak bound if nothing were refused", f"{result.offered_bound_peak:,}"
    lost = dict(result.average_fragmentation)
    for name, share in result.average_utilisation:
        if share:  # what nobody asks for says nothing of a policy
            yield f"{name} used on average", f"{share:.1%}"
            yield f"{name} free but unusable on average", f"{lost[name]:.1%}"
    yield "first refusal", _told_first(result.first_failure)


def _told_first(failure: FirstFailure | None) -> str:
    if failure is None:
        return "none"
    used = ", ".join(f"{name} {share:.1%}" for name, share in failure.utilisation if share)
    return f"instance {failure.placed:,} at {failure.time_s:,.0f} s ({used})"
