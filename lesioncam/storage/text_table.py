"""Text tables: CSV files with any usual separator, as cells of text. Knows no column by name."""

import csv
import gzip
import re
from collections.abc import Iterator
from typing import BinaryIO

import pandas as pd

from lesioncam.errors import InputError
from lesioncam.storage.store import StoreError, refusal
from lesioncam.storage.uris import open_uri

SEPARATORS = (",", ";", "\t", "|")
_GZIP = b"\x1f\x8b"


def read_text_table(uri: str, where: str) -> pd.DataFrame:
    """All rows of a file, the first line among them; the index plus 1 is the line in the file.

    Raises:
        InputError: it cannot be read, or is no such table; begins with `where`.
    """
    try:
        with open_uri(uri) as file:
            return pd.concat(read_rows(file, where, chunk_rows=100_000))
    except StoreError as error:
        raise refusal(where, error) from error


def read_rows(file: BinaryIO, where: str, chunk_rows: int) -> Iterator[pd.DataFrame]:
    """The rows of an open file, as `read_text_table` gives them, some at a time.

    Blank rows are left out; cells that a short row lacks are empty.
    """
    text = decompressed(file)
    try:
        separator = _separator(text.readline().decode("utf-8-sig"), where)
        text.seek(0)
        for frame in pd.read_csv(
            text,
            sep=separator,
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            chunksize=chunk_rows,
        ):
            rows = frame.fillna("")
            yield rows[(rows != "").any(axis=1)]
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not a CSV file in UTF-8; save it as one") from error
    except (ValueError, csv.Error, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{where} is not a CSV file: {_reason(error)}") from error


def decompressed(file: BinaryIO) -> BinaryIO | gzip.GzipFile:
    """The content of a file, whether it is compressed by gzip or not."""
    start = file.read(len(_GZIP))
    file.seek(0)
    return gzip.open(file) if start == _GZIP else file


def header_of(rows: pd.DataFrame, where: str) -> list[str]:
    """The names in the first row, without the spaces around them.

    Raises:
        InputError: one occurs twice.
    """
    names = [str(name).strip() for name in rows.iloc[0]]
    check_names(names, where)
    return names


def check_names(names: list[str], where: str) -> None:
    """Refuse a table of which two columns have one name."""
    if len(set(names)) < len(names):
        raise InputError(f"{where}: a column occurs twice; each needs a name of its own")


def shown_lines(rows: pd.Index) -> str:
    """Rows as line numbers of the file: `line 3, 4, 5 and 2 more`."""
    shown = ", ".join(str(row + 1) for row in rows[:3])
    return f"line {shown}" + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def _separator(first_line: str, where: str) -> str:
    """The separator that the first line has; a comma if it has none.

    `csv.Sniffer` guesses from many rows, and takes decimal commas or letters for separators.
    """
    found = [one for one in SEPARATORS if _field_count(first_line, one) > 1]
    if len(found) > 1:
        names = " and ".join(map(repr, found))
        raise InputError(f"{where}: its first line holds {names}; use one separator")
    return found[0] if found else ","


def _field_count(line: str, separator: str) -> int:
    """How many fields a line has; 1 if its quotes do not go with this separator."""
    try:
        return len(next(csv.reader([line], delimiter=separator, strict=True), []))
    except csv.Error:
        return 1


def _reason(error: Exception) -> str:
    """What is wrong, in a line and without the cells."""
    reason = " ".join(str(error).split())
    if long := re.search(r"Expected \d+ fields in (line \d+)", reason):
        return (
            f"{long[1]} has more fields than the first; a cell that holds the separator must "
            f"stand in quotes"
        )
    return reason
