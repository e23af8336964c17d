"""What a machine has of its own in the file system, as mounts.

**Pure**.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.lab.layout import Machine, Role

# In memory, so that it is gone with the machine, as after a reboot. Far more than libvirt's status files need
# (services.ROOM_MIN_BYTES), far less than would hurt the host.
RUN_SIZE_BYTES: Final = 64 << 20
# A boot makes it in the empty /run; libvirt locks consoles there, as /var/lock.
LOCK_DIR: Final = Path("/run/lock")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount. `kind`: a file system's name, or `bind`."""

    kind: str
    source: str
    target: Path
    options: str = ""

    @property
    def argv(self) -> tuple[str, ...]:
        """The command that makes it."""
        how = ("--bind",) if self.kind == "bind" else ("-t", self.kind)
        options = ("-o", self.options) if self.options else ()
        return ("mount", *how, *options, self.source, str(self.target))


def plan_mounts(machine: Machine) -> tuple[Mount, ...]:
    """All mounts of a machine, in order. /proc is there already."""
    common = (
        Mount("tmpfs", "tmpfs", Path("/run"), f"mode=0755,size={RUN_SIZE_BYTES}"),
        # The one of the host shows the host's links.
        Mount("sysfs", "sysfs", Path("/sys")),
        Mount("bind", str(machine.boot_id_path), BOOT_ID),
    )
    return (*common, *_hypervisor_mounts(machine)) if machine.role is Role.NODE else common


def _hypervisor_mounts(machine: Machine) -> tuple[Mount, ...]:
    places = {"etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "log": "/var/log/libvirt"}
    places["cache"] = "/var/cache/libvirt"
    return tuple(
        Mount("bind", str(machine.hypervisor_dir(part)), Path(place)) for part, place in places.items()
    )
