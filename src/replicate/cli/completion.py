"""`replicate completion`: the script with which a shell completes commands, ids and names, and the
answers that the script asks for. Whatever goes wrong, a person who presses Tab sees nothing of it.
"""

from __future__ import annotations

import os
import warnings

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
)

from replicate.cli.output import Output
from replicate.cli.text import escape

VARIABLE = "_REPLICATE_COMPLETE"

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' answer type value
    COMPREPLY=()
    answer=$(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
    while IFS=, read -r type value; do
        case $type in
            plain) COMPREPLY+=("$value") ;;
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
        esac
    done <<< "$answer"
}
complete -o nosort -F %(complete_func)s %(prog_name)s 2>/dev/null ||
    complete -F %(complete_func)s %(prog_name)s
"""

_FISH = """\
function %(complete_func)s
    set -l answer (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp) \\
        COMP_CWORD=(commandline -t) %(prog_name)s 2>/dev/null)
    for line in $answer
        set -l parts (string split -m 1 , -- $line)
        switch $parts[1]
            case plain
                echo $parts[2]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


#: What a shell acts on even between double quotes. A name that somebody else has made up is not
#: offered when it has any of it: whoever presses Tab and Enter must not run what it says.
_ACTIVE = frozenset('$`\\"')


class _Harmless(ShellComplete):
    """Offers nothing that a shell or a terminal would act on."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """What may stand in place of the incomplete word."""
        found = super().get_completions(args, incomplete)
        return [item for item in found if _is_harmless(str(item.value))]


def _is_harmless(value: str) -> bool:
    return value == escape(value) and _ACTIVE.isdisjoint(value)


class _WithOption(_Harmless):
    """For shells that take `--option=value` for one word, and want all of it back."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """What may stand in place of the incomplete word."""
        items = super().get_completions(args, incomplete)
        option, sign, _ = incomplete.partition("=")
        if sign and option.startswith("-"):
            for item in items:
                if item.type == "plain":
                    item.value = f"{option}={item.value}"
        return items


class _Zsh(_WithOption, ZshComplete):
    """As click's, with options that are joined to their values."""


class _Fish(_WithOption, FishComplete):
    """As click's, with options that are joined to their values, and for words with commas."""

    source_template = _FISH


class _Bash(_Harmless, BashComplete):
    """As click's, for names with spaces too, and for the bash 3.2 of macOS."""

    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        """Any bash will do."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one to complete, without the = that bash takes for a word."""
        words, incomplete = super().get_completion_args()
        return [word for word in words if word != "="], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """The word as it has to stand in the command line: bash inserts it as it is."""
        return f"{item.type},{self._quoted(str(item.value)) if item.type == 'plain' else ''}"

    def _quoted(self, value: str) -> str:
        """The value behind an opening quote, if it needs one and has none yet."""
        words = os.environ["COMP_WORDS"].split("\n")
        place = int(os.environ["COMP_CWORD"])
        begun = words[place][:1] if place < len(words) else ""
        if begun in ("'", '"') or not set(value) & set(" <>=!&|;()$`\\*?[]{}#~"):
            return value
        return f"'{value}" if "'" not in value else f'"{value}'


_SHELLS = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


@click.command()
@click.argument("shell", type=click.Choice([*_SHELLS]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes commands, ids and names in a shell.

    To install it, add a line to a file that the shell reads when it starts:

    \b
      ~/.bashrc    eval "$(replicate completion bash)"
      ~/.zshrc     autoload -Uz compinit && compinit
                   eval "$(replicate completion zsh)"
      ~/.config/fish/config.fish
                   replicate completion fish | source

    \b
    Examples:
      replicate completion bash
    """
    output: Output = context.obj
    root = context.find_root().command
    script = _SHELLS[shell](root, {}, "replicate", VARIABLE).source()
    output.data(script.splitlines())


def answer(group: click.Group, instruction: str) -> str:
    """What a shell's script is told: the script itself for "bash_source", else completions. Nothing
    for what cannot be answered: a damaged repository is a matter for a command, not for Tab."""
    shell, _, what = instruction.partition("_")
    if shell not in _SHELLS:
        return ""
    warnings.simplefilter("ignore")
    completer = _SHELLS[shell](group, {}, "replicate", VARIABLE)
    try:
        return completer.source() if what == "source" else completer.complete() + "\n"
    except Exception:
        return ""
