"""Listing: which images there are, and the manifest that records them.

Knows nothing about what was already scored.
"""

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from itertools import islice
from pathlib import Path, PurePosixPath

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lesioncam.errors import InputError
from lesioncam.schema import IGNORED_ENDING, IMAGE_ENDINGS, MANIFEST_SCHEMA, SOURCE_FIELDS
from lesioncam.storage.store import (
    Entry,
    Store,
    StoreError,
    local_path,
    open_store,
    read_uri,
    stat_uri,
)

MANIFEST_ROWS = 100_000  # rows a manifest file: some 10 MB
_STAT_THREADS = 32


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

    def __iter__(self) -> Iterator[Entry]:
        """Yield the images.

        Raises:
            InputError: there is no such place, or no image in it.
        """
        entries = self._listed() if self._is_list() else self._walked()
        found = False
        for entry in entries:
            found = True
            yield entry
        if not found:
            raise InputError(
                f"{self._flag}: no images in {self.source} ({self.ignored} other files ignored); "
                f"expected names ending in {' '.join(sorted(IMAGE_ENDINGS))}"
            )

    def _is_list(self) -> bool:
        return PurePosixPath(self.source).suffix.lower() in (".csv", ".parquet")

    def _walked(self) -> Iterator[Entry]:
        if "://" not in self.source and not Path(self.source).is_dir():
            raise InputError(
                f"{self._flag}: no such directory: {self.source}; give a directory, an s3:// "
                f"prefix, or a .csv or .parquet file with a uri column"
            )
        for entry in open_store(self.source).entries():
            if is_image_name(entry.uri):
                yield entry
            else:
                self.ignored += 1

    def _listed(self) -> Iterator[Entry]:
        uris = _read_uris(self.source, self._flag)
        unique = dict.fromkeys(uris)
        self.ignored += len(uris) - len(unique)
        with ThreadPoolExecutor(_STAT_THREADS) as threads:
            yield from threads.map(_stat_or_unknown, unique)


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
        columns = [list(column) for column in zip(*map(astuple, chunk), strict=True)]
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
    """Read the Parquet files of a place one after another, in the order of their names."""
    filesystem, root = store.arrow()
    below = len(store.uri) + 1
    for name in sorted(entry.uri[below:] for entry in store.entries()):
        yield pq.read_table(f"{root}/{name}", filesystem=filesystem, partitioning=None)


def _read_uris(source: str, flag: str) -> list[str]:
    try:
        data = io.BytesIO(read_uri(source))
    except StoreError as error:
        raise InputError(f"{flag}: {source}: {error.message}") from error
    try:
        if source.lower().endswith(".csv"):
            frame = pd.read_csv(data, dtype=str, keep_default_na=False)
        else:
            frame = pd.read_parquet(data)
    except Exception as error:  # parsers raise many types
        reason = " ".join(str(error).split())
        raise InputError(f"{flag}: {source} cannot be read as a table: {reason}") from error
    if "uri" not in frame.columns:
        raise InputError(
            f"{flag}: {source} has no column 'uri' among its {len(frame.columns)}; name it in the "
            f"first line"
        )
    if frame["uri"].isna().any() or (frame["uri"] == "").any():
        raise InputError(f"{flag}: {source} has rows without a uri; fill or remove them")
    return [_absolute(uri) for uri in frame["uri"].astype(str)]


def _absolute(uri: str) -> str:
    if "://" in uri and not uri.startswith("file://"):
        return uri
    return str(Path(local_path(uri)).absolute())


def _stat_or_unknown(uri: str) -> Entry:
    """Where nothing can be found out, scoring will say why in the image's row."""
    try:
        return stat_uri(uri)
    except StoreError:
        return Entry(uri, None, None, None)
