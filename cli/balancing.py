"""Listeners, members and health checks of load balancers as people write them, and back.

**Pure.** `tcp:80`; `instance:web-1`, `label:app=web:8080`, `10.1.0.7:8080` or `[fd00:a::7]:8080`, each
with `drain` after it; `http:8080/ready interval=2 fall=2`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cumulet.addresses import with_port

_INSTANCE: Final = "instance:"
_LABEL: Final = "label:"
_DRAIN: Final = "drain"
# Words of a health check, their fields and what stands for a field that was not given.
_AMOUNTS: Final = {"interval": "interval_s", "timeout": "timeout_s", "rise": "rise", "fall": "fall"}


def parse_listener(text: str) -> dict[str, Any]:
    """Fields of a Listener. ValueError says how to write it."""
    protocol, colon, port = text.partition(":")
    if not colon or protocol.lower() not in ("tcp", "udp"):
        raise ValueError(f"{text!r} is no listener: write it like tcp:80 or udp:53")
    return {"protocol": protocol.lower(), "port": _number(port, text)}


def parse_member(text: str) -> dict[str, Any]:
    """Fields of a LoadBalancerMember. ValueError says how to write it."""
    words = text.split()
    if not words or words[1:] not in ([], [_DRAIN]):
        raise ValueError(
            f"{text!r} is no member: write it like instance:web-1, label:app=web:8080, 10.1.0.7 "
            "or [fd00:a::7]:8080"
        )
    fields: dict[str, Any] = {"drain": True} if words[1:] else {}
    for prefix, field in ((_INSTANCE, "instance"), (_LABEL, "selector")):
        if words[0].startswith(prefix):
            return {**fields, **_with_port(words[0].removeprefix(prefix), field, text)}
    return {**fields, **_address(words[0], text)}


def parse_health(text: str) -> dict[str, Any]:
    """Fields of a HealthCheck. ValueError says how to write it."""
    first, *rest = text.split() or [""]
    head, slash, path = first.partition("/")
    protocol, colon, port = head.partition(":")
    if protocol not in ("tcp", "http") or (slash and protocol != "http"):
        raise ValueError(f"{text!r} is no health check: write it like tcp, http:8080/ready or http:/ready")
    fields: dict[str, Any] = {"protocol": protocol}
    if colon and port:
        fields["port"] = _number(port, text)
    if slash:
        fields["path"] = slash + path
    for word in rest:
        name, _, amount = word.partition("=")
        if name not in _AMOUNTS:
            raise ValueError(f"{word!r} in {text!r} is none of {', '.join(f'{one}=N' for one in _AMOUNTS)}")
        fields[_AMOUNTS[name]] = _number(amount, text)
    return fields


def render(message: Any) -> str:
    """Any of the three as its parser takes it; a member's status as words."""
    return _RENDER[message.DESCRIPTOR.name](message)


def _render_member(member: Any) -> str:
    where = str(member.address)
    if member.instance:
        where = f"{_INSTANCE}{member.instance}"
    elif member.selector:
        where = f"{_LABEL}{member.selector}"
    if member.port:
        where = with_port(where, member.port) if member.address else f"{where}:{member.port}"
    return f"{where}{f' {_DRAIN}' if member.drain else ''}"


def _render_health(check: Any) -> str:
    if not check.protocol:
        return ""
    port = f":{check.port}" if check.port else ":" if check.path else ""
    amounts = [f"{word}={getattr(check, field)}" for word, field in _AMOUNTS.items() if getattr(check, field)]
    return " ".join([f"{check.protocol}{port}{check.path}", *amounts])


def _render_status(member: Any) -> str:
    """`web-1@10.1.0.7`, and what keeps connections away."""
    where = f"{member.instance}@{member.address}" if member.instance else str(member.address)
    unhealthy = f" unhealthy on {'+'.join(member.unhealthy_on)}" if member.unhealthy_on else ""
    return f"{where}{' drains' if member.draining else ''}{unhealthy}"


_RENDER: Final[dict[str, Callable[[Any], str]]] = {
    "Listener": lambda listener: f"{listener.protocol}:{listener.port}",
    "LoadBalancerMember": _render_member,
    "HealthCheck": _render_health,
    "LoadBalancerMemberStatus": _render_status,
}


def _address(word: str, text: str) -> dict[str, Any]:
    """With a port or without; an IPv6 one with a port is in brackets."""
    if word.startswith("["):
        address, bracket, rest = word[1:].partition("]")
        if bracket and (not rest or rest.startswith(":")):
            return {"address": address, **({"port": _number(rest[1:], text)} if rest else {})}
        raise ValueError(f"{text!r} is no member: write an IPv6 address with a port like [fd00:a::7]:8080")
    return {"address": word} if word.count(":") > 1 else _with_port(word, "address", text)


def _with_port(word: str, field: str, text: str) -> dict[str, Any]:
    name, colon, port = word.rpartition(":")
    if not colon:
        return {field: word}
    return {field: name, "port": _number(port, text)}


def _number(word: str, text: str) -> int:
    if not word.isascii() or not word.isdigit() or len(word) > 5:
        raise ValueError(f"{word!r} in {text!r} is not a number")
    return int(word)
