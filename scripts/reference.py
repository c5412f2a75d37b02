"""Writes docs/reference/ from the commands and the configuration, so that it says what they do.

python scripts/reference.py          write the pages
python scripts/reference.py --check  exit with 1 when a page is stale
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from replicate.cli import ALIASES, COMMANDS, main
from replicate.config import ENVIRONMENT

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "<!-- Written by scripts/reference.py. Change the program, and run it again. -->\n"


def commands() -> str:
    """The page of all commands: what `--help` says, as Markdown."""
    context = click.Context(main, info_name="replicate")
    sections = [command(context, name) for name in COMMANDS]
    intro = (
        "Data goes to standard output, everything else to standard error. The exit code is 0 when "
        "it is done, 1 when it failed, 2 for wrong use, 130 after Ctrl-C (0 in `logs -f`, "
        "which ends that way). An id may be shortened to any prefix that is unambiguous. "
        "`NO_COLOR` is honoured.\n"
    )
    return "\n".join(["# Commands\n", NOTE, intro, *sections])


def command(context: click.Context, name: str) -> str:
    found = main.get_command(context, name)
    assert found is not None
    help = found.get_help(click.Context(found, info_name=f"replicate {name}", max_content_width=88))
    other = [alias for alias, of in ALIASES.items() if of == name]
    alias = f"Also `replicate {other[0]}`.\n\n" if other else ""
    return f"## replicate {name}\n\n{alias}```\n{help}\n```\n"


def configuration() -> str:
    """The page of `replicate.yaml` and of the variables."""
    rows = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in ENVIRONMENT.items())
    page = (REFERENCE / "configuration.md").read_text("utf-8")
    table = f"| variable | meaning |\n|---|---|\n{rows}\n"
    return re.sub(r"\| variable \| meaning \|\n(\|.*\n)*", lambda _: table, page)


def pages() -> dict[Path, str]:
    return {
        REFERENCE / "commands.md": commands(),
        REFERENCE / "configuration.md": configuration(),
    }


if __name__ == "__main__":
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text("utf-8") != text]
    if "--check" in sys.argv:
        sys.exit(f"stale: {', '.join(p.name for p in stale)}" if stale else 0)
    for page, text in pages().items():
        page.write_text(text, "utf-8")
