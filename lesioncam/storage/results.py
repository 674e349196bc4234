"""Results: the Parquet under an output, which is also the checkpoint.

Part files appear whole or not at all. Settling merges them once a run is through: what replaces
what is recorded before anything is removed, so that whoever comes next can finish or undo it.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lesioncam.columns import classes_of
from lesioncam.errors import InputError, RunFailedError
from lesioncam.schema import scores_schema
from lesioncam.storage.listing import write_table
from lesioncam.storage.pending import (
    INDEX_SCHEMA,
    Partition,
    partitions,
    split_newest,
    with_version,
)
from lesioncam.storage.uris import open_store

log = logging.getLogger("lesioncam")

SUCCESS = "_SUCCESS"
PART_ROWS = 200_000  # rows a settled file aims at
COMMIT_FILE = "_lesioncam/commit.json"

_VERSION_COLUMNS = ["size", "etag", "last_modified"]
_FOOTER_THREADS = 16
_INDEX_THREADS = 4  # parts read at once; a settled one takes some 40 MB


@dataclass(frozen=True)
class Commit:
    """A settling under way: what is added and what is removed.

    Attributes:
        added: names of the merged files.
        removed: names of the files that they replace.
        written: whether all that is added stands; only then is anything removed.
    """

    added: list[str]
    removed: list[str]
    written: bool


class Results:
    """Everything a scoring run reads and writes under `--output`."""

    def __init__(self, uri: str):
        self.store = open_store(uri)

    def parts(self) -> list[str]:
        """Names of the Parquet files, sorted."""
        return [n for n in self.store.names() if n.endswith(".parquet") and n[0] != "_"]

    def check(self, classes: Sequence[str], model: str) -> None:
        """Refuse an output that another model, or another program, wrote.

        Raises:
            InputError: with both digests and what to do.
        """
        with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
            for _ in threads.map(lambda name: self._check(name, classes, model), self.parts()):
                pass  # the first refusal is raised here

    def sizes(self) -> dict[str, int]:
        """Name -> rows of each part, older rows included."""
        names = self.parts()
        with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
            return dict(zip(names, threads.map(self._size, names), strict=True))

    def partitions(self, listed: Iterable[pa.Table] = (), images: int = 0) -> Iterator[Partition]:
        """All rows, beside a listing of so many images, a partition at a time."""
        sizes = self.sizes()
        return partitions(listed, self._index(list(sizes)), images + sum(sizes.values()))

    def read(self, columns: list[str], image_ids: Collection[str]) -> pa.Table:
        """These columns of the newest row of each image that has one of these ids.

        There must be a part. Memory holds a few parts at a time, and the rows returned. The same
        with or without `_SUCCESS`: a run under way may have written an image anew.
        """
        names, ids = self.parts(), pa.array(image_ids, pa.string())
        order = [("part", "ascending"), ("row_in_part", "ascending")]
        with ThreadPoolExecutor(_INDEX_THREADS) as threads:
            found = threads.map(lambda n: self._find(ids, n, names[n]), range(len(names)))
            newest = split_newest(pa.concat_tables(found))[0].sort_by(order)
            bounds = np.searchsorted(newest["part"].to_numpy(), np.arange(len(names) + 1))
            rows = [
                newest["row_in_part"].slice(start, end - start) for start, end in pairwise(bounds)
            ]
            wanted = [n for n in range(len(names)) if len(rows[n])] or [0]
            read = threads.map(lambda n: self._read(names[n], columns).take(rows[n]), wanted)
            return pa.concat_tables(read)

    def count_by_status(self) -> Counter[str]:
        """How many images have a newest row of each status."""
        names = self.parts()
        if not self.store.exists(SUCCESS):
            newest = (partition.newest for partition in self.partitions())
            return sum(map(_statuses, newest), start=Counter())
        with ThreadPoolExecutor(_INDEX_THREADS) as threads:  # compacted: one row an image
            counts = threads.map(lambda name: _statuses(self._read(name, ["status"])), names)
            return sum(counts, start=Counter())

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

    def compact(self, run_id: str, check: Callable[[], None] = lambda: None) -> None:
        """Leave one row an image, in few files: drop older rows and merge small parts.

        What is to be added and removed is recorded first, and nothing is removed before all that
        replaces it stands; a settling that broke off is finished or undone by `recover`.

        Args:
            run_id: names the merged files.
            check: raises if the output is not this run's any more; called before each write.
        """
        self.recover()
        sizes = self.sizes()
        older = pa.concat_tables([one.older for one in self.partitions()])
        stale = {item["values"]: item["counts"] for item in _counts(older["part"])}
        current = {name: size - stale.get(n, 0) for n, (name, size) in enumerate(sizes.items())}
        small = {name for name, size in sizes.items() if size < PART_ROWS // 2}
        replaced = {name for name, size in sizes.items() if current[name] < size}
        replaced |= small if len(small) > 1 else set()
        groups = _group([(name, current[name]) for name in sizes if name in replaced])
        if not replaced:
            return
        names = _unused_names(f"compacted-{run_id}", sizes)
        added = {next(names): group for group in groups}
        log.info("merging %s parts into %s", f"{len(replaced):,}", f"{len(added):,}")
        check()
        self._record(Commit(list(added), sorted(replaced), written=False))
        numbers = {name: number for number, name in enumerate(sizes)}
        for name, group in added.items():
            with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
                parts = threads.map(lambda n: self._without(n, numbers[n], older), group)
                merged = pa.concat_tables(parts)
            check()
            self.write_part(name, merged)
        check()
        self._record(Commit(list(added), sorted(replaced), written=True))
        self.recover()

    def recover(self) -> None:
        """Finish a settling that broke off after it had written all its files, else undo it.

        Raises:
            RunFailedError: a file that replaces others is gone; nothing is removed then.
        """
        if not self.store.exists(COMMIT_FILE):
            return
        commit = Commit(**json.loads(self.store.read(COMMIT_FILE)))
        missing = set(commit.added) - set(self.parts()) if commit.written else set()
        if missing:
            raise RunFailedError(
                f"{self.store.uri}: {len(missing)} merged files are missing that replace "
                f"{len(commit.removed)} others; remove {COMMIT_FILE} and run the same command again"
            )
        with ThreadPoolExecutor(_FOOTER_THREADS) as threads:
            gone = commit.removed if commit.written else commit.added
            for _ in threads.map(self.store.delete, gone):
                pass  # what a deletion raises is raised here
        self.store.delete(COMMIT_FILE)

    def begin(self) -> None:
        """From here on the output is not complete; what killed writers left half is removed."""
        self.store.remove_temporary_files()
        self.store.delete(SUCCESS)

    def succeed(self) -> None:
        """Every listed image has its row."""
        self.store.write(SUCCESS, b"")

    def _check(self, name: str, classes: Sequence[str], model: str) -> None:
        filesystem, root = self.store.arrow()
        try:
            with self._told(name):
                schema = pq.read_schema(f"{root}/{name}", filesystem=filesystem)
        except pa.ArrowInvalid:  # not Parquet at all
            schema = pa.schema([])
        if "model" not in schema.names or not classes_of(schema.names):
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

    def _record(self, commit: Commit) -> None:
        self.store.write(COMMIT_FILE, json.dumps(vars(commit)).encode())

    def _read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        filesystem, root = self.store.arrow()
        with self._told(name):
            return pq.read_table(
                f"{root}/{name}", columns=columns, filesystem=filesystem, partitioning=None
            )

    def _size(self, name: str) -> int:
        filesystem, root = self.store.arrow()
        with self._told(name), filesystem.open_input_file(f"{root}/{name}") as file:
            return int(pq.read_metadata(file).num_rows)

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """What pyarrow cannot read, in our own words."""
        try:
            yield
        except OSError as error:
            raise RunFailedError(f"cannot read {self.store.uri}/{name}: {error}") from error

    def _index(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Each part's rows as the ledger wants them; a few parts are read at once."""
        with ThreadPoolExecutor(_INDEX_THREADS) as threads:
            for start in range(0, len(names), _INDEX_THREADS):
                numbers = range(start, min(start + _INDEX_THREADS, len(names)))
                yield from threads.map(
                    lambda number: self._index_of(number, names[number]), numbers
                )

    def _index_of(self, number: int, name: str) -> pa.Table:
        columns = ["uri", "status", "error_kind", *_VERSION_COLUMNS, "scored_at"]
        table = with_version(self._read(name, columns))
        part = pa.array([number] * table.num_rows, pa.int32())
        row_in_part = pa.array(range(table.num_rows), pa.int64())
        table = table.append_column("part", part).append_column("row_in_part", row_in_part)
        return table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)

    def _find(self, image_ids: pa.Array, number: int, name: str) -> pa.Table:
        """`uri`, `scored_at`, `part` and `row_in_part` of a part's rows of these images."""
        found = pc.is_in(self._read(name, ["image_id"])["image_id"], image_ids)
        rows = pa.array(np.flatnonzero(found), pa.int64())
        table = self._read(name, ["uri", "scored_at"]).take(rows)
        part = pa.array(np.full(len(rows), number), pa.int32())
        return table.append_column("part", part).append_column("row_in_part", rows)

    def _without(self, name: str, number: int, older: pa.Table) -> pa.Table:
        """A part without the rows at its places in `older`."""
        table = self._read(name)
        gone = older["row_in_part"].filter(pc.equal(older["part"], number))
        places = pa.array(range(table.num_rows), pa.int64())
        return table.filter(pc.invert(pc.is_in(places, gone.combine_chunks())))


def _counts(column: pa.ChunkedArray) -> list[dict[str, int]]:
    counts: list[dict[str, int]] = pc.value_counts(column).to_pylist()
    return counts


def _statuses(rows: pa.Table) -> Counter[str]:
    return Counter({str(item["values"]): item["counts"] for item in _counts(rows["status"])})


def _group(parts: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Put names together until a group has `PART_ROWS` rows; the last may have fewer."""
    group: list[str] = []
    rows = 0
    for name, size in parts:
        group.append(name)
        rows += size
        if rows >= PART_ROWS:
            yield group
            group, rows = [], 0
    if rows:
        yield group


def _unused_names(stem: str, used: Collection[str]) -> Iterator[str]:
    names = (f"{stem}-{number:05d}.parquet" for number in count())
    return (name for name in names if name not in used)
