"""The table of a lab's machines.

**Pure**.
"""

from __future__ import annotations

from deploy.lab.status import MachineStatus, render_status


def test_the_table_names_what_is_wrong() -> None:
    rows = (
        MachineStatus("n1", True, 7, "10.98.0.11", True, "", ("n1 -> all cut",)),
        MachineStatus("n2", False, None, "10.98.0.12", False, "it is off", ()),
    )
    assert render_status(rows).splitlines() == [
        "MACHINE  STATE    PID  UNDERLAY    HEALTHY  FAULTS",
        "n1       running  7    10.98.0.11  yes      n1 -> all cut",
        "n2       off      -    10.98.0.12  no       -",
        "n2: it is off",
    ]
