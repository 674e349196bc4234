r"""The control plane of a large collection: listing, what is left, and the count at the end.

    python -m benchmarks.ledger --images 10000000

The same calls as in a run, on a manifest and settled parts that stand on disk. What a store lists
and the rows that stand there are made up: one image in a hundred is new and one in a thousand
failed for a reason that may pass. Prints seconds, memory and disk, as rows of a Markdown table.
"""

import argparse
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np
import pyarrow as pa

from lesioncam.schema import ErrorKind, Status, scores_schema
from lesioncam.storage.ledger import Tally
from lesioncam.storage.results import PART_ROWS, Results
from lesioncam.storage.runs import RunRecord
from lesioncam.storage.store import Entry

_CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")
_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def uri_of(number: int) -> str:
    """An object's name as buckets have them."""
    return f"s3://clinic/2026/{number % 365:03d}/ISIC_{number:010d}.jpg"


def entries(images: int) -> Iterator[Entry]:
    """What a store lists."""
    for number in range(images):
        yield Entry(uri_of(number), number % 10**6, f"{number:032x}", _MOMENT)


def write_parts(results: Results, images: int) -> None:
    """Settled rows: all but every hundredth image, every thousandth of them unreachable."""
    schema = scores_schema(_CLASSES)
    for start in range(0, images, PART_ROWS):
        numbers = np.arange(start, min(start + PART_ROWS, images))
        numbers = numbers[numbers % 100 != 1]
        failed = numbers % 1000 == 2
        known = {
            "uri": pa.array([uri_of(n) for n in numbers.tolist()]),
            "status": pa.array(np.where(failed, Status.FAILED, Status.OK)),
            "error_kind": pa.array([ErrorKind.UNREACHABLE if f else None for f in failed.tolist()]),
            "size": numbers % 10**6,
            "etag": pa.array([f"{n:032x}" for n in numbers.tolist()]),
            "last_modified": pa.array([_MOMENT] * len(numbers)),
            "scored_at": pa.array([_MOMENT] * len(numbers)),
        }
        columns = [known.get(f.name, pa.nulls(len(numbers), f.type)) for f in schema]
        table = pa.table(columns, names=schema.names).cast(schema)
        results.write_part(f"settled-{start:012d}.parquet", table)


def peak() -> float:
    """This process's largest memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def watched_disk() -> Iterator[Callable[[], float]]:
    """How large the ledger's temporary directories got, in MiB."""
    most, over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.2):
            with suppress(FileNotFoundError):  # one that was taken meanwhile
                files = Path(gettempdir()).glob("lesioncam-*/*")
                most = max(most, sum(file.stat().st_size for file in files) / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: most
    finally:
        over.set()
        watcher.join()


def main() -> None:
    """List, find out what is left, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000_000)
    images = parser.parse_args().images
    with TemporaryDirectory(prefix="benchmark-") as folder, watched_disk() as disk:
        results = Results(folder)
        write_parts(results, images)
        record = RunRecord(results.store, "run-1")
        before = peak()
        print("| step | images | seconds | images/s | memory so far, beyond the start |")
        print("|---|---|---|---|---|")

        def told(step: str, started: float) -> None:
            seconds = time.monotonic() - started
            cells = f"{images:,} | {seconds:.0f} | {images / seconds:,.0f}"
            print(f"| {step} | {cells} | {peak() - before:.0f} MiB |", flush=True)

        started = time.monotonic()
        rows = record.record_listing(entries(images))
        told("manifest written", started)
        started = time.monotonic()
        shares = results.shares(results.sizes(), record.manifest(), rows)
        todo = record.record_todo(shares, retry_failed=False)
        told(f"what is left: {todo.left:,}", started)
        started = time.monotonic()
        shares = results.shares(results.sizes(), record.manifest(), rows)
        tally = sum((share.tally() for share in shares), start=Tally())
        told(f"count at the end: {tally.without_row:,} without a row", started)
        print(f"\n{before:.0f} MiB at the start; {disk():.0f} MiB of temporary files at most")


if __name__ == "__main__":
    main()
