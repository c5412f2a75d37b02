"""From the spool into the repository: what a job means, and in which order its parts are written.

Blobs and trees first, then experiment.json or the journal line, which is the commit; a job leaves
the spool only after that. Whoever is killed in between leaves a job that the next one commits
again, to the same effect.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from replicate import environment
from replicate.backends.files import is_too_large
from replicate.background import Background
from replicate.blobs import FRESH, Batch, Recent
from replicate.config import Keep
from replicate.errors import (
    DamagedError,
    FullError,
    KeyNotFoundError,
    StorageError,
    UnsafeTreeError,
    UsageError,
)
from replicate.journal import JournalWriter
from replicate.model import Status, Value
from replicate.recorder.capture import TornCaptureError
from replicate.recorder.held import Held
from replicate.recorder.known import Known
from replicate.recorder.retention import Retention
from replicate.recorder.streams import Streams
from replicate.records import (
    decode_checkpoint,
    decode_experiment,
    decode_time,
    encode_lost,
    encode_value,
    new_id,
    now,
)
from replicate.repository import Repository
from replicate.secrets import Redact, redact_text
from replicate.spool import Job, Spool
from replicate.tree import Source, add_tree

#: Seconds between two heartbeats on a local disk, and where each is a request.
INTERVAL, REMOTE_INTERVAL = 10.0, 60.0
#: Seconds between two events that say what the logged metrics have come to.
_SUMMARY_INTERVAL = 10.0
#: How many jobs are committed together at most, so that their journal lines come soon.
_JOBS = 256
_BYTES = 256 << 20

#: What is told of a file that cannot be stored, whatever one waits for.
_TOO_LARGE = "it, or a file beside it, is larger than the file system or `ulimit -f` allows"

Event = tuple[str, datetime, Mapping[str, Value]]


@dataclass(slots=True)
class _Draft:
    """What a job will become once its blobs are durable."""

    job: str
    header: Mapping[str, Any]
    time: datetime
    tree: str | None = None
    size: int | None = None
    problems: list[str] = field(default_factory=list)
    #: The paths that could not be saved.
    lost: list[str] = field(default_factory=list)
    #: Found out while the disk is busy with the blobs.
    surroundings: Background[dict[str, Any]] | None = None

    def lose(self, path: str, why: str) -> None:
        """A file cannot be read: the others are saved."""
        step = self.header.get("data", {}).get("step")
        at = "" if step is None else f" at step {step}"
        self.problems.append(f"{path} could not be saved{at}: {why}")
        self.lost.append(path)

    def lose_source(self, source: Source, error: OSError) -> None:
        self.lose(source.path, error.strerror or str(error))

    def checkpoint(self, outcome: Mapping[str, Any]) -> Event:
        """The event of a checkpoint, which names what the trainer could not save of it, and what
        could not be saved here."""
        data = self.header["data"]
        lost = encode_lost([*data.get("lost", ()), *self.lost])
        return "checkpoint", self.time, {**data, **outcome, **lost}

    def facts(self) -> dict[str, Any]:
        """The machine, the git repository and the packages of a run, or of an attempt at it."""
        assert self.surroundings is not None
        return self.surroundings.result()


class Committer:
    """Commits the jobs of one spool. Not for use by two threads at once."""

    def __init__(
        self,
        repository: Repository,
        spool: Spool,
        *,
        compress: bool = False,
        keep: Keep | None = None,
        held: Held | None = None,
        progress: Callable[[int], None] = lambda read: None,
        tails: Sequence[Mapping[str, Any]] = (),
        redact: Redact = redact_text,
        alive: bool = True,
    ) -> None:
        """`held` are the files that a guard holds; without it each is a copy. `alive` says that
        the run goes on, or its helper does, which is what heartbeats tell. `progress` is told
        again and again how many bytes it has read of jobs that are still in the spool."""
        self._repository = repository
        self._held = held or Held(spool)
        self._known = Known(repository.backend)
        self._progress = progress
        #: So many jobs are tried at once, and those of which a file is larger than can be stored.
        self._at_once = _JOBS
        self._too_large: set[str] = set()
        #: Bytes of the large files of the jobs at hand that were read.
        self._read = 0
        self._redact = redact
        self._spool = spool
        self._compress = compress
        self._recent = Recent()
        self._keep = keep
        self._retention: Retention | None = None
        #: Seconds between two heartbeats.
        self.interval = REMOTE_INTERVAL if repository.backend.remote else INTERVAL
        self._alive = alive
        #: What the last heartbeat has said, and when, by the monotonic clock.
        self._beaten: tuple[dict[str, int], float] = {}, -math.inf
        self._journal: JournalWriter | None = None
        self._late = False
        self._summary: dict[str, Value] = {}
        self._summarized = 0.0
        #: Which attempt of the run this is: all that is written here belongs to it.
        self.attempt = spool.attempt
        #: Whether the attempt's inputs are there, without which nobody should write anything else.
        self.created = False
        self._begun = False
        self._streams = Streams(repository, spool, self.attempt, tails, redact)
        #: Whether this committer has recorded the run's end.
        self.stopped = False

    def _begin(self) -> None:
        """Find out, once, what is there of the run already. Raises StorageError."""
        if self._begun:
            return
        self.created = self._has_begun()
        if not self.created:
            self._streams.begin()
        if self._keep is not None:
            self._retention = Retention(self._repository, self._spool.experiment, self._keep)
        self._begun = True

    def _has_begun(self) -> bool:
        id = self._spool.experiment
        if not self._repository.has(id):
            return False
        return self.attempt == 1 or self._repository.experiment(id).attempt >= self.attempt

    @property
    def events(self) -> dict[str, int]:
        """How many journal lines this committer has made durable, by the name of the writer."""
        journal = self._journal
        return {journal.writer: journal.count} if journal else {}

    def has_stopped(self) -> bool:
        """Whether the run's end has been recorded, by this committer or by one before it."""
        id = self._spool.experiment
        self.stopped = self.stopped or self._repository.experiment(id).stop is not None
        return self.stopped

    def commit(self, directory: Path | None = None) -> Iterator[str]:
        """Commit all jobs, those that come meanwhile too; yield a sentence for each thing lost.

        `directory` is the project's while the run is alive: the state of its git repository is
        only taken then. Raises StorageError when the repository cannot be written; jobs then stay.
        """
        self._begin()
        while self.pending:
            yield from self.commit_some(directory, final=directory is None)

    @property
    def has_streamed(self) -> bool:
        """Whether this committer has committed points or output."""
        return self._streams.used

    @property
    def pending(self) -> bool:
        """Whether there are jobs in the spool, or points or output that nobody has looked at."""
        return bool(self._spool.names()) or (self.created and self._streams.pending)

    def record(self, *events: Event) -> None:
        """Commit events that were not spooled, such as how the process ended."""
        if self._journal is None:
            name = new_id()[:16]
            self._journal = self._repository.journal(
                self._spool.experiment, name, attempt=self.attempt
            )
        self._journal.append(events)
        self.stopped = self.stopped or any(kind == "stop" for kind, _, _ in events)

    def _summarize(self, *, at_once: bool) -> None:
        """Keep with the journal what the logged metrics have come to, for those who list runs and
        do not read all points: now and again, and when something else is committed."""
        last = self._streams.last
        late = time.monotonic() - self._summarized >= _SUMMARY_INTERVAL
        if last != self._summary and (at_once or late):
            self.record(("summary", now(), {"metrics": encode_value(dict(last))}))
            self._summary, self._summarized = dict(last), time.monotonic()

    def beat(self, *, news: bool = True) -> None:
        """Write the heartbeat, while there is an experiment: one that was removed stays so. After
        less than half of its interval only where it is to tell `news`, and has some."""
        said, at = self.events, time.monotonic()
        last, before = self._beaten
        if at - before < self.interval / 2 and (not news or said == last):
            return
        if self._alive and self.created and self._repository.has(self._spool.experiment):
            self._repository.beat(self._spool.experiment, self.interval, said)
            self._beaten = said, at

    # ------------------------------------------------------------ the steps of a commit

    def commit_some(
        self,
        directory: Path | None = None,
        *,
        final: bool = False,
        jobs: bool = True,
        streams: bool = True,
    ) -> list[str]:
        """Like `commit`, for as many of the oldest jobs as go well together, after the points and
        the output; with `final` also after a line of output that is not complete. Of jobs and
        `streams` either may be left for later. On a full disk it first removes the files that
        `keep` has let go, and goes on job by job: each that is saved leaves the spool."""
        self._begin()
        try:
            return self._commit_some(directory, final=final, jobs=jobs, streams=streams)
        except FullError:
            if not self._make_room() and self._at_once == 1:
                raise
            self._at_once = 1
        # Not before the error is forgotten, and with it what was begun, which takes space, too.
        return self._commit_some(directory, final=final, jobs=jobs, streams=streams)

    def _commit_some(
        self, directory: Path | None, *, final: bool, jobs: bool, streams: bool
    ) -> list[str]:
        names = self._spool.names() if jobs else []
        if self.created:
            if streams:
                self._streams.commit(final=final)
            self._summarize(at_once=final or bool(names))
        elif self._streams.pending:  # how the run ended comes after what it has logged and printed
            names = names[:-1] or names
        if not names:
            return []
        try:
            return self._commit_jobs(names[: self._at_once], directory)
        except StorageError as error:
            if not is_too_large(error) or names[0] in self._too_large:
                raise
            return self._without_too_large(names)

    def _without_too_large(self, names: Sequence[str]) -> list[str]:
        """A file of one of these jobs can never be stored: find out of which, and go on without
        its large files, so that the others are saved."""
        if self._at_once == 1:
            self._too_large.add(names[0])
        self._at_once = 1
        return []

    def _commit_jobs(self, names: Sequence[str], directory: Path | None) -> list[str]:
        """Commit as many of these as go well together."""
        started, self._read = time.time(), 0
        batch = self._repository.batch(compress=self._compress, recent=self._recent)
        drafts: list[_Draft] = []
        done: list[str] = []
        total = 0
        with ExitStack() as stack:
            for name in names:
                done.append(name)
                draft = self._draft(name, batch, stack)
                if draft.header["kind"] in ("experiment", "attempt"):
                    draft.surroundings = Background(partial(_surroundings, draft, directory))
                drafts.append(draft)
                total += draft.size or 0
                if total >= _BYTES:
                    break
            batch.flush()
        if time.time() - started > FRESH and not self._late:
            # As when a laptop slept: what was stored first may be old enough to be collected by
            # now. The next pass finds it and touches it, or stores it again.
            self._late = True
            return []
        self._late, self._at_once = False, _JOBS
        self._write(drafts, batch)
        for name in done:
            self._spool.remove(name)
            self._held.forget(name)
        self._progress(0)
        return [p for draft in drafts for p in draft.problems]

    def _count(self, length: int) -> None:
        self._read += length
        self._progress(self._read)

    def _draft(self, name: str, batch: Batch, stack: ExitStack) -> _Draft:
        """Queue the job's blobs. What cannot be read of it becomes a problem of the draft."""
        try:
            job = stack.enter_context(self._spool.open(name))
        except (DamagedError, OSError) as error:
            return _Draft(
                name, {"kind": "lost"}, now(), problems=[self._what_was_lost(name, error)]
            )
        draft = _Draft(name, job.header, decode_time(job.header["time"]))
        if "files" in job.header:
            try:
                sources = self._sources(job, draft)
                draft.tree, draft.size = add_tree(batch, sources, name, draft.lose_source)
            except (UsageError, UnsafeTreeError) as error:
                # That concerns this job only. A failure of the repository concerns every job, so
                # it is passed on, and all of them are tried again.
                draft.problems.append(f"The files of a checkpoint could not be saved: {error}")
                draft.lost = [file["path"] for file in job.header["files"]]
        return draft

    def _what_was_lost(self, name: str, error: Exception) -> str:
        """What it means to a person that a job cannot be read, as far as it still says."""
        what = "Something that the run has recorded, a checkpoint of an unknown step perhaps,"
        with suppress(DamagedError, OSError):
            header = self._spool.header(name)
            if header["kind"] == "checkpoint":
                what = f"The checkpoint of step {header['data']['step']}"
            else:
                what = f"Something that the run has recorded (a job of kind {header['kind']!r})"
        if isinstance(error, OSError):
            return f"{what} is lost: it cannot be read ({error.strerror or error})"
        return f"{what} is lost: a crash of the machine has left only a part of it"

    def _sources(self, job: Job, draft: _Draft) -> Iterator[Source]:
        """What the job's files hold. One that is lost is a problem, and the others are saved."""
        for file in job.header["files"]:
            if "target" in file:
                yield Source(file["path"], "link", target=file["target"])
                continue
            if "beside" in file and job.name in self._too_large:
                draft.lose(file["path"], _TOO_LARGE)
                continue
            if "at" in file:
                view = job.data[file["at"] : file["at"] + file["size"]]
            else:
                try:
                    with self._held.open(job.name, file, self._count) as reader:
                        yield self._known.source(file, reader)
                except TornCaptureError as error:
                    draft.lose(file["path"], str(error))
                continue
            yield Source(file["path"], "file", file["mode"], view)

    def _write(self, drafts: list[_Draft], batch: Batch) -> None:
        events: list[Event] = []
        for draft in drafts:
            stored = batch.stored[draft.job] if draft.tree else None
            outcome: dict[str, Any] = {"tree": draft.tree, "size": draft.size, "stored": stored}
            if packs := batch.packs_of(draft.tree) if draft.tree else ():
                outcome["packs"] = list(packs)
            kind = draft.header["kind"]
            if kind == "experiment":
                self._create(draft, outcome)
            elif kind == "attempt":
                self._begin_attempt(draft, outcome)
            elif kind == "packages":
                found = environment.packages(draft.header["modules"])
                events.append(("packages", draft.time, {"packages": found}))
            elif kind == "ending":
                if self._is_news(draft.header["data"], events):
                    events.append(("stop", draft.time, draft.header["data"]))
            elif kind == "checkpoint":
                events.append(draft.checkpoint(outcome))
            elif kind != "lost":
                events.append((kind, draft.time, draft.header["data"]))
            events += [("problem", now(), {"message": self._redact(p)}) for p in draft.problems]
        self.created = self.created or bool(events)
        self.record(*events)
        if self._retention is not None:
            self._drop(self._retention, events)

    def _is_news(self, ending: Mapping[str, Any], events: Sequence[Event]) -> bool:
        """Whether how the process ended says more than the script has said: when it has said
        nothing, or that all went well before it failed all the same."""
        said = [data["status"] for kind, _, data in events if kind == "stop"]
        if not said and self.created:
            with suppress(KeyNotFoundError):
                stop = self._repository.experiment(self._spool.experiment).stop
                said = [stop.status.value] if stop else []
        if not said:
            return self.created or bool(events)
        failed: bool = ending["status"] == Status.FAILED
        return said[-1] == Status.FINISHED and failed

    def _drop(self, retention: Retention, events: list[Event]) -> None:
        """Let go of the files that `keep` does not name, now that these events are committed."""
        id = self._spool.experiment
        made = [event for event in events if event[0] == "checkpoint"]
        dropped = retention.add([decode_checkpoint(id, time, data) for _, time, data in made])
        if dropped:
            self.record(("drop", now(), {"checkpoints": [c.id for c in dropped]}))
            retention.let_go(dropped)

    def free(self, *, all: bool = False) -> None:
        """Give back the space of what was dropped, once that is worth the time, or `all` of it."""
        if self._retention is not None:
            self._retention.free(all=all)

    def _make_room(self) -> bool:
        """Whether the disk has more room now than before."""
        with suppress(DamagedError):  # then nothing was removed, and the full disk is what matters
            return self._retention is not None and self._retention.make_room()
        return False

    def _create(self, draft: _Draft, outcome: Mapping[str, Any]) -> None:
        record = decode_experiment(draft.header["record"].encode(), "the spooled experiment")
        packs = tuple(outcome.get("packs", ()))
        record = replace(record, **draft.facts(), **{**outcome, "packs": packs})
        self._repository.create_experiment(record)
        self.created = True
        self.beat()  # at once: a run that has only begun must not look lost

    def _begin_attempt(self, draft: _Draft, outcome: Mapping[str, Any]) -> None:
        self.created = True
        self.beat()  # before the event, from which on its status is what the beat says
        facts = encode_value(draft.facts())
        self.record(("attempt", draft.time, {**draft.header["data"], **facts, **outcome}))
        if self._retention is not None:
            self._retention.reload()


def _surroundings(draft: _Draft, directory: Path | None) -> dict[str, Any]:
    """The machine and the packages of a run; its git repository while the run is alive."""
    facts = environment.machine()
    if directory is not None:
        facts["git"] = environment.git(directory)
    return {"environment": facts, "packages": environment.packages(draft.header["modules"])}
