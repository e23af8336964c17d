"""nftables of the namespace that the calling thread is in, through `nft -j`.

**Edge**: runs Debian's nft; a batch is one kernel transaction, all of it or nothing.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any, Final

from agent.errors import DriverError

_NFT: Final = "/usr/sbin/nft"
_TIMEOUT_S: Final = 30.0  # tens of thousands of elements take seconds; more is a hang


def commit(batch: list[dict[str, Any]]) -> None:
    """Program a batch in one transaction."""
    _run(["-j", "-f", "-"], json.dumps({"nftables": batch}))


def list_tables(name: str, families: tuple[str, ...]) -> dict[str, Any]:
    """Tables of this name as libnftables-json(5); a table that is not there contributes nothing."""
    found: list[Any] = []
    for family in families:
        try:
            found += json.loads(_run(["-j", "list", "table", family, name], ""))["nftables"]
        except DriverError as err:
            if "No such file or directory" not in err.message:
                raise
    return {"nftables": found}


def _run(arguments: list[str], text: str) -> str:
    try:
        done = subprocess.run(
            [_NFT, *arguments], input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise DriverError(
            "NftUnavailable", f"running {_NFT} {' '.join(arguments)} failed: {err}; is nftables installed?"
        ) from err
    if done.returncode:
        raise DriverError("NftRefused", f"nft {' '.join(arguments)} refused: {done.stderr.strip()[:500]}")
    return done.stdout
