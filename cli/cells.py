"""One value of an object, as a person reads it and as a program does.

**Pure**: takes `now`. A path is dots into the message, `conditions[Ready]` picks a condition's status, and
`a/b` shows two values with a slash between. The unit follows from the field's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from cumulet.units import render_bps, render_milli

_CONDITION: Final = re.compile(r"(\w+)\[(\w+)\]")
_BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_UNIT_OF_SUFFIX: Final = {"_bytes": 0, "_mib": 2, "_gib": 3}
_ENUM_CASE: Final = {"VirtType": str.upper, "FileFormat": str.lower}
_MILLI: Final = "_milli"  # thousandths
_BPS: Final = "_bps"  # bits per second
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
NOTHING: Final = "-"


def human(message: Any, path: str, now: float) -> str:
    """The cell of a table: units, ages, no escape sequences; `-` for nothing."""
    return _CONTROL.sub("?", "/".join(_human_one(message, one, now) for one in path.split("/")))


def plain(message: Any, path: str) -> str:
    """The same for programs: numbers without units, times in RFC 3339, nothing as the empty string."""
    return "/".join(_plain_one(*find(message, one)) for one in path.split("/"))


def sort_key(message: Any, path: str) -> tuple[int, float, str]:
    """Numbers by size, then words, then nothing."""
    value, field = find(message, path.partition("/")[0])
    if isinstance(value, bool | int | float) and (field is None or field.enum_type is None):
        return (0, float(value), "")
    if hasattr(value, "ToMilliseconds"):
        return (0, float(value.ToMilliseconds()), "")
    text = _plain_one(value, field)
    return (1, 0.0, text) if text else (2, 0.0, "")


def find(message: Any, path: str) -> tuple[Any, Any]:
    """The value at a path and its field's descriptor; None for an absent message or optional number.

    An absent message on the way counts as an empty one. Raises KeyError for a path that does not exist.
    """
    value, field = message, None
    steps = path.split(".")
    for index, step in enumerate(steps):
        condition = _CONDITION.fullmatch(step)
        field = value.DESCRIPTOR.fields_by_name[condition[1] if condition else step]
        if condition is not None:
            return _condition_status(getattr(value, field.name), condition[2]), None
        if index == len(steps) - 1 and field.has_presence and not value.HasField(field.name):
            return None, None
        value = getattr(value, field.name)
    return value, field


def age(seconds: float) -> str:
    """`42s`, `5m`, `3h`, `12d`: the largest unit that leaves a number of at least one."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def size(amount: int, power: int) -> str:
    """`512 MiB`, `1.5 GiB`: the largest unit, with one decimal where it is needed."""
    value = float(amount)
    while value >= 1024 and power + 1 < len(_BINARY):
        value, power = value / 1024, power + 1
    return f"{value:.1f}".removesuffix(".0") + f" {_BINARY[power]}"


def enum_word(field: Any, number: int) -> str:
    """INSTANCE_PHASE_RUNNING as `Running`; the empty string for unspecified."""
    value = field.enum_type.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", field.enum_type.name).upper() + "_"
    word: str = value.name.removeprefix(prefix)
    if word == "UNSPECIFIED":
        return ""
    case = _ENUM_CASE.get(field.enum_type.name, lambda text: text.title().replace("_", ""))
    return case(word)


def _human_one(message: Any, path: str, now: float) -> str:
    value, field = find(message, path)
    if hasattr(value, "ToMilliseconds"):
        return age(now - value.ToMilliseconds() / 1000)
    for suffix, power in _UNIT_OF_SUFFIX.items():
        if field is not None and field.name.endswith(suffix) and isinstance(value, int):
            return size(value, power)
    if field is not None and field.name.endswith(_MILLI) and isinstance(value, int):
        return render_milli(value)
    if field is not None and field.name.endswith(_BPS) and isinstance(value, int):
        return render_bps(value) if value else NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _plain_one(value, field) or NOTHING


def _plain_one(value: Any, field: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "ToJsonString"):
        return str(value.ToJsonString())
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return enum_word(field, int(value)) if field is not None and field.enum_type else str(value)
    return _plain_many(value, field)


def _plain_many(value: Any, field: Any) -> str:
    if hasattr(value, "items"):
        return ",".join(f"{key}={value[key]}" for key in sorted(value))
    if hasattr(value, "DESCRIPTOR"):
        written = _WRITTEN.get(value.DESCRIPTOR.name)
        if written is not None:
            return written(value)
        return " ".join(
            filter(None, (_plain_one(*find(value, name)) for name in value.DESCRIPTOR.fields_by_name))
        )
    return ",".join(_leaf(one, field) for one in value)


def _taint(taint: Any) -> str:
    effect = enum_word(taint.DESCRIPTOR.fields_by_name["effect"], taint.effect)
    return f"{_key_value(taint)}:{'prefer-no-schedule' if effect.startswith('Prefer') else 'no-schedule'}"


def _key_value(one: Any) -> str:
    return f"{one.key}={one.value}" if one.value else str(one.key)


def _device(device: Any) -> str:
    return f"{device.model}@{device.address}"


def _share(share: Any) -> str:
    return str(share.address) if share.share_milli == 1000 else f"{share.address}:{share.share_milli / 1000}"


def _device_request(want: Any) -> str:
    amount = want.count if want.share_milli == 1000 else want.share_milli / 1000
    return f"{'|'.join(want.models)}:{amount}"


def _forward(forward: Any) -> str:
    port = f":{forward.target_port}" if forward.target_port else ""
    return f"{forward.protocol}:{forward.port}={forward.target}{port}"


def _rule(rule: Any) -> str:
    from cli.rules import render_rule

    return render_rule(rule)


def _balancing(message: Any) -> str:
    from cli.balancing import render

    return render(message)


# Messages in one word each, as a flag would take them.
_WRITTEN: Final[dict[str, Callable[[Any], str]]] = {
    "Taint": _taint,
    "Toleration": _key_value,
    "Preference": lambda one: f"{one.key}={one.value}:{one.weight}",
    "NumaCell": lambda cell: f"{cell.vcpu} vcpu {size(cell.memory_mib, 2)}",
    "Device": _device,
    "DeviceShare": _share,
    "DeviceRequest": _device_request,
    "StaticRoute": lambda route: f"{route.cidr}={route.next_hop}",
    "PortForward": _forward,
    "ProviderSegment": lambda one: f"{one.uplink}/{one.vlan}" if one.vlan else str(one.uplink),
    "SecurityRule": _rule,
    "Listener": _balancing,
    "LoadBalancerMember": _balancing,
    "HealthCheck": _balancing,
    "LoadBalancerMemberStatus": _balancing,
    "AddressPair": lambda pair: f"{pair.cidr}@{pair.mac}" if pair.mac else str(pair.cidr),
}


def _leaf(one: Any, field: Any) -> str:
    """An address of a port reads as the address; other messages as their words."""
    descriptor = getattr(one, "DESCRIPTOR", None)
    address = getattr(one, "address", "") if descriptor and descriptor.name not in _WRITTEN else ""
    return str(address) if address else _plain_one(one, field)


def _condition_status(conditions: Iterable[Any], kind: str) -> str:
    for condition in conditions:
        if condition.type == kind:
            return enum_word(condition.DESCRIPTOR.fields_by_name["status"], condition.status)
    return ""
