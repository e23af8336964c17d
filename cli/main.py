"""The entry point of `cumulet`: the table of commands, and what becomes of an error.

**Edge**: runs one command and turns its outcome into the exit code of docs/reference/exit-codes.md.
Everything that is expensive to import is imported by the command that needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial

import click

from cli.context import Choice
from cli.lazy import Entry, LazyGroup, imported
from cli.plugins import plugin_entries
from cli.session import flag_options
from cumulet.errors import CumuletError, ExitCode
from cumulet.kinds import KINDS, Kind

_DAILY = {
    "launch": ("cli.launch:launch", "Create an instance with the defaults, and wait for it."),
    "ls": ("cli.listing:ls", "List instances."),
    "console": ("cli.console:console", "Attach to an instance's serial console."),
    "logs": ("cli.console:logs", "Show what an instance's serial console printed."),
    "events": ("cli.events:events", "Show what happened, of all objects or one."),
    "explain": ("cli.explain:explain", "Why an object is as it is, or what a reason or a field means."),
}
_CLOUD = {
    "topology": ("cli.topology:topology", "Show networks, what joins them, and who is on them."),
    "whatif": ("cli.whatif:whatif", "Ask what would happen if instances came, or nodes failed."),
    "verify": ("cli.verify:verify", "Compare what is intended with what is really on the nodes."),
}
_SETUP = {
    "context": ("cli.context_commands:context", "Choose the cloud and the project to speak to."),
    "completion": ("cli.completion:completion", "Print the completion script for bash, zsh or fish."),
    "version": ("cli.version:version", "Show the versions of this command and of the cloud."),
}


def noun_group(kind: Kind) -> click.Command:
    """`cumulet NOUN`."""
    from cli.nouns import build_noun

    return build_noun(kind)


def entries() -> dict[str, Entry]:
    """Every command, by name, in the order of the help."""

    def of(table: dict[str, tuple[str, str]], section: str) -> dict[str, Entry]:
        return {name: Entry(text, imported(target), section) for name, (target, text) in table.items()}

    nouns = {kind.noun: Entry(_noun_help(kind), partial(noun_group, kind), "Objects") for kind in KINDS}
    daily, cloud, setup = of(_DAILY, "Every day"), of(_CLOUD, "The cloud"), of(_SETUP, "Set-up")
    return {**daily, **nouns, **cloud, **setup, **plugin_entries()}


def _noun_help(kind: Kind) -> str:
    verbs = [kind.create_verb] * ("create" in kind.verbs)
    verbs += [verb for verb in ("update", "delete") if verb in kind.verbs]
    listed = ", ".join(["list", "show", *verbs, "watch"])
    return f"{listed[0].upper()}{listed[1:]}."


@click.group(
    cls=LazyGroup,
    entries=entries(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes, for scripts: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 denied, "
    "6 timed out, 7 no capacity, 8 unreachable, 9 quota, 130 detached.",
)
@flag_options
@click.pass_context
def cumulet(ctx: click.Context, context: str, endpoints: tuple[str, ...], project: str) -> None:
    """The private cloud that explains what it does.

    `cumulet NOUN VERB`, as in `cumulet instance list`, and the shortcuts below. `cumulet NOUN VERB --help`
    shows every flag with an example.
    """
    ctx.obj = Choice(context, endpoints, project)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    try:
        outcome = cumulet.main(args=args, prog_name="cumulet", standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else ExitCode.OK
    except CumuletError as error:
        from cli.errors import report

        return report(error)
    except click.UsageError as error:
        from cli.errors import report_usage

        return report_usage(error)
    except click.ClickException as error:
        click.echo(f"Error[FAILED]: {error.format_message()}", err=True)
        return ExitCode.FAILED
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.DETACHED
    except BrokenPipeError:
        # The reader (head, less) has seen enough; at exit the interpreter would complain of a failed flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
