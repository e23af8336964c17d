"""Sizes, durations, fractions and rates as people write them: `512MiB`, `12h`, `0.25`, `10Mbit`, and back.

**Pure**: exact arithmetic; a size that is no whole number of the wanted unit is refused.

The binary units only. `G` means GiB, as in QEMU and libvirt; `GB` would mean another number in
every tool, so it is refused with the unit to write instead.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
SIZE_CHARS_MAX: Final = 32  # longer is no size; bounds the digits
_EXPONENT: Final = {unit[0].lower(): power for power, unit in enumerate(UNITS)}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-zA-Z]*)", re.ASCII)


_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"([0-9]{1,12})([smhdw]?)", re.ASCII)
_FRACTION: Final = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,3}))?", re.ASCII)


_BITS: Final = {"": 1, "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_RATE: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?) ?([a-z]*)", re.ASCII | re.IGNORECASE)


class SizeError(ValueError):
    """A text that is no size. The message says what to write."""


def parse_mib(text: str) -> int:
    """`2GiB` -> 2048. A bare number is MiB. Raises SizeError."""
    return _parse(text, "MiB")


def parse_gib(text: str) -> int:
    """`1TiB` -> 1024. A bare number is GiB. Raises SizeError."""
    return _parse(text, "GiB")


def render_mib(amount_mib: int) -> str:
    """2048 -> `2GiB`: the largest unit that divides it; `parse_mib` reads it back."""
    return _render(amount_mib, "MiB")


def render_gib(amount_gib: int) -> str:
    """1024 -> `1TiB`: the largest unit that divides it; `parse_gib` reads it back."""
    return _render(amount_gib, "GiB")


def parse_seconds(text: str) -> int:
    """`12h` -> 43200; of s, m, h, d and w. A bare number is seconds. Raises SizeError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise SizeError(f"{text[:SIZE_CHARS_MAX]!r} is not a duration: write it like 90s, 12h or 30d")
    number, unit = match.groups()
    return int(number) * _SECONDS[unit or "s"]


def parse_bps(text: str) -> int:
    """`10Mbit` -> 10000000 bits per second; decimal units as in tc and on network cards. Raises SizeError."""
    match = _RATE.fullmatch(text.strip())
    factor = None if match is None else _BITS.get(match[2].lower())
    if match is None or factor is None:
        raise SizeError(f"{text[:SIZE_CHARS_MAX]!r} is not a rate: write it like 500kbit, 10Mbit or 1Gbit")
    rate = Fraction(match[1]) * factor
    if rate.denominator != 1:
        raise SizeError(f"{text!r} is not a whole number of bits per second")
    return rate.numerator


def render_bps(rate_bps: int) -> str:
    """10000000 -> `10Mbit`: the largest unit that divides it; `parse_bps` reads it back."""
    for unit in ("Gbit", "Mbit", "kbit"):
        factor = _BITS[unit.lower()]
        if rate_bps and rate_bps % factor == 0:
            return f"{rate_bps // factor}{unit}"
    return f"{rate_bps}bit"


def parse_milli(text: str) -> int:
    """`0.35` -> 350: thousandths, exactly. Raises SizeError."""
    match = _FRACTION.fullmatch(text.strip())
    if match is None:
        raise SizeError(f"{text[:SIZE_CHARS_MAX]!r} is not a number with at most three decimals, as in 0.25")
    whole, decimals = match.groups()
    return int(whole) * 1000 + int((decimals or "").ljust(3, "0"))


def render_milli(amount_milli: int) -> str:
    """350 -> `0.35`; `parse_milli` reads it back."""
    whole, decimals = divmod(amount_milli, 1000)
    return f"{whole}.{decimals:03}".rstrip("0").rstrip(".")


def _parse(text: str, wanted: str) -> int:
    match = _SIZE.fullmatch(text.strip()) if len(text) <= SIZE_CHARS_MAX else None
    if match is None:
        raise SizeError(f"{text[:SIZE_CHARS_MAX]!r} is not a size: write it like 512MiB or 2GiB")
    number, unit = match.groups()
    amount = Fraction(number) * Fraction(1024) ** (_power(text, unit or wanted) - UNITS.index(wanted))
    if amount.denominator != 1:
        raise SizeError(f"{text!r} is not a whole number of {wanted}")
    return amount.numerator


def _power(text: str, unit: str) -> int:
    power = _EXPONENT.get(unit[0].lower())
    long_form = UNITS[power] if power is not None else ""
    if power is None or unit.lower() not in (unit[0].lower(), long_form.lower()):
        hint = long_form or "MiB or GiB"
        raise SizeError(f"{text!r}: unknown unit {unit!r}, write {hint}")
    return power


def _render(amount: int, unit: str) -> str:
    power = UNITS.index(unit)
    while amount and amount % 1024 == 0 and power + 1 < len(UNITS):
        amount //= 1024
        power += 1
    return f"{amount}{UNITS[power]}"
