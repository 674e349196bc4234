"""Process: run a command; its wall time, and the memory of all processes it starts."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

SAMPLE_INTERVAL_S = 5.0  # a sample of the memory takes some 80 ms of a core
_NO_TELEMETRY = {  # Ray and Daft would report the run to their makers, and wait for the network
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "true",
}


@dataclass(frozen=True)
class Finished:
    """A command that succeeded.

    Attributes:
        seconds: from its start to its end.
        peak_mib: the largest sampled memory of it and all its descendants, so a lower bound: the
            sum of their proportional set sizes, in which a page that several processes share counts
            once (of their unique set sizes on systems without the former).
    """

    seconds: float
    peak_mib: float


def run(*arguments: str, interval: float = SAMPLE_INTERVAL_S) -> Finished:
    """Run `python ARGUMENTS`, sampling its memory every `interval` seconds.

    Raises:
        RuntimeError: it did not exit with 0; with the end of its output.
    """
    with tempfile.TemporaryFile("w+") as printed:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_NO_TELEMETRY},
        )
        with _sampled(process.pid, interval) as samples:
            code = process.wait()
        seconds = time.perf_counter() - started
        if code:
            printed.seek(0)
            raise RuntimeError(
                f"{' '.join(arguments)} exited with {code}:\n{printed.read()[-4000:]}"
            )
        return Finished(seconds, max(samples) / 2**20)


@contextmanager
def _sampled(pid: int, interval: float) -> Iterator[list[int]]:
    """The bytes that a process and its descendants hold, a value for each sample."""
    samples, stopped = [_memory_of_tree(pid)], threading.Event()

    def sample() -> None:
        while not stopped.wait(interval):
            samples.append(_memory_of_tree(pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield samples
    finally:
        stopped.set()
        sampler.join()


def _memory_of_tree(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        return sum(map(_memory, [process, *process.children(recursive=True)]))
    except psutil.NoSuchProcess:
        return 0


def _memory(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended since
        return 0
    return int(getattr(memory, "pss", memory.uss))
