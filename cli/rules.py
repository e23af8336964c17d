"""Rules of security groups as people write them: `in tcp:22 10.0.0.0/8`, and back.

**Pure.** DIRECTION PROTOCOL[:PORTS|:TYPE[.CODE]] [CIDR|group:NAME|ipv4|ipv6], seen from the instance.
"""

from __future__ import annotations

import re
from typing import Any, Final

_DIRECTIONS: Final = {"in": "TRAFFIC_DIRECTION_INGRESS", "out": "TRAFFIC_DIRECTION_EGRESS"}
_VERSIONS: Final = {"ipv4": 4, "ipv6": 6}
_ANY: Final = "any"
_ICMP: Final = "icmp"
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_TYPE: Final = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,3}))?")
_GROUP: Final = "group:"
EXAMPLE: Final = '"in tcp:22 10.0.0.0/8", "in icmp:8 ipv4", "in any group:web" or "out any"'


def parse_rule(text: str) -> dict[str, Any]:
    """Fields of a SecurityRule. ValueError says what is wrong and how to write it."""
    words = text.split()
    if not 2 <= len(words) <= 4:
        raise ValueError(f"{text!r} is no rule: write it like {EXAMPLE}")
    direction = _DIRECTIONS.get(words[0])
    if direction is None:
        raise ValueError(f"{words[0]!r} in {text!r} is neither in (towards the instance) nor out")
    fields = {"direction": direction, **_parse_protocol(words[1])}
    for word in words[2:]:
        found = _parse_remote(word)
        if found.keys() & fields.keys():
            raise ValueError(f"{word!r} in {text!r} says again what was said before")
        fields |= found
    return fields


def render_rule(rule: Any) -> str:
    """A SecurityRule as `parse_rule` takes it."""
    words = ["in" if rule.direction == 1 else "out", _render_protocol(rule)]
    if rule.remote_cidr:
        words.append(rule.remote_cidr)
    elif rule.ip_version:
        words.append(f"ipv{rule.ip_version}")
    if rule.remote_group:
        words.append(f"{_GROUP}{rule.remote_group}")
    return " ".join(words)


def _parse_protocol(word: str) -> dict[str, Any]:
    protocol, colon, rest = word.lower().partition(":")
    fields: dict[str, Any] = {} if protocol == _ANY else {"protocol": protocol}
    if not colon:
        return fields
    pattern = _TYPE if protocol == _ICMP else _PORTS
    match = pattern.fullmatch(rest)
    if match is None:
        wanted = "a type such as 8 or 3.4" if protocol == _ICMP else "a port or a range such as 80-90"
        raise ValueError(f"{rest!r} in {word!r} is not {wanted}")
    first, second = int(match[1]), match[2]
    if protocol != _ICMP:
        return {**fields, "port_min": first, "port_max": int(second or first)}
    return {**fields, "icmp_type": first, **({"icmp_code": int(second)} if second else {})}


def _parse_remote(word: str) -> dict[str, Any]:
    if word in _VERSIONS:
        return {"ip_version": _VERSIONS[word]}
    if word.startswith(_GROUP):
        return {"remote_group": word.removeprefix(_GROUP)}
    return {"remote_cidr": word}


def _render_protocol(rule: Any) -> str:
    word = rule.protocol or _ANY
    if rule.HasField("icmp_type"):
        return f"{word}:{rule.icmp_type}" + (f".{rule.icmp_code}" if rule.HasField("icmp_code") else "")
    if not rule.port_min:
        return word
    return f"{word}:{rule.port_min}" + (f"-{rule.port_max}" if rule.port_max != rule.port_min else "")
