"""nftables of the namespace that the calling thread is in, through `nft -j`.

**Edge**: runs Debian's nft; a batch is one kernel transaction, all of it or nothing.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any, Final

from agent.errors import DriverError

_NFT: Final = "/usr/sbin/nft"
_MISSING: Final = "No such file or directory"
_TIMEOUT_S: Final = 30.0  # tens of thousands of elements take seconds; more is a hang

REFUSED: Final = "NftRefused"  # the reason when a batch is not taken; then nothing of it is done
Tables = tuple[tuple[str, str], ...]  # (family, name)


def commit(batch: list[dict[str, Any]]) -> None:
    """Program a batch in one transaction."""
    _run(["-j", "-f", "-"], json.dumps({"nftables": batch}))


def commit_text(text: str) -> None:
    """Program a constant text in one transaction; for the few things that JSON cannot say."""
    _run(["-f", "-"], text)


def list_tables(tables: Tables) -> dict[str, Any]:
    """Tables as libnftables-json(5); one that is not there contributes nothing."""
    try:
        return {"nftables": _list(tables)}
    except DriverError as err:
        if _MISSING not in err.message:
            raise
    if len(tables) == 1:
        return {"nftables": []}
    apart = [list_tables((table,))["nftables"] for table in tables]
    return {"nftables": [item for items in apart for item in items]}


def list_names() -> list[tuple[str, str]]:
    """(family, name) of all tables, whoever's they are."""
    items = _list_items([{"list": {"tables": None}}])
    return [(item["table"]["family"], item["table"]["name"]) for item in items if "table" in item]


def list_chains(family: str, table: str, chains: list[str]) -> list[dict[str, Any]]:
    """Items of libnftables-json(5) of these chains alone. One by one: nft 1.0.6 looks for the last only."""
    bodies = [{"family": family, "table": table, "name": name} for name in chains]
    return [item for body in bodies for item in _list_items([{"list": {"chain": body}}])]


def _list(tables: Tables) -> list[Any]:
    """All in one run of nft, which fails when one is missing and prints a document for each otherwise."""
    return _list_items([{"list": {"table": {"family": family, "name": name}}} for family, name in tables])


def _list_items(batch: list[dict[str, Any]]) -> list[Any]:
    printed = _run(["-j", "-f", "-"], json.dumps({"nftables": batch}))
    return [item for line in printed.splitlines() if line for item in json.loads(line)["nftables"]]


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
        raise DriverError(REFUSED, f"nft {' '.join(arguments)} refused: {done.stderr.strip()[:500]}")
    return done.stdout
