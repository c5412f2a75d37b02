"""Draw docs/images/terminal.svg from what the commands really print.

Wants `pip install rich` in the environment, which nothing else does: `python scripts/picture.py`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "terminal.svg"
#: rich's own template, without the fonts that it would have a browser fetch.
TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>The output of replicate ls, diff and checkout in a terminal</title>
<style>
.{unique_id}-matrix {{ font: {char_height}px Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


def run(*command: str, directory: Path) -> str:
    """What the command prints on both streams, or an exception when it fails."""
    environment = os.environ | {"REPLICATE_USER": "ben", "REPLICATE_HOST": "laptop"}
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout


def session(directory: Path) -> str:
    """The text of a terminal in which two experiments are listed, compared and checked out."""
    run(sys.executable, "train.py", directory=directory)
    run(sys.executable, "train.py", "--learning_rate=0.05", directory=directory)
    first, second = run("replicate", "ls", "--quiet", directory=directory).split()
    commands = [["ls"], ["diff", first[:7], second[:7]], ["checkout", second[:7], "-o", "best"]]
    shown = []
    for arguments in commands:
        output = run("replicate", "--color=always", *arguments, directory=directory)
        shown.append(f"\x1b[1;32m$\x1b[0m replicate {' '.join(arguments)}\n{output}")
    return "\n".join(shown).replace(str(directory), "/home/ben/digits")


def draw(text: Text) -> str:
    """The text in a terminal's window, as wide as its longest line."""
    width = max(line.cell_len for line in text.split())
    console = Console(record=True, width=width, file=StringIO(), force_terminal=True)
    console.print(text, end="")
    return console.export_svg(
        title="", theme=MONOKAI, code_format=TEMPLATE, unique_id="terminal", font_aspect_ratio=0.61
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary).resolve() / "digits"
        shutil.copytree(ROOT / "examples" / "quickstart", directory)
        text = Text.from_ansi(session(directory))
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(text))


if __name__ == "__main__":
    main()
