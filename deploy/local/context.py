"""The command line's context of a cloud that is taken away.

**Edge**: the configuration file of the command line.
"""

from __future__ import annotations

import contextlib

from cli.context import load_config, remove_context
from cumulet.errors import CumuletError


def forget_context(name: str, target: str) -> None:
    """Takes the command line's context away when it points to the cloud with this gRPC target."""
    with contextlib.suppress(CumuletError):  # a damaged configuration is the user's
        known = load_config().contexts.get(name)
        if known is not None and target in known.endpoints:
            remove_context(name)
