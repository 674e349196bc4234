"""Results: the Parquet under an output, which is also the checkpoint.

The one rule of resume, new images and retries is here: the work of a run is its listing minus the
images whose newest row counts as written.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lesioncam.errors import InputError
from lesioncam.schema import (
    TRANSIENT_KINDS,
    Status,
    classes_of,
    scores_schema,
)
from lesioncam.storage.listing import write_table
from lesioncam.storage.store import open_store

SUCCESS = "_SUCCESS"
PART_ROWS = 200_000  # rows a settled file aims at

_VERSION_COLUMNS = ["size", "etag", "last_modified"]
_INDEX_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("uri", "status", "error_kind")),
        ("part", pa.int32()),
        ("place", pa.int64()),
        ("version", pa.string()),
    ]
)


def with_version(table: pa.Table) -> pa.Table:
    """Add the column `version`: the object's etag, else its size and time, else nothing."""
    size_and_time = pc.binary_join_element_wise(
        pc.cast(table["size"], pa.string()),
        pc.cast(pc.cast(table["last_modified"], pa.int64()), pa.string()),
        "@",
    )
    version = pc.coalesce(table["etag"], size_and_time, "")
    return table.append_column("version", version)


def left_to_do(listed: pa.Table, written: pa.Table) -> pa.Table:
    """The rule: the rows of a manifest that have no written row of the same object."""
    left = with_version(listed).join(written, keys=["uri", "version"], join_type="left anti")
    return left.sort_by("row").select(listed.column_names)


@dataclass(frozen=True)
class Rows:
    """The newest row of each image.

    Attributes:
        index: one row an image: uri, version, status, error_kind, part (a number in `parts`),
            place (in that part).
        parts: name -> how many rows the part has, older ones included.
    """

    index: pa.Table
    parts: Mapping[str, int]

    def written(self, *, retry_failed: bool) -> pa.Table:
        """What counts as written, as (uri, version): all but failures worth another try."""
        failed = pc.equal(self.index["status"], Status.FAILED)
        transient = pc.is_in(self.index["error_kind"], pa.array(sorted(TRANSIENT_KINDS)))
        again = failed if retry_failed else pc.and_(failed, transient)
        return self.index.filter(pc.invert(again)).select(["uri", "version"])


class Results:
    """Everything a scoring run reads and writes under `--output`."""

    def __init__(self, uri: str):
        self.store = open_store(uri)

    def parts(self) -> list[str]:
        """Names of the Parquet files, sorted."""
        below = len(self.store.uri) + 1
        names = (entry.uri[below:] for entry in self.store.entries())
        return sorted(n for n in names if n.endswith(".parquet") and "/" not in n and n[0] != "_")

    def check(self, classes: Sequence[str], model: str) -> None:
        """Refuse an output that another model, or another program, wrote.

        Raises:
            InputError: with both digests and what to do.
        """
        filesystem, root = self.store.arrow()
        for name in self.parts():
            try:
                schema = pq.read_schema(f"{root}/{name}", filesystem=filesystem)
            except pa.ArrowInvalid:  # not Parquet at all
                schema = pa.schema([])
            if "model" not in schema.names or not classes_of(schema):
                raise InputError(
                    f"--output: {self.store.uri}/{name} was not written by lesioncam; "
                    f"name another output"
                )
            models = pc.unique(self._read(name, ["model"])["model"]).to_pylist()
            other = [found for found in models if found != model]
            if other:
                raise InputError(
                    f"--output: {self.store.uri} holds rows of model {other[0]}, this bundle is "
                    f"{model}; name another output, or remove the rows there"
                )
            if not schema.equals(scores_schema(classes)):
                raise InputError(
                    f"--output: {self.store.uri}/{name} has other columns than this version "
                    f"writes; name another output"
                )

    def rows(self) -> Rows:
        """Find the newest row of each image over all parts."""
        sizes: dict[str, int] = {}
        tables = []
        columns = ["uri", "status", "error_kind", *_VERSION_COLUMNS, "scored_at"]
        for number, name in enumerate(self.parts()):
            table = self._read(name, columns)
            sizes[name] = table.num_rows
            part = pa.array([number] * table.num_rows, pa.int32())
            place = pa.array(range(table.num_rows), pa.int64())
            tables.append(table.append_column("part", part).append_column("place", place))
        if not tables:
            return Rows(_INDEX_SCHEMA.empty_table(), sizes)
        order = [("uri", "ascending"), ("scored_at", "descending"), ("part", "descending")]
        rows = pa.concat_tables(tables).sort_by(order)
        uris = rows["uri"].cast(pa.large_string()).combine_chunks()  # may be more than 2 GiB
        first = pa.array([True] if len(uris) else [], pa.bool_())
        newest = pa.concat_arrays([first, pc.not_equal(uris[1:], uris[:-1])])
        index = with_version(rows.filter(newest)).select(_INDEX_SCHEMA.names)
        return Rows(index, sizes)

    def read(self, columns: list[str]) -> pa.Table:
        """These columns of the newest row of each image; there must be a part.

        The same with or without `_SUCCESS`: a run under way may have written an image anew.
        """
        rows = self.rows()
        return pa.concat_tables(self._newest(rows, rows.parts.keys(), columns))

    def schema(self) -> pa.Schema | None:
        """The schema of what is written; None if nothing is."""
        names = self.parts()
        if not names:
            return None
        filesystem, root = self.store.arrow()
        return pq.read_schema(f"{root}/{names[0]}", filesystem=filesystem)

    def write_part(self, name: str, table: pa.Table) -> None:
        """Write rows as one Parquet file, whole or not at all."""
        write_table(self.store, name, table)

    def settle(self, run_id: str) -> Rows:
        """Leave one row an image, in few files: drop older rows and merge small parts.

        Merged files are written before what they replace is removed. A run killed in between
        leaves some rows twice, equal in everything, and the next settling drops one of each.
        """
        rows = self.rows()
        current = {item["values"]: item["counts"] for item in _counts(rows.index["part"])}
        stale = {n for i, n in enumerate(rows.parts) if current.get(i, 0) < rows.parts[n]}
        small = {n for n, size in rows.parts.items() if size < PART_ROWS // 2}
        replaced = stale | (small if len(small) > 1 else set())
        if not replaced:
            return rows
        kept = self._newest(rows, replaced)
        names_left = (f"settled-{run_id}-{number:05d}.parquet" for number in count())
        unused = (name for name in names_left if name not in rows.parts)
        for table in _regroup(kept):
            self.write_part(next(unused), table)
        for name in replaced:
            self.store.delete(name)
        return self.rows()

    def begin(self) -> None:
        """From here on the output is not complete."""
        self.store.delete(SUCCESS)

    def succeed(self) -> None:
        """Every listed image has its row."""
        self.store.write(SUCCESS, b"")

    def _read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        filesystem, root = self.store.arrow()
        return pq.read_table(
            f"{root}/{name}", columns=columns, filesystem=filesystem, partitioning=None
        )

    def _newest(
        self, rows: Rows, names: Collection[str], columns: list[str] | None = None
    ) -> Iterator[pa.Table]:
        """Of each of these parts the rows that are an image's newest."""
        index = rows.index.select(["part", "place"]).sort_by([("part", "ascending")])
        start = 0
        current = {item["values"]: item["counts"] for item in _counts(index["part"])}
        for number, name in enumerate(rows.parts):
            size = current.get(number, 0)
            if name in names:
                yield self._read(name, columns).take(index["place"].slice(start, size))
            start += size


def _counts(column: pa.ChunkedArray) -> list[dict[str, int]]:
    counts: list[dict[str, int]] = pc.value_counts(column).to_pylist()
    return counts


def _regroup(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Concatenate tables until each has at least `PART_ROWS` rows; the last may have fewer."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= PART_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if any(part.num_rows for part in waiting):
        yield pa.concat_tables(waiting)
