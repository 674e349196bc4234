r"""The control plane of a large collection: listing, pending images, compaction, final tally.

    python -m benchmarks.control_plane --images 10000000

The same calls as in a run, with constant rows in place of the networks' output. The listing and the
earlier rows are synthetic: one image in a hundred is new and one in a thousand had a transient
failure, so that every earlier part has rows to replace. Listing local folders is measured apart,
with at most a million empty files.
"""

import argparse
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np
import pyarrow as pa

from benchmarks.report import machine, machine_line, markdown, write
from lesioncam.columns import ErrorKind, Status
from lesioncam.schema import scores_schema
from lesioncam.storage.listing import Listing
from lesioncam.storage.pending import Tally
from lesioncam.storage.results import PART_ROWS, Results
from lesioncam.storage.runs import RunRecord
from lesioncam.storage.store import Entry

_CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")
_MODEL = "0" * 64
_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
_RUN_ROWS = 2048  # rows a part, as a run with GPUs writes them
_MAX_FILES = 1_000_000  # listed at most: each has to be created and removed


def uri_of(number: int) -> str:
    """An object's name as buckets have them."""
    return f"s3://clinic/2026/{number % 365:03d}/ISIC_{number:010d}.jpg"


def entries(images: int) -> Iterator[Entry]:
    """What a store lists."""
    for number in range(images):
        yield Entry(uri_of(number), number % 10**6, f"{number:032x}", _MOMENT)


def write_earlier(results: Results, images: int) -> None:
    """Rows of earlier runs: all but every hundredth image; every thousandth is unreachable."""
    for start in range(0, images, PART_ROWS):
        numbers = np.arange(start, min(start + PART_ROWS, images))
        numbers = numbers[numbers % 100 != 1]
        write_part(
            results, f"compacted-run-0-{start:012d}.parquet", numbers, numbers % 1000 == 2, _MOMENT
        )


def write_new(results: Results, images: int) -> int:
    """Rows of this run: new and formerly unreachable images; returns how many parts."""
    numbers = np.arange(images)
    pending = numbers[(numbers % 100 == 1) | (numbers % 1000 == 2)]
    starts = range(0, len(pending), _RUN_ROWS)
    for start in starts:
        scored = pending[start : start + _RUN_ROWS]
        name = f"part-run-1-{start:09d}.parquet"
        write_part(results, name, scored, np.zeros(len(scored), bool), _MOMENT + timedelta(days=1))
    return len(starts)


def write_part(
    results: Results, name: str, numbers: np.ndarray, failed: np.ndarray, scored_at: datetime
) -> None:
    """Rows of these images, some of them unreachable."""
    schema = scores_schema(_CLASSES, precision="float32")
    known = {
        "uri": pa.array([uri_of(n) for n in numbers.tolist()]),
        "status": pa.array(np.where(failed, Status.FAILED, Status.OK)),
        "error_kind": pa.array([ErrorKind.UNREACHABLE if f else None for f in failed.tolist()]),
        "size": numbers % 10**6,
        "etag": pa.array([f"{n:032x}" for n in numbers.tolist()]),
        "last_modified": pa.array([_MOMENT] * len(numbers)),
        "model": pa.array([_MODEL] * len(numbers)),
        "scored_at": pa.array([scored_at] * len(numbers)),
    }
    columns = [known.get(f.name, pa.nulls(len(numbers), f.type)) for f in schema]
    results.write_part(name, pa.table(columns, names=schema.names).cast(schema))


def peak() -> float:
    """This process's peak memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def watched_disk() -> Iterator[Callable[[], float]]:
    """The largest size of the temporary directories so far, in MiB."""
    peak_mib, over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak_mib
        while not over.wait(0.2):
            with suppress(FileNotFoundError):  # one that was removed meanwhile
                files = Path(gettempdir()).glob("lesioncam-*/*")
                peak_mib = max(peak_mib, sum(file.stat().st_size for file in files) / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: peak_mib
    finally:
        over.set()
        watcher.join()


def write_files(folder: Path, images: int) -> None:
    """Empty files with names of images, a thousand a folder."""
    for number in range(images):
        if number % 1000 == 0:
            below = folder / f"{number // 1000:06d}"
            below.mkdir(parents=True)
        (below / f"ISIC_{number:010d}.jpg").touch()


@dataclass(frozen=True)
class Step:
    """A step of the control plane.

    Attributes:
        name: what was done, and the result.
        images: how many were processed.
        seconds: how long it took.
        mib: the process's peak memory so far.
    """

    name: str
    images: int
    seconds: float
    mib: float


def measure(images: int, folder: Path) -> Iterator[Step]:
    """The steps of a run on so many images."""

    def step(name: str, count: int, started: float) -> Step:
        return Step(name, count, time.monotonic() - started, peak())

    started = time.monotonic()
    results = Results(str(folder / "scores"))
    files = min(images, _MAX_FILES)
    write_files(folder / "images", files)
    write_earlier(results, images)
    record = RunRecord(results.store, "run-1")
    yield step("files and earlier rows written", images, started)
    started = time.monotonic()
    found = sum(1 for _ in Listing(str(folder / "images")).unordered())
    yield step("local folders listed", found, started)
    started = time.monotonic()
    results.check(_CLASSES, _MODEL)
    yield step("earlier rows read and checked", images, started)
    started = time.monotonic()
    rows = record.record_listing(entries(images))
    yield step("manifest written", images, started)
    started = time.monotonic()
    partitions = results.partitions(record.manifest(), rows)
    found_pending = record.record_pending(partitions, retry_failed=False)
    yield step(f"pending images: {found_pending.pending:,}", images, started)
    parts = write_new(results, images)
    started = time.monotonic()
    results.compact(record.run_id)
    yield step(f"compacted, {parts:,} new parts among them", images, started)
    started = time.monotonic()
    partitions = results.partitions(record.manifest(), rows)
    tally = sum((partition.tally() for partition in partitions), start=Tally())
    yield step(f"final tally: {tally.without_row:,} without a row", images, started)


def main() -> None:
    """Run the steps; write a table of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("lesioncam-bench"))
    flags = parser.parse_args()
    with TemporaryDirectory(prefix="benchmark-") as folder, watched_disk() as disk:
        steps = list(measure(flags.images, Path(folder)))
    facts = machine()
    rows = [
        [
            s.name,
            f"{s.images:,}",
            f"{s.seconds:.1f}",
            f"{s.images / s.seconds:,.0f}",
            f"{s.mib:.0f}",
        ]
        for s in steps
    ]
    text = (
        f"# The control plane of {flags.images:,} images\n\n{machine_line(facts)};"
        f" {disk():.0f} MiB of temporary files at most.\n\n{markdown(_HEAD, rows)}"
    )
    content = {
        "machine": facts,
        "disk_mib": disk(),
        "steps": list(map(asdict, steps)),
    }
    write(flags.output, f"control-plane-{flags.images}", content, text)


_HEAD = ("step", "images", "seconds", "images/s", "memory so far, MiB")


if __name__ == "__main__":
    main()
