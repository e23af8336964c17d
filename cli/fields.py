"""What every field of the API is, offline: the protos' comments, kept in `fields.json` beside this module.

**Pure** to read. `python -m cli.fields` writes the file anew from the protos (**Edge**; needs grpcio-tools).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from cumulet.kinds import BY_NAME, BY_NOUN

FILE: Final = "fields.json"


@dataclass(frozen=True, slots=True)
class Described:
    """A field or a kind: its type, what it is, and the fields inside."""

    path: str
    type: str
    doc: str
    inside: tuple[tuple[str, str, str], ...]  # name, type, doc


class UnknownFieldError(LookupError):
    """No such kind or field; the message lists what there is."""


def describe(path: str) -> Described:
    """`instance`, `instance.spec.networks`. Raises UnknownFieldError."""
    tree: dict[str, Any] = json.loads(resources.files("cli").joinpath(FILE).read_text(encoding="utf-8"))
    noun, *steps = path.split(".")
    kind = BY_NOUN.get(noun) or BY_NAME.get(noun)
    if kind is None:
        raise UnknownFieldError(f"{noun!r} is no kind: {', '.join(BY_NOUN)}")
    type_name, doc = kind.name, tree[kind.name]["doc"]
    for index, step in enumerate(steps):
        fields = tree.get(type_name.removeprefix("repeated "), {"fields": {}})["fields"]
        if step not in fields:
            where = ".".join([noun, *steps[:index]])
            raise UnknownFieldError(f"{where} has no field {step!r}: {', '.join(fields) or 'it has none'}")
        type_name, doc = fields[step]["type"], fields[step]["doc"]
    inside = tree.get(type_name.removeprefix("repeated "), {"fields": {}})["fields"]
    return Described(
        path, type_name, doc, tuple((name, one["type"], one["doc"]) for name, one in inside.items())
    )


def generate() -> str:
    """**Edge**: compile the protos with their comments; the content of fields.json."""
    import tempfile
    from pathlib import Path

    from google.protobuf import descriptor_pb2
    from grpc_tools import protoc  # type: ignore[import-untyped]

    root = Path(__file__).resolve().parent.parent / "proto"
    protos = sorted(str(path.relative_to(root)) for path in (root / "cumulet" / "v1").glob("*.proto"))
    include = str(resources.files("grpc_tools").joinpath("_proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        arguments = [
            "protoc",
            f"-I{root}",
            f"-I{include}",
            "--include_source_info",
            f"--descriptor_set_out={out}",
        ]
        if protoc.main([*arguments, *protos]) != 0:
            raise RuntimeError("protoc failed; its message is above")
        compiled = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    tree = {name: entry for file in compiled.file for name, entry in _messages(file)}
    return json.dumps(dict(sorted(tree.items())), indent=1, ensure_ascii=False) + "\n"


def _messages(file: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
    for index, message in enumerate(file.message_type):
        maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        fields = {
            field.name: {"type": _type(field, maps), "doc": _doc(comments.get((4, index, 2, number), ""))}
            for number, field in enumerate(message.field)
        }
        yield message.name, {"doc": _doc(comments.get((4, index), "")), "fields": fields}


def _type(field: Any, maps: dict[str, Any]) -> str:
    short = field.type_name.rpartition(".")[2]
    if short in maps:
        key, value = maps[short].field
        return f"map of {_type(key, {})} to {_type(value, {})}"
    scalar = field.Type.Name(field.type).removeprefix("TYPE_").lower()
    name = short if short else scalar
    return f"repeated {name}" if field.label == field.LABEL_REPEATED else name


def _doc(comment: str) -> str:
    return " ".join(comment.split())


def main() -> None:
    """Write fields.json beside this module."""
    from pathlib import Path

    Path(__file__).with_name(FILE).write_text(generate(), encoding="utf-8")


if __name__ == "__main__":
    main()
