"""Names and kinds that all layers use: statuses, error kinds, columns of the scores.

Imports nothing beyond the standard library, so that the decoder process and `--help` stay small.
The Arrow schemas of the same columns are in `lesioncam.schema`.
"""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum

from lesioncam.errors import InputError

DEFAULT_REST_CLASS = "nevus"
PRECISIONS = ("auto", "float32", "bfloat16", "int8")  # of the convolutions
DATASETS = ("isic2017", "sample")  # that can be downloaded


class Status(StrEnum):
    """Whether an image could be scored."""

    OK = "ok"
    FAILED = "failed"


class ErrorKind(StrEnum):
    """Why an image could not be scored."""

    EMPTY = "empty"
    TRUNCATED = "truncated"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    DECODE_TIMEOUT = "decode_timeout"
    NOT_FOUND = "not_found"
    ARCHIVED = "archived"
    PERMISSION = "permission"
    UNREACHABLE = "unreachable"


TRANSIENT_KINDS = frozenset({ErrorKind.PERMISSION, ErrorKind.UNREACHABLE})  # the next run retries


class Quality(StrEnum):
    """What a reader should know of a picture."""

    BLURRED = "blurred"
    OVEREXPOSED = "overexposed"
    UNDEREXPOSED = "underexposed"
    LOW_RESOLUTION = "low_resolution"
    LESION_AT_BORDER = "lesion_at_border"


BOX_COLUMNS = ("box_x0", "box_y0", "box_x1", "box_y1")
STAGES = ("stage1", "stage2", "final")
STAGE_PREFIXES = {"stage1": "stage1_p_", "stage2": "stage2_p_", "final": "p_"}
MEAN = "mean"

_RISK_CLASS = re.compile(r"mel(anoma)?|malignant", re.IGNORECASE)
_CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def check_classes(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Return `names` as the class order, or raise `InputError` naming `where` they came from."""
    for name in names:
        if not _CLASS_NAME.fullmatch(name) or name == MEAN:
            raise InputError(
                f"{where}: {name!r} cannot be a class name; use letters, digits and _ . + -, "
                f"and not {MEAN!r}"
            )
    if len(set(names)) != len(names):
        raise InputError(f"{where}: a class name occurs twice; each class needs its own column")
    if len(names) < 2:
        raise InputError(f"{where}: {len(names)} class found; at least two are needed")
    return tuple(names)


def probability_columns(classes: Iterable[str], stage: str = "final") -> list[str]:
    """Column names of a stage's probabilities (`stage1`, `stage2` or `final`), in class order."""
    return [STAGE_PREFIXES[stage] + name for name in classes]


def flag_column(name: str) -> str:
    """The column that says whether a class is flagged.

    Null where the image failed, and where the bundle has no operating point for the class.
    """
    return f"flag_{name}"


def risk_class(classes: Iterable[str]) -> str | None:
    """The class that people look for first: the first one called melanoma, mel or malignant."""
    return next((name for name in classes if _RISK_CLASS.fullmatch(name)), None)


def classes_of(columns: Iterable[str]) -> tuple[str, ...]:
    """The class order, from the columns of a score file; empty for any other file."""
    prefix = STAGE_PREFIXES["final"]
    return tuple(name.removeprefix(prefix) for name in columns if name.startswith(prefix))
