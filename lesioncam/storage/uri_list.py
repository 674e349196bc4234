"""URI list: a file that names images, in its `uri` column or one a line.

A table is CSV with any usual separator, or Parquet. A `.txt` file may have one path or URI a line.
"""

import gzip
import io
import posixpath
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lesioncam.errors import InputError
from lesioncam.storage.local import local_path
from lesioncam.storage.store import StoreError, refusal
from lesioncam.storage.text_table import decompressed, header_of, read_rows
from lesioncam.storage.uris import open_store, open_uri

LIST_ENDINGS = (".csv", ".tsv", ".txt", ".parquet")
_CHUNK_ROWS = 100_000


def is_uri_list(source: str) -> bool:
    """Whether a source is a list, by its ending, with or without `.gz` behind it."""
    return source.lower().removesuffix(".gz").endswith(LIST_ENDINGS)


def read_uri_list(source: str, flag: str) -> Iterator[list[str]]:
    """The uris of a list in its order, some at a time. All are checked before the first is given.

    Relative ones are made relative to the list's own folder or prefix. The file is opened once
    (from S3: downloaded once) and parsed twice.

    Raises:
        InputError: the list cannot be read, or has a row that names no file or object.
    """
    where, folder = f"{flag}: {source}", source.rpartition("/")[0]
    if not source.startswith("s3://"):
        folder = open_store(posixpath.dirname(local_path(source)) or ".").uri
    try:
        with open_uri(source) as file:
            _check(file, where, folder)
            file.seek(0)
            for uris in _read_uris(file, where):
                yield [_resolve(uri, folder) for uri in uris]
    except StoreError as error:
        raise refusal(where, error) from error


def _check(file: BinaryIO, where: str, folder: str) -> None:
    """Refuse a list with uris that can't be read."""
    unsupported: list[int] = []
    rows = 0
    for uris in _read_uris(file, where):
        unsupported += [
            row for row, uri in enumerate(uris, rows + 1) if not is_supported(_resolve(uri, folder))
        ]
        rows += len(uris)
    if unsupported:
        raise InputError(
            f"{where}: {len(unsupported)} uris are neither paths nor s3://bucket/key, the first "
            f"in row {unsupported[0]}; fix or remove them"
        )


def _resolve(uri: str, folder: str) -> str:
    """A uri of a list in this folder or prefix; `./` and `../` in it are applied."""
    if "://" in uri or uri.startswith("/"):
        return uri
    scheme, _, path = folder.rpartition("://")
    joined = posixpath.normpath(posixpath.join(path, uri))
    return f"{scheme}://{joined}" if scheme else joined


def _read_uris(file: BinaryIO, where: str) -> Iterator[list[str]]:
    if where.lower().endswith(".parquet"):
        chunks = _read_parquet(file, where)
    elif _has_lines(file, where):
        chunks = _read_lines(file, where)
    else:
        chunks = _read_csv(file, where)
    for uris in chunks:
        if not all(uris):
            raise InputError(f"{where} has rows without a uri; fill or remove them")
        yield uris


def _has_lines(file: BinaryIO, where: str) -> bool:
    """Whether a file is a `.txt` file whose first line is no header."""
    if not where.lower().removesuffix(".gz").endswith(".txt"):
        return False
    first = next(_read_lines(file, where), [""])[0]
    file.seek(0)
    if "uri" in [name.strip(' "') for name in re.split(r"[,;|\t]", first)]:
        return False
    if not PurePosixPath(first).suffix:
        raise InputError(
            f"{where}: its first line should be a header with a 'uri' column, or the path or URI "
            f"of an image"
        )
    return True


def _read_lines(file: BinaryIO, where: str) -> Iterator[list[str]]:
    """Lines that are not blank."""
    lines = io.TextIOWrapper(cast("BinaryIO", decompressed(file)), encoding="utf-8-sig")
    try:
        texts = (line.rstrip("\r\n") for line in lines)
        uris = (text for text in texts if text.strip())
        while chunk := list(islice(uris, _CHUNK_ROWS)):
            yield chunk
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not a text file in UTF-8; save it as one") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{where} is a broken .gz file: {error}") from error
    finally:
        lines.detach()  # or it would close the file


def _read_csv(file: BinaryIO, where: str) -> Iterator[list[str]]:
    column = None
    for rows in read_rows(file, where, _CHUNK_ROWS):
        first = 0
        if column is None:
            column, first = _uri_column(header_of(rows, where), where), 1
        yield rows.iloc[first:, column].to_list()
    if column is None:
        raise InputError(f"{where} has no rows")


def _read_parquet(file: BinaryIO, where: str) -> Iterator[list[str]]:
    try:
        table = pq.ParquetFile(file)
        _uri_column(table.schema_arrow.names, where)
        for part in table.iter_batches(_CHUNK_ROWS, columns=["uri"]):
            yield [str(uri or "") for uri in part["uri"].to_pylist()]
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where} is not a Parquet file: {reason}") from error


def _uri_column(names: list[str], where: str) -> int:
    """The index of the column `uri`."""
    if "uri" in names:
        return names.index("uri")
    # Without a header the first line may hold patients' names.
    shown = [name for name in names if name.isidentifier()]
    found = f"found: {', '.join(shown)}" if shown else "its first line must name it"
    raise InputError(f"{where} has no 'uri' column ({found})")


def is_supported(uri: str) -> bool:
    """Whether a URI is a path, `file://` or `s3://bucket/key`."""
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return bool(bucket and key) and bucket != ".."
    return "://" not in uri or uri.startswith("file://")
