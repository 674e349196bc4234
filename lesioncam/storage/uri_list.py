"""URI list: a file that names images, in its `uri` column or one a line; other columns if asked.

A table is CSV with any usual separator, or Parquet. A `.txt` file may have one path or URI a line.
"""

import gzip
import io
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lesioncam.errors import InputError
from lesioncam.storage.local import local_path
from lesioncam.storage.store import StoreError, refusal
from lesioncam.storage.text_table import check_names, decompressed, header_of, read_rows
from lesioncam.storage.uris import open_store, open_uri

LIST_ENDINGS = (".csv", ".tsv", ".txt", ".parquet")
_CHUNK_ROWS = 100_000

Row = tuple[str, ...]  # the uri, and the cells of the columns to keep


def is_uri_list(source: str) -> bool:
    """Whether a source is a list, by its ending, with or without `.gz` behind it."""
    return source.lower().removesuffix(".gz").endswith(LIST_ENDINGS)


def read_uri_list(
    source: str, flag: str, keep_columns: Sequence[str] = ()
) -> Iterator[list[tuple[str, str | None]]]:
    """The uris of a list in its order, some at a time. All are checked before the first is given.

    Relative ones are made relative to the list's own folder or prefix. The file is opened once
    (from S3: downloaded once) and parsed twice.

    Args:
        source: the list.
        flag: its flag, for messages.
        keep_columns: given beside each uri as one JSON object of texts, empty cells as null; None
            if no columns are named.

    Raises:
        InputError: the list cannot be read, lacks a column, or has a row that names no file or
            object.
    """
    where, folder = f"{flag}: {source}", source.rpartition("/")[0]
    if not source.startswith("s3://"):
        folder = open_store(posixpath.dirname(local_path(source)) or ".").uri
    try:
        with open_uri(source) as file:
            _check(file, where, folder, keep_columns)
            file.seek(0)
            for rows in _read_rows(file, where, keep_columns):
                yield [(_resolve(uri, folder), _kept(keep_columns, cells)) for uri, *cells in rows]
    except StoreError as error:
        raise refusal(where, error) from error


def _check(file: BinaryIO, where: str, folder: str, keep_columns: Sequence[str]) -> None:
    """Refuse a list with uris that can't be read."""
    unsupported: list[int] = []
    count = 0
    for rows in _read_rows(file, where, keep_columns):
        unsupported += [
            number
            for number, (uri, *_) in enumerate(rows, count + 1)
            if not is_supported(_resolve(uri, folder))
        ]
        count += len(rows)
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


def _kept(keep_columns: Sequence[str], cells: Sequence[str]) -> str | None:
    if not keep_columns:
        return None
    return json.dumps({name: cell or None for name, cell in zip(keep_columns, cells, strict=True)})


def _read_rows(file: BinaryIO, where: str, keep_columns: Sequence[str]) -> Iterator[list[Row]]:
    if where.lower().endswith(".parquet"):
        chunks = _read_parquet(file, where, keep_columns)
    elif not _has_lines(file, where):
        chunks = _read_csv(file, where, keep_columns)
    elif keep_columns:
        raise InputError(
            f"{where} has a path or URI a line and no columns for --keep-columns; make it a table "
            f"with a 'uri' column"
        )
    else:
        chunks = _read_lines(file, where)
    for rows in chunks:
        if not all(uri for uri, *_ in rows):
            raise InputError(f"{where} has rows without a uri; fill or remove them")
        yield rows


def _has_lines(file: BinaryIO, where: str) -> bool:
    """Whether a file is a `.txt` file whose first line is no header."""
    if not where.lower().removesuffix(".gz").endswith(".txt"):
        return False
    ((first,), *_) = next(_read_lines(file, where), [("",)])
    file.seek(0)
    if "uri" in [name.strip(' "') for name in re.split(r"[,;|\t]", first)]:
        return False
    if not PurePosixPath(first).suffix:
        raise InputError(
            f"{where}: its first line should be a header with a 'uri' column, or the path or URI "
            f"of an image"
        )
    return True


def _read_lines(file: BinaryIO, where: str) -> Iterator[list[Row]]:
    """Lines that are not blank."""
    lines = io.TextIOWrapper(cast("BinaryIO", decompressed(file)), encoding="utf-8-sig")
    try:
        texts = (line.rstrip("\r\n") for line in lines)
        rows: Iterator[Row] = ((text,) for text in texts if text.strip())
        while chunk := list(islice(rows, _CHUNK_ROWS)):
            yield chunk
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not a text file in UTF-8; save it as one") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{where} is a broken .gz file: {error}") from error
    finally:
        lines.detach()  # or it would close the file


def _read_csv(file: BinaryIO, where: str, keep_columns: Sequence[str]) -> Iterator[list[Row]]:
    columns = None
    for rows in read_rows(file, where, _CHUNK_ROWS):
        first = 0
        if columns is None:
            columns, first = _columns(header_of(rows, where), keep_columns, where), 1
        yield list(rows.iloc[first:, columns].itertuples(index=False, name=None))
    if columns is None:
        raise InputError(f"{where} has no rows")


def _read_parquet(file: BinaryIO, where: str, keep_columns: Sequence[str]) -> Iterator[list[Row]]:
    try:
        table = pq.ParquetFile(file)
        check_names(table.schema_arrow.names, where)
        _columns(table.schema_arrow.names, keep_columns, where)
        for part in table.iter_batches(_CHUNK_ROWS, columns=["uri", *keep_columns]):
            uris = [str(uri or "") for uri in part["uri"].to_pylist()]
            cells = (_texts(part[name], name, where) for name in keep_columns)
            yield list(zip(uris, *cells, strict=True))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where} is not a Parquet file: {reason}") from error


def _texts(column: pa.Array, name: str, where: str) -> list[str]:
    """The values of a Parquet column as text, null as an empty one."""
    try:
        texts: list[str] = column.cast(pa.string()).fill_null("").to_pylist()
    except pa.ArrowException as error:
        raise InputError(
            f"{where}: the column {name!r} is of type {column.type}, which is no text; leave it "
            f"out of --keep-columns, or store text"
        ) from error
    return texts


def _columns(names: list[str], keep_columns: Sequence[str], where: str) -> list[int]:
    """The indexes of the column `uri` and of those to keep."""
    wanted = ["uri", *keep_columns]
    missing = [name for name in wanted if name not in names]
    if not missing:
        return [names.index(name) for name in wanted]
    # Without a header the first line may hold patients' names.
    shown = [name for name in names if name.isidentifier()]
    found = f"found: {', '.join(shown)}" if shown else "its first line must name it"
    asked = "" if missing == ["uri"] else " for --keep-columns"
    raise InputError(f"{where} has no {' or '.join(map(repr, missing))} column{asked} ({found})")


def is_supported(uri: str) -> bool:
    """Whether a URI is a path, `file://` or `s3://bucket/key`."""
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return bool(bucket and key) and bucket != ".."
    return "://" not in uri or uri.startswith("file://")
