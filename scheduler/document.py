"""Fields of a document, taken one by one, with a typed error that has the path of the faulty one.

**Pure**: plain values of YAML or JSON in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final, TypeVar

from cumulet.resources import QuantityError, Resources, validate_resources

T = TypeVar("T")
Path = tuple[str | int, ...]
_MISSING: Final = object()
_NAMES: Final = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping of fields",
}


class FieldError(ValueError):
    """A field that cannot be: its path, and what is wrong with it."""

    def __init__(self, path: Path, description: str) -> None:
        super().__init__(f"{render_path(path)}: {description}")
        self.path = path
        self.description = description


def render_path(path: Path) -> str:
    """`nodes[3].capacity.vcpu`"""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".") or "the document"


class Fields:
    """The fields of one mapping, each taken by name; `close` refuses what nobody took."""

    def __init__(self, value: Any, path: Path) -> None:
        self._values: Mapping[str, Any] = check(value, dict, path)
        self._known: set[str] = set()
        self.path = path

    def take(self, name: str, kind: type[T], default: T | object = _MISSING) -> T:
        """The field's value, which must be of the kind; without a default it must be there."""
        self._known.add(name)
        if name not in self._values:
            if default is _MISSING:
                raise FieldError((*self.path, name), "is missing")
            return default  # type: ignore[return-value]
        return check(self._values[name], kind, (*self.path, name))

    def has(self, name: str) -> bool:
        """Whether the field is given."""
        self._known.add(name)
        return name in self._values

    def items(self, name: str, kind: type[T]) -> Iterator[tuple[Path, T]]:
        """The items of a list, which may be absent, with their paths."""
        for index, value in enumerate(self.take(name, list, [])):
            path = (*self.path, name, index)
            yield path, check(value, kind, path)

    def mapping(self, name: str, kind: type[T]) -> dict[str, T]:
        """A mapping of names to values, which may be absent."""
        given = self.take(name, dict, {})
        return {str(key): check(value, kind, (*self.path, name, str(key))) for key, value in given.items()}

    def resources(self, name: str, *, needed: bool = False) -> Resources:
        """A resource vector."""
        if needed and not self.has(name):
            raise FieldError((*self.path, name), "is missing")
        try:
            found = Resources.of(self.mapping(name, int))
            for error in validate_resources(found, name):
                raise error
        except QuantityError as error:
            raise FieldError(
                (*self.path, name, error.field.removeprefix(f"{name}.")), error.description
            ) from None
        return found

    def close(self) -> None:
        """Raises FieldError for a field that is not known."""
        for name in self._values:
            if name not in self._known:
                close = get_close_matches(str(name), self._known, n=1)
                meant = (
                    f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(self._known))}"
                )
                raise FieldError((*self.path, str(name)), f"is no field here; {meant}")


def check(value: Any, kind: type[T], path: Path) -> T:
    """The value if it is of the kind; whole numbers are numbers, true and false are not."""
    if kind is float and type(value) is int:
        return float(value)  # type: ignore[return-value]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        name = _NAMES.get(type(value), "nothing" if value is None else type(value).__name__)
        raise FieldError(path, f"must be {_NAMES[kind]}, is {name}")
    return value
