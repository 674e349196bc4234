"""Listing: which images there are, and the manifest that records them.

Knows nothing about what was already scored.
"""

import io
import os
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
    refusal,
    stat_or_unknown,
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
            yield from threads.map(stat_or_unknown, unique)


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


def table_names(store: Store) -> list[str]:
    """The files that `write_table` wrote at a place, sorted."""
    below = len(store.uri) + 1
    return sorted(entry.uri[below:] for entry in store.entries())


def read_tables(store: Store) -> Iterator[pa.Table]:
    """Read all of them, one after another."""
    return (read_table(store, name) for name in table_names(store))


def read_table(store: Store, name: str) -> pa.Table:
    """Read a Parquet file that `write_table` wrote."""
    return pq.read_table(io.BytesIO(store.read(name)))


def _read_uris(source: str, flag: str) -> list[str]:
    try:
        data = io.BytesIO(read_uri(source))
    except StoreError as error:
        raise refusal(f"{flag}: {source}", error) from error
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
    uris = frame["uri"].astype(str)
    foreign = frame.index[~uris.map(_is_readable)]
    if len(foreign):
        raise InputError(
            f"{flag}: {source}: {len(foreign)} uris are neither paths nor s3://bucket/key, the "
            f"first in row {foreign[0] + 1}; mend or remove them"
        )
    return [_absolute(uri) for uri in uris]


def _is_readable(uri: str) -> bool:
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return bool(bucket and key)
    return "://" not in uri or uri.startswith("file://")


def _absolute(uri: str) -> str:
    if uri.startswith("s3://"):
        return uri
    return os.path.abspath(local_path(uri))  # noqa: PTH100  takes `..` out, follows no link
