"""Where a single-machine cloud keeps its things: directories, sockets, ports; and its small settings file.

**Pure** but for `load_layout` and `save_layout`, which read and write STATE/cloud.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

from deploy.local.errors import SetupError

DEFAULT_STATE_DIR: Final = Path("/var/lib/cumulet")
DEFAULT_RUNTIME_DIR: Final = Path("/run/cumulet")
LOOPBACK: Final = "127.0.0.1"
SETTINGS_FILE: Final = "cloud.json"
CONTEXT_NAME: Final = "local"  # the command line's name for this cloud
SETTINGS_VERSION: Final = 1
# sun_path in linux/un.h holds 108 bytes with its zero; the longest name below is controller.sock.
RUNTIME_DIR_MAX: Final = 108 - len("/controller.sock") - 1


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports on the loopback address."""

    api: int = 7440
    controller_metrics: int = 7441
    agent_metrics: int = 7442
    etcd_client: int = 7443
    etcd_peer: int = 7444

    def named(self) -> dict[str, int]:
        """Port by what uses it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Layout:
    """One cloud on this machine. Two clouds on one machine would share the host's network: not supported."""

    state_dir: Path
    runtime_dir: Path
    node: str
    ports: Ports = Ports()

    @property
    def log_dir(self) -> Path:
        return self.state_dir / "log"

    @property
    def etcd_dir(self) -> Path:
        return self.state_dir / "etcd"

    @property
    def controller_dir(self) -> Path:
        return self.state_dir / "controller"

    @property
    def agent_dir(self) -> Path:
        return self.state_dir / "agent"

    @property
    def controller_socket(self) -> Path:
        return self.runtime_dir / "controller.sock"

    @property
    def controller_target(self) -> str:
        """gRPC target of the API on the Unix socket."""
        return f"unix:{self.controller_socket}"

    @property
    def api_address(self) -> str:
        return f"{LOOPBACK}:{self.ports.api}"

    @property
    def etcd_address(self) -> str:
        return f"{LOOPBACK}:{self.ports.etcd_client}"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the one supervisor while it lives."""
        return self.runtime_dir / "supervisor.lock"

    def record_path(self, service: str) -> Path:
        """Who runs a service, and how often it died."""
        return self.runtime_dir / f"{service}.json"

    def log_path(self, service: str) -> Path:
        return self.log_dir / f"{service}.log"


def default_runtime_dir(state_dir: Path) -> Path:
    """/run/cumulet for the usual cloud; below its state for one with a state directory of its own."""
    return DEFAULT_RUNTIME_DIR if state_dir == DEFAULT_STATE_DIR else state_dir / "run"


def checked(layout: Layout) -> Layout:
    """The layout, or SetupError when a socket's path would not fit the kernel's limit."""
    if len(os.fsencode(layout.runtime_dir)) > RUNTIME_DIR_MAX:
        raise SetupError(
            f"{layout.runtime_dir} is longer than {RUNTIME_DIR_MAX} bytes: no room for sockets' names",
            "choose a shorter one with --runtime-dir",
        )
    return layout


def choose_ports(wanted: Ports, taken: Collection[int], free: Collection[int]) -> Ports:
    """The wanted ports, each one that is taken replaced by one of `free` (twice as many as ports)."""
    spare = iter(port for port in free if port not in taken and port not in wanted.named().values())
    return replace(wanted, **{name: next(spare) for name, port in wanted.named().items() if port in taken})


def render_settings(layout: Layout) -> str:
    """What STATE/cloud.json holds."""
    return json.dumps(
        {
            "version": SETTINGS_VERSION,
            "runtime_dir": str(layout.runtime_dir),
            "node": layout.node,
            "ports": layout.ports.named(),
        },
        indent=2,
    )


def parse_settings(state_dir: Path, text: str) -> Layout:
    """Reads what `render_settings` wrote. Raises SetupError naming the file."""
    path = state_dir / SETTINGS_FILE
    try:
        content = json.loads(text)
        if content["version"] != SETTINGS_VERSION:
            raise ValueError(f"version {content['version']} is not {SETTINGS_VERSION}")
        ports = Ports(**{field.name: int(content["ports"][field.name]) for field in fields(Ports)})
        return Layout(state_dir, Path(content["runtime_dir"]), str(content["node"]), ports)
    except (ValueError, KeyError, TypeError) as err:
        raise SetupError(
            f"{path}: not readable: {err!r}", f"remove {path} and run `cumulet up` again"
        ) from err


def load_layout(state_dir: Path) -> Layout | None:
    """The layout of the cloud in this state directory, or None where there is none."""
    try:
        text = (state_dir / SETTINGS_FILE).read_text()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise SetupError(f"{state_dir / SETTINGS_FILE}: {err.strerror}", "run as root") from err
    return parse_settings(state_dir, text)


def save_layout(layout: Layout) -> None:
    """Writes STATE/cloud.json by rename: a reader sees the old text or the new one."""
    layout.state_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(layout.state_dir / SETTINGS_FILE, render_settings(layout))


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's content; never half of it. One writer per file, so the temporary name is fixed."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    fresh.rename(path)
