"""The `replicate` command: a table of commands, each imported only when it runs.

It knows their names and what every failure ends in. What a command does is in the command's file.
"""

from __future__ import annotations

import difflib
import importlib
import keyword
import os
import sys
from collections.abc import Mapping, Sequence
from gc import set_threshold
from typing import Any, NoReturn

import click

import replicate
from replicate.cli.output import DONE, Output, finish, reader_is_gone

#: Every command with its line of help, in the order in which a person meets them. The command `x`
#: is the function `x` of the module `replicate.cli.x`, or both are `x_` where Python reserves `x`.
COMMANDS: Mapping[str, str] = {
    "ls": "List experiments.",
    "ps": "List experiments that are running.",
    "show": "Show everything about an experiment or a checkpoint.",
    "logs": "Show what a run has printed.",
    "plot": "Draw how a metric went in each experiment.",
    "diff": "Compare two checkpoints: params, metrics, packages and code.",
    "checkout": "Copy the code and files of a checkpoint into a directory.",
    "tag": "Add tags to experiments, or remove them.",
    "note": "Write the notes of an experiment, or print them.",
    "name": "Name an experiment, or print its name.",
    "group": "Put an experiment in a group, or print its group.",
    "rm": "Delete experiments and checkpoints.",
    "du": "Show how many bytes the experiments take.",
    "gc": "Remove what no experiment needs any more.",
    "compact": "Make listing a bucket fast for everybody.",
    "verify": "Check that everything that was saved can be had back.",
    "push": "Copy experiments into another repository.",
    "pull": "Copy experiments from another repository into the project's.",
    "cp": "Copy experiments from one repository to another.",
    "import": "Bring experiments from another tool or repository.",
    "export": "Write experiments as files that other programs read.",
    "sync": "Finish saving what is only on this machine.",
    "completion": "Print a script that completes commands, ids and names in a shell.",
}
ALIASES: Mapping[str, str] = {
    "list": "ls",
    "processes": "ps",
    "delete": "rm",
    "recover": "sync",
}


class LazyGroup(click.Group):
    """A group that imports a command only to run it, and ends every failure in the same way."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names for help and completion."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name or alias, imported now."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return super().get_command(ctx, name)
        module = f"{name}_" if keyword.iskeyword(name) else name
        command = getattr(importlib.import_module(f"replicate.cli.{module}"), module)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the nearest names in the error for an unknown one."""
        name = args[0]
        known = self.list_commands(ctx)
        if name in known or name in ALIASES or name.startswith("-"):
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(name, known, n=1)
        advice = f"; did you mean {near[0]}?" if near else ""
        raise click.UsageError(f'there is no command "{name}"{advice}', ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, from which help is written without an import."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        **extra: Any,
    ) -> NoReturn:
        """Run a command and exit: 0 done, 1 failed, 2 wrong use, 130 interrupted.

        Click's own would end quietly on every broken pipe, be it to a reader or to a bucket.
        """
        name = prog_name or "replicate"
        if instruction := os.environ.get("_REPLICATE_COMPLETE"):
            completion = importlib.import_module("replicate.cli.completion")
            click.echo(completion.answer(self, instruction).encode(errors="replace"), nl=False)
            sys.exit(DONE)
        output = Output.standard()
        try:
            words = list(sys.argv[1:] if args is None else args)
            with self.make_context(name, words, obj=output) as context:
                self.invoke(context)
            code = DONE
        except click.exceptions.Exit as ended:
            code = ended.exit_code
        except (Exception, KeyboardInterrupt) as problem:
            quiet = isinstance(problem, BrokenPipeError) and reader_is_gone(sys.stdout)
            code = DONE if quiet else output.failure(problem)
        finish(sys.stdout)
        sys.exit(code)


@click.group(
    "replicate",
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 92},
)
@click.version_option(replicate.__version__, message="replicate %(version)s")
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="When to use colours. By default on a terminal, unless NO_COLOR is set.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show where an error comes from.")
@click.pass_context
def main(context: click.Context, color: str, verbose: bool) -> None:
    """Version control for machine learning.

    Every command takes an id, or as many of its first characters as make it unique.
    """
    # A command is short, and frees little: to look for cycles again and again is a tenth of a list.
    set_threshold(1_000_000, 50, 50)
    output: Output = context.obj
    output.set_color(color)
    output.verbose = verbose
    if context.invoked_subcommand is None:
        output.data([context.get_help()])
