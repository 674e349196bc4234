"""Results: the Parquet under an output, which is also the checkpoint.

Files appear whole or not at all. They are staged first, and appear only while their run holds the
output (`lesioncam.storage.lease`). A finished run compacts its parts: what replaces what is
recorded before anything is removed, so that the next run can finish or undo an interrupted
compaction.
"""

import io
import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, pairwise, repeat
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lesioncam.columns import classes_of
from lesioncam.errors import InputError, RunFailedError
from lesioncam.schema import precision_of, scores_schema
from lesioncam.storage.index import Index, open_part, part_names
from lesioncam.storage.lease import LeaseLostError
from lesioncam.storage.pending import Partition, partitions, split_newest
from lesioncam.storage.uris import open_store

log = logging.getLogger("lesioncam")

SUCCESS = "_SUCCESS"
PART_ROWS = 200_000  # target for the rows of a compacted file
COMMIT_FILE = "_lesioncam/commit.json"
STAGING = "_lesioncam/staging"  # no name in it ends in `.parquet`

_THREADS = 16  # files read or deleted at once
_READ_THREADS = 4  # whole parts in memory at once
_BATCH_ROWS = 50_000  # rows in memory of a stream

Check = Callable[[], None]


def _no_check() -> None:
    """For an output that only this process writes."""


@dataclass(frozen=True)
class Commit:
    """A compaction under way: what is added and what is removed.

    Attributes:
        added: names of the merged files.
        removed: names of the files that they replace.
        written: whether all of `added` are written; only then is anything removed.
    """

    added: list[str]
    removed: list[str]
    written: bool


class Results:
    """Everything a scoring run reads and writes under `--output`.

    Reads each part's footer and index columns once, however many of its methods need them; the
    copy in a temporary directory is removed with this object.
    """

    def __init__(self, uri: str):
        self.store = open_store(uri)
        self._index = Index(self.store)

    def parts(self) -> list[str]:
        """Names of the Parquet files, sorted."""
        return part_names(self.store)

    def check(self, classes: Sequence[str], model: str, kept: Collection[str] = ()) -> str | None:
        """Refuse an output that another model, or another program, wrote.

        Args:
            classes: the bundle's.
            model: the bundle's digest.
            kept: the columns of a list that are kept, in any order; others are refused, too.

        Returns:
            The precision that its rows were computed in; None for an output without rows.

        Raises:
            InputError: with both digests or columns and what to do.
        """
        found: dict[str, str] = {}  # precision -> the name of a part

        def check(name: str, part: pq.ParquetFile) -> None:
            self._check(name, part, classes, model, kept)
            found[self._precision(name, part)] = name

        self._index.update(check)
        if len(found) > 1:
            raise InputError(
                f"--output: {self.store.uri} holds rows of several precisions, such as those of "
                f"{' and '.join(sorted(found.values()))}; name another output"
            )
        return next(iter(found), None)

    def partitions(self, listed: Iterable[pa.Table] = (), images: int = 0) -> Iterator[Partition]:
        """All rows, beside a listing of so many images, a partition at a time."""
        self._index.update()
        rows = images + sum(self._index.sizes.values())
        return partitions(listed, self._index.tables(), rows)

    def read(self, columns: list[str], image_ids: Collection[str]) -> pa.Table:
        """These columns of the newest row of each image that has one of these ids.

        There must be a part. Memory holds a few parts at a time, and the rows returned. The same
        with or without `_SUCCESS`: a current run may have scored an image again.
        """
        names, ids = self.parts(), pa.array(image_ids, pa.string())
        order = [("part", "ascending"), ("row_in_part", "ascending")]
        with ThreadPoolExecutor(_READ_THREADS) as threads:
            found = threads.map(self._find, repeat(ids), range(len(names)), names)
            newest = split_newest(pa.concat_tables(found))[0].sort_by(order)
            bounds = np.searchsorted(newest["part"].to_numpy(), np.arange(len(names) + 1))
            rows = [newest["row_in_part"].slice(a, b - a) for a, b in pairwise(bounds)]
            wanted = [n for n in range(len(names)) if len(rows[n])] or [0]
            read = threads.map(lambda n: self._read(names[n], columns).take(rows[n]), wanted)
            return pa.concat_tables(read)

    def stream(self, columns: list[str]) -> Iterator[tuple[str, np.ndarray, pa.Table]]:
        """The newest row of every image, some thousands at a time, in the order of the files.

        The same with or without `_SUCCESS`, as for `read`.

        Yields:
            the name of a part, (n,) int64 the numbers of the rows in it, and the rows.
        """
        complete = self.store.exists(SUCCESS)
        superseded = {} if complete else self._superseded_rows(None)
        for name in self.parts() if complete else self._index.sizes:
            start = 0
            with open_part(self.store, name) as part:
                keep = np.ones(part.metadata.num_rows, bool)
                keep[superseded.get(name, [])] = False
                for batch in part.iter_batches(_BATCH_ROWS, columns=columns):
                    rows = start + np.flatnonzero(keep[start : start + len(batch)])
                    yield name, rows, pa.Table.from_batches([batch]).take(rows - start)
                    start += len(batch)

    def read_rows(self, rows: Mapping[str, Sequence[int]], columns: list[str]) -> pa.Table:
        """These columns of some rows, by their part and number; a part is in memory at a time."""
        return pa.concat_tables(self._read(name, columns).take(rows[name]) for name in rows)

    def count_by_status(self) -> Counter[str]:
        """How many images have a newest row of each status."""
        if not self.store.exists(SUCCESS):
            newest = (partition.newest for partition in self.partitions())
            return sum(map(_count_statuses, newest), start=Counter())
        with ThreadPoolExecutor(_READ_THREADS) as threads:  # compacted: one row an image
            tables = threads.map(lambda name: self._read(name, ["status"]), self.parts())
            return sum(map(_count_statuses, tables), start=Counter())

    def schema(self) -> pa.Schema | None:
        """The schema of the scores; None if there are none."""
        names = self.parts()
        if not names:
            return None
        with open_part(self.store, names[0]) as part:
            return part.schema_arrow

    def write_part(self, name: str, table: pa.Table, check: Check = _no_check) -> None:
        """Write rows as one Parquet file, whole or not at all.

        Args:
            name: of the file.
            table: the rows.
            check: raises if the output is not this run's any more.
        """
        file = io.BytesIO()
        pq.write_table(table, file, compression="zstd")
        self._publish(name, file.getvalue(), check)

    def discard_staged(self) -> None:
        """Remove what is staged: what its writers move after this finds nothing, and is not seen.

        No writer whose check still passes may be at work.
        """
        staging = self.store.join(STAGING)
        staging.remove_temporary_files()
        self._delete_all(f"{STAGING}/{name}" for name in staging.names())

    def compact(
        self,
        run_id: str,
        check: Check = _no_check,
        listed: tuple[Iterable[pa.Table], int] | None = None,
    ) -> None:
        """Drop all rows but the newest of each image, and merge small parts.

        What is added and removed is recorded first, and nothing is removed before all that
        replaces it is written; an interrupted compaction is finished or undone by `recover`.

        Args:
            run_id: names the merged files.
            check: raises if the output is not this run's any more; called at each write.
            listed: a listing, and how many images it has; rows of other images are dropped, too.
                None keeps them.
        """
        self.recover()
        superseded = self._superseded_rows(listed)
        sizes = self._index.sizes
        small = {name for name, size in sizes.items() if size < PART_ROWS // 2}
        replaced = superseded.keys() | (small if len(small) > 1 else set())
        if not replaced:
            return
        current = ((n, sizes[n] - len(superseded.get(n, ()))) for n in sizes if n in replaced)
        names = _unused_names(f"compacted-{run_id}", sizes)
        added = {next(names): group for group in _group(current)}
        log.info("merging %s parts into %s", f"{len(replaced):,}", f"{len(added):,}")
        self._record(Commit(list(added), sorted(replaced), written=False), check)
        for name, group in added.items():
            with ThreadPoolExecutor(_THREADS) as threads:
                merged = pa.concat_tables(
                    threads.map(lambda n: self._read_without(n, superseded.get(n)), group)
                )
            self.write_part(name, merged, check)
        commit = Commit(list(added), sorted(replaced), written=True)
        self._record(commit, check)
        self._finish(commit)

    def recover(self) -> None:
        """Finish an interrupted compaction if all its files are written, else undo it.

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
        self._finish(commit)

    def begin(self) -> None:
        """Mark the output as incomplete."""
        self.store.delete(SUCCESS)

    def succeed(self, check: Check = _no_check) -> None:
        """Mark the output as complete: every listed image has its row.

        Args:
            check: raises if the output is not this run's any more.
        """
        self._publish(SUCCESS, b"", check)

    def _check(
        self,
        name: str,
        part: pq.ParquetFile,
        classes: Sequence[str],
        model: str,
        kept: Collection[str],
    ) -> None:
        schema = part.schema_arrow
        if "model" not in schema.names or not classes_of(schema.names):
            raise InputError(
                f"--output: {self.store.uri}/{name} was not written by lesioncam; name another "
                f"output"
            )
        models = pc.unique(part.read(["model"])["model"]).to_pylist()
        other = [found for found in models if found != model]
        if other:
            raise InputError(
                f"--output: {self.store.uri} holds rows of model {other[0]}, this bundle is "
                f"{model}; name another output, or remove the rows there"
            )
        own = scores_schema(classes).names
        found = [name for name in schema.names if name not in own]
        if not schema.equals(scores_schema(classes, found)):
            raise InputError(
                f"--output: {self.store.uri}/{name} has other columns than this version "
                f"writes; name another output"
            )
        if set(found) != set(kept):
            names = ",".join(found)
            fix = f"give --keep-columns {names}" if found else "leave it out"
            raise InputError(
                f"--keep-columns: the scores in {self.store.uri} were written with "
                f"{names or 'no columns'} kept; {fix}, or name another output"
            )

    def _precision(self, name: str, part: pq.ParquetFile) -> str:
        precision = precision_of(part.schema_arrow)
        if precision is None:
            raise InputError(
                f"--output: {self.store.uri}/{name} does not say in its metadata in which "
                f"precision its rows were computed; name another output"
            )
        return precision

    def _publish(self, name: str, data: bytes, check: Check) -> None:
        """Write a file whole; it appears only if `check` passes while it is staged."""
        staged = f"{STAGING}/{PurePosixPath(name).name}-{secrets.token_hex(4)}"
        self.store.write(staged, data)
        check()
        if not self.store.move(staged, name):
            raise LeaseLostError(
                f"another run has taken over {self.store.uri}; run the same command again"
            )

    def _record(self, commit: Commit, check: Check) -> None:
        self._publish(COMMIT_FILE, json.dumps(vars(commit)).encode(), check)

    def _finish(self, commit: Commit) -> None:
        self._delete_all(commit.removed if commit.written else commit.added)
        self.store.delete(COMMIT_FILE)

    def _delete_all(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_THREADS) as threads:
            for _ in threads.map(self.store.delete, names):
                pass  # an exception of a deletion is raised here

    def _read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        with open_part(self.store, name) as part:
            return part.read(columns)

    def _find(self, image_ids: pa.Array, number: int, name: str) -> pa.Table:
        """`uri`, `scored_at`, `part` and `row_in_part` of a part's rows of these images."""
        with open_part(self.store, name) as part:
            found = pc.is_in(part.read(["image_id"])["image_id"], image_ids)
            rows = pa.array(np.flatnonzero(found), pa.int64())
            table = part.read(["uri", "scored_at"]).take(rows)
        numbers = pa.repeat(pa.scalar(number, pa.int32()), len(rows))
        return table.append_column("part", numbers).append_column("row_in_part", rows)

    def _superseded_rows(
        self, listed: tuple[Iterable[pa.Table], int] | None
    ) -> dict[str, np.ndarray]:
        """Name -> (n,) int64, the rows of a part that `compact` drops; only parts with any."""
        dropped = []
        for partition in self.partitions(*(listed or ())):
            dropped.append(partition.older)
            if listed is not None:
                dropped.append(partition.unlisted().select(partition.older.column_names))
        superseded = pa.concat_tables(dropped).sort_by("part")
        parts, rows = superseded["part"].to_numpy(), superseded["row_in_part"].to_numpy()
        names = list(self._index.sizes)
        bounds = pairwise(np.searchsorted(parts, np.arange(len(names) + 1)))
        return {name: rows[a:b] for name, (a, b) in zip(names, bounds, strict=True) if a < b}

    def _read_without(self, name: str, rows: np.ndarray | None) -> pa.Table:
        table = self._read(name)
        if rows is None:
            return table
        keep = np.ones(table.num_rows, bool)
        keep[rows] = False
        return table.filter(pa.array(keep))


def _count_statuses(rows: pa.Table) -> Counter[str]:
    counts = pc.value_counts(rows["status"]).to_pylist()
    return Counter({str(item["values"]): item["counts"] for item in counts})


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
