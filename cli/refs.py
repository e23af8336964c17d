"""How a person names an object: name, uid, unique uid prefix, PROJECT/NAME, KIND/NAME.

**Edge** only in `by_word`, which lists when a name is not found and the word may be a uid's beginning.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from cumulet.errors import InvalidArgumentError, NotFoundError
from cumulet.kinds import BY_NAME, BY_NOUN, Kind

if TYPE_CHECKING:
    from cumulet.client import Client

T = TypeVar("T")
_UID_PREFIX: Final = re.compile(r"[0-9a-f]{4,8}|[0-9a-f]{8}-[0-9a-f-]{0,27}")


class Ref(NamedTuple):
    """An object's name, and its project where one was written."""

    name: str
    project: str = ""


def parse_ref(kind: Kind, word: str) -> Ref:
    """`web`, or `team/web` for kinds in a project. Raises click.BadParameter."""
    project, slash, name = word.rpartition("/")
    if not name or (slash and (not project or "/" in project)):
        raise click.BadParameter(f"{word!r} is not a name")
    if project and not kind.scoped:
        raise click.BadParameter(f"a {kind.noun} belongs to no project: write {name}, not {word}")
    return Ref(name, project)


def parse_target(word: str) -> tuple[Kind, Ref]:
    """`instance/web` or `instance/team/web`. Raises click.BadParameter."""
    noun, slash, rest = word.partition("/")
    kind = BY_NOUN.get(noun) or BY_NAME.get(noun)
    if not slash or kind is None:
        nouns = ", ".join(BY_NOUN)
        raise click.BadParameter(f"{word!r} is not KIND/NAME, as in instance/web; kinds are {nouns}")
    return kind, parse_ref(kind, rest)


def by_word(client: Client, kind: Kind, word: str, act: Callable[[Ref], T]) -> T:
    """Do something with the object that a word names. Raises NotFoundError.

    A name is tried first and costs no further call; InvalidArgumentError when several uids begin so.
    """
    ref = parse_ref(kind, word)
    try:
        return act(ref)
    except NotFoundError as missing:
        if not _UID_PREFIX.fullmatch(ref.name):
            raise
        found = _by_uid(client, kind, ref)
        if found is None:
            raise missing from missing.__cause__
    return act(found)


def _by_uid(client: Client, kind: Kind, ref: Ref) -> Ref | None:
    matches: list[Any] = [
        one for one in client.list(kind, project=ref.project) if one.meta.uid.startswith(ref.name)
    ]
    if len(matches) > 1:
        listed = ", ".join(f"{one.meta.name} ({one.meta.uid})" for one in matches[:10])
        raise InvalidArgumentError(
            f"{ref.name!r} begins the uids of {len(matches)} {kind.noun}s: {listed}; write more of it"
        )
    return Ref(matches[0].meta.name, ref.project) if matches else None
