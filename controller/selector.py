"""Label selectors: `a=b,c!=d,e,!f`.

**Pure.** Source: the syntax that Kubernetes made common (equality-based requirements).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from cumulet.errors import FieldViolation, InvalidArgumentError
from cumulet.names import label_error

TERMS_MAX: Final = 32

Matches = Callable[[Mapping[str, str]], bool]


def parse_selector(text: str) -> Matches:
    """A test of labels; an empty selector matches all. Raises InvalidArgumentError."""
    terms = [_parse_term(term.strip()) for term in text.split(",")] if text.strip() else []
    if len(terms) > TERMS_MAX:
        raise _refusal(f"{len(terms)} terms, at most {TERMS_MAX}")
    return lambda labels: all(term(labels) for term in terms)


def required_label(text: str) -> tuple[str, str] | None:
    """One label that whatever matches has, by which to look it up; None where the selector names none."""
    for term in text.split(","):
        if "=" in term and "!=" not in term:
            return _pair(term.strip().replace("==", "=", 1), "=")
    return None


def _parse_term(term: str) -> Matches:
    if "!=" in term:
        key, value = _pair(term, "!=")
        return lambda labels: labels.get(key) != value
    if "=" in term:
        key, value = _pair(term.replace("==", "=", 1), "=")
        return lambda labels: labels.get(key) == value
    key = term.removeprefix("!").strip()
    _check(key, "")
    if term.startswith("!"):
        return lambda labels: key not in labels
    return lambda labels: key in labels


def _pair(term: str, operator: str) -> tuple[str, str]:
    key, _, value = term.partition(operator)
    _check(key.strip(), value.strip())
    return key.strip(), value.strip()


def _check(key: str, value: str) -> None:
    problem = label_error(key, value)
    if problem:
        raise _refusal(problem)


def _refusal(text: str) -> InvalidArgumentError:
    return InvalidArgumentError.of(
        "the selector was refused", [FieldViolation("selector", f"{text}; such as app=web,tier!=test")]
    )
