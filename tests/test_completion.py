"""Tab in bash, zsh and fish: real shells at a terminal, and what they ask of the program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest

from conftest import posix
from replicate.cli import COMMANDS, main
from replicate.cli.options import ID
from replicate.model import CheckpointRecord, ExperimentRecord
from replicate.records import checkpoint_data, now
from saving import local

pytestmark = posix

#: At each of these shells ^G writes the command line as it stands to the file "line".
RC = {
    "bash": """
        eval "$(replicate completion bash)"
        show() { printf '%s\\n' "$READLINE_LINE" > line; }
        bind -x '"\\C-g": show'
        bind 'set bell-style none'
        PROMPT_COMMAND='PROMPT_COMMAND=; echo ready > line'
    """,
    "zsh": """
        autoload -Uz compinit && compinit -u -d .zcompdump
        unsetopt beep
        eval "$(replicate completion zsh)"
        show() { print -r -- "$BUFFER" > line }
        zle -N show && bindkey '^G' show
        zle-line-init() { print ready > line }
        zle -N zle-line-init
    """,
    "fish": """
        replicate completion fish | source
        function show; commandline > line; end
        bind \\cg show
        function fish_greeting; end
        function fish_prompt; set -q told; or echo ready > line; set -g told 1; echo '$ '; end
    """,
}
START = {
    "bash": ["bash", "--noprofile", "--rcfile", "rc", "-i"],
    "zsh": ["zsh", "-i"],
    "fish": ["fish", "--no-config", "--init-command", "source rc", "-i"],
}
#: Runs a command in a session of its own, which its standard input controls.
_AT_A_TERMINAL = "import os, sys; os.login_tty(0); os.execvp(sys.argv[1], sys.argv[1:])"


class Shell:
    """A shell at a terminal, with a person who types."""

    def __init__(self, name: str, directory: Path) -> None:
        rc = directory / (".zshrc" if name == "zsh" else "rc")
        rc.write_text(RC[name])
        self._line = directory / "line"
        os.mkfifo(self._line)
        self._person, terminal = os.openpty()
        termios.tcsetwinsize(terminal, (50, 200))
        environment = {
            "HOME": str(directory),
            "ZDOTDIR": str(directory),
            "PATH": f"{_program(directory)}:{os.environ['PATH']}",
            "TERM": "xterm",
            "LANG": "C.UTF-8",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _AT_A_TERMINAL, *START[name]],
            cwd=directory,
            env=environment,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        self._shown, self._more = b"", threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._line.read_text() == "ready\n"

    def typed(self, keys: str) -> str:
        """The command line after these keys."""
        os.write(self._person, keys.encode() + b"\x07")
        return self._line.read_text().removesuffix("\n")

    def shows(self, text: str) -> bool:
        """Whether the text appears: waits until it does, or the test runs out of time."""
        with self._more:
            return self._more.wait_for(lambda: text.encode() in self._shown)

    def _read(self) -> None:
        with suppress(OSError):  # the terminal is closed
            while data := os.read(self._person, 4096):
                with self._more:
                    self._shown += data
                    self._more.notify()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        os.close(self._person)


def _program(directory: Path) -> Path:
    """A directory with the `replicate` of this environment."""
    program = directory / "bin" / "replicate"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m replicate "$@"\n')
    program.chmod(0o755)
    return program.parent


@pytest.fixture
def kept(tmp_path: Path) -> list[ExperimentRecord]:
    """Three experiments in the repository of a directory."""
    repository = local(tmp_path / ".replicate")
    records = []
    for number in range(3):
        record = ExperimentRecord(
            id=f"{number:x}abcdef".ljust(64, str(number)),
            created=now(),
            params={"model": {"depth": number}, "lr": 0.1},
            user="ada",
            host="lovelace",
            command=f"train.py {number}",
            path=None,
            tree=None,
        )
        repository.create_experiment(record)
        checkpoint = CheckpointRecord(
            id=f"c{number}".ljust(64, "5"),
            experiment=record.id,
            created=now(),
            step=number * 10,
            path=None,
            tree=None,
            metrics={"val/loss": 0.1, "train loss": 0.2},
        )
        journal = repository.journal(record.id, "0" * 16)
        journal.append([("checkpoint", checkpoint.created, checkpoint_data(checkpoint))])
        records.append(record)
    return records


@pytest.fixture(params=[*START])
def shell(
    request: pytest.FixtureRequest, tmp_path: Path, kept: list[ExperimentRecord]
) -> Iterator[Shell]:
    """Each of the shells in that directory."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    started = Shell(request.param, tmp_path)
    yield started
    started.close()


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("replicate compl\t", "replicate completion "),
        ("replicate completion f\t", "replicate completion fish "),
        ("replicate show 1a\t", "replicate show 1abcdef "),
        ("replicate diff 1abcdef c2\t", "replicate diff 1abcdef c255555 "),
        ("replicate show 1abcdef11\t", f"replicate show {'1abcdef'.ljust(64, '1')} "),
        ("replicate ls --filt\t", "replicate ls --filter "),
        ('replicate ls -f "val\t', 'replicate ls -f "val/loss '),
        ('replicate ls --filter "tr\t', 'replicate ls --filter "train loss '),
        ("replicate ls --sort model\t", "replicate ls --sort model.depth"),
        ("replicate ls --sort val/loss-\t", "replicate ls --sort val/loss-desc "),
        ("replicate ls --sort=mod\t", "replicate ls --sort=model.depth"),
        ("replicate ls --columns lr,model\t", "replicate ls --columns lr,model.depth "),
        ("replicate plot val\t", "replicate plot val/loss "),
        (
            "replicate plot val/loss --scatter mod\t",
            "replicate plot val/loss --scatter model.depth ",
        ),
        ("replicate ls -D .rep\t", "replicate ls -D .replicate/"),
        ("replicate show xyz\t", "replicate show xyz"),
    ],
)
def test_tab_completes_what_is_meant(shell: Shell, keys: str, line: str) -> None:
    assert shell.typed(keys) == line


@pytest.mark.parametrize("shell", ["bash"], indirect=True)
def test_bash_opens_a_quote_for_a_name_that_is_not_quoted(shell: Shell) -> None:
    assert shell.typed("replicate ls -f val\t") == "replicate ls -f 'val/loss "


@pytest.mark.parametrize("shell", ["zsh", "fish"], indirect=True)
def test_zsh_and_fish_tell_commands_and_steps_beside_the_ids(shell: Shell) -> None:
    shell.typed("replicate show \t\t")
    assert shell.shows("train.py 1")
    assert shell.shows("checkpoint of 2abcdef, step 20")


# ---------------------------------------------------------------- what a shell asks and is told


def ask(directory: Path, *words: str, shell: str = "bash") -> list[str]:
    """The completions of the last word. Nothing else is ever said."""
    done = subprocess.run(
        [sys.executable, "-m", "replicate"],
        cwd=directory,
        env={
            **os.environ,
            "COMP_WORDS": "\n".join(["replicate", *words]),
            "COMP_CWORD": str(len(words)),
            "_REPLICATE_COMPLETE": f"{shell}_complete",
        },
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [line.removeprefix("plain,") for line in done.stdout.splitlines() if line]


def test_no_id_at_all_is_answered_with_what_is_needed(
    tmp_path: Path, kept: list[ExperimentRecord]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "replicate", "show", ""],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: An id is needed here, or the first characters of one\n")


def test_ids_are_the_newest_first(tmp_path: Path, kept: list[ExperimentRecord]) -> None:
    ids = ["2abcdef", "1abcdef", "0abcdef", "c255555", "c155555", "c055555"]
    assert ask(tmp_path, "rm", "") == ids
    assert ask(tmp_path, "rm", "2abcdef", "c1") == ["c155555"]


def test_what_is_copied_from_another_repository_is_completed_from_there(
    tmp_path: Path, kept: list[ExperimentRecord]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "replicate.yaml").write_text("repository: own\n")
    assert ask(empty, "pull", "..", "2") == ["2abcdef"]
    assert ask(empty, "cp", "../.replicate", "backup", "c1") == ["c155555"]
    assert ask(empty, "pull", "..", "--filter", "mod") == [
        f"'model.depth {sign}" for sign in ("=", "!=", "<", "<=", ">", ">=")
    ]
    assert ask(empty, "push", "..", "2") == []


def test_an_empty_word_is_answered_with_every_name(
    tmp_path: Path, kept: list[ExperimentRecord]
) -> None:
    offered = ask(tmp_path, "ls", "--filter", "")
    assert offered[:3] == ["id", "created", "status"]
    assert offered[-4:] == ["model.depth", "lr", "val/loss", "'train loss"]


def test_a_plot_is_offered_metrics_and_params(tmp_path: Path, kept: list[ExperimentRecord]) -> None:
    assert ask(tmp_path, "plot", "") == ["val/loss", "'train loss"]
    assert ask(tmp_path, "plot", "--scatter", "") == ["model.depth", "lr"]
    assert ask(tmp_path, "plot", "val/loss", "1") == ["1abcdef"]


def test_an_unambiguous_name_is_answered_with_its_operators(
    tmp_path: Path, kept: list[ExperimentRecord]
) -> None:
    expected = [f"val/loss {sign}" for sign in ("=", "!=", "<", "<=", ">", ">=")]
    assert ask(tmp_path, "ls", "-f", '"val') == expected
    assert ask(tmp_path, "ls", "-f", '"val/loss <') == ["val/loss <", "val/loss <="]


@pytest.mark.parametrize("shell", [*START])
@pytest.mark.parametrize("words", [["show", ""], ["ls", "-f", ""], ["nonsense", ""], ["--x", ""]])
@pytest.mark.parametrize("broken", ["", "{}", '{"format": "replicate", "version": 99}'])
def test_whatever_is_wrong_tab_says_nothing_of_it(
    tmp_path: Path, shell: str, words: list[str], broken: str
) -> None:
    (tmp_path / ".replicate").mkdir()
    (tmp_path / ".replicate" / "repository.json").write_text(broken)
    ask(tmp_path, *words, shell=shell)


def test_a_wrong_configuration_is_no_matter_for_tab(tmp_path: Path) -> None:
    (tmp_path / "replicate.yaml").write_text("repositry: [")
    assert ask(tmp_path, "show", "") == []
    assert "show" in ask(tmp_path, "")


@pytest.mark.parametrize("shell", [*START])
def test_the_script_is_the_same_in_both_ways_to_ask_for_it(shell: str) -> None:
    command = [sys.executable, "-m", "replicate"]
    printed = subprocess.run([*command, "completion", shell], capture_output=True, check=True)
    asked = subprocess.run(
        command,
        env={**os.environ, "_REPLICATE_COMPLETE": f"{shell}_source"},
        capture_output=True,
        check=True,
    )
    assert printed.stdout.strip() == asked.stdout.strip() != b""
    assert printed.stderr == asked.stderr == b""


@pytest.mark.parametrize("name", [*COMMANDS])
def test_every_id_can_be_completed(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for parameter in command.params:
        if "ID" in (parameter.make_metavar(click.Context(command)) or ""):
            assert parameter.type is ID, f"{name}: type=ID completes {parameter.name}"


@pytest.mark.parametrize("shell", [*START])
@pytest.mark.parametrize("begun", ["", "'", '"'])
def test_a_name_that_a_shell_would_act_on_is_not_offered(
    tmp_path: Path, kept: list[ExperimentRecord], shell: str, begun: str
) -> None:
    """Who presses Tab and Enter must not run what somebody else has recorded."""
    hostile = ["x'$(touch pwned)", "x`id`", 'x";id;"', "x\nplain,y", "x\x1b[2J", "x\\"]
    made = kept[2]
    local(tmp_path / ".replicate").journal(made.id, "1" * 16).append(
        [("summary", made.created, {"metrics": dict.fromkeys([*hostile, "xfine"], 1)})]
    )
    offered = ask(tmp_path, "plot", f"{begun}x", shell=shell)
    assert [word for word in offered if word.startswith("x") or "pwned" in word] in (["xfine"], [])
    assert not any(c in line for line in offered for c in "$`\x1b\\")
