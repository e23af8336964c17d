"""`cumulet NOUN`: the verbs of every kind, built from the registry, and the verbs that only some have.

**Pure** until a command runs. A new kind gets list, show, create, update, delete and watch from here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Final

import click

from cli.lazy import Entry, LazyGroup, imported
from cumulet.kinds import Kind

# Verbs beyond the standard ones: noun -> verb -> (where, help).
_OWN: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "instance": {
        "start": ("cli.power:start", "Boot stopped instances."),
        "stop": ("cli.power:stop", "Shut instances down."),
        "reboot": ("cli.power:reboot", "Shut instances down and boot them again."),
        "console": ("cli.console:console", "Attach to an instance's serial console."),
        "logs": ("cli.console:logs", "Show what an instance's serial console printed."),
    },
    "node": {
        "cordon": ("cli.node:cordon", "Place no new instances on nodes."),
        "uncordon": ("cli.node:uncordon", "Place instances on nodes again."),
        "taint": ("cli.node:taint", "Keep off a node what does not tolerate it."),
        "untaint": ("cli.node:untaint", "Take taints off a node."),
        "dedicate": ("cli.node:dedicate", "Keep a node for some projects."),
    },
    "image": {"import": ("cli.image:import_image", "Upload a disk file as a new image.")},
    "key-pair": {"import": ("cli.key_pair:import_key_pair", "Read a new key pair's public key from a file.")},
    "operation": {"wait": ("cli.operation:wait", "Wait until operations are done.")},
}


def build_noun(kind: Kind) -> click.Command:
    """The group of one kind's verbs."""
    return LazyGroup(
        name=kind.noun,
        entries=verb_entries(kind),
        help=f"The verbs of {kind.noun}s. `cumulet {kind.noun} VERB --help` shows the flags and an example.",
        no_args_is_help=True,
    )


def verb_entries(kind: Kind) -> dict[str, Entry]:
    """Every verb of a kind, in the order of the help."""
    plural = f"{kind.noun}s"
    standard: dict[str, tuple[str, str, str]] = {
        "list": ("list", "cli.listing:build_list", f"List {plural}."),
        "get": ("show", "cli.listing:build_show", f"Show one or several {plural}."),
        "create": ("create", "cli.verbs:build_create", f"Create {_a(kind.noun)}."),
        "update": ("update", "cli.verbs:build_update", f"Change {_a(kind.noun)}."),
        "delete": ("delete", "cli.removal:build_delete", f"Delete {plural}."),
        "watch": ("watch", "cli.listing:build_watch", f"Show changes of {plural} as they happen."),
    }
    found = {
        word: Entry(text, partial(_build, builder, kind))
        for verb, (word, builder, text) in standard.items()
        if verb in kind.verbs and (verb != "create" or kind.create_verb == "create")
    }
    own = _OWN.get(kind.noun, {})
    return found | {word: Entry(text, imported(target)) for word, (target, text) in own.items()}


def _build(builder: str, kind: Kind) -> click.Command:
    module, _, name = builder.partition(":")
    build: Callable[[Kind], click.Command] = getattr(import_module(module), name)
    return build(kind)


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
