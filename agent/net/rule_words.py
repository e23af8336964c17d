"""The words of libnftables-json(5) that our rules are made of.

**Pure**: values in, JSON structures out.
"""

from __future__ import annotations

from typing import Any, Final

Json = dict[str, Any]
TABLE: Final = "cumulet"

COUNTER: Final[Json] = {"counter": {"packets": 0, "bytes": 0}}
ACCEPT: Final[tuple[Json, ...]] = (COUNTER, {"accept": None})
DROP: Final[tuple[Json, ...]] = (COUNTER, {"drop": None})
PASS: Final[Json] = {"accept": None}  # where every packet goes: a counter costs more than the verdict
IIFNAME: Final[Json] = {"meta": {"key": "iifname"}}
MARK: Final[Json] = {"meta": {"key": "mark"}}


def table(family: str) -> list[Json]:
    """An empty table in place of whatever has this name."""
    return [*table_absent(family, TABLE), {"add": {"table": {"family": family, "name": TABLE}}}]


def table_absent(family: str, name: str) -> list[Json]:
    body = {"table": {"family": family, "name": name}}
    return [{"add": body}, {"delete": body}]


def named_set(family: str, name: str, kind: str | list[str], *, counts: bool = False) -> Json:
    """`counts`: each element, the packets that were found by it."""
    statements = {"stmt": [{"counter": None}]} if counts else {}
    body = {"family": family, "table": TABLE, "name": name, "type": kind, **statements}
    return {"add": {"set": body}}


def named_map(family: str, name: str, kind: str | list[str], value: str, *, ranges: bool = False) -> Json:
    """`ranges`: a key may hold a prefix."""
    flags = {"flags": ["interval"]} if ranges else {}
    body = {"family": family, "table": TABLE, "name": name, "type": kind, "map": value, **flags}
    return {"add": {"map": body}}


def chain(family: str, name: str) -> Json:
    return {"add": {"chain": {"family": family, "table": TABLE, "name": name}}}


def base_chain(family: str, name: str, kind: str, hook: str, priority: int, policy: str = "accept") -> Json:
    body = {"family": family, "table": TABLE, "name": name, "type": kind, "hook": hook, "prio": priority}
    return {"add": {"chain": {**body, "policy": policy}}}


def device_chain(family: str, name: str, hook: str, link: str, priority: int) -> Json:
    """What passes by one link."""
    command = base_chain(family, name, "filter", hook, priority)
    command["add"]["chain"]["dev"] = link
    return command


def rule(family: str, chain_name: str, *statements: Json) -> Json:
    body = {"family": family, "table": TABLE, "chain": chain_name, "expr": list(statements)}
    return {"add": {"rule": body}}


def match(operator: str, left: Json, right: object) -> Json:
    return {"match": {"op": operator, "left": left, "right": right}}


def iifname(name: str, operator: str = "==") -> Json:
    return match(operator, IIFNAME, name)


def oifname(name: str, operator: str = "==") -> Json:
    return match(operator, {"meta": {"key": "oifname"}}, name)


def payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def is_field(protocol: str, field: str, value: object) -> Json:
    return match("==", payload(protocol, field), value)


def ct_state(*states: str) -> Json:
    return match("in", {"ct": {"key": "state"}}, list(states))


def set_mark(value: object) -> Json:
    return {"mangle": {"key": MARK, "value": value}}


def look_up(map_name: str, *key: Json) -> Json:
    """The value that a map has for a key; without one the rule ends and the next one is tried."""
    return {"map": {"key": key[0] if len(key) == 1 else {"concat": list(key)}, "data": f"@{map_name}"}}


def vmap(map_name: str, key: Json) -> Json:
    """The verdict that a map has for a key; without one the rule ends and the next one is tried."""
    return {"vmap": {"key": key, "data": f"@{map_name}"}}


def jump(target: str) -> Json:
    return {"jump": {"target": target}}


def goto(target: str) -> Json:
    return {"goto": {"target": target}}
