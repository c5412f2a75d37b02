"""What a training script and a notebook call: `init` and `experiments`. It speaks to the
person at a terminal, and leaves the rest to `project`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from replicate import analysis, project
from replicate.errors import RepositoryError
from replicate.project import Checkpoint, Experiment, Experiments
from replicate.text import escape


def init(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = ".",
    params: object = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    notes: str | None = None,
    group: str | None = None,
    keep: Mapping[str, int] | None = None,
    parent: Experiment | Checkpoint | str | None = None,
    resume: Experiment | Checkpoint | str | None = None,
    from_step: float | None = None,
    console: bool | str | None = None,
) -> Experiment:
    """Start to record this run of a training script.

    `path` is what to copy of the project: by default all of it, but what .gitignore and
    .replicateignore list; None copies nothing. `params` may be a dict, an `argparse.Namespace`, a
    dataclass, or a pydantic or OmegaConf object. `keep`, such as {"best": 3, "last": 1}, says
    which checkpoints keep their files; the metrics of all of them stay. `parent` is the experiment
    or checkpoint that this run starts from.

    `resume` is the id of an experiment to go on with, or of the checkpoint to go on from, by
    default the latest that has files; what the run recorded after it, or after `from_step`, is
    superseded and kept. "latest" means the newest unfinished run of the same command; where there
    is none, a new one begins. `experiment.resumed_from` is the checkpoint to restore. The labels
    of the experiment stay as they are.

    What the run prints is kept, unless `console` is False; "all" also has what C code and child
    processes print on a terminal, which is then no terminal to them.

    Raises ReplicateError when the set-up is wrong or the repository cannot be written. After that
    nothing raises, and nothing stops a run.
    """
    _refuse_namesake()
    labels: dict[str, Any] = {"name": name, "tags": tags, "notes": notes, "group": group}
    return Project().init(
        path,
        params,
        **labels,
        keep=keep,
        parent=parent,
        resume=resume,
        from_step=from_step,
        console=console,
    )


class Project(project.Project):
    """The directory of a model's code, and the repository that its runs are kept in.

    `repository` is a path or URL, and `directory` where to look for the project, from there
    upwards; each is found as the configuration says when it is left out.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str] | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(
            repository,
            directory,
            report=_terminal.say,
            show=_terminal.show,
            streams=lambda: (sys.stdout, sys.stderr),
        )


def load(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str] | None = None,
    framework: Literal["numpy", "pt"] = "numpy",
) -> Any:
    """One of a checkpoint's files as a value, by the ending of its name.

    .safetensors is a dict of arrays (of tensors of torch with framework="pt"), .npz a dict of
    arrays, .npy an array; .json what it says; .csv and .parquet a data frame; .txt, .md, .yaml and
    the like text. `path` may be left out when the checkpoint has one file.

    Nothing is ever unpickled. Any other file is a UsageError that says how to open it yourself.
    """
    name = checkpoint.path if path is None else Path(path).as_posix()
    with checkpoint.open(path if path is None else os.fspath(path)) as file:
        return analysis.read(file, str(name), framework)


#: The experiments of the project that the working directory is in: `list()` and `get(id)`.
experiments = Experiments(lambda: Project().experiments.all(), lambda id: Project().find(id))


class _Terminal:
    """What the person sees of a run, on stderr. A run goes on without it: it may be closed, or no
    more than something to write to."""

    #: A message that is shown for the moment stands on a line that the next one overwrites, and
    #: where there is no terminal comes so seldom (seconds).
    _SELDOM = 10.0
    _CLEAR = "\r\x1b[K"

    def __init__(self) -> None:
        self._shown = False
        self._next = 0.0

    def say(self, message: str) -> None:
        """Tell the person."""
        self._write(f"{message}\n")

    def show(self, message: str) -> None:
        """Show what holds for the moment; "" when nothing does any more."""
        if self._is_terminal():
            if message or self._shown:
                self._write(message)
                self._shown = bool(message)
        elif message and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._SELDOM
            self.say(message)

    def _is_terminal(self) -> bool:
        try:
            return sys.stderr.isatty()
        except (OSError, ValueError, AttributeError):
            return False

    def _write(self, message: str) -> None:
        """In a form that every encoding has a way to show."""
        stream = sys.stderr
        if stream is None:  # as under pythonw
            return
        mark = "═══╡ "
        try:
            mark.encode(getattr(stream, "encoding", None) or "ascii")
        except (UnicodeEncodeError, LookupError):
            mark = "===| "
        clear, self._shown = self._CLEAR if self._shown else "", False
        try:
            encoding = getattr(stream, "encoding", None) or "ascii"
            shown = escape(message, keep="\n")  # part of it may be what others have recorded
            text = f"{mark}{shown}" if message else ""
            stream.write(clear + text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass


_terminal = _Terminal()


def _refuse_namesake() -> None:
    """Another product's client is called `replicate` on PyPI. Installed over this package, or this
    over it, its files lie among ours."""
    if (Path(__file__).parent / "client.py").exists():
        raise RepositoryError(
            f"Another package called `replicate` is installed in the same place as this one, "
            f"{Path(__file__).parent}: the API client of replicate.com.",
            hint="Uninstall both (`pip uninstall replicate`, twice), then install this one again.",
        )
