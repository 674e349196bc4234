r"""What is left of a large listing: seconds, memory and disk.

    python -m benchmarks.ledger --images 10000000

Listed and written are made up, table by table as they come from the manifest and from part files;
one image in a hundred is new and one in a thousand failed for a reason that may pass.
"""

import argparse
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import pyarrow as pa

from lesioncam.schema import MANIFEST_SCHEMA, ErrorKind, Status
from lesioncam.storage.ledger import INDEX_SCHEMA, shares

_LISTED, _PART = 100_000, 200_000  # rows of a manifest file and of a settled part
_MOMENT = 1_700_000_000_000_000  # microseconds since 1970


def uris(numbers: np.ndarray) -> pa.Array:
    """Object names as buckets have them."""
    names = [f"s3://clinic/2026/{n % 365:03d}/ISIC_{n:010d}.jpg" for n in numbers.tolist()]
    return pa.array(names, pa.string())


def etags(numbers: np.ndarray) -> pa.Array:
    """As long as S3's."""
    return pa.array([f"{n:032x}" for n in numbers.tolist()], pa.string())


def listed(images: int) -> Iterator[pa.Table]:
    """The manifest."""
    for start in range(0, images, _LISTED):
        numbers = np.arange(start, min(start + _LISTED, images))
        size, time_ = numbers % 10**6, np.full(len(numbers), _MOMENT)
        columns = [numbers, uris(numbers), size, etags(numbers), time_]
        yield pa.table(columns, names=MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA)


def written(images: int) -> Iterator[pa.Table]:
    """The rows: all but every hundredth image, every thousandth of them unreachable."""
    for part, start in enumerate(range(0, images, _PART)):
        numbers = np.arange(start, min(start + _PART, images))
        numbers = numbers[numbers % 100 != 1]
        failed = numbers % 1000 == 2
        columns = {
            "uri": uris(numbers),
            "status": pa.array(np.where(failed, Status.FAILED, Status.OK)),
            "error_kind": pa.array([ErrorKind.UNREACHABLE if f else None for f in failed.tolist()]),
            "version": etags(numbers),
            "scored_at": np.full(len(numbers), _MOMENT),
            "part": np.full(len(numbers), part),
            "place": np.arange(len(numbers)),
        }
        yield pa.table(columns).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)


def peak() -> float:
    """This process's largest memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def watch_disk(most: list[float], over: threading.Event) -> None:
    """Note how large the ledger's temporary directory gets, in MiB."""
    while not over.wait(1):
        files = Path(gettempdir()).glob("lesioncam-*/*")
        most[0] = max(most[0], sum(file.stat().st_size for file in files if file.exists()) / 2**20)


def main() -> None:
    """Deal, join, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000_000)
    images = parser.parse_args().images
    next(written(_PART)), next(listed(_LISTED))
    before, most, over = peak(), [0.0], threading.Event()
    watcher = threading.Thread(target=watch_disk, args=(most, over))
    watcher.start()
    started = time.monotonic()
    left = 0
    try:
        for share in shares(listed(images), written(images), 2 * images):
            left += share.left(retry_failed=False).num_rows
    finally:
        over.set()
        watcher.join()
    seconds = time.monotonic() - started
    started = time.monotonic()
    for tables in (listed(images), written(images)):
        for _ in tables:
            pass
    made_up = time.monotonic() - started
    more = peak() - before
    print(f"{images:,} listed, {left:,} left: {seconds - made_up:.0f} s")
    print(f"(and {made_up:.0f} s to make the tables up)")
    print(f"memory: {before:.0f} MiB at the start and {more:.0f} MiB more at most")
    print(f"disk: {most[0]:.0f} MiB at most")


if __name__ == "__main__":
    main()
