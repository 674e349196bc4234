"""Index: what the written rows say of their images, copied from each part once.

Of each part the columns of `INDEX_SCHEMA` go to a temporary directory, however often they are then
asked for. Parts are never changed under their name: only new ones are read.
"""

import shutil
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import mkdtemp

import pyarrow as pa
import pyarrow.parquet as pq

from lesioncam.errors import InputError, RunFailedError
from lesioncam.storage.pending import INDEX_SCHEMA, with_version
from lesioncam.storage.store import Store

_THREADS = 16  # parts read at once
_BATCH_ROWS = 50_000  # rows in memory a part: some 10 MB
_COLUMNS = ["uri", "status", "error_kind", "size", "etag", "last_modified", "scored_at"]
_COPY_SCHEMA = pa.schema([f for f in INDEX_SCHEMA if f.name not in ("part", "row_in_part")])

Check = Callable[[str, pq.ParquetFile], None]


@dataclass(frozen=True)
class _Copy:
    """The copy of a part's index columns, and how many rows it has."""

    path: Path
    rows: int


class Index:
    """The index columns of the parts in a store. The copy is removed with this object."""

    def __init__(self, store: Store):
        self._store = store
        self._copies: dict[str, _Copy] = {}
        self._numbers = count()
        self._folder: Path | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Name -> rows of each part, in the order of names, older rows included."""
        return {name: copy.rows for name, copy in self._copies.items()}

    def update(self, check: Check = lambda *_: None) -> None:
        """Read the parts that are new and forget those that are gone.

        Args:
            check: called with each new part's name and its open file; raises to refuse it.
        """
        names = part_names(self._store)
        for gone in self._copies.keys() - names:
            self._copies.pop(gone).path.unlink()
        new = [name for name in names if name not in self._copies]
        if new and self._folder is None:
            self._folder = Path(mkdtemp(prefix="lesioncam-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        with ThreadPoolExecutor(_THREADS) as threads:
            copies = threads.map(lambda name: self._copy(name, check), new)
            self._copies.update(zip(new, copies, strict=True))
        self._copies = dict(sorted(self._copies.items()))

    def tables(self) -> Iterator[pa.Table]:
        """The rows of each part in `INDEX_SCHEMA`; `part` is its number in the order of names."""
        for number, copy in enumerate(self._copies.values()):
            with pa.OSFile(str(copy.path)) as file, pa.ipc.open_stream(file) as stream:
                table = stream.read_all()
            part = pa.repeat(pa.scalar(number, pa.int32()), copy.rows)
            row_in_part = pa.array(range(copy.rows), pa.int64())
            table = table.append_column("part", part).append_column("row_in_part", row_in_part)
            yield table.cast(INDEX_SCHEMA)

    def _copy(self, name: str, check: Check) -> _Copy:
        path, rows = Path(str(self._folder), str(next(self._numbers))), 0
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        try:
            with pa.ipc.new_stream(str(path), _COPY_SCHEMA, options=options) as stream:
                for table in _read_index(self._store, name, check):
                    stream.write_table(table)
                    rows += table.num_rows
        except OSError as error:
            raise RunFailedError(
                f"cannot write to {path.parent}: {error}; free space there, or set TMPDIR"
            ) from error
        return _Copy(path, rows)


def _read_index(store: Store, name: str, check: Check) -> Iterator[pa.Table]:
    """A part's index columns, some rows at a time."""
    with open_part(store, name) as part:
        check(name, part)
        for batch in part.iter_batches(_BATCH_ROWS, columns=_COLUMNS):
            table = with_version(pa.Table.from_batches([batch]))
            yield table.select(_COPY_SCHEMA.names).cast(_COPY_SCHEMA)


def part_names(store: Store) -> list[str]:
    """Names of the Parquet files of scores, sorted."""
    return [name for name in store.names() if name.endswith(".parquet") and name[0] != "_"]


@contextmanager
def open_part(store: Store, name: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file.

    Raises:
        InputError: it is not one.
        RunFailedError: it cannot be read.
    """
    filesystem, root = store.arrow()
    try:
        with filesystem.open_input_file(f"{root}/{name}") as file:
            yield pq.ParquetFile(file, pre_buffer=True)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{store.uri}/{name} was not written by lesioncam: it is no Parquet file; remove it"
        ) from error
    except OSError as error:
        raise RunFailedError(f"cannot read {store.uri}/{name}: {error}") from error
