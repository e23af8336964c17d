"""What a lab consists of: its machines, their addresses and directories; and its small settings file.

**Pure** but for `load_lab` and `save_lab`, which read and write LAB/lab.json.
"""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, fields
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Final

from cumulet.names import name_error
from deploy.local.errors import SetupError
from deploy.local.layout import Layout, write_atomically

LABS_DIR: Final = Path("/var/lib/cumulet-lab")  # a directory for each lab, by its name
DEFAULT_NAME: Final = "lab"
SETTINGS_FILE: Final = "lab.json"
SETTINGS_VERSION: Final = 1
FABRIC: Final = "fabric"
OUTSIDE: Final = "outside"
CONTROL: Final = "control"
# Each node is some 70 MiB and half a second of CPU before its first guest; a person hardly needs more.
NODES_MAX: Final = 32
# A node's tunnels need 50 bytes more than what they carry; guests' packets fit this however it is divided.
MTU_MIN: Final = 1330
MTU_MAX: Final = 9216
# So that the numbers of node and address agree: n1 has .11.
NODE_ADDRESS_OFFSET: Final = 10
# What a machine of the lab has of its own, so the lab's directory must not be below it.
HIDDEN_DIRS: Final = tuple(
    map(
        Path,
        (
            "/run",
            "/sys",
            "/proc",
            "/etc/libvirt",
            "/var/lib/libvirt",
            "/var/log/libvirt",
            "/var/cache/libvirt",
        ),
    )
)


class Role(enum.Enum):
    """What a machine is for."""

    FABRIC = enum.auto()  # the switch of the underlay
    OUTSIDE = enum.auto()  # the external world: a switch, a gateway and a host
    CONTROL = enum.auto()  # etcd and controller
    NODE = enum.auto()  # libvirt and agent


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person may choose. The ranges are the lab's own: several labs may have the same."""

    nodes: int = 3
    underlay: str = "10.98.0.0/24"
    outside: str = "203.0.113.0/24"  # RFC 5737, TEST-NET-3
    mtu: int = 1500  # of the underlay


@dataclass(frozen=True, slots=True)
class Machine:
    """One set of namespaces with its processes."""

    name: str
    role: Role
    state_dir: Path
    underlay: IPv4Interface | None = None

    @property
    def layout(self) -> Layout:
        """Directories, records and logs, as those of a single-machine cloud."""
        return Layout(self.state_dir, self.state_dir / "run", self.name)

    @property
    def log_path(self) -> Path:
        """What its process 1 says."""
        return self.state_dir / "machine.log"

    @property
    def boot_id_path(self) -> Path:
        """A boot of its own: a machine that was killed and started again has another."""
        return self.state_dir / "boot_id"

    def hypervisor_dir(self, part: str) -> Path:
        """Where libvirt's `etc`, `lib`, `log` and `cache` really are."""
        return self.state_dir / "libvirt" / part


@dataclass(frozen=True, slots=True)
class LabLayout:
    """One lab, by its directory and settings."""

    state_dir: Path
    settings: Settings = Settings()

    @property
    def machines(self) -> tuple[Machine, ...]:
        """In the order of starting."""
        switches = (
            Machine(FABRIC, Role.FABRIC, self._dir(FABRIC)),
            Machine(OUTSIDE, Role.OUTSIDE, self._dir(OUTSIDE)),
        )
        control = Machine(CONTROL, Role.CONTROL, self._dir(CONTROL), self._underlay(1))
        return (*switches, control, *self.nodes)

    @property
    def nodes(self) -> tuple[Machine, ...]:
        return tuple(
            Machine(
                f"n{number}", Role.NODE, self._dir(f"n{number}"), self._underlay(NODE_ADDRESS_OFFSET + number)
            )
            for number in range(1, self.settings.nodes + 1)
        )

    @property
    def control(self) -> Machine:
        return self.machine(CONTROL)

    @property
    def api_address(self) -> str:
        """Where agents find the controller."""
        assert self.control.underlay is not None  # by construction of `machines`
        return f"{self.control.underlay.ip}:{self.control.layout.ports.api}"

    @property
    def faults_path(self) -> Path:
        return self.state_dir / "faults.json"

    @property
    def machines_dir(self) -> Path:
        return self.state_dir / "machines"

    @property
    def healthy_once_path(self) -> Path:
        """There once the cloud has served: from then on its state is worth keeping."""
        return self.state_dir / "healthy-once"

    @property
    def lock_path(self) -> Path:
        """Held by the one command that changes the lab."""
        return self.state_dir / "lock"

    def machine(self, name: str) -> Machine:
        """Raises SetupError for a name that the lab does not have."""
        found = {machine.name: machine for machine in self.machines}.get(name)
        if found is None:
            known = ", ".join(machine.name for machine in self.machines)
            raise SetupError(f"there is no machine {name!r} in this lab", f"name one of {known}")
        return found

    def _dir(self, name: str) -> Path:
        return self.machines_dir / name

    def _underlay(self, number: int) -> IPv4Interface:
        network = IPv4Network(self.settings.underlay)
        return IPv4Interface(f"{network[number]}/{network.prefixlen}")


def lab_dir(labs_dir: Path, name: str) -> Path:
    """The directory of the lab with this name. Raises SetupError for a name that is none."""
    wrong = name_error(name)
    if wrong is not None:
        raise SetupError(f"lab name {name!r} {wrong}", "give another one with --name")
    return labs_dir.absolute() / name


def checked(lab: LabLayout) -> LabLayout:
    """The lab, or SetupError for settings that cannot work."""
    for error in (_settings_error(lab.settings), _place_error(lab.state_dir)):
        if error:
            raise SetupError(error, "correct the option and run this again")
    return lab


def grown(known: LabLayout, wanted: Settings) -> LabLayout:
    """The lab with more nodes, or as it is. Raises SetupError for wishes that would need another lab."""
    same = {field.name for field in fields(Settings)} - {"nodes"}
    differing = [name for name in sorted(same) if getattr(wanted, name) != getattr(known.settings, name)]
    if wanted.nodes < known.settings.nodes:
        differing.append("nodes")
    if differing:
        told = ", ".join(f"{name} {getattr(known.settings, name)}" for name in differing)
        raise SetupError(f"the lab in {known.state_dir} has {told}", "`make lab-down` first")
    return LabLayout(known.state_dir, wanted)


def render_settings(settings: Settings) -> str:
    """What LAB/lab.json holds."""
    return json.dumps({"version": SETTINGS_VERSION, **asdict(settings)}, indent=2)


def parse_settings(path: Path, text: str) -> Settings:
    """Reads what `render_settings` wrote. Raises SetupError naming the file."""
    try:
        content = json.loads(text)
        if content.pop("version") != SETTINGS_VERSION:
            raise ValueError(f"its version is not {SETTINGS_VERSION}")
        return Settings(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise SetupError(f"{path}: not readable: {err!r}", "`make lab-down` and `make lab` again") from err


def load_lab(state_dir: Path) -> LabLayout | None:
    """The lab in this directory, or None where there is none. Raises SetupError."""
    path = state_dir / SETTINGS_FILE
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise SetupError(f"{path}: {err.strerror}", "run as root") from err
    return checked(LabLayout(state_dir, parse_settings(path, text)))


def save_lab(lab: LabLayout) -> None:
    """Writes LAB/lab.json: from now on the directory is the lab's. Raises SetupError for somebody else's."""
    path = lab.state_dir / SETTINGS_FILE
    lab.state_dir.mkdir(parents=True, exist_ok=True)
    if not path.exists() and any(lab.state_dir.iterdir()):
        raise SetupError(f"{lab.state_dir} is not empty and no lab's", "choose another directory")
    write_atomically(path, render_settings(lab.settings))


def _settings_error(settings: Settings) -> str:
    """Why these settings cannot work, or nothing."""
    if not 1 <= settings.nodes <= NODES_MAX:
        return f"nodes: {settings.nodes} is not within 1 to {NODES_MAX}"
    if not MTU_MIN <= settings.mtu <= MTU_MAX:
        return f"mtu: {settings.mtu} is not within {MTU_MIN} to {MTU_MAX}"
    try:
        underlay, outside = IPv4Network(settings.underlay), IPv4Network(settings.outside)
    except ValueError as err:
        return f"range: {err}"
    needed = NODE_ADDRESS_OFFSET + settings.nodes
    if underlay.num_addresses < needed + 2:
        return f"underlay: {underlay} has too few addresses for {settings.nodes} nodes"
    if outside.num_addresses < needed + 2:
        return f"outside: {outside} has too few addresses for {settings.nodes} nodes"
    return f"underlay and outside overlap: {underlay}, {outside}" if underlay.overlaps(outside) else ""


def _place_error(state_dir: Path) -> str:
    hidden = [place for place in HIDDEN_DIRS if state_dir.is_relative_to(place)]
    return f"{state_dir}: {hidden[0]} is another directory in each machine of a lab" if hidden else ""
