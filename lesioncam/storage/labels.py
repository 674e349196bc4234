"""Labels: an ISIC ground-truth CSV, read and checked once. Needs neither torch nor Ray."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from lesioncam.columns import check_classes
from lesioncam.errors import InputError
from lesioncam.storage.store import StoreError, refusal
from lesioncam.storage.uris import read_uri

_ID_COLUMNS = ("image_id", "image")


@dataclass(frozen=True)
class Labels:
    """Which class each image is.

    Attributes:
        classes: the class order: the CSV's columns, then the rest class where rows need one.
        target_classes: the classes whose mean AUC is reported: those with a column of their own
            (for ISIC-2017 melanoma and seborrheic keratosis, the official metric).
        ids: image ids, each once.
        class_indices: (n,) int64, the class of each id, as an index into `classes`.
    """

    classes: tuple[str, ...]
    target_classes: tuple[str, ...]
    ids: tuple[str, ...]
    class_indices: np.ndarray

    @cached_property
    def by_id(self) -> Mapping[str, int]:
        """Image id -> index into `classes`."""
        return dict(zip(self.ids, self.class_indices.tolist(), strict=True))

    def missing_classes(self, class_indices: np.ndarray) -> list[str]:
        """The classes that do not occur among these."""
        counts = np.bincount(class_indices, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts, strict=True) if count == 0]


def read_labels(uri: str, rest_class: str, flag: str = "--labels") -> Labels:
    """Read a ground-truth CSV: an id column, then one 0/1 column per class.

    Rows with no 1 belong to `rest_class`.

    Raises:
        InputError: the file cannot be read, has no id column, a value other than 0 and 1, a row
            with two classes, or an id that occurs twice.
    """
    where = f"{flag}: {uri}"
    frame = _read_csv(uri, where)
    id_column = _id_column(frame, where)
    ids = frame[id_column].str.strip()
    columns = [name for name in frame.columns if name != id_column]
    values = frame[columns].apply(pd.to_numeric, errors="coerce")
    for name in columns:
        wrong = frame.index[~values[name].isin([0, 1])]
        if len(wrong):
            raise InputError(
                f"{where}: column {name!r} holds {_shown(frame[name][wrong[0]])} in "
                f"{_lines(wrong)}; expected 0 or 1 (if it is not a class, remove the column)"
            )
    ones = values.sum(axis=1)
    for wrong_rows, problem, fix in (
        (ones > 1, "more than one class", "mark one"),
        (ids == "", "no image id", "fill it in"),
        (ids.duplicated(), "an id seen before", "keep one row per image"),
    ):
        if wrong_rows.any():
            raise InputError(f"{where}: {_lines(frame.index[wrong_rows])} have {problem}; {fix}")
    rest = ones == 0
    classes = list(columns)
    if rest.any():
        if rest_class in columns:
            raise InputError(
                f"{where}: {_lines(frame.index[rest])} hold no 1 and so belong to the rest class, "
                f"but {rest_class!r} has a column; name another with --rest-class"
            )
        classes.append(rest_class)
    indices = np.where(rest, len(columns), values.to_numpy().argmax(axis=1)).astype(np.int64)
    return Labels(check_classes(classes, where), tuple(columns), tuple(ids), indices)


@dataclass(frozen=True)
class Matched:
    """Which of some images have a label.

    Attributes:
        rows: (m,) int64, the numbers of these images.
        class_indices: (m,) int64, their classes.
        unlabeled: how many images have no label.
        unused: how many labels have no image.
        duplicates: how many images have the id of an earlier one, and are not used.
    """

    rows: np.ndarray
    class_indices: np.ndarray
    unlabeled: int
    unused: int
    duplicates: int


def match(labels: Labels, image_ids: Iterable[str]) -> Matched:
    """Join images to labels by id. Of several images with one id, the first counts."""
    found: dict[str, int] = {}
    unlabeled = duplicates = 0
    for row, name in enumerate(image_ids):
        if name not in labels.by_id:
            unlabeled += 1
        elif name in found:
            duplicates += 1
        else:
            found[name] = row
    return Matched(
        np.fromiter(found.values(), np.int64, len(found)),
        np.fromiter((labels.by_id[name] for name in found), np.int64, len(found)),
        unlabeled,
        len(labels.ids) - len(found),
        duplicates,
    )


def _read_csv(uri: str, where: str) -> pd.DataFrame:
    """The cells as text, without blank rows; the index plus 1 is the line in the file."""
    try:
        data = read_uri(uri)
    except StoreError as error:
        raise refusal(where, error) from error
    try:
        rows = pd.read_csv(
            io.BytesIO(data), header=None, dtype=str, keep_default_na=False, skip_blank_lines=False
        ).fillna("")
    except (ValueError, pd.errors.ParserError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where} is not a CSV file: {reason}") from error
    frame = rows.iloc[1:].set_axis(rows.iloc[0].tolist(), axis=1)
    if not frame.columns.is_unique:
        raise InputError(f"{where}: a column occurs twice; each class needs its own")
    return frame[(frame != "").any(axis=1)]


def _id_column(frame: pd.DataFrame, where: str) -> str:
    wanted = " or ".join(map(repr, _ID_COLUMNS))
    found = [name for name in _ID_COLUMNS if name in frame.columns]
    if not found:
        # Without a header the first line holds an image's id.
        has_header = pd.to_numeric(frame.columns.to_series(), errors="coerce").isna().all()
        names = [name for name in frame.columns if has_header and name.isidentifier()]
        hint = f"found: {', '.join(names)}" if names else "its first line must name it"
        raise InputError(f"{where} has no {wanted} column ({hint})")
    if frame.empty:
        raise InputError(f"{where} has no rows")
    if len(found) > 1 or len(frame.columns) == 1:
        raise InputError(f"{where}: expected one id column, {wanted}, and one column per class")
    return found[0]


def _shown(cell: str) -> str:
    """A cell's value if it is a number; other text may be a name."""
    return repr(cell) if pd.notna(pd.to_numeric(cell, errors="coerce")) else "other text"


def _lines(rows: pd.Index) -> str:
    """Rows as line numbers of the file; ids stay out of messages."""
    shown = ", ".join(str(row + 1) for row in rows[:3])
    return f"line {shown}" + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
