"""libvirt's configuration on a node of the lab.

**Pure**. Source for the format: libvirt's `virconf`: one `key = value` a line, where a value is a number, a
string in quotes that knows no escapes, or a list.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Final

from deploy.lab.layout import Machine

# Of the host UUIDs, which libvirt wants to be distinct: it refuses to migrate to "itself".
_HOST_NAMESPACE: Final = uuid.UUID("6f0e4a52-5a0f-4c3a-9a53-6b0f6d2f3d11")
# For labs only: migration between nodes connects without TLS, and QEMU runs as root without confinement, for
# the nodes share one host's users, cgroups and security modules.
LIBVIRTD_OPTIONS: Final = ("--listen",)
Value = int | str | tuple[str, ...]
_LIBVIRTD: Final[Mapping[str, Value]] = {
    "listen_tls": 0,
    "listen_tcp": 1,
    "auth_tcp": "none",
    "auth_unix_rw": "none",
}
_QEMU: Final[Mapping[str, Value]] = {
    "user": "root",
    "group": "root",
    "security_driver": "none",
    "cgroup_controllers": (),
    "remember_owner": 0,
    "namespaces": (),
}


def render_files(machine: Machine) -> dict[str, str]:
    """The files of /etc/libvirt by name."""
    host_uuid = str(uuid.uuid5(_HOST_NAMESPACE, str(machine.state_dir)))
    return {
        "libvirtd.conf": render_values({"host_uuid": host_uuid, **_LIBVIRTD}),
        "qemu.conf": render_values(_QEMU),
    }


def render_values(values: Mapping[str, Value]) -> str:
    """The text of a configuration file. Raises ValueError for a string that the format cannot hold."""
    return "".join(f"{key} = {_render(value)}\n" for key, value in values.items())


def _render(value: Value) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return f"[ {', '.join(map(_render, value))} ]" if value else "[ ]"
    if '"' in value or not value.isprintable():
        raise ValueError(f"{value!r} cannot be quoted in libvirt's configuration")
    return f'"{value}"'
