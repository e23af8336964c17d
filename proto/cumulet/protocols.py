"""IP protocols by name and number.

**Pure.** Source: IANA, "Assigned Internet Protocol Numbers".
"""

from __future__ import annotations

from typing import Final

ICMP: Final = "icmp"
ICMP_NUMBERS: Final = {4: 1, 6: 58}
_NUMBERS: Final = {"tcp": 6, "udp": 17, "sctp": 132}
WITH_PORTS: Final = frozenset(_NUMBERS.values())
NUMBER_MAX: Final = 255
PORT_MAX: Final = 65_535
TRANSLATED: Final = {6: "tcp", 17: "udp"}  # those whose single ports floating IPs and load balancers lead on


def protocol_number(word: str, ip_version: int) -> int | None:
    """0 for any protocol (the empty word); None when the word is none."""
    if not word:
        return 0
    if word == ICMP:
        return ICMP_NUMBERS[ip_version]
    if word in _NUMBERS:
        return _NUMBERS[word]
    number = int(word) if word.isascii() and word.isdigit() and len(word) <= 3 else 0
    return number if 1 <= number <= NUMBER_MAX else None
