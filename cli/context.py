"""Which cloud and project a command speaks to: flags, then environment, then the configuration file.

**Edge**: reads and atomically writes `~/.config/cumulet/config.yaml`. `resolve` is pure. The single-machine
set-up writes its context through `write_context` and takes it away with `remove_context`. Named tuples, not
dataclasses, since every start of the command pays for this module (2 ms a dataclass).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from cumulet.errors import InvalidArgumentError, NotFoundError
from cumulet.names import DEFAULT_PROJECT, name_error

CONFIG_BYTES_MAX: Final = 1 << 20  # thousands of contexts; anything larger is another file


class Context(NamedTuple):
    """One cloud, as one person or script uses it."""

    endpoints: tuple[str, ...]
    project: str = DEFAULT_PROJECT


class Config(NamedTuple):
    """The configuration file: contexts by name, and the one in use."""

    current: str = ""
    contexts: Mapping[str, Context] = MappingProxyType({})


class Choice(NamedTuple):
    """What flags or environment say; empty means nothing."""

    context: str = ""
    endpoints: tuple[str, ...] = ()
    project: str = ""


def config_path(environ: Mapping[str, str] = os.environ) -> str:
    """CUMULET_CONFIG, or cumulet/config.yaml in XDG_CONFIG_HOME."""
    home = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or "/root", ".config")
    return environ.get("CUMULET_CONFIG") or os.path.join(home, "cumulet", "config.yaml")


def environment_choice(environ: Mapping[str, str] = os.environ) -> Choice:
    """CUMULET_CONTEXT, CUMULET_ENDPOINTS (with commas between) and CUMULET_PROJECT."""
    endpoints = tuple(filter(None, map(str.strip, environ.get("CUMULET_ENDPOINTS", "").split(","))))
    return Choice(environ.get("CUMULET_CONTEXT", ""), endpoints, environ.get("CUMULET_PROJECT", ""))


def resolve(flags: Choice, environment: Choice, config: Config) -> Context:
    """The context to use. Raises NotFoundError for an unknown one, InvalidArgumentError when there is none.

    A flag beats the environment, which beats the file. A context that is named by a flag brings its
    own endpoints and project, whatever the environment says.
    """
    name = flags.context or environment.context or config.current
    named = config.contexts.get(name)
    if named is None and (flags.context or environment.context):
        known = ", ".join(config.contexts) or "none"
        raise NotFoundError(f"there is no context {name!r} (known: {known})", hints=("cumulet context list",))
    lower = Choice() if flags.context else environment
    endpoints = flags.endpoints or lower.endpoints or (named.endpoints if named else ())
    if not endpoints:
        raise InvalidArgumentError(
            "no cloud is configured: no context, no --endpoint, no CUMULET_ENDPOINTS",
            hints=("cumulet up", "cumulet context set NAME --endpoint HOST:PORT --use"),
        )
    project = flags.project or lower.project or (named.project if named else DEFAULT_PROJECT)
    return Context(tuple(endpoints), project)


def load_config(path: str | None = None) -> Config:
    """The file's contexts; none when there is no file. Raises InvalidArgumentError when it is damaged."""
    path = path or config_path()
    try:
        with open(path, encoding="utf-8") as source:
            text = source.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"cannot read {path}: {error}") from error
    if len(text) > CONFIG_BYTES_MAX:
        raise InvalidArgumentError(
            f"{path} has more than {CONFIG_BYTES_MAX} characters: it is no configuration"
        )
    return parse_config(text, path)


def parse_config(text: str, path: str) -> Config:
    """**Pure.** Raises InvalidArgumentError that names the file and the entry."""
    from cli import yaml_text

    try:
        tree: Any = yaml_text.load(text) or {}
    except ValueError as error:
        raise InvalidArgumentError(f"{path} is no YAML: {error}") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("contexts", {}), dict):
        raise InvalidArgumentError(f"{path}: expected `current: NAME` and `contexts: {{NAME: ...}}`")
    contexts = {
        str(name): _parse_context(entry, f"{path}: contexts.{name}")
        for name, entry in tree.get("contexts", {}).items()
    }
    return Config(str(tree.get("current") or ""), MappingProxyType(contexts))


def render_config(config: Config) -> str:
    """**Pure.** `parse_config` reads it back to an equal value."""
    from cli import yaml_text

    tree = {
        "current": config.current,
        "contexts": {
            name: {"endpoints": list(context.endpoints), "project": context.project}
            for name, context in config.contexts.items()
        },
    }
    return yaml_text.dump(tree)


def write_context(
    name: str,
    endpoints: Sequence[str],
    project: str = DEFAULT_PROJECT,
    *,
    use: bool = True,
    path: str | None = None,
) -> str:
    """Add or replace a context, make it the current one, and return the file's path."""
    path = path or config_path()
    if wrong := name_error(name):
        raise InvalidArgumentError(f"context name {wrong}")
    config = load_config(path)
    contexts = {**config.contexts, name: Context(tuple(endpoints), project)}
    current = name if use or not config.current else config.current
    _write(path, Config(current, MappingProxyType(contexts)))
    return path


def use_context(name: str, path: str | None = None) -> None:
    """Make a context the current one. Raises NotFoundError."""
    path = path or config_path()
    config = load_config(path)
    resolve(Choice(context=name), Choice(), config)
    _write(path, config._replace(current=name))


def remove_context(name: str, path: str | None = None) -> None:
    """Forget a context; nothing happens when it is not there."""
    path = path or config_path()
    config = load_config(path)
    if name not in config.contexts:
        return
    contexts = {other: context for other, context in config.contexts.items() if other != name}
    current = next(iter(contexts), "") if config.current == name else config.current
    _write(path, Config(current, MappingProxyType(contexts)))


def _parse_context(entry: Any, where: str) -> Context:
    endpoints = entry.get("endpoints") if isinstance(entry, dict) else None
    if not isinstance(endpoints, list) or not all(isinstance(one, str) and one for one in endpoints):
        raise InvalidArgumentError(f"{where}.endpoints must be a list of HOST:PORT or unix:/PATH")
    return Context(tuple(endpoints), str(entry.get("project") or DEFAULT_PROJECT))


def _write(path: str, config: Config) -> None:
    """Whole or not at all: a reader never sees half a file."""
    import tempfile

    folder = os.path.dirname(path) or "."
    os.makedirs(folder, mode=0o700, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".config-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as sink:
            sink.write(render_config(config))
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
