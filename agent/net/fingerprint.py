"""Digests of what `nft -j list` printed, without what changes by itself (handles, counters).

**Pure.** Elements are compared on their own.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint(value: Any) -> str:
    return hashlib.sha256(json.dumps(_without_volatile(value), sort_keys=True).encode()).hexdigest()[:16]


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: {} if key == "counter" else _without_volatile(inner)
            for key, inner in value.items()
            if key not in ("handle", "elem")
        }
    if isinstance(value, list):
        return [_without_volatile(inner) for inner in value]
    return value
