"""What every part of a plan is checked for.

**Pure.**
"""

from __future__ import annotations

from uuid import UUID


class IntentError(ValueError):
    """A field of a planned object that no driver can be given."""


def check_uid(field: str, text: str) -> str:
    """`text`, if it is a UUID in canonical form; uids become names on the host. Raises IntentError."""
    try:
        canonical = str(UUID(text)) == text
    except ValueError:
        canonical = False
    if not canonical:
        raise IntentError(f"{field} {text!r} is not a UUID in lower case")
    return text
