"""What drivers raise: foreign exceptions end at the driver's border.

**Pure.** `reason` is a stable CamelCase word that ends up in the instance's condition.
"""

from __future__ import annotations


class DriverError(Exception):
    """An effect on one object failed. `message` says what was attempted on which object and what to do."""

    def __init__(self, reason: str, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.permanent = permanent  # trying again cannot help without a change from outside


class DriverUnavailableError(DriverError):
    """The whole driver cannot be reached (libvirtd is down): nothing is known, nothing may be assumed."""
