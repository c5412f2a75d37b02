"""How busy the machine is while a run goes on: processor, memory, disk, network and GPUs.

It measures in the helper process, where nothing of it takes time of the training. What a system
does not tell is left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil

#: Seconds between two samples, and before the first one, so that a short run has one too.
INTERVAL, FIRST = 15.0, 0.25
_GPU_TIMEOUT = 10.0
#: What nvidia-smi is asked for, the name that it gets here, and the size of its unit.
_GPU_FIELDS = (
    ("utilization.gpu", "utilization", 1.0),
    ("memory.used", "memory", 2.0**20),
    ("temperature.gpu", "temperature", 1.0),
    ("power.draw", "power", 1.0),
)

Sample = dict[str, float]


class Sampler:
    """Measures the machine, and the process `pid` with all below it but this one."""

    def __init__(self, pid: int, directory: Path) -> None:
        self._pid = pid
        self._directory = directory
        self._gpu = shutil.which("nvidia-smi")
        self._times: dict[int, float] = {}
        self._counters: dict[str, float] = {}
        self._measured = time.monotonic()
        self.sample(gpus=False)  # rates are what has changed since the last time

    def sample(self, *, gpus: bool = True) -> Sample:
        """The metrics by name. `cpu`, `memory.percent` and GPU utilization are percentages, and
        `process.cpu` is one of a single core; sizes are bytes, and flows bytes per second."""
        passed = max(1e-3, time.monotonic() - self._measured)
        self._measured += passed
        found: Sample = {}
        for measure in (self._machine, self._processes, self._flows):
            with suppress(psutil.Error, OSError, RuntimeError, AttributeError):
                found.update(measure(passed))
        if gpus and self._gpu is not None:
            found.update(self._gpus(self._gpu))
        return {name: round(value, 2) for name, value in found.items()}

    def _machine(self, passed: float) -> Iterator[tuple[str, float]]:
        memory = psutil.virtual_memory()
        yield "cpu", psutil.cpu_percent()
        yield "memory.used", memory.total - memory.available
        yield "memory.percent", memory.percent
        yield "disk.free", shutil.disk_usage(self._directory).free

    def _processes(self, passed: float) -> Iterator[tuple[str, float]]:
        """The trainer and its children. Pages that they share count for each of them."""
        trainer = psutil.Process(self._pid)
        memory, busy, times = 0, 0.0, dict[int, float]()
        for process in (trainer, *trainer.children(recursive=True)):
            if process.pid == os.getpid():
                continue
            with suppress(psutil.Error):  # it has ended meanwhile
                memory += process.memory_info().rss
                used = process.cpu_times()
                times[process.pid] = used.user + used.system
                busy += times[process.pid] - self._times.get(process.pid, 0.0)
        self._times = times
        yield "process.cpu", max(0.0, 100 * busy / passed)
        yield "process.memory", memory

    def _flows(self, passed: float) -> Iterator[tuple[str, float]]:
        disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
        now: Sample = {}
        if disk is not None:
            now |= {"disk.read": disk.read_bytes, "disk.write": disk.write_bytes}
        if network is not None:
            now |= {"network.received": network.bytes_recv, "network.sent": network.bytes_sent}
        before, self._counters = self._counters, now
        for name, value in now.items():
            if name in before:
                yield name, max(0.0, (value - before[name]) / passed)

    def _gpus(self, command: str) -> Sample:
        fields = ",".join(field for field, _, _ in _GPU_FIELDS)
        question = [command, f"--query-gpu=index,{fields}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(
                question, capture_output=True, timeout=_GPU_TIMEOUT, check=True, text=True
            )
        except (OSError, ValueError, subprocess.SubprocessError):
            self._gpu = None  # there is no driver: it will not do better next time
            return {}
        return gpus_from(done.stdout)


def gpus_from(table: str) -> Sample:
    """The metrics in what nvidia-smi prints; those that a GPU does not have are left out."""
    found: Sample = {}
    for line in table.splitlines():
        index, *cells = (cell.strip() for cell in line.split(","))
        for cell, (_, name, unit) in zip(cells, _GPU_FIELDS, strict=False):
            with suppress(ValueError):  # as "[N/A]" and "[Not Supported]"
                found[f"gpu.{index}.{name}"] = float(cell) * unit
    return found


def sample_until(
    done: Callable[[float], bool], sampler: Sampler, keep: Callable[[Sample], bool]
) -> None:
    """Keep a sample soon, and then one every 15 s, until `done`, which waits for so many seconds.

    A run that ends before the first one has it at its end. `keep` says whether it could."""
    kept = False
    ended = done(FIRST)
    while not ended:
        kept = keep(sampler.sample()) or kept
        ended = done(INTERVAL if kept else FIRST)
    if not kept:
        keep(sampler.sample(gpus=False))
