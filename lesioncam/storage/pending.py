"""Pending images: what is listed against what is written, for any number of images.

The one rule of resume, new images and retries is here: the work of a run is its listing minus the
images whose newest row counts as written. Listing and rows are partitioned by a hash of the uri in
a temporary directory, so that memory holds one partition, however many images there are. Our own
because pyarrow's join holds both sides in memory. Knows nothing about where the rows are stored.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lesioncam.columns import TRANSIENT_KINDS, ErrorKind, Status
from lesioncam.schema import MANIFEST_SCHEMA

PARTITION_ROWS = 250_000  # target for listed and written rows together: some 50 MB
_CHUNK_ROWS = 100_000  # rows partitioned at once
_MAX_PARTITIONS = 400  # each is an open file while rows are partitioned

INDEX_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("uri", "status", "error_kind", "version")),
        ("scored_at", pa.timestamp("us", "UTC")),
        ("part", pa.int32()),
        ("row_in_part", pa.int64()),
    ]
)


def with_version(table: pa.Table) -> pa.Table:
    """Add the column `version`: the object's etag, else its size and time, else empty."""
    size_and_time = pc.binary_join_element_wise(
        pc.cast(table["size"], pa.string()),
        pc.cast(pc.cast(table["last_modified"], pa.int64()), pa.string()),
        "@",
    )
    version = pc.coalesce(table["etag"], size_and_time, "")
    return table.append_column("version", version)


def pending_rows(listed: pa.Table, written: pa.Table) -> pa.Table:
    """The rule: the rows of a manifest that have no written row of the same object.

    An image of unknown version counts as unchanged: a short fault of the store must not cost a
    good row.
    """
    versioned = with_version(listed)
    unknown = pc.equal(versioned["version"], "")
    pending = [
        versioned.filter(rows).join(written, keys=keys, join_type="left anti")
        for rows, keys in ((pc.invert(unknown), ["uri", "version"]), (unknown, ["uri"]))
    ]
    names = listed.column_names
    return pa.concat_tables(table.select(names) for table in pending).sort_by("row")


@dataclass(frozen=True)
class Partition:
    """The listing and the rows of some of the images; all rows of an image are in one partition.

    Attributes:
        listed: their rows of the manifest, each uri once.
        repeated: how many more times uris were listed.
        newest: the newest row of each image, in `INDEX_SCHEMA`.
        older: `part` and `row_in_part` of the other rows.
    """

    listed: pa.Table
    repeated: int
    newest: pa.Table
    older: pa.Table

    def pending(self, *, retry_failed: bool) -> pa.Table:
        """The listed images that a run has to score: all but those that count as written.

        Transient failures do not count as written, nor do archived images that are restored; with
        `retry_failed` no failure does.
        """
        failed = pc.equal(self.newest["status"], Status.FAILED)
        transient = pc.is_in(self.newest["error_kind"], pa.array(sorted(TRANSIENT_KINDS)))
        readable = self.listed.filter(pc.equal(self.listed["archived"], False))
        restored = pc.and_(
            pc.equal(pc.coalesce(self.newest["error_kind"], ""), ErrorKind.ARCHIVED),
            pc.is_in(self.newest["uri"], _column(readable, "uri")),
        )
        again = failed if retry_failed else pc.and_(failed, pc.or_(transient, restored))
        written = self.newest.filter(pc.invert(again))
        return pending_rows(self.listed, written.select(["uri", "version"]))

    def unlisted(self) -> pa.Table:
        """The newest rows of images that are not in the listing."""
        return self.newest.filter(pc.invert(self._is_listed()))

    def _is_listed(self) -> pa.ChunkedArray:
        """Whether each of `newest` is of a listed image."""
        return pc.is_in(self.newest["uri"], _column(self.listed, "uri"))

    def tally(self) -> "Tally":
        """Count the rows against the listing."""
        found = self.newest.filter(self._is_listed())
        kinds = pc.value_counts(pc.coalesce(found["error_kind"], found["status"])).to_pylist()
        return Tally(
            listed=self.listed.num_rows,
            outcomes=Counter({item["values"]: item["counts"] for item in kinds}),
            without_row=pending_rows(self.listed, self.newest.select(["uri", "version"])).num_rows,
            unlisted=self.newest.num_rows - found.num_rows,
            doubled=self.older.num_rows,
        )


@dataclass(frozen=True)
class Tally:
    """The rows of an output, counted against a listing.

    Attributes:
        listed: listed images.
        outcomes: how many of them are `ok`, or failed with which error kind.
        without_row: how many of them have no row of the object that was listed.
        unlisted: images that have a row but are not in the listing.
        doubled: rows beside an image's newest one.
    """

    listed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    without_row: int = 0
    unlisted: int = 0
    doubled: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.listed + other.listed,
            self.outcomes + other.outcomes,
            self.without_row + other.without_row,
            self.unlisted + other.unlisted,
            self.doubled + other.doubled,
        )


def partitions(
    listed: Iterable[pa.Table], written: Iterable[pa.Table], rows: int
) -> Iterator[Partition]:
    """Partition a listing and the written rows by a hash of the uri.

    Args:
        listed: tables in the manifest's schema.
        written: tables in `INDEX_SCHEMA`.
        rows: about how many rows they have together.
    """
    count = _partition_count(rows)
    with TemporaryDirectory(prefix="lesioncam-") as folder:
        _write_partitions(listed, Path(folder, "listed"), MANIFEST_SCHEMA, count)
        _write_partitions(written, Path(folder, "written"), INDEX_SCHEMA, count)
        for number in range(count):
            images = _read_and_remove(Path(folder, f"listed{number}"))
            manifest = _first_of_each(images)
            yield Partition(
                manifest,
                images.num_rows - manifest.num_rows,
                *split_newest(_read_and_remove(Path(folder, f"written{number}"))),
            )


def count_shared_ids(listed: Iterable[pa.Table], rows: int) -> int:
    """How many image ids several images of a listing of so many rows have."""
    count, shared = _partition_count(rows), 0
    with TemporaryDirectory(prefix="lesioncam-") as folder:
        _write_partitions(listed, Path(folder, "ids"), MANIFEST_SCHEMA, count, key="image_id")
        for number in range(count):
            images = _first_of_each(_read_and_remove(Path(folder, f"ids{number}")))
            images_per_id = pc.value_counts(images["image_id"]).field("counts")
            shared += pc.sum(pc.greater(images_per_id, 1)).as_py() or 0
    return shared


def split_newest(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The newest row of each image, and `part` and `row_in_part` of all others.

    Of rows of one time the one in the last part is the newest.
    """
    if not rows.num_rows:
        return rows, rows.select(["part", "row_in_part"])
    order = [("uri", "ascending"), ("scored_at", "descending"), ("part", "descending")]
    rows = rows.sort_by(order)
    uris = _column(rows, "uri")
    first = pa.concat_arrays([pa.array([True]), pc.not_equal(uris[1:], uris[:-1])])
    return rows.filter(first), rows.filter(pc.invert(first)).select(["part", "row_in_part"])


def _first_of_each(listed: pa.Table) -> pa.Table:
    """Each uri once, where it is listed first."""
    if pc.count_distinct(listed["uri"]).as_py() == listed.num_rows:
        return listed
    first = listed.group_by("uri").aggregate([("row", "min")])["row_min"]
    return listed.filter(pc.is_in(listed["row"], first.combine_chunks()))


def _partition_count(rows: int) -> int:
    return min(max(1, -(-rows // PARTITION_ROWS)), _MAX_PARTITIONS)


def _write_partitions(
    tables: Iterable[pa.Table], stem: Path, schema: pa.Schema, count: int, key: str = "uri"
) -> None:
    """Append each table's rows to the files of their partitions, by a hash of the column `key`."""
    with ExitStack() as files:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        writers = [
            files.enter_context(pa.ipc.new_stream(f"{stem}{number}", schema, options=options))
            for number in range(count)
        ]
        for table in regroup(tables, _CHUNK_ROWS):
            keys = table[key].to_pylist()
            partition = np.fromiter((crc32(one.encode()) % count for one in keys), int, len(keys))
            order = np.argsort(partition, kind="stable")
            bounds = np.searchsorted(partition[order], np.arange(count + 1))
            grouped = table.take(pa.array(order))
            for number, writer in enumerate(writers):
                start, end = bounds[number], bounds[number + 1]
                if end > start:
                    writer.write_table(grouped.slice(start, end - start))


def _read_and_remove(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        table = stream.read_all()
    path.unlink()
    return table


def regroup(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Concatenate tables until each has at least so many rows; the last may have fewer."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(one.num_rows for one in waiting) >= rows:
            yield pa.concat_tables(waiting)
            waiting = []
    if any(one.num_rows for one in waiting):
        yield pa.concat_tables(waiting)


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table[name].combine_chunks()
    return pa.array([], column.type) if isinstance(column, pa.ChunkedArray) else column
