"""Environments of the processes that the set-up runs.

**Pure**.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

# Marks every supervised process, and so its children (dnsmasq), for `cumulet down`.
MARK_VARIABLE: Final = "CUMULET_SUPERVISED_BY"
# Many distributions leave sbin out of an ordinary PATH; libvirtd, nft and dnsmasq are there.
_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"


def with_sbin(base: Mapping[str, str]) -> dict[str, str]:
    """The environment for programs of the system."""
    return {**base, "PATH": f"{base.get('PATH', '/usr/bin:/bin')}:{_SBIN}"}


def supervised_environment(base: Mapping[str, str], state_dir: Path) -> dict[str, str]:
    """The environment of supervised processes: the mark, sbin in PATH, output without delay."""
    return {**with_sbin(base), MARK_VARIABLE: str(state_dir), "PYTHONUNBUFFERED": "1"}
