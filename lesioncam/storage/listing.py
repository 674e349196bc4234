"""Listing: which images there are, and the manifest that records them.

Knows nothing about what was already scored.
"""

import io
import os
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice, repeat
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Generic, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lesioncam.errors import InputError
from lesioncam.schema import MANIFEST_SCHEMA, SOURCE_FIELDS
from lesioncam.storage.local import local_path
from lesioncam.storage.store import Entry, Store, StoreError, refusal, stat_or_unknown
from lesioncam.storage.uris import open_store, open_uri, stat_uri

T = TypeVar("T")

IMAGE_ENDINGS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
)  # compared in lower case
IGNORED_ENDING = "_superpixels.png"  # the ISIC archive keeps these beside its images
MANIFEST_ROWS = 100_000  # rows a manifest file: some 10 MB
_STAT_THREADS = 32
_LIST_THREADS = 16
_DRAWN, _READY = 1000, 64  # entries that threads draw at once, and how often ahead


class Listing:
    """The images a flag names: a directory or prefix, or a CSV or Parquet file of `uri`s.

    Iterate once; `ignored` is complete after that.

    Attributes:
        source: what the user gave.
        ignored: files without an image's ending, the ISIC archive's superpixel files, and
            repeated uris of a list.
    """

    def __init__(self, source: str, flag: str = "--images"):
        self.source = source
        self.ignored = 0
        self._flag = flag
        self._counting = threading.Lock()

    def __iter__(self) -> Iterator[Entry]:
        """Yield the images.

        Raises:
            InputError: there is no such place, or no image in it.
        """
        if self._is_list():
            return self._told_if_none(self._once(self._listed()))
        return self._told_if_none(self._images(self._place().entries()))

    def _is_list(self) -> bool:
        return PurePosixPath(self.source).suffix.lower() in (".csv", ".parquet")

    def unordered(self) -> Iterator[Entry]:
        """Yield the images as fast as they can be listed, in any order and repeated ones too.

        Raises:
            InputError: there is no such place, or no image in it.
        """
        branches = [self._listed()] if self._is_list() else self._branches()
        return self._told_if_none(merge_parallel(branches, _LIST_THREADS))

    def _branches(self) -> list[Iterator[Entry]]:
        return [self._images(branch) for branch in self._place().branches()]

    def _place(self) -> Store:
        if "://" not in self.source and not Path(self.source).is_dir():
            raise InputError(
                f"{self._flag}: no such directory: {self.source}; give a directory, an s3:// "
                f"prefix, or a .csv or .parquet file with a uri column"
            )
        return open_store(self.source)

    def _images(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if is_image_name(entry.uri):
                self._check_name(entry.uri)
                yield entry
            else:
                self._ignore()

    def _check_name(self, uri: str) -> None:
        try:
            uri.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self._flag}: an image's name below {self.source} is not UTF-8; rename the file"
            ) from error

    def _listed(self) -> Iterator[Entry]:
        _check_uris(self.source, self._flag)  # a fault anywhere is told before an image is listed
        with ThreadPoolExecutor(_STAT_THREADS) as threads:
            for uris in _read_uris(self.source, self._flag):
                yield from threads.map(stat_or_unknown, repeat(stat_uri), map(_absolute, uris))

    def _once(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        seen: set[str] = set()
        for entry in entries:
            if entry.uri in seen:
                self._ignore()
            else:
                seen.add(entry.uri)
                yield entry

    def _told_if_none(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        found = False
        for entry in entries:
            found = True
            yield entry
        if not found:
            raise InputError(
                f"{self._flag}: no images in {self.source} ({self.ignored} other files ignored); "
                f"expected names ending in {' '.join(sorted(IMAGE_ENDINGS))}"
            )

    def _ignore(self) -> None:
        with self._counting:
            self.ignored += 1


def merge_parallel(sources: Sequence[Iterator[T]], threads: int) -> Iterator[T]:
    """Yield what several sources give, drawn by threads, in any order.

    Memory holds a bounded number of items. What a source raises is raised here.
    """
    crew = _Crew(sources)
    # Daemons: a process that ends for another reason does not wait for them.
    workers = [
        threading.Thread(target=crew.work, name=f"listing-{number}", daemon=True)
        for number in range(min(threads, len(sources)))
    ]
    try:
        for worker in workers:
            worker.start()
        under_way = len(sources)
        while under_way:
            item = crew.ready.get()
            if isinstance(item, BaseException):
                raise item
            under_way -= not item
            yield from item
    finally:
        crew.over.set()
        for worker in workers:
            worker.join()


class _Crew(Generic[T]):
    """What the threads of `merge_parallel` share.

    Attributes:
        ready: items that were drawn; an empty list where a source ends, or what it raised.
        over: set when nobody waits for them any more.
    """

    def __init__(self, sources: Sequence[Iterator[T]]):
        self.ready: queue.Queue[list[T] | BaseException] = queue.Queue(_READY)
        self.over = threading.Event()
        self._waiting = deque(sources)

    def work(self) -> None:
        """Draw from one source after another."""
        with suppress(IndexError):
            while not self.over.is_set():
                self._draw(self._waiting.popleft())

    def _draw(self, source: Iterator[T]) -> None:
        items: list[T] | BaseException | None = None
        while items is None or (items and not isinstance(items, BaseException)):
            try:
                items = list(islice(source, _DRAWN))
            except BaseException as error:
                items = error
            if not self._put(items):
                return

    def _put(self, items: list[T] | BaseException) -> bool:
        """Whether it was taken before all was over."""
        while not self.over.is_set():
            with suppress(queue.Full):
                self.ready.put(items, timeout=0.1)
                return True
        return False


def is_image_name(uri: str) -> bool:
    """Whether a listing takes this name for an image's."""
    name = uri.lower()
    return PurePosixPath(name).suffix in IMAGE_ENDINGS and not name.endswith(IGNORED_ENDING)


def image_id(uri: str) -> str:
    """The file's stem, which joins to labels: `s3://b/x/ISIC_0000000.jpg` -> `ISIC_0000000`."""
    return uri.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def write_manifest(entries: Iterable[Entry], store: Store) -> int:
    """Write a listing as manifest files of at most `MANIFEST_ROWS` rows; returns how many rows."""
    remaining = iter(entries)
    rows = 0
    while chunk := list(islice(remaining, MANIFEST_ROWS)):
        values = ((e.uri, e.size, e.etag, e.last_modified) for e in chunk)
        columns = [list(column) for column in zip(*values, strict=True)]
        table = pa.Table.from_arrays(
            [
                pa.array(range(rows, rows + len(chunk)), pa.int64()),
                *(pa.array(c, f.type) for c, f in zip(columns, SOURCE_FIELDS, strict=True)),
            ],
            schema=MANIFEST_SCHEMA,
        )
        write_table(store, f"{rows // MANIFEST_ROWS:06d}.parquet", table)
        rows += len(chunk)
    return rows


def write_table(store: Store, name: str, table: pa.Table) -> None:
    """Write one Parquet file, whole or not at all."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    store.write(name, sink.getvalue())


def read_tables(store: Store) -> Iterator[pa.Table]:
    """Read all the files that `write_table` wrote at a place, one after another."""
    return (read_table(store, name) for name in store.names())


def read_table(store: Store, name: str) -> pa.Table:
    """Read a Parquet file that `write_table` wrote."""
    return pq.read_table(io.BytesIO(store.read(name)))


def _check_uris(source: str, flag: str) -> None:
    """Refuse a list that names what cannot be read."""
    foreign: list[int] = []
    rows = 0
    for uris in _read_uris(source, flag):
        foreign += [row for row, uri in enumerate(uris, rows + 1) if not _is_readable(uri)]
        rows += len(uris)
    if foreign:
        raise InputError(
            f"{flag}: {source}: {len(foreign)} uris are neither paths nor s3://bucket/key, the "
            f"first in row {foreign[0]}; mend or remove them"
        )


def _read_uris(source: str, flag: str) -> Iterator[list[str]]:
    """The uris of a list as they stand there, some at a time."""
    for frame in _read_frames(source, flag):
        if "uri" not in frame.columns:
            raise InputError(
                f"{flag}: {source} has no column 'uri' among its {len(frame.columns)}; name it in "
                f"the first line"
            )
        if frame["uri"].isna().any() or (frame["uri"] == "").any():
            raise InputError(f"{flag}: {source} has rows without a uri; fill or remove them")
        yield frame["uri"].astype(str).to_list()


def _read_frames(source: str, flag: str) -> Iterator[pd.DataFrame]:
    """A table's rows, some at a time."""
    try:
        with open_uri(source) as file:
            if source.lower().endswith(".csv"):
                yield from _read_csv(file)
            else:
                table = pq.ParquetFile(file)
                yield table.schema_arrow.empty_table().to_pandas()  # its columns are looked at
                parts = table.iter_batches(MANIFEST_ROWS, columns=["uri"])
                yield from (part.to_pandas() for part in parts)
    except StoreError as error:
        raise refusal(f"{flag}: {source}", error) from error
    except Exception as error:  # parsers raise many types
        reason = " ".join(str(error).split())
        raise InputError(f"{flag}: {source} cannot be read as a table: {reason}") from error


def _read_csv(file: BinaryIO) -> Iterator[pd.DataFrame]:
    for frame in pd.read_csv(file, dtype=str, keep_default_na=False, chunksize=MANIFEST_ROWS):
        numbered = isinstance(frame.index, pd.RangeIndex)
        if not numbered:  # pandas took the first field for the row's name
            raise ValueError(
                "its rows have more fields than its first line; a uri that holds a comma must "
                "stand in quotes"
            )
        yield frame


def _is_readable(uri: str) -> bool:
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return bool(bucket and key)
    return "://" not in uri or uri.startswith("file://")


def _absolute(uri: str) -> str:
    if uri.startswith("s3://"):
        return uri
    return os.path.abspath(local_path(uri))  # noqa: PTH100  takes `..` out, follows no link
