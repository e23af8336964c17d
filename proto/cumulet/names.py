"""Names of objects: what is allowed, and how they are written together.

**Pure.** Source for the rule: DNS labels (RFC 1123, section 2.1), since a name becomes a host name.
"""

from __future__ import annotations

import random
import re
from typing import Final

NAME_MAX: Final = 63
LABELS_MAX: Final = 64  # keeps an object far below the store's message limit
LABEL_VALUE_MAX: Final = 256
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_VERSION_4: Final = 0x4 << 76 | 0x2 << 62  # version and variant (RFC 9562, section 5.4)
_RANDOM_BITS: Final = ~(0xF << 76 | 0x3 << 62)
_LABEL_KEY: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?")
DEFAULT_PROJECT: Final = "default"
ALL_PROJECTS: Final = "-"


def name_error(name: str) -> str | None:
    """What is wrong with a name, or None."""
    if not name:
        return "is required: 1 to 63 lower-case letters, digits and hyphens"
    if len(name) > NAME_MAX:
        return f"has {len(name)} characters, at most {NAME_MAX}"
    if not _NAME.fullmatch(name):
        return f"{name!r} is not a name: lower-case letters, digits and hyphens, no hyphen at the ends"
    return None


def label_error(key: str, value: str) -> str | None:
    """What is wrong with a label, or None."""
    if len(key) > NAME_MAX or not _LABEL_KEY.fullmatch(key):
        return f"{key!r} is not a label's key: letters, digits and ._/- inside, at most {NAME_MAX}"
    if len(value) > LABEL_VALUE_MAX or not value.isprintable():
        return f"the value of {key!r} must be at most {LABEL_VALUE_MAX} printable characters"
    return None


def new_uid(rng: random.Random) -> str:
    """A random UUID (version 4) from the given source, so that simulations repeat."""
    bits = rng.getrandbits(128) & _RANDOM_BITS | _VERSION_4
    digits = (
        f"{bits:032x}"  # what str(uuid.UUID(int=bits)) says, in a quarter of the time: one for each event
    )
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
