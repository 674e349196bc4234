"""URI list: a CSV or Parquet file that names images in its `uri` column."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

import pandas as pd
import pyarrow.parquet as pq

from lesioncam.errors import InputError
from lesioncam.storage.store import StoreError, refusal
from lesioncam.storage.uris import open_uri

_CHUNK_ROWS = 100_000


def is_uri_list(source: str) -> bool:
    """Whether a source is a list, by its ending."""
    return PurePosixPath(source).suffix.lower() in (".csv", ".parquet")


def read_uri_list(source: str, flag: str) -> Iterator[list[str]]:
    """The uris of a list in its order, some at a time. All are checked before the first is given.

    The file is opened once (from S3: downloaded once) and parsed twice.

    Raises:
        InputError: the list cannot be read, or has a row that names no file or object.
    """
    where = f"{flag}: {source}"
    try:
        with open_uri(source) as file:
            _check(file, where)
            file.seek(0)
            yield from _read_uris(file, where)
    except StoreError as error:
        raise refusal(where, error) from error


def _check(file: BinaryIO, where: str) -> None:
    """Refuse a list with uris that can't be read."""
    unsupported: list[int] = []
    rows = 0
    for uris in _read_uris(file, where):
        unsupported += [row for row, uri in enumerate(uris, rows + 1) if not is_supported(uri)]
        rows += len(uris)
    if unsupported:
        raise InputError(
            f"{where}: {len(unsupported)} uris are neither paths nor s3://bucket/key, the first "
            f"in row {unsupported[0]}; fix or remove them"
        )


def _read_uris(file: BinaryIO, where: str) -> Iterator[list[str]]:
    for frame in _read_frames(file, where):
        if "uri" not in frame.columns:
            # Without a header the first line may hold patients' names.
            names = [name for name in map(str, frame.columns) if name.isidentifier()]
            found = f"found: {', '.join(names)}" if names else "its first line must name it"
            raise InputError(f"{where} has no 'uri' column ({found})")
        if frame["uri"].isna().any() or (frame["uri"] == "").any():
            raise InputError(f"{where} has rows without a uri; fill or remove them")
        yield frame["uri"].astype(str).to_list()


def _read_frames(file: BinaryIO, where: str) -> Iterator[pd.DataFrame]:
    """A table's rows, some at a time."""
    is_csv = where.lower().endswith(".csv")
    try:
        yield from _read_csv(file) if is_csv else _read_parquet(file)
    except Exception as error:  # parsers raise many types
        reason = " ".join(str(error).split())
        raise InputError(f"{where} cannot be read as a table: {reason}") from error


def _read_parquet(file: BinaryIO) -> Iterator[pd.DataFrame]:
    table = pq.ParquetFile(file)
    yield table.schema_arrow.empty_table().to_pandas()  # so that its columns are checked
    parts = table.iter_batches(_CHUNK_ROWS, columns=["uri"])
    yield from (part.to_pandas() for part in parts)


def _read_csv(file: BinaryIO) -> Iterator[pd.DataFrame]:
    for frame in pd.read_csv(file, dtype=str, keep_default_na=False, chunksize=_CHUNK_ROWS):
        # Else pandas took the first field for an index.
        if not isinstance(frame.index, pd.RangeIndex):
            raise ValueError(  # noqa: TRY004  reported as the parsers' own errors are
                "its rows have more fields than its first line; a uri that holds a comma must "
                "stand in quotes"
            )
        yield frame


def is_supported(uri: str) -> bool:
    """Whether a URI is a path, `file://` or `s3://bucket/key`."""
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return bool(bucket and key)
    return "://" not in uri or uri.startswith("file://")
