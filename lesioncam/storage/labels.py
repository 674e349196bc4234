"""Labels: which class each image is, from a table. Needs neither torch nor Ray.

Two forms are read: one 0/1 column per class (the ISIC challenges), and one column of class names
(HAM10000, the ISIC archive). What could be read in two ways is refused.
"""

import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from lesioncam.columns import check_classes
from lesioncam.errors import InputError
from lesioncam.storage.text_table import header_of, read_text_table, shown_lines

log = logging.getLogger("lesioncam")

ID_COLUMNS = ("image_id", "image", "isic_id", "image_name", "img_id")
# Columns of class names, or of 0 and 1, that stand among others in the public archives.
_CLASS_COLUMN = re.compile(r"dx|diagnosis(_\d)?|label|class|target|benign_malignant", re.IGNORECASE)
_TRUTH = {"true": "1", "false": "0"}
_NO_VALUE = ("nan", "na", "n/a", "null", "none")


@dataclass(frozen=True)
class LabelColumns:
    """Which columns of a labels file to read.

    Attributes:
        image_id: of the image ids; None for the one of `ID_COLUMNS` that is there.
        class_name: of class names, or of 0 and 1 for a single class; None for what is there.
        group: of patients, lesions or the like; None for no groups.
        collection: of where images come from, a clinic or a camera; None for one collection.
    """

    image_id: str | None = None
    class_name: str | None = None
    group: str | None = None
    collection: str | None = None


@dataclass(frozen=True)
class Labels:
    """Which class each image is.

    Attributes:
        classes: the class order: the file's columns, then the rest class where rows need one; or
            the class names in alphabetical order.
        target_classes: the classes whose mean AUC is reported: those with a column of their own
            (for ISIC-2017 melanoma and seborrheic keratosis, the official metric), or all names.
        ids: image ids, each once.
        class_indices: (n,) int64, the class of each id, as an index into `classes`.
        groups: the group of each id, empty for an image of no group; or None.
        collections: the collection of each id, empty for an image of none; or None.
        from_names: whether the classes were names in one column: the file can have others, too.
    """

    classes: tuple[str, ...]
    target_classes: tuple[str, ...]
    ids: tuple[str, ...]
    class_indices: np.ndarray
    groups: tuple[str, ...] | None = None
    collections: tuple[str, ...] | None = None
    from_names: bool = False

    @cached_property
    def by_id(self) -> Mapping[str, int]:
        """Image id -> index into `classes`."""
        return dict(zip(self.ids, self.class_indices.tolist(), strict=True))

    @cached_property
    def group_by_id(self) -> Mapping[str, str]:
        """Image id -> group, of the images that have one."""
        return {
            name: group for name, group in zip(self.ids, self.groups or (), strict=False) if group
        }

    @cached_property
    def collection_by_id(self) -> Mapping[str, str]:
        """Image id -> collection, empty for an image of none."""
        return dict(zip(self.ids, self.collections or (), strict=False))

    def missing_classes(self, class_indices: np.ndarray) -> list[str]:
        """The classes that do not occur among these."""
        counts = np.bincount(class_indices, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts, strict=True) if count == 0]

    def of_classes(self, classes: Sequence[str]) -> "Labels":
        """The labels of these classes, as indices into them; labels of others are left out."""
        order = np.array([classes.index(c) if c in classes else -1 for c in self.classes])
        indices = order[self.class_indices]
        kept = np.flatnonzero(indices >= 0)
        return Labels(
            tuple(classes),
            tuple(name for name in self.target_classes if name in classes),
            tuple(self.ids[row] for row in kept),
            indices[kept],
            None if self.groups is None else tuple(self.groups[row] for row in kept),
            None if self.collections is None else tuple(self.collections[row] for row in kept),
            self.from_names,
        )

    def check_classes(self, expected: Sequence[str], rest_class: str, flag: str) -> None:
        """Refuse labels that do not say for each image which of the expected classes it is.

        Raises:
            InputError: a class that occurs is not expected, or an expected one has no column.
        """
        occurring = set(self.classes) - set(self.missing_classes(self.class_indices))
        unlabeled = set(expected) - set(self.target_classes) - {rest_class}
        if occurring - set(expected) or (unlabeled and not self.from_names):
            raise InputError(
                f"{flag}: classes {', '.join(self.classes)} are not those of the "
                f"model, {', '.join(expected)}; check its columns and --rest-class"
            )


def read_labels(
    uri: str, rest_class: str, flag: str = "--labels", columns: LabelColumns | None = None
) -> Labels:
    """Read a table of labels: an id column, and 0/1 columns or a column of class names.

    Of 0/1 columns, rows with no 1 belong to `rest_class`. Rows without a class name are left out.

    Raises:
        InputError: the file cannot be read, has no id column, a value that is no label, a row with
            two classes, an id that occurs twice, or can be read in more than one way.
    """
    where, columns = f"{flag}: {uri}", columns or LabelColumns()
    frame = _with_header(read_text_table(uri, where), columns, where)
    id_name = id_column(frame, columns.image_id, where)
    ids = frame[id_name].str.strip()
    refuse_rows(ids == "", "no image id", "fill it in", where)
    refuse_rows(ids.duplicated(), "an id seen before", "keep one row per image", where)
    groups = _text_column(frame, columns.group, "--group-column", where)
    collections = _text_column(frame, columns.collection, "--collection-column", where)
    others = {name for name in (columns.group, columns.collection) if name is not None}
    candidates = frame.drop(columns=[id_name, *others])
    if candidates.empty:
        raise InputError(f"{where}: expected an id column and at least one column of classes")
    chosen = _class_columns(candidates, columns.class_name, where)
    values = chosen.apply(_zero_or_one)
    if len(chosen.columns) == 1 and values.isna().any(axis=None):
        classes, indices = _named_classes(chosen.iloc[:, 0], where)
        targets = classes
    else:
        classes, indices = _marked_classes(chosen, values, rest_class, where)
        targets = tuple(chosen.columns)
    labeled = np.flatnonzero(indices >= 0)
    ignored = len(candidates.columns) - len(chosen.columns)
    if ignored:
        log.info(
            "%s: classes are read from %s; %d other columns are not",
            flag,
            chosen.columns[0],
            ignored,
        )
    if len(labeled) < len(ids):
        log.warning("%s: %d rows without a class are left out", flag, len(ids) - len(labeled))
    return Labels(
        check_classes(classes, where),
        targets,
        tuple(ids.iloc[labeled]),
        indices[labeled],
        None if groups is None else tuple(groups.iloc[labeled]),
        None if collections is None else tuple(collections.iloc[labeled]),
        from_names=targets is classes,
    )


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


def _with_header(rows: pd.DataFrame, columns: LabelColumns, where: str) -> pd.DataFrame:
    """The rows below the header, by its names.

    Two columns without one are ids and class names if a class of the first row occurs again.
    """
    if len(rows) < 2:
        raise InputError(f"{where} has no rows")
    if len(rows.columns) == 2 and columns == LabelColumns() and not _known_ids(rows.iloc[0]):
        classes = rows[1].str.strip()
        if classes.iloc[0] in set(classes.iloc[1:]) and _zero_or_one(classes).isna().all():
            log.info("%s has no header; its columns are read as image id and class", where)
            return rows.set_axis(["image_id", "class"], axis=1)
    return rows.iloc[1:].set_axis(header_of(rows, where), axis=1)


def _known_ids(header: Iterable[str]) -> list[str]:
    return [name for name in header if name.strip().lower() in ID_COLUMNS]


def id_column(frame: pd.DataFrame, named: str | None, where: str) -> str:
    """The name of the column of image ids: the one that is named, else the one of `ID_COLUMNS`.

    Raises:
        InputError: there is none, or more than one.
    """
    if named is not None:
        return _named_column(frame, named, "--id-column", where)
    found = _known_ids(frame.columns)
    if not found:
        wanted = ", ".join(map(repr, ID_COLUMNS[:-1])) + f" or {ID_COLUMNS[-1]!r}"
        raise InputError(f"{where} has no {wanted} column ({_header_hint(frame)})")
    if len(found) > 1:
        raise InputError(
            f"{where} has more than one id column: {', '.join(found)}; name one with --id-column"
        )
    return found[0]


def _header_hint(frame: pd.DataFrame) -> str:
    """The names of columns if they surely are names: without a header they could be a patient's."""
    is_marked = frame.apply(_zero_or_one).notna().all()
    has_header = (
        is_marked & pd.to_numeric(frame.columns.to_series(), errors="coerce").isna()
    ).any()
    names = [name for name in frame.columns if has_header and name.isidentifier()]
    if not names:
        return "its first line must name it, such as image_id,melanoma"
    return f"found: {', '.join(names)}; name one of them with --id-column"


def _named_column(frame: pd.DataFrame, name: str, flag: str, where: str) -> str:
    if name not in frame.columns:
        raise InputError(f"{where} has no {name!r} column; check {flag}")
    return name


def _text_column(
    frame: pd.DataFrame, named: str | None, flag: str, where: str
) -> "pd.Series[str] | None":
    if named is None:
        return None
    return frame[_named_column(frame, named, flag, where)].str.strip()


def _class_columns(frame: pd.DataFrame, named: str | None, where: str) -> pd.DataFrame:
    """The columns that hold the classes: all that there are, or one among others.

    Raises:
        InputError: it could be more than one, or none can be.
    """
    if named is not None:
        return frame[[_named_column(frame, named, "--class-column", where)]]
    values = frame.apply(_zero_or_one)
    if values.notna().all(axis=None):
        return frame
    known = [name for name in frame.columns if _CLASS_COLUMN.fullmatch(name)]
    if len(known) == 1:
        return frame[known]
    if len(known) > 1:
        raise InputError(
            f"{where}: classes can be read from {', '.join(known)}; name one with --class-column"
        )
    if len(frame.columns) == 1 and values.isna().all(axis=None) and _repeats(frame.iloc[:, 0]):
        return frame
    name = values.columns[values.isna().any()][0]
    wrong = frame.index[values[name].isna()]
    raise InputError(
        f"{where}: column {name!r} holds {_shown(frame[name][wrong[0]])} in {shown_lines(wrong)}; "
        f"expected 0 or 1 (if it is not a class, remove the column, or name the one of class "
        f"names with --class-column)"
    )


def _repeats(cells: "pd.Series[str]") -> bool:
    """Whether text can be class names: each twice, on average."""
    return cells.nunique() <= len(cells) / 2


def _zero_or_one(cells: "pd.Series[str]") -> "pd.Series[float]":
    """0 and 1, also written as 1.0, 1,0 or True; all else is missing."""
    text = cells.str.strip().str.lower().replace(_TRUTH).str.replace(",", ".")
    numbers = pd.to_numeric(text, errors="coerce")
    return numbers.where(numbers.isin([0, 1]))


def _marked_classes(
    frame: pd.DataFrame, values: pd.DataFrame, rest_class: str, where: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes of 0/1 columns, and each row's as an index into them."""
    ones = values.sum(axis=1)
    refuse_rows(ones > 1, "more than one class", "mark one", where)
    rest, classes = ones == 0, tuple(frame.columns)
    if rest.any():
        if rest_class in classes:
            raise InputError(
                f"{where}: {shown_lines(frame.index[rest])} hold no 1 and so belong to the rest "
                f"class, but {rest_class!r} has a column; name another with --rest-class"
            )
        classes += (rest_class,)
    indices = np.where(rest, len(frame.columns), values.to_numpy().argmax(axis=1))
    return classes, indices.astype(np.int64)


def _named_classes(cells: "pd.Series[str]", where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The class names of a column, and each row's as an index into them; -1 where it is empty."""
    text = cells.str.strip()
    numbers = pd.to_numeric(text, errors="coerce")
    refuse_rows(
        text.str.lower().isin(_NO_VALUE) | (numbers % 1 > 0),
        "no class name",
        "write the name, or leave the cell empty",
        where,
    )
    names = {one: _class_name(one) for one in text.unique() if one}
    spellings = pd.Series(names, dtype=str).str.lower()
    twice = spellings.index[spellings.duplicated(keep=False)]
    if len(twice):
        raise InputError(
            f"{where}: classes {', '.join(map(repr, twice))} differ only in case, blanks or signs; "
            f"write each in one way"
        )
    classes = tuple(sorted(names.values()))
    indices = text.map(lambda one: classes.index(names[one]) if one else -1)
    return classes, indices.to_numpy(np.int64)


def _class_name(text: str) -> str:
    """Text as a class name: `Melanoma, NOS` -> `Melanoma_NOS`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", plain).strip("_") or text


def refuse_rows(wrong: "pd.Series[bool]", problem: str, fix: str, where: str) -> None:
    """Raise an `InputError` that says which lines have a problem, if any have.

    Args:
        wrong: whether a row has it; the index plus 1 is the line in the file.
        problem: what they have.
        fix: what to do.
        where: the beginning of the message.
    """
    if wrong.any():
        raise InputError(f"{where}: {shown_lines(wrong.index[wrong])} have {problem}; {fix}")


def _shown(cell: str) -> str:
    """A cell's value if it is a number; other text may be a name."""
    return repr(cell) if pd.notna(pd.to_numeric(cell, errors="coerce")) else "other text"
