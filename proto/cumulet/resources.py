"""The resource vector: what an instance asks for and what a node has.

**Pure**: immutable values of non-negative 64-bit integers; every sum is checked, none wraps.

Three resources every node has (`vcpu`, `memory_mib`, `disk_gib`) and any number that an operator
names (`gpu`, `fpga`, `bandwidth_mbps`, ...). A named resource at 0 equals one that is absent, so
equal vectors are equal values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Self

AMOUNT_MAX: Final = 2**63 - 1  # int64, in protobuf and in the kernels

# Bounds of one request or one node: beyond them it is a typing error, not a machine.
VCPU_MAX: Final = 65_536  # the largest single systems have some thousand threads
MEMORY_MIB_MAX: Final = 2**30  # 1 PiB; the physical address space of x86-64 is 4 PiB
DISK_GIB_MAX: Final = 2**30  # 1 EiB, the largest ext4
EXTENDED_AMOUNT_MAX: Final = 2**40  # room for bit/s of a 1 Tbit/s link
EXTENDED_NAMES_MAX: Final = 64  # each is a row that every decision scans
EXTENDED_NAME_CHARS_MAX: Final = 63  # a DNS label, as for all our names

BASE_NAMES: Final = ("vcpu", "memory_mib", "disk_gib")
_BOUNDS: Final = {"vcpu": VCPU_MAX, "memory_mib": MEMORY_MIB_MAX, "disk_gib": DISK_GIB_MAX}
_NAME: Final = re.compile(r"[a-z](?:[a-z0-9._/-]*[a-z0-9])?")


class QuantityError(ValueError):
    """A quantity that cannot be. `field` names it, `reason` is stable."""

    reason: ClassVar[str] = "BAD_QUANTITY"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class QuantityTypeError(QuantityError):
    """Not an integer."""

    reason = "QUANTITY_NOT_AN_INTEGER"


class NegativeQuantityError(QuantityError):
    """Below zero, given or as the result of a subtraction."""

    reason = "QUANTITY_NEGATIVE"


class QuantityOverflowError(QuantityError):
    """Beyond 64 bits, given or as the result of a sum."""

    reason = "QUANTITY_OVERFLOW"


class AbsurdQuantityError(QuantityError):
    """Fits in 64 bits, but no machine is like that."""

    reason = "QUANTITY_ABSURD"


class ResourceNameError(QuantityError):
    """A resource's name is malformed, reserved or given twice."""

    reason = "RESOURCE_NAME_INVALID"


@dataclass(frozen=True, slots=True)
class Resources:
    """A resource vector. `extended`: (name, amount), kept sorted by name and without zeros.

    Raises QuantityTypeError, NegativeQuantityError, QuantityOverflowError, ResourceNameError.
    """

    vcpu: int = 0
    memory_mib: int = 0
    disk_gib: int = 0
    extended: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        vcpu, memory_mib, disk_gib = self.vcpu, self.memory_mib, self.disk_gib
        if not (
            type(vcpu) is type(memory_mib) is type(disk_gib) is int
            and 0 <= vcpu <= AMOUNT_MAX
            and 0 <= memory_mib <= AMOUNT_MAX
            and 0 <= disk_gib <= AMOUNT_MAX
        ):  # a quick look first: vectors are made by the million
            for name in BASE_NAMES:
                _check_amount(name, getattr(self, name))
        if self.extended:
            object.__setattr__(self, "extended", _canonical(self.extended))

    @classmethod
    def of(cls, amounts: Mapping[str, int]) -> Self:
        """The vector of a mapping from name to amount: the inverse of `as_dict`."""
        extended = tuple((name, amount) for name, amount in amounts.items() if name not in BASE_NAMES)
        return cls(amounts.get("vcpu", 0), amounts.get("memory_mib", 0), amounts.get("disk_gib", 0), extended)

    @classmethod
    def total(cls, vectors: Iterable[Resources]) -> Self:
        """The sum of many. Raises QuantityOverflowError."""
        sums: dict[str, int] = {}
        for vector in vectors:
            for name, amount in vector.as_dict().items():
                sums[name] = sums.get(name, 0) + amount
        return cls.of(sums)

    def names(self) -> tuple[str, ...]:
        """The base names, then the extended ones that are not zero."""
        return (*BASE_NAMES, *(name for name, _ in self.extended))

    def get(self, name: str) -> int:
        """The amount of a resource; 0 if it is not named here."""
        if name in BASE_NAMES:
            amount: int = getattr(self, name)
            return amount
        return next((amount for known, amount in self.extended if known == name), 0)

    def as_dict(self) -> dict[str, int]:
        """Name to amount; base names are always there."""
        amounts = {"vcpu": self.vcpu, "memory_mib": self.memory_mib, "disk_gib": self.disk_gib}
        if self.extended:
            amounts.update(self.extended)
        return amounts

    def is_zero(self) -> bool:
        return not (self.vcpu or self.memory_mib or self.disk_gib or self.extended)

    def fits_in(self, room: Resources) -> bool:
        """No amount is greater than the room's."""
        return all(amount <= room.get(name) for name, amount in self.as_dict().items())

    def __add__(self, other: Resources) -> Resources:
        """Raises QuantityOverflowError naming the resource."""
        if self.extended or other.extended:
            return Resources.total((self, other))
        return Resources(
            self.vcpu + other.vcpu, self.memory_mib + other.memory_mib, self.disk_gib + other.disk_gib
        )

    def __sub__(self, other: Resources) -> Resources:
        """Raises NegativeQuantityError naming the resource."""
        if not (self.extended or other.extended):
            return Resources(
                self.vcpu - other.vcpu, self.memory_mib - other.memory_mib, self.disk_gib - other.disk_gib
            )
        left = self.as_dict()
        for name, amount in other.as_dict().items():
            left[name] = left.get(name, 0) - amount
        return Resources.of(left)

    def __str__(self) -> str:
        return ", ".join(f"{name} {amount}" for name, amount in self.as_dict().items() if amount) or "nothing"


def validate_resources(resources: Resources, field: str = "resources") -> tuple[QuantityError, ...]:
    """All quantities that no machine and no request has, each with its field's path."""
    found: list[QuantityError] = []
    for name, amount in resources.as_dict().items():
        bound = _BOUNDS.get(name, EXTENDED_AMOUNT_MAX)
        if amount > bound:
            found.append(
                AbsurdQuantityError(f"{field}.{name}", f"{amount} is more than {bound}, the largest")
            )
    if len(resources.extended) > EXTENDED_NAMES_MAX:
        count = len(resources.extended)
        found.append(
            AbsurdQuantityError(f"{field}.extended", f"{count} named resources, at most {EXTENDED_NAMES_MAX}")
        )
    return tuple(found)


def parse_extended(text: str) -> tuple[str, int]:
    """A named amount as people write it, `gpu=2`. Raises QuantityError."""
    name, equals, amount = text.partition("=")
    if not equals or not amount.isascii() or not amount.isdigit():
        raise QuantityTypeError(name or "extended", f"{text!r} is not NAME=WHOLE_NUMBER, as in gpu=2")
    ((name, value),) = _canonical(((name, int(amount)),), keep_zero=True)
    return name, value


def _check_amount(field: str, amount: int) -> None:
    if type(amount) is not int:
        raise QuantityTypeError(field, f"{amount!r} is not a whole number")
    if amount < 0:
        raise NegativeQuantityError(field, f"{amount} is negative")
    if amount > AMOUNT_MAX:
        raise QuantityOverflowError(field, f"{amount} does not fit in 64 bits")


def _canonical(pairs: Iterable[tuple[str, int]], *, keep_zero: bool = False) -> tuple[tuple[str, int], ...]:
    seen: dict[str, int] = {}
    for name, amount in pairs:
        _check_name(name)
        if name in seen:
            raise ResourceNameError(name, "is given twice")
        _check_amount(name, amount)
        seen[name] = amount
    return tuple((name, amount) for name, amount in sorted(seen.items()) if amount or keep_zero)


def _check_name(name: str) -> None:
    if name in BASE_NAMES:
        raise ResourceNameError(name, "is a field of its own, not an extended resource")
    if len(name) > EXTENDED_NAME_CHARS_MAX or not _NAME.fullmatch(name):
        raise ResourceNameError(
            name[:EXTENDED_NAME_CHARS_MAX] or "extended",
            f"must start with a letter and have at most {EXTENDED_NAME_CHARS_MAX} of a-z 0-9 . _ / -",
        )


ZERO: Final = Resources()
