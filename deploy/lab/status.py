"""What a lab looks like now: its machines, whether the cloud sees them, and what is wrong with the underlay.

**Edge** in `observe_status`; rows and their rendering are pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from deploy.lab.lab import Lab
from deploy.lab.layout import Machine, Role
from deploy.local import health
from deploy.local.status import render_table


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """One line of the table. `message` says why a machine is not healthy."""

    name: str
    running: bool
    pid: int | None  # of its process 1, as this machine counts
    underlay: str
    healthy: bool
    message: str
    faults: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def observe_status(lab: Lab) -> tuple[MachineStatus, ...]:
    """Every machine of the lab. Raises SetupError where no lab is."""
    running = lab.running()
    faults = lab.faults()
    rows = []
    for machine in lab.layout.machines:
        found = running.get(machine.name)
        message = _ailment(lab, machine) if found else "it is off"
        told = tuple(f.describe() for f in faults if machine.name in (f.way.source, f.way.target))
        address = str(machine.underlay.ip) if machine.underlay else ""
        pid = found.first.pid if found else None
        rows.append(
            MachineStatus(machine.name, found is not None, pid, address, not message, message or "", told)
        )
    return tuple(rows)


def render_status(rows: Sequence[MachineStatus]) -> str:
    """The table for people."""
    lines = [("MACHINE", "STATE", "PID", "UNDERLAY", "HEALTHY", "FAULTS")]
    lines += [
        (
            row.name,
            "running" if row.running else "off",
            str(row.pid or "-"),
            row.underlay or "-",
            "yes" if row.healthy else "no",
            ", ".join(row.faults) or "-",
        )
        for row in rows
    ]
    notes = [f"{row.name}: {row.message}" for row in rows if row.message]
    return render_table(lines, notes)


def _ailment(lab: Lab, machine: Machine) -> str | None:
    if machine.role is Role.NODE:
        return lab.node_ailment(machine)
    return health.check_controller(machine.layout) if machine.role is Role.CONTROL else None
