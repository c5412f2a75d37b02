"""The helper process: it saves what the trainer hands over, and outlives it.

It is a process and not a thread, so that saving takes no turn of the trainer's interpreter, and so
that somebody is left to say how the run ended. It talks to the trainer over a socket of lines, each
a JSON object; `link` is the other end.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from replicate.backends.location import open_backend
from replicate.config import Keep, redaction
from replicate.errors import RefusedError, ReplicateError, RepositoryError, StorageError
from replicate.model import Status
from replicate.recorder import guard
from replicate.recorder.commit import Committer
from replicate.recorder.ending import Ending, ending_of, has_ended
from replicate.recorder.guard import log_error
from replicate.recorder.held import Held
from replicate.recorder.losses import Losses
from replicate.recorder.pace import LOCAL, REMOTE, Pace
from replicate.recorder.segments import SegmentWriter
from replicate.recorder.streams import SAMPLES
from replicate.records import encode_time, stop_data
from replicate.repository import Repository
from replicate.spool import Spool, job_header

#: How often it looks for what was logged or printed (seconds): nobody rings for that.
_TAIL = 1.0
#: How long it waits for the last of the output of a script that was killed, and for a sample of
#: the machine that has begun (seconds).
_LAST_OUTPUT, _LAST_SAMPLE = 1.0, 2.0
#: How long after the last word of a script its exit code is waited for (seconds).
_EXIT_WAIT = 10.0
#: Who begins to wait less than this after a failure is told of that one (seconds).
_KNOWN = 10.0
#: So many of the problems that come together are told one by one.
_NAMED = 3
#: How often it says how far it is (seconds).
_TELL = 0.25


class Helper:
    """Commits jobs until the trainer is gone and nothing is left to save."""

    def __init__(self, settings: Mapping[str, Any], guard: socket.socket | None) -> None:
        backend = open_backend(settings["repository"], relative_to=Path(settings["directory"]))
        self._spool = Spool(Path(settings["spool"]))
        self._guard = guard
        self._losses = Losses(self._spool, self._report)
        self._held = Held(self._spool, guard, settings["number"], self._lose)
        self._repository = Repository(backend, self._spool.directory.parent)
        self._online: bool = settings["online"]
        self._reached = not backend.remote
        self._pace = Pace(REMOTE if backend.remote else LOCAL, self._spool)
        self._committer = Committer(
            self._repository,
            self._spool,
            compress=settings["compress"],
            keep=settings["keep"] and Keep(**settings["keep"]),
            held=self._held,
            progress=self._progress,
            tails=settings["console"]["tails"],
            redact=redaction(settings["allow_secrets"]),
        )
        self._tee: int | None = settings["console"]["watch"]
        self._samples: bool = settings["system_metrics"]
        self._told = 0.0
        self._inherited: list[Mapping[str, Any]] = settings["held"]
        self._directory = Path(settings["directory"])
        self._socket = socket.socket(fileno=settings["socket"])
        self._watch: int | None = settings["watch"]
        self._pid: int = settings["pid"]
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._waiting: list[tuple[int, int]] = []
        self._trainer_gone = False
        self._at_exit = False
        self._bye = False
        self._ended = False
        self._said: set[str] = set()
        self._failing = False
        self._trouble = ""
        self._sampled = threading.Event()
        self._done = threading.Event()
        self._sampling = threading.Thread(target=self._sample, daemon=True)

    def run(self) -> None:
        """Save, retry what fails, and return when there is nothing left to wait for."""
        for held in self._inherited:
            self._held.take_over(held)
        if self._guard is not None:
            threading.Thread(
                target=self._held.listen, args=[self._guard_ended], daemon=True
            ).start()
        threading.Thread(target=self._listen, daemon=True).start()
        if self._samples:
            self._sampling.start()
        if not self._online:
            self._keep()
            return
        if not self._reached and not self._reach():
            return
        threading.Thread(target=self._beat, daemon=True).start()
        while self._spool.directory.is_dir():  # else the repository was removed, and stays so
            # Taken before the commit: what was spooled before these were set is in it.
            waiting, gone = self._waiting[:], self._gone
            if gone and not self._ended:
                self._end()
            trouble = self._save_some(gone, urgent=gone or bool(waiting))
            self._answer(waiting, trouble)
            if trouble is not None:
                if self._trainer_gone and self._pace.is_exhausted:
                    self._leave()
                    return
                self._rest(self._pace.failed(), gone)
            elif not self._committer.pending:
                self._free(all=gone)
                if gone:
                    self._finish()
                    return
                self._doze(gone)
            elif self._repository.backend.remote and not (waiting or gone):
                self._doze(gone)

    @property
    def _gone(self) -> bool:
        """Whether no more jobs will come."""
        return self._trainer_gone or self._bye

    def _doze(self, gone: bool) -> None:
        """Wait for something to do: on a disk it is done at once."""
        if self._repository.backend.remote:
            self._rest(_TAIL, gone)
        else:
            self._wake.wait(_TAIL)
            self._wake.clear()

    def _rest(self, seconds: float, gone: bool) -> None:
        """Wait so long, but not when somebody waits for us, or no more jobs will come, nor after a
        failure when we are asked to try again."""
        until = time.monotonic() + seconds
        while gone == self._gone and (left := until - time.monotonic()) > 0:
            if self._waiting and not self._pace.has_just_failed(_KNOWN):
                return
            if self._waiting:
                self._answer(self._waiting[:], self._trouble)
            if self._failing and self._spool.take_hurry():
                return
            self._losses.tell()
            self._wake.wait(min(left, _TAIL) if self._failing else left)
            self._wake.clear()

    def _reach(self) -> bool:
        """Tell the trainer whether the repository can be used; False when it cannot, whatever one
        waits for: then nothing is recorded."""
        try:
            self._make_repository()
            self._send({"reached": True})
        except StorageError as error:
            if isinstance(error, RefusedError):
                self._send({"refused": [error.message, error.hint]})
                return False
            self._send({"reached": False})
            self._fail(error)
            self._rest(self._pace.failed(), gone=False)
        except ReplicateError as error:
            self._send({"refused": [error.message, error.hint]})
            return False
        return True

    def _make_repository(self) -> None:
        self._repository.create()
        # The first that the run writes anyway: who may only read learns of it now.
        self._repository.announce(self._spool.experiment)
        self._reached = True

    def _save_some(self, gone: bool, *, urgent: bool) -> str | None:
        """Commit the oldest jobs if it is time, with how the run ended when it did; return what
        went wrong."""
        jobs, streams = (True, True) if urgent else self._pace.due()
        self._losses.tell()
        try:
            if not self._reached:
                self._make_repository()
            problems = self._committer.commit_some(
                self._directory, final=gone, jobs=jobs, streams=streams
            )
            self._report_some(problems)
            if self._committer.stopped and not self._committer.pending:
                self._committer.beat()
        except (StorageError, RepositoryError) as error:
            return self._fail(error)
        self._pace.committed(jobs=jobs, streams=streams)
        if self._failing:
            self._failing = False
            self._send({"failing": False})
            self._losses.over()
        return None

    def _fail(self, error: ReplicateError) -> str:
        """Tell the person once in each outage, however many things fail in it."""
        self._trouble = str(error)
        if not self._failing:
            self._failing = True
            self._report(f"{error} The run goes on; saving is tried again.")
            self._send({"failing": True})
        return self._trouble

    def _free(self, *, all: bool) -> None:
        try:
            self._committer.free(all=all)
        except ReplicateError as error:
            self._report(f"The files of dropped checkpoints still take space: {error}")

    def _keep(self) -> None:
        """Offline: what the run records stays in the spool, until `replicate sync`."""
        while self._spool.directory.is_dir() and not self._gone:
            self._wake.wait()
            self._wake.clear()
        self._end()
        self._leave()

    # ------------------------------------------------------------ the end

    def _end(self) -> None:
        """The trainer has stopped the experiment or is gone: complete what it has left."""
        self._ended = True
        self._pace.restart_patience()
        self._sampled.set()
        if self._samples:
            self._sampling.join(_LAST_SAMPLE)
        if not self._bye:  # it may have stopped all the same: the committer will know
            self._spool_ending(ending_of(self._watch))

    def _finish(self) -> None:
        """All is in the repository."""
        with suppress(StorageError):
            if self._bye and self._committer.created and not self._committer.has_stopped():
                self._spool_ending(ending_of(self._watch))
            self._correct_status()
            while self._committer.pending:
                self._committer.commit_some(final=True)
            self._done.set()
            self._committer.beat()
            self._spool.destroy()

    def _leave(self) -> None:
        """What is not saved stays in the spool, for the next run or for `replicate sync`."""
        self._done.set()
        self._correct_status()

    def _spool_ending(self, ending: Ending) -> None:
        stop = ending.stop()
        header = {**job_header("ending", data=stop_data(stop)), "time": encode_time(stop.time)}
        with suppress(OSError):  # nobody is left to tell: the status will be that it is lost
            self._spool.add(self._spool.last_name(), header, [])

    def _correct_status(self) -> None:
        """A script that called sys.exit(1) looks finished to its exit handlers; it has failed."""
        if not self._at_exit or self._watch is None:
            return
        if select.select([self._watch], [], [], _EXIT_WAIT)[0]:
            ending = ending_of(self._watch)
            if ending.stop().status is Status.FAILED:
                self._spool_ending(ending)

    # ------------------------------------------------------------ the other threads

    def _beat(self) -> None:
        """Say every few seconds that the run is alive."""
        unborn = 1.0 if self._repository.backend.remote else 0.05
        while not self._done.wait(self._committer.interval if self._committer.created else unborn):
            # A beat that fails is not worth a word: the next one, or a job, will tell.
            with suppress(ReplicateError):
                if self._spool.directory.is_dir():
                    self._committer.beat(news=False)

    def _sample(self) -> None:
        """Measure the machine every few seconds. A sample that fails is not worth a word."""
        from replicate.recorder.system import Sampler, sample_until

        writer = SegmentWriter(str(self._spool.directory), SAMPLES)

        def keep(sample: Mapping[str, float]) -> bool:
            with suppress(OSError):
                writer.append(json.dumps((time.time(), sample)).encode() + b"\n")
                return True
            return False

        sample_until(self._sampled.wait, Sampler(self._pid, self._directory), keep)

    def _listen(self) -> None:
        """Take messages as they come, and see when the trainer is gone."""
        try:
            self._take_messages()
        except OSError:
            pass  # the trainer's end of the socket is gone
        except Exception:
            log_error()  # the trainer sees the socket end
            os._exit(1)
        while not has_ended(self._watch, self._pid):
            select.select([] if self._watch is None else [self._watch], [], [], 1.0)
        if self._tee is not None:  # the last that was printed may still be on its way
            select.select([self._tee], [], [], _LAST_OUTPUT)
        self._trainer_gone = True
        self._wake.set()

    def _take_messages(self) -> None:
        pending = b""
        while self._readable():
            data = self._socket.recv(1 << 16)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self._handle(json.loads(line))

    def _readable(self) -> bool:
        """Wait for a message; False when the trainer is gone and has left none."""
        watched: list[Any] = [self._socket] + ([] if self._watch is None else [self._watch])
        while True:
            ready = select.select(watched, [], [], 1.0)[0]
            if self._socket in ready:
                return True
            if has_ended(self._watch, self._pid):
                return False

    def _handle(self, message: Mapping[str, Any]) -> None:
        if message["op"] == "wait":
            self._waiting.append((message["token"], message["below"]))
        elif message["op"] == "bye":
            self._bye, self._at_exit = True, message["at_exit"]
        self._wake.set()

    def _guard_ended(self) -> None:
        """A guard that was killed is replaced with its helper, by the trainer. When that one needs
        no more leases, what was held is in the spool."""
        if not self._gone:
            os._exit(1)

    # ------------------------------------------------------------ talking to the trainer

    def _answer(self, waiting: list[tuple[int, int]], trouble: str | None) -> None:
        """Answer those who wait for the spool to hold no more than so many bytes, or no job."""
        for token, below in waiting:
            pending = self._committer.pending and self._spool.size() + self._held.size > below
            if trouble or not pending:
                self._waiting.remove((token, below))
                self._send({"idle": token, "trouble": trouble})

    def _lose(self, job: str, number: int, why: str) -> None:
        self._losses.add(job, number, why)
        self._wake.set()
        self._send({"lost": self._losses.count})

    def _report_some(self, problems: Sequence[str]) -> None:
        """Tell of these, and of many by their number: the journal has all."""
        for problem in problems[:_NAMED]:
            self._report(problem)
        if more := problems[_NAMED:]:
            self._report(f"{len(more):,} more could not be saved: `replicate show` has the reasons")

    def _report(self, problem: str) -> None:
        if problem not in self._said:
            self._said.add(problem)
            self._send({"problem": problem})

    def _send(self, message: Mapping[str, Any]) -> None:
        # The trainer may be gone: the journal has what it should know.
        with self._sending, suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _progress(self, read: int) -> None:
        """Tell a trainer that waits, now and again, how far one large job is."""
        # One that does not wait reads nothing.
        if self._waiting and (not read or time.monotonic() - self._told >= _TELL):
            self._told = time.monotonic()
            with suppress(OSError):
                self._socket.send(b'{"read": %d}\n' % read, socket.MSG_DONTWAIT)


def main() -> None:
    """The entry point of the process: its settings are the first argument, as JSON."""
    # Ctrl-C and the end of a session are for the trainer; this process ends by itself, later.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    settings = json.loads(sys.argv[1])
    # Before there is a thread, and before this process becomes one that gives way to others.
    guarding = guard.begin(settings) if settings["guard"] is not None else None
    with suppress(OSError):
        os.nice(10)
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    Helper(settings, guarding).run()
