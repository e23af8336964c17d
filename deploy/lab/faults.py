"""What is wrong with the underlay: who is cut off from whom, and how much is lost on the way.

**Pure** but for `load_faults` and `save_faults`. Rules of the fabric's bridge, of which nodes know nothing:
the carrier stays, and a flushed ruleset on a node heals nothing. Not netem, which some kernels do not have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from deploy.local.errors import SetupError
from deploy.local.layout import write_atomically

ANYBODY: Final = ""
_FAMILY: Final = "bridge"
_TABLE: Final = "lab"
_CHAIN: Final = "faults"
LOSS_STEPS: Final = 10_000  # of a loss: one hundredth of a percent


@dataclass(frozen=True, slots=True)
class Way:
    """Frames from one machine to another, or to anybody, or from anybody."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Fault:
    """`loss`: the ratio of frames that are lost; 1 is a cut."""

    way: Way
    loss: float

    def describe(self) -> str:
        """For people."""
        how = "cut" if self.loss == 1 else f"loses {self.loss:.2%}"
        return f"{self.way.source or 'all'} -> {self.way.target or 'all'} {how}"


def ways(machine: str, peer: str = ANYBODY, direction: str = "both") -> tuple[Way, ...]:
    """The ways between a machine and a peer: `in`, `out` or `both`, as the machine sees it."""
    inward, outward = Way(peer, machine), Way(machine, peer)
    return {"in": (inward,), "out": (outward,), "both": (inward, outward)}[direction]


def with_loss(faults: Iterable[Fault], changed: Iterable[Way], loss: float) -> tuple[Fault, ...]:
    """The faults after these ways have got a loss (0: none). Raises SetupError for what is no ratio."""
    if not 0 <= loss <= 1:
        raise SetupError(f"loss {loss} is not within 0 to 1", "give a ratio, such as 0.05")
    anew = set(changed)
    kept = [fault for fault in faults if fault.way not in anew]
    made = [Fault(way, loss) for way in anew if loss > 0]
    return tuple(sorted((*kept, *made), key=lambda fault: (fault.way.source, fault.way.target)))


def without_machine(faults: Iterable[Fault], machine: str) -> tuple[Fault, ...]:
    """The faults after all is well between the machine and everybody."""
    return tuple(fault for fault in faults if machine not in (fault.way.source, fault.way.target))


def render_ruleset(faults: Iterable[Fault]) -> str:
    """nft's JSON that puts these faults in the place of those before, in one transaction."""
    table = {"family": _FAMILY, "name": _TABLE}
    chain = {"family": _FAMILY, "table": _TABLE, "name": _CHAIN}
    hook = {"type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}
    commands: list[dict[str, Any]] = [
        {"add": {"table": table}},
        {"delete": {"table": table}},
        {"add": {"table": table}},
        {"add": {"chain": {**chain, **hook}}},
    ]
    commands += [
        {"add": {"rule": {"family": _FAMILY, "table": _TABLE, "chain": _CHAIN, "expr": _expression(fault)}}}
        for fault in faults
    ]
    return json.dumps({"nftables": commands})


def render_faults(faults: Iterable[Fault]) -> str:
    """What LAB/faults.json holds."""
    return json.dumps([asdict(fault) for fault in faults], indent=2)


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Reads what `render_faults` wrote. Raises ValueError, KeyError, TypeError."""
    return tuple(Fault(Way(**entry["way"]), float(entry["loss"])) for entry in json.loads(text))


def load_faults(path: Path) -> tuple[Fault, ...]:
    """None of them where there is no file. Raises SetupError when it is damaged."""
    try:
        return parse_faults(path.read_text())
    except FileNotFoundError:
        return ()
    except (ValueError, KeyError, TypeError) as err:
        raise SetupError(f"{path}: not readable: {err!r}", f"remove {path} and heal the lab") from err


def save_faults(path: Path, faults: Iterable[Fault]) -> None:
    write_atomically(path, render_faults(faults))


def _expression(fault: Fault) -> list[dict[str, Any]]:
    ends = (("iifname", fault.way.source), ("oifname", fault.way.target))
    matches = [_match({"meta": {"key": key}}, "==", name) for key, name in ends if name != ANYBODY]
    if fault.loss < 1:
        steps = max(1, round(fault.loss * LOSS_STEPS))
        dice = {"numgen": {"mode": "random", "mod": LOSS_STEPS, "offset": 0}}
        matches.append(_match(dice, "<", steps))
    return [*matches, {"counter": None}, {"drop": None}]


def _match(left: dict[str, Any], how: str, right: str | int) -> dict[str, Any]:
    return {"match": {"op": how, "left": left, "right": right}}
