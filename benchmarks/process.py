"""Process: run a command to its end, with its wall time and the memory of all it starts."""

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

PAUSE = 5.0  # seconds between two looks at the memory, which take some 80 ms of a core
_QUIET = {  # what Ray and Daft would tell their makers of a run, waiting for the network
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "true",
}


@dataclass(frozen=True)
class Finished:
    """A command that ended well.

    Attributes:
        seconds: from its start to its end.
        peak_mib: the largest memory of it and all its descendants that a look every few seconds
            found, so a lower bound: the sum of their proportional set sizes, in which a page that
            several processes share counts once (their unique set sizes where the system does not
            tell those).
    """

    seconds: float
    peak_mib: float


def run(*arguments: str, pause: float = PAUSE) -> Finished:
    """Run `python ARGUMENTS` and look at its memory with such pauses, in seconds.

    Raises:
        RuntimeError: it did not end with 0; with the end of what it printed.
    """
    with tempfile.TemporaryFile("w+") as printed:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=printed,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_QUIET},
        )
        with _watched(process.pid, pause) as peak:
            code = process.wait()
        seconds = time.perf_counter() - started
        if code:
            printed.seek(0)
            raise RuntimeError(
                f"{' '.join(arguments)} ended with {code}:\n{printed.read()[-4000:]}"
            )
        return Finished(seconds, max(peak) / 2**20)


@contextmanager
def _watched(pid: int, pause: float) -> Iterator[list[int]]:
    """Bytes that a process and its descendants hold, at each look."""
    seen, over = [sum(map(_memory, _family(pid)))], threading.Event()

    def watch() -> None:
        while not over.wait(pause):
            seen.append(sum(map(_memory, _family(pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
        return 0
    return int(getattr(memory, "pss", memory.uss))
