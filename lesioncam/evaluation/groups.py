"""Groups: which images have which value in a column of metadata; numbers are put in bands.

Knows nothing about files or scores.
"""

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import numpy as np

from lesioncam.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "unknown"  # the group of images without a value
MAX_GROUPS = 50
_MAX_BANDS = 10
_NO_VALUE = ("", UNKNOWN, "nan", "na", "n/a", "null")


def group_images(cells: "pd.Series[str]", column: str) -> dict[str, np.ndarray]:
    """The images of each group.

    A group is of images with one value. If all values are numbers, and more than ten different
    ones, it is of a band of numbers. Bands have the smallest width of 1, 2, 5, 10, 20, 50 and so on
    (also 0.5, 0.2, 0.1 ...) that gives at most ten of them: ages are in decades.

    Args:
        cells: (n,) the images' values as text; without one they are empty or `unknown`.
        column: its name, for messages.

    Returns:
        Name of a group -> (n,) bool, whether an image is in it. Numbers ascend, texts are in
        alphabetical order, and `unknown` is last.

    Raises:
        InputError: there are more than 50 groups, or values that differ only in case.
    """
    is_known = ~cells.str.lower().isin(_NO_VALUE)
    values = sorted(cells[is_known].unique())
    names = _names_of_numbers(values) or dict(zip(values, values, strict=True))
    groups = dict.fromkeys(names.values())
    if len(groups) > MAX_GROUPS:
        raise InputError(
            f"--by: column {column!r} has {len(groups):,} different values, which are not all "
            f"numbers; at most {MAX_GROUPS} can be groups"
        )
    _refuse_spellings(groups, column)
    named = cells.map(names).where(is_known, UNKNOWN)
    if not is_known.all():
        groups[UNKNOWN] = None
    return {name: (named == name).to_numpy() for name in groups}


def _refuse_spellings(groups: Iterable[str], column: str) -> None:
    seen: dict[str, str] = {}
    for name in groups:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise InputError(
                f"--by: column {column!r} has {other!r} and {name!r}, which differ only in case; "
                f"write each value in one way"
            )


def _names_of_numbers(values: Iterable[str]) -> dict[str, str] | None:
    """Value -> name of its group, in ascending order; None if a value is no number."""
    numbers = {value: _number(value) for value in values}
    finite = {value: number for value, number in numbers.items() if number is not None}
    if len(finite) < len(numbers):
        return None
    ascending = dict(sorted(finite.items(), key=lambda item: item[1]))
    if len(set(finite.values())) <= _MAX_BANDS:
        return {value: _plain(number) for value, number in ascending.items()}
    return _bands(ascending)


def _bands(numbers: Mapping[str, Decimal]) -> dict[str, str]:
    """Value -> name of its band.

    Decimal numbers, so that 0.3 is in the band that begins at 0.3.
    """
    low, high = min(numbers.values()), max(numbers.values())
    smallest = (high - low).adjusted() - 1  # a power of ten that is too small, or just right
    widths = (Decimal(step).scaleb(smallest + more) for more in range(3) for step in (1, 2, 5))
    width = next(
        one for one in widths if math.floor(high / one) - math.floor(low / one) < _MAX_BANDS
    )
    are_whole = all(number == number.to_integral_value() for number in numbers.values())
    names = {}
    for value, number in numbers.items():
        start = math.floor(number / width) * width
        end = _plain(start + width - 1) if are_whole else f"below {_plain(start + width)}"
        names[value] = f"{_plain(start)} to {end}"
    return names


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _plain(number: Decimal) -> str:
    """`50` for 50, 50.0 and 5E+1."""
    return f"{number.normalize():f}"
