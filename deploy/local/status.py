"""What runs of a cloud, since when, how often it was started again, and whether it is healthy.

**Edge** in `observe_status`; rows and their rendering are pure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from deploy.local import health, process
from deploy.local.address import answers
from deploy.local.layout import Layout
from deploy.local.record import Record, load_record
from deploy.local.services import SUPERVISOR, Service, build_services

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86400


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One line of the table. `state` is running, host (run by the system), or stopped."""

    name: str
    state: str
    pid: int | None
    started_at: float | None
    restarts: int
    healthy: bool
    message: str
    address: str

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def observe_status(layout: Layout) -> tuple[ServiceStatus, ...]:
    """Supervisor and services, each asked for its health."""
    checks: dict[str, Callable[[], str | None]] = {
        "libvirtd": health.check_libvirt,
        "etcd": lambda: health.check_etcd(layout),
        "controller": lambda: health.check_controller(layout),
        "agent": lambda: health.check_node(layout),
    }
    services = build_services(layout, sys.executable)
    rows = [_observe(layout, service, checks.get(service.name)) for service in services]
    return (_supervisor_row(layout), *rows)


def _observe(layout: Layout, service: Service, check: Callable[[], str | None] | None) -> ServiceStatus:
    record = load_record(layout.record_path(service.name))
    alive = record is not None and process.is_alive(record.process)
    listening = answers(service.address)
    missing = check() if check is not None else None if listening else "does not listen"
    state = "running" if alive else "host" if service.shared and listening else "stopped"
    if missing is not None and record is not None and record.last_exit:
        missing = f"{missing}; its last end: {record.last_exit}"
    return _row(service.name, state, record, missing, service.address)


def _supervisor_row(layout: Layout) -> ServiceStatus:
    record = load_record(layout.record_path(SUPERVISOR))
    alive = record is not None and process.is_alive(record.process)
    missing = None if alive else "nothing is restarted; `cumulet up` starts it again"
    return _row(SUPERVISOR, "running" if alive else "stopped", record, missing, "")


def _row(name: str, state: str, record: Record | None, missing: str | None, address: str) -> ServiceStatus:
    living = record if state == "running" else None
    return ServiceStatus(
        name=name,
        state=state,
        pid=living.process.pid if living else None,
        started_at=living.started_at if living else None,
        restarts=record.restarts if record else 0,
        healthy=missing is None,
        message=missing or "",
        address=address,
    )


def render_status(rows: Sequence[ServiceStatus], now: float) -> str:
    """The table for people."""
    lines = [("SERVICE", "STATE", "PID", "SINCE", "RESTARTS", "HEALTHY", "ADDRESS")]
    lines += [
        (
            row.name,
            row.state,
            str(row.pid or "-"),
            render_age(now - row.started_at) if row.started_at else "-",
            str(row.restarts),
            "yes" if row.healthy else "no",
            row.address or "-",
        )
        for row in rows
    ]
    return render_table(lines, [f"{row.name}: {row.message}" for row in rows if row.message])


def render_table(lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Columns, the first line as their heads, and notes below."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in (*table, *notes))


def render_age(seconds: float) -> str:
    """`12s`, `3m`, `5h`, `2d`: the largest unit that is not zero."""
    for unit_s, letter in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "m")):
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)}{letter}"
    return f"{max(0, int(seconds))}s"
