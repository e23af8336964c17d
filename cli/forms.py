"""Flags of create and update, made from the registry of kinds, and what they put into a message.

**Pure**, except that a FILE flag reads its file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import click

from cumulet.kinds import Flag, Kind, Shape

EFFECTS: Final = ("no-schedule", "prefer-no-schedule")  # of a taint
FILE_BYTES_MAX: Final = 1 << 20  # the server refuses far less; this only stops a wrong file early
_MAPS: Final = frozenset({Shape.PAIRS, Shape.AMOUNTS, Shape.RATIOS})
# Their values are the fields of a message each.
_MESSAGES: Final = frozenset(
    {
        Shape.ATTACHMENTS,
        Shape.TAINTS,
        Shape.TOLERATIONS,
        Shape.PREFERENCES,
        Shape.DEVICES,
        Shape.RULES,
        Shape.ADDRESS_PAIRS,
        Shape.ROUTES,
        Shape.FORWARDS,
        Shape.LISTENERS,
        Shape.MEMBERS,
    }
)
_REPEATED: Final = frozenset({Shape.WORDS}) | _MAPS | _MESSAGES


class Parsed(click.ParamType[Any]):
    """A click type around a function that raises ValueError with what is wrong."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_pair(text: str) -> tuple[str, str]:
    """`key=value`; the value may hold further equals signs."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    return key, value


def parse_label_change(text: str) -> tuple[str, str | None]:
    """`key=value` sets, `key-` removes."""
    if "=" not in text and text.endswith("-") and len(text) > 1:
        return text[:-1], None
    return parse_pair(text)


def parse_amount(text: str) -> tuple[str, int]:
    """`gpu=1`."""
    name, value = parse_pair(text)
    return name, _count(value)


def parse_ratio(text: str) -> tuple[str, float]:
    """`vcpu=4` or `vcpu=1.5`."""
    name, value = parse_pair(text)
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"{value!r} in {text!r} is not a number") from None


def parse_place(text: str) -> dict[str, Any]:
    """`default`, or `default=10.0.0.7` with a wish for an address."""
    name, _, address = text.partition("=")
    if not name:
        raise ValueError(f"{text!r} does not begin with a name")
    return {"network": name, "address": address}


def parse_taint(text: str) -> dict[str, Any]:
    """`gpu=only:prefer-no-schedule`; without an effect no-schedule."""
    mark, colon, effect = text.rpartition(":")
    if not colon:
        mark, effect = text, EFFECTS[0]
    if effect not in EFFECTS:
        raise ValueError(f"{effect!r} in {text!r} is no effect: {' or '.join(EFFECTS)}")
    key, _, value = mark.partition("=")
    if not key:
        raise ValueError(f"{text!r} does not begin with a key")
    return {"key": key, "value": value, "effect": f"TAINT_EFFECT_{effect.upper().replace('-', '_')}"}


def parse_toleration(text: str) -> dict[str, Any]:
    """`gpu` whatever its value, or `gpu=only`."""
    key, equals, value = text.partition("=")
    if not key:
        raise ValueError(f"{text!r} does not begin with a key")
    return {"key": key, "value": value} if equals else {"key": key}


def parse_preference(text: str) -> dict[str, Any]:
    """`zone=b`, or `zone=b:10` with a weight."""
    pair, colon, weight = text.rpartition(":")
    if not colon or not weight.isdigit():
        pair, weight = text, "1"
    key, value = parse_pair(pair)
    return {"key": key, "value": value, "weight": _int32(weight)}


def parse_device(text: str) -> dict[str, Any]:
    """`gpu-a100`, `gpu-a100:2`, `gpu-a100,gpu-h100:0.25`; `:2` of any model. A point makes it a share."""
    models, _, amount = text.partition(":")
    wanted: dict[str, Any] = {"models": [model for model in models.split(",") if model]}
    if "." in amount:
        share = _thousandths(amount)
        if not 0 < share <= 1000:
            raise ValueError(f"{amount} in {text!r} is no share: more than 0 and at most 1.0")
        return {**wanted, "count": 1, "share_milli": share}
    return {**wanted, "count": _int32(amount or "1"), "share_milli": 1000}


def parse_address_pair(text: str) -> dict[str, Any]:
    """`10.0.0.5`, `10.0.0.0/28` or `10.0.0.5@02:00:00:00:00:05`."""
    cidr, _, mac = text.partition("@")
    if not cidr:
        raise ValueError(f"{text!r} does not begin with an address")
    return {"cidr": cidr, "mac": mac}


def parse_route(text: str) -> dict[str, Any]:
    """`192.168.0.0/16=10.0.0.7`."""
    cidr, next_hop = parse_pair(text)
    return {"cidr": cidr, "next_hop": next_hop}


def parse_forward(text: str) -> dict[str, Any]:
    """`tcp:2222=web-1:22`; without the last part the port is the same."""
    outside, target = parse_pair(text)
    protocol, _, port = outside.partition(":")
    name, _, target_port = target.partition(":")
    if not name:
        raise ValueError(f"{text!r} does not say to which instance")
    return {
        "protocol": protocol,
        "port": _int32(port),
        "target": name,
        "target_port": _int32(target_port or "0"),
    }


def _rule(text: str) -> dict[str, Any]:
    from cli.rules import parse_rule

    return parse_rule(text)


def _listener(text: str) -> dict[str, Any]:
    from cli.balancing import parse_listener

    return parse_listener(text)


def _member(text: str) -> dict[str, Any]:
    from cli.balancing import parse_member

    return parse_member(text)


def _health(text: str) -> dict[str, Any]:
    from cli.balancing import parse_health

    return parse_health(text)


def _rate(text: str) -> int:
    from cumulet.units import parse_bps

    return parse_bps(text)


def _int32(text: str) -> int:
    number = _count(text)
    if number >= 2**31:
        raise ValueError(f"{text} is too large")
    return number


def _thousandths(text: str) -> int:
    from cumulet.units import parse_milli

    return parse_milli(text)


def _seconds(text: str) -> int:
    from cumulet.units import parse_seconds

    return parse_seconds(text)


def _memory(text: str) -> int:
    from cumulet.units import parse_mib

    return parse_mib(text)


def _disk(text: str) -> int:
    from cumulet.units import parse_gib

    return parse_gib(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def _file(text: str) -> bytes:
    try:
        with click.open_file(text, "rb") as source:
            data: bytes = source.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"cannot read {text}: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise ValueError(f"{text} has more than {FILE_BYTES_MAX} bytes")
    return data


TYPES: Final[Mapping[Shape, tuple[str, click.ParamType[Any]]]] = {
    Shape.TEXT: ("TEXT", click.STRING),
    Shape.COUNT: ("N", Parsed("count", _count)),
    Shape.MEMORY: ("SIZE", Parsed("size", _memory)),
    Shape.DISK: ("SIZE", Parsed("size", _disk)),
    Shape.WORDS: ("TEXT", click.STRING),
    Shape.PAIRS: ("KEY=VALUE", Parsed("pair", parse_pair)),
    Shape.AMOUNTS: ("NAME=N", Parsed("amount", parse_amount)),
    Shape.RATIOS: ("NAME=N", Parsed("ratio", parse_ratio)),
    Shape.FILE: ("FILE", Parsed("file", _file)),
    Shape.ATTACHMENTS: ("NETWORK[=ADDRESS]", Parsed("attachment", parse_place)),
    Shape.THOUSANDTHS: ("N", Parsed("number", _thousandths)),
    Shape.SECONDS: ("TIME", Parsed("duration", _seconds)),
    Shape.TAINTS: ("KEY[=VALUE][:EFFECT]", Parsed("taint", parse_taint)),
    Shape.TOLERATIONS: ("KEY[=VALUE]", Parsed("toleration", parse_toleration)),
    Shape.PREFERENCES: ("KEY=VALUE[:WEIGHT]", Parsed("preference", parse_preference)),
    Shape.RULES: ("RULE", Parsed("rule", _rule)),
    Shape.ADDRESS_PAIRS: ("CIDR[@MAC]", Parsed("address", parse_address_pair)),
    Shape.ROUTES: ("CIDR=ADDRESS", Parsed("route", parse_route)),
    Shape.FORWARDS: ("PROTOCOL:PORT=TARGET[:PORT]", Parsed("forward", parse_forward)),
    Shape.LISTENERS: ("PROTOCOL:PORT", Parsed("listener", _listener)),
    Shape.MEMBERS: ("MEMBER", Parsed("member", _member)),
    Shape.HEALTH: ("CHECK", Parsed("check", _health)),
    Shape.RATE: ("RATE", Parsed("rate", _rate)),
    Shape.DEVICES: ("MODEL[,MODEL][:COUNT|:SHARE]", Parsed("device", parse_device)),
}


def options_of(flags: Iterable[Flag], *, creating: bool, required: bool = True) -> list[click.Option]:
    """The click options of a kind's flags."""
    return [
        _option(flag, required=creating and required and flag.required)
        for flag in flags
        if creating or not flag.fixed
    ]


def option_key(flag: Flag) -> str:
    """The flag's name as an argument of the command's function."""
    return f"flag_{flag.name.replace('-', '_')}"


def assign(message: Any, flags: Iterable[Flag], values: Mapping[str, Any]) -> list[str]:
    """Put the values that were given into the message; returns their paths, for an update's mask."""
    paths: list[str] = []
    for flag in flags:
        value = values.get(option_key(flag))
        if value is None or value == ():
            continue
        try:
            _put(message, flag.path.split("."), flag.shape, value)
        except ValueError as error:  # what protobuf says of a number that the field cannot hold
            raise click.UsageError(f"--{flag.name}: {error}") from None
        paths.append(flag.path)
    return paths


def label_option(*, creating: bool) -> click.Option:
    """--label, of every kind."""
    return click.Option(
        ["--label", "labels"],
        multiple=True,
        metavar="KEY=VALUE" if creating else "KEY=VALUE|KEY-",
        type=Parsed("label", parse_pair if creating else parse_label_change),
        help="Label to set. May be repeated." if creating else "Label to set, or to remove. May be repeated.",
    )


def flags_of(kind: Kind, names: Sequence[str] = ()) -> tuple[Flag, ...]:
    """The kind's flags, all or those named."""
    return tuple(flag for flag in kind.flags if not names or flag.name in names)


def _option(flag: Flag, *, required: bool) -> click.Option:
    if flag.shape is Shape.YES_NO:
        names = [f"--{flag.name}/--no-{flag.name}", option_key(flag)]
        return click.Option(names, default=None, help=flag.help)
    metavar, kind = (None, click.Choice(flag.choices)) if flag.choices else TYPES[flag.shape]
    return click.Option(
        [f"--{flag.name}", option_key(flag)],
        type=kind,
        metavar=metavar,
        multiple=flag.shape in _REPEATED,
        required=required,
        help=flag.help,
    )


def _put(message: Any, steps: list[str], shape: Shape, value: Any) -> None:
    for step in steps[:-1]:
        message = getattr(message, step)
    name = steps[-1]
    if shape in _MAPS:
        getattr(message, name).update(dict(value))
    elif shape is Shape.WORDS:
        getattr(message, name).extend(value)
    elif shape in _MESSAGES:
        for fields in value:
            getattr(message, name).add(**fields)
    elif shape is Shape.HEALTH:
        check = getattr(message, name)
        for field, one in value.items():
            setattr(check, field, one)
    elif shape is Shape.CHOICE:
        setattr(message, name, _enum_number(message, name, value))
    else:
        setattr(message, name, value)


def _enum_number(message: Any, name: str, word: str) -> int:
    """The value of an enum field by the word that a person chose."""
    values = message.DESCRIPTOR.fields_by_name[name].enum_type.values
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    wanted = prefix + word.upper().replace("-", "_")
    number: int = next(value.number for value in values if value.name == wanted)
    return number
