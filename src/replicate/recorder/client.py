"""The recorder, as the training script has it: what it is given lies in the spool when the call
returns, and a helper process takes it from there.

After `begin` nothing here raises into the training script. What goes wrong is reported once, and
stands in the journal.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

from replicate.backends.base import Content
from replicate.config import Keep, redaction
from replicate.errors import StorageError
from replicate.model import Attempt, CheckpointRecord, ExperimentRecord, Stop, Value, short
from replicate.recorder import capture
from replicate.recorder.console import Console
from replicate.recorder.holds import Holds
from replicate.recorder.link import Aside, HelperGone, HelperLink, Saver
from replicate.recorder.pace import REMOTE
from replicate.recorder.points import PointLog
from replicate.recorder.waiting import Stalled, Waiting
from replicate.records import (
    attempt_data,
    checkpoint_data,
    encode_experiment,
    encode_lost,
    encode_time,
    new_id,
    stop_data,
)
from replicate.repository import Repository
from replicate.spool import Spool, job_header
from replicate.text import size as size_text
from replicate.tree import Listing, Selected

#: Files up to this size travel inside their job (bytes): one file to create, and not two.
INLINE = 64 << 10
#: More than this in one job goes into files of its own after all, which bounds memory (bytes).
_MAX_INLINED = 32 << 20
#: Jobs that could not be spooled are kept in memory up to this size in all (bytes).
_MAX_KEPT = 256 << 20
#: How often a helper that has died is started again.
_RESTARTS = 2
#: How often a run that only logs looks whether its helper lives (seconds).
_RING = 5.0
#: For so long a run that begins waits for the first answer of a remote repository (seconds).
_REACH = 3.0
#: How often a program that ends tries to write what only its memory holds, and after how long.
_LAST_TRIES, _LAST_PAUSE = 10, 0.25

Report = Callable[[str], None]
#: A job that could not be written: its name, header and data.
_Kept = tuple[str, Mapping[str, Any], Sequence[Content]]


class Recorder:
    """Records one experiment. Safe to use from several threads, and from forked children."""

    def __init__(
        self,
        repository: Repository,
        spool: Spool,
        settings: Mapping[str, Any],
        report: Report,
        console: Console | None = None,
        show: Report = lambda message: None,
    ) -> None:
        self._repository = repository
        self._spool = spool
        self._settings = settings
        self._report_to = report
        self._show_to = show
        self._redact = redaction(settings["allow_secrets"])
        self._said: set[str] = set()
        self._kept: list[_Kept] = []
        self._restarts = 0
        #: Files that the helper is to copy.
        self._holds = Holds()
        #: Bytes that were spooled since the spool was last looked at.
        self._unseen = 0
        self._saver: Saver | None = None
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._lock_descriptor = -1
        self._points = PointLog(str(spool.directory), self.problem)
        self._ring_at = 0.0
        self._console = console
        self._online: bool = settings["online"]
        #: Whether the repository has answered when the run began, where it was asked.
        self.reached = True
        self.stopped = False

    # ------------------------------------------------------------ the calls of a run

    def begin(
        self, inputs: ExperimentRecord | Attempt, listing: Listing | None, modules: list[str]
    ) -> None:
        """Spool the inputs of a run, or of another attempt at one, and start the helper. Raises
        StorageError when it cannot, and leaves nothing behind."""
        header = _inputs_header(inputs, modules)
        try:
            self._lock_descriptor = self._spool.create(
                inputs.number if isinstance(inputs, Attempt) else 1,
                {
                    **{name: self._settings[name] for name in ("compress", "keep")},
                    "inputs": header.get("record"),
                },
            )
            self._begin_console()
            self._start_helper()
            name = self._spool.next_name()
            files, data, problems = self._take_files(name, listing)
            self._spool.add(name, {**header, **files}, data)
            self._await_repository()
        except BaseException as error:
            self._abandon()
            if isinstance(error, OSError):
                raise StorageError(
                    f"Cannot write into {self._spool.directory}: {error.strerror}",
                    hint="Make it writable, free some space, or choose another repository.",
                ) from error
            raise
        _live.add(self)
        self._notify()
        for problem in problems.values():
            self.problem(problem)

    def _await_repository(self) -> None:
        """A set-up that cannot work is an error now. A network that is down is none."""
        asks = self._online and self._repository.backend.remote
        if not asks or not isinstance(self._saver, HelperLink):
            return
        with suppress(HelperGone):  # the next call replaces it
            self.reached = bool(self._saver.await_repository(_REACH))

    def _abandon(self) -> None:
        """The run is not recorded after all."""
        if self._console is not None:
            self._console.release()
            self._console.close()
        if self._saver is not None:
            self._saver.close(at_exit=False)
        if self._lock_descriptor >= 0:  # without it the spool, if there is one, is another's
            os.close(self._lock_descriptor)
            self._spool.destroy()

    def checkpoint(self, record: CheckpointRecord, listing: Listing | None) -> None:
        """Spool a checkpoint. Its files may be changed as soon as this returns."""
        with self._guarded("a checkpoint"):
            self._make_room(listing.size if listing else 0)
            name = self._spool.next_name()
            files, data, problems = self._take_files(name, listing)
            header = {
                "kind": "checkpoint",
                "time": encode_time(record.created),
                "data": checkpoint_data(replace(record, lost=(*record.lost, *problems))),
                **files,
            }
            self._add(name, header, data)
            for problem in problems.values():
                self.problem(problem)

    def log(self, metrics: Any, step: Any) -> None:
        """Spool a point. It costs some microseconds, and is never in the way of the run."""
        if self.stopped:
            self.report("log() was called after stop(): it is not recorded")
            return
        self._points.add(metrics, step)
        # Nobody has to be told of a point, but that the helper lives is looked at now and again.
        now = time.monotonic()
        if now >= self._ring_at:
            self._ring_at = now + _RING
            if self._lock.acquire(blocking=False):  # another thread may hold it for long
                try:
                    with self._guarded("a point"):
                        self._notify()
                finally:
                    self._lock.release()

    def problem(self, message: str) -> None:
        """Report something that went wrong, and keep it with the experiment."""
        message = self._redact(message)
        self.report(message)
        with self._guarded("a problem"):
            self._add_event("problem", {"message": _in_a_line(message)})

    def edit(self, kind: str, data: Mapping[str, Value]) -> None:
        """Record a change of the experiment's labels."""
        if self.stopped:
            self.report(f"a {kind} came after stop(): it is not recorded")
            return
        with self._guarded(f"a {kind}"):
            self._add_event(kind, data)

    def packages(self, modules: list[str]) -> None:
        """Record the packages of modules that were imported since the run began."""
        with self._guarded("packages"):
            self._add(self._spool.next_name(), job_header("packages", modules=modules), [])

    def wait(self) -> bool:
        """Return when all is in the repository (True), or cannot be brought there (False)."""
        if self.stopped or not self._online:
            return not self._kept and not self._spool.names()
        saved = [False]
        with self._guarded("what is pending"):
            saved = [self._wait(aside=self._aside)]
        return saved[0]

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Let other threads record in this block."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    def stop(self, stop: Stop, *, at_exit: bool = False) -> None:
        """Record the end of the run, wait until all is saved, and let the helper go. A second
        call does nothing."""
        if self.stopped or os.getpid() != self._owner:
            return
        self.stopped = True
        with self._guarded("the end of the run"):
            self._points.close()
            if self._console is not None:
                self._console.release()
        with self._guarded("the end of the run"):
            self._add_event("stop", stop_data(stop))
            try:
                self._empty_memory()
                if self._online:
                    self._wait()
                else:
                    self.report(
                        f"Experiment {short(self._spool.experiment)} is kept in "
                        f"{self._spool.directory}: `replicate sync` saves it to "
                        f"{self._repository.url}"
                    )
            except KeyboardInterrupt:
                self.report("Left what is not saved yet to the helper process, which goes on.")
            self._report_lost()
        _live.discard(self)
        with self._guarded("the end of the run"):
            self._holds.release(lambda job: False)
            if self._saver is not None:
                self._saver.close(at_exit=at_exit)
            if self._console is not None:
                self._console.close()
            os.close(self._lock_descriptor)
            if not isinstance(self._saver, HelperLink) and not self._spool.names():
                self._spool.destroy()

    @property
    def remote(self) -> bool:
        """Whether waiting for what is recorded means waiting for a network."""
        return self._repository.backend.remote

    @property
    def pending(self) -> int:
        """Bytes that are not in the repository yet: in the spool, or held still by a lease until
        the helper has copied them there. What it has read already is on its way."""
        read = self._saver.read if isinstance(self._saver, HelperLink) else 0
        return max(0, self._spool.size() + self._release_copied() - read)

    def _release_copied(self) -> int:
        """Let go of the files that the helper has copied; return the bytes of the others."""
        kept = {name for name, _, _ in self._kept}
        return self._holds.release(lambda job: job in kept or self._spool.has(job))

    @property
    def progress(self) -> int:
        """A number that changes while the helper is at work on one large thing."""
        saved = self._saver.progress if isinstance(self._saver, HelperLink) else 0
        return saved + self._spool.copying()

    @property
    def failing(self) -> bool:
        """Whether the repository cannot be reached at present, as far as is known here."""
        return isinstance(self._saver, HelperLink) and self._saver.failing

    def show(self, message: str) -> None:
        """Show the person what holds for the moment; "" when that is over."""
        self._show_to(message)

    def report(self, message: str) -> None:
        """Tell the person, once for each message, and without secrets."""
        message = self._redact(message)
        if message not in self._said:
            self._said.add(message)
            self._report_to(message)

    # ------------------------------------------------------------ spooling

    def _make_room(self, size: int) -> None:
        """When saving is slower than the run, wait until what is pending and `size` more bytes are
        within bounds. While the repository cannot be written nothing is gained by waiting."""
        bound = int(self._settings["max_pending"])
        self._unseen += size
        # To look at the spool takes time, so that is done only when it may have filled up.
        if self._unseen < bound // 8 or os.getpid() != self._owner:
            return
        self._unseen = size
        if self.pending + size > bound and (self.failing or not self._online):
            self.report(f"More than {size_text(bound)} wait in {self._spool.directory}")
        elif self.pending + size > bound:
            self.report(
                f"Saving is slower than the run: checkpoint() waits while more than "
                f"{size_text(bound)} are pending (`max_pending` in replicate.yaml)."
            )
            self._wait(below=max(0, bound - size))

    def _add_event(self, kind: str, data: Mapping[str, Value]) -> None:
        self._add(self._spool.next_name(), job_header(kind, data=data), [])

    def _add(self, name: str, header: Mapping[str, Any], data: Sequence[Content]) -> None:
        """Spool a job, and those before it that could not be."""
        self._kept.append((name, header, data))
        self._spool_kept()
        self._notify()

    def _spool_kept(self) -> None:
        """Spool the jobs that memory holds, as far as that is possible now."""
        try:
            while self._kept:
                self._spool.add(*self._kept[0])
                self._kept.pop(0)
        except OSError as error:
            self._keep_in_memory(error)
        except Exception:
            self._kept.pop(0)  # it will not do better next time, and others come after it
            raise

    def _keep_in_memory(self, error: OSError) -> None:
        """The disk may have room again at the next call: until then, memory has it."""
        size = sum(len(content) for _, _, data in self._kept for content in data)
        if size > _MAX_KEPT:
            name, header, _ = self._kept.pop()
            self._kept.append((name, _without_files(header), []))
            self.report(
                f"The files of a checkpoint are lost: {self._spool.directory} cannot be written "
                f"({error.strerror}), and memory for what is pending is used up."
            )
        self.report(
            f"Cannot write into {self._spool.directory}: {error.strerror}. What is recorded is "
            "kept in memory and written as soon as that is possible. Free some space on that disk."
        )

    def _take_files(
        self, job: str, listing: Listing | None
    ) -> tuple[dict[str, Value], list[Content], dict[str, str]]:
        """The files as a job's header lists them, the bytes that go into the job itself, and a
        sentence for each path that could not be taken."""
        if listing is None:
            return {}, [], {}
        files: list[dict[str, Value]] = []
        data: list[Content] = []
        problems: dict[str, str] = {}
        position = 0
        for number, item in enumerate(listing.selected):
            try:
                if item.kind == "link":
                    place: dict[str, Value] = {"target": item.target}
                elif item.size <= INLINE and position < _MAX_INLINED:
                    data.append(item.source.read_bytes())
                    place = {"mode": item.mode, "at": position, "size": len(data[-1])}
                    position += len(data[-1])
                else:
                    place = {"mode": item.mode, **self._take_large(item, job, number)}
                files.append({"path": item.path, **place})
            except (StorageError, OSError) as error:
                problems[item.path] = f"{item.path} could not be saved: {error}"
        return {"files": files}, data, problems

    def _take_large(self, item: Selected, job: str, number: int) -> dict[str, Value]:
        beside = self._spool.beside(job, number)
        place: dict[str, Value] = {"beside": number, "source": str(item.source)}
        helper = self._saver if isinstance(self._saver, HelperLink) else None
        if helper is not None and os.getpid() == self._owner:
            with capture.take(item.source, beside) as taken:
                place["state"] = list(taken.state)
                if taken.fd is None:
                    return place
                if helper.pass_lease(taken, job, number):
                    self._holds.add(taken, job, number, beside)
                    seal = {"seal": list(taken.seal or ()), "settled": taken.settled}
                    return {**place, "helper": helper.number, **seal}
        with capture.take(item.source, beside, lease=False) as taken:
            return {**place, "state": list(taken.state)}

    # ------------------------------------------------------------ the helper

    def _begin_console(self) -> None:
        """Keep what is printed, where that is possible; if not, the run is recorded without it."""
        if self._console is None:
            return
        try:
            self._console.begin(self._spool.directory)
        except OSError as error:
            self._console = None
            self.report(f"What is printed is not kept: {error}")

    def _start_helper(self) -> None:
        console = self._console.settings if self._console else {"tails": [], "watch": None}
        self._release_copied()
        held = self._holds.inherited()
        try:
            self._saver = HelperLink(
                self._restarts,
                self._spool,
                self._lock_descriptor,
                {
                    **self._settings,
                    "console": console,
                    "held": held,
                    # What the helper saves soon need not be copied before.
                    "hold": self._online and not self._repository.backend.remote,
                },
                (*(self._console.descriptors if self._console else ()), *(h["fd"] for h in held)),
            )
        except (OSError, ValueError) as error:
            self.report(f"No helper process can be started here ({error}): {self._instead}")
            self._save_in_foreground()

    @property
    def _instead(self) -> str:
        """What it means that there is no helper process."""
        if self._repository.backend.remote:
            return "what is recorded is kept on this machine, and saved when the run ends."
        return "saving happens in the foreground, and checkpoint() takes as long as that takes."

    def _save_in_foreground(self) -> None:
        # The committer brings 15 ms of imports, which only a run without a helper has to pay.
        from replicate.recorder.commit import Committer
        from replicate.recorder.foreground import Foreground, Kept

        self._holds.copy_here()
        if not self._online:
            self._saver = Kept()
            return
        committer = Committer(
            self._repository,
            self._spool,
            compress=self._settings["compress"],
            keep=self._settings["keep"] and Keep(**self._settings["keep"]),
            tails=self._console.settings["tails"] if self._console else (),
            redact=self._redact,
        )
        directory = Path(self._settings["directory"])
        self._saver = Foreground(self._repository, committer, directory)

    def _notify(self) -> None:
        assert self._saver is not None
        if os.getpid() != self._owner:
            return  # a forked child: the answers are its parent's, and so is the next call
        if self._console is not None:
            self._console.check()
        while True:
            try:
                problems = self._saver.notify()
                break
            except HelperGone:
                self._replace_helper()
        self._release_copied()
        for problem in problems:
            self.report(problem)

    def _replace_helper(self) -> None:
        """What is in the spool is safe: somebody else commits it."""
        self._restarts += 1
        if self._restarts <= _RESTARTS:
            self._start_helper()
        else:
            self.report(f"The helper process keeps ending: {self._instead}")
            self._save_in_foreground()

    def _wait(self, below: int = 0, aside: Aside = nullcontext) -> bool:
        waiting = Waiting(self)
        self._spool_kept()
        while True:
            saver = self._saver
            assert saver is not None
            try:
                trouble = saver.wait(waiting.tick, below, aside)
                break
            except HelperGone:
                if self.stopped and aside is not nullcontext:  # by another thread, which has waited
                    return not (self._kept or self._spool.names())
                if saver is self._saver:
                    self._replace_helper()
            except Stalled as stalled:
                trouble = str(stalled)
                break
            finally:
                self.show("")
        self._release_copied()
        for problem in saver.problems():
            if trouble is None or not problem.startswith(trouble):
                self.report(problem)
        if trouble:
            self.report(
                f"Not everything could be saved: {trouble}\n{self._lost}What is pending is in "
                f"{self._spool.directory}, and {self._next}."
            )
        return not (trouble or self._kept)

    @property
    def _lost(self) -> str:
        """How much is lost already, in a sentence."""
        count = self._saver.lost if isinstance(self._saver, HelperLink) else 0
        if not count:
            return ""
        files = "1 large file" if count == 1 else f"{count:,} large files"
        return f"{files} of checkpoints could not be kept, and what has changed since is lost. "

    @property
    def _next(self) -> str:
        """Who saves what a run has left."""
        if self._repository.backend.remote:
            return (
                f"is tried again for {REMOTE.patience / 60:.0f} minutes; `replicate sync` saves "
                "what is left then"
            )
        return "the next run in this project saves it"

    def _empty_memory(self) -> None:
        """What only memory holds is lost with this process: try for a while to write it."""
        for _ in range(_LAST_TRIES):
            if not self._kept:
                return
            time.sleep(_LAST_PAUSE)
            self._spool_kept()

    def _report_lost(self) -> None:
        if self._kept:
            lost = sum(header["kind"] == "checkpoint" for _, header, _ in self._kept)
            self.report(
                f"{lost} checkpoint{'' if lost == 1 else 's'} and how the run ended are lost: "
                f"{self._spool.directory} could not be written to the end."
            )

    # ------------------------------------------------------------ never hurt the run

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Run a block alone, and turn any error into a report."""
        try:
            with self._lock:
                yield
        except Exception as error:
            self.report(f"Recording {what} failed: {type(error).__name__}: {error}")

    def _after_fork(self) -> None:
        """In a forked child: the lock may be held by a thread that is not here, and the lock on
        the spool is the parent's and the helper's."""
        self._lock = threading.RLock()
        self._holds.forget()
        self._points.renew()
        if self._console is not None:
            self._console.after_fork()
        os.close(self._lock_descriptor)


def _inputs_header(inputs: ExperimentRecord | Attempt, modules: list[str]) -> dict[str, Value]:
    if isinstance(inputs, Attempt):
        data = {"id": new_id(), **attempt_data(inputs)}
        return {**job_header("attempt", data=data, modules=modules)}
    record = encode_experiment(inputs).decode()
    return job_header("experiment", record=record, modules=modules)


def _in_a_line(message: str) -> str:
    """The lines of a message as sentences."""
    *first, last = filter(None, map(str.strip, message.split("\n")))
    return " ".join([*(line if line[-1] in ".:;?!" else f"{line}." for line in first), last])


def _without_files(header: Mapping[str, Any]) -> Mapping[str, Any]:
    """The header of a job whose files are lost; of a checkpoint, it names them."""
    if header["kind"] != "checkpoint" or "files" not in header:
        return {**header, "files": []} if "files" in header else header
    lost = [*header["data"].get("lost", ()), *(file["path"] for file in header["files"])]
    return {**header, "files": [], "data": {**header["data"], **encode_lost(lost)}}


_live: WeakSet[Recorder] = WeakSet()


def live_recorders() -> list[Recorder]:
    """The recorders of this process whose runs go on."""
    return [r for r in _live if r._owner == os.getpid() and not r.stopped]


def _after_fork_in_child() -> None:
    for recorder in list(_live):
        recorder._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
