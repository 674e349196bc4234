"""Metadata: facts about images from a table, such as age and sex, by image id."""

from collections.abc import Collection, Iterator, Sequence
from typing import BinaryIO

import pandas as pd

from lesioncam.errors import InputError
from lesioncam.storage.labels import id_column, refuse_rows
from lesioncam.storage.store import StoreError, refusal
from lesioncam.storage.text_table import header_of, read_rows
from lesioncam.storage.uris import open_uri

_CHUNK_ROWS = 100_000


def read_metadata(
    uri: str, columns: Sequence[str], image_ids: Collection[str], id_name: str | None = None
) -> pd.DataFrame:
    """The cells of some columns for some images, as text without the spaces around it.

    The table is read in pieces: memory holds the rows of these images.

    Args:
        uri: the table.
        columns: the names of its columns to read.
        image_ids: the images' ids.
        id_name: the table's column of image ids; None for the one of `ID_COLUMNS` that is there.

    Returns:
        By image id. Images that have no row in the table have none here.

    Raises:
        InputError: the table cannot be read, lacks a column, has two rows of one of these images,
            or has none of them.
    """
    where, wanted = f"--metadata: {uri}", set(image_ids)
    found_ids, found = [], []
    try:
        with open_uri(uri) as file:
            for table in _tables(file, where):
                ids = table[id_column(table, id_name, where)].str.strip()
                _check_columns(table, columns, where)
                is_wanted = ids.isin(wanted)
                found_ids.append(ids[is_wanted])
                found.append(table.loc[is_wanted, list(columns)])
    except StoreError as error:
        raise refusal(where, error) from error
    known = pd.concat(found_ids)
    if known.empty:
        raise InputError(
            f"{where}: none of its ids is an image_id of the {len(wanted):,} labeled images; "
            f"an image_id is a file name without its extension"
        )
    refuse_rows(known.duplicated(), "an id seen before", "keep one row per image", where)
    cells = pd.concat(found)
    stripped = {name: cells[name].str.strip().to_numpy() for name in columns}
    return pd.DataFrame(stripped, index=known.to_numpy())


def _tables(file: BinaryIO, where: str) -> Iterator[pd.DataFrame]:
    """The rows below the header by its names, some at a time; at least one part."""
    names = None
    for rows in read_rows(file, where, _CHUNK_ROWS):
        first = 0
        if names is None and len(rows):
            names, first = header_of(rows, where), 1
        if names is not None:
            yield rows.iloc[first:].set_axis(names, axis=1)
    if names is None:
        raise InputError(f"{where} has no rows")


def _check_columns(table: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(
            f"{where} has no column {' or '.join(map(repr, missing))}; check --by "
            f"(found: {', '.join(table.columns)})"
        )
