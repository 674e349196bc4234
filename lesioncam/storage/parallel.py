"""Parallel: several iterators read by threads, as one.

Our own because an executor would hold all that was read, however slowly it is used.
"""

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

_BATCH_ITEMS = 1000  # items a thread reads at once
_MAX_BATCHES = 64  # batches that wait to be used


def merge_parallel(sources: Sequence[Iterator[T]], threads: int) -> Iterator[T]:
    """Yield the items of several sources, read by threads, in any order.

    Memory holds a bounded number of items. An exception of a source is raised here.
    """
    readers = _Readers(sources)
    # Daemons: a process that ends for another reason does not wait for them.
    workers = [
        threading.Thread(target=readers.run, name=f"listing-{number}", daemon=True)
        for number in range(min(threads, len(sources)))
    ]
    try:
        for worker in workers:
            worker.start()
        open_sources = len(sources)
        while open_sources:
            batch = readers.ready.get()
            if isinstance(batch, BaseException):
                raise batch
            open_sources -= not batch
            yield from batch
    finally:
        readers.stop.set()
        for worker in workers:
            worker.join()


class _Readers(Generic[T]):
    """The state that the threads of `merge_parallel` have in common.

    Attributes:
        ready: batches of items; an empty one at the end of a source, or its exception.
        stop: set when no more items are wanted.
    """

    def __init__(self, sources: Sequence[Iterator[T]]):
        self.ready: queue.Queue[list[T] | BaseException] = queue.Queue(_MAX_BATCHES)
        self.stop = threading.Event()
        self._waiting = deque(sources)

    def run(self) -> None:
        """Read one source after another."""
        with suppress(IndexError):
            while not self.stop.is_set():
                self._read(self._waiting.popleft())

    def _read(self, source: Iterator[T]) -> None:
        batch: list[T] | BaseException | None = None
        while batch is None or (batch and not isinstance(batch, BaseException)):
            try:
                batch = list(islice(source, _BATCH_ITEMS))
            except BaseException as error:
                batch = error
            if not self._put(batch):
                return

    def _put(self, batch: list[T] | BaseException) -> bool:
        """Whether the batch was queued before `stop` was set."""
        while not self.stop.is_set():
            with suppress(queue.Full):
                self.ready.put(batch, timeout=0.1)
                return True
        return False
