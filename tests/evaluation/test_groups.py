import numpy as np
import pandas as pd
import pytest

from lesioncam.errors import InputError
from lesioncam.evaluation.groups import MAX_GROUPS, group_images


def sizes(*values: object) -> dict[str, int]:
    """The groups of a column of these values, and how many images each has."""
    groups = group_images(pd.Series(list(map(str, values))), "column")
    assert (np.sum([*groups.values()], axis=0) == 1).all()  # each image is in one
    return {name: int(members.sum()) for name, members in groups.items()}


def test_ages_are_in_decades() -> None:
    ages = [*range(10, 90, 5), "unknown", ""]
    assert sizes(*ages) == {**{f"{age} to {age + 9}": 2 for age in range(10, 90, 10)}, "unknown": 2}
    assert sizes(*(f"{age}.0" for age in range(10, 90, 5))) == {
        f"{age} to {age + 9}": 2 for age in range(10, 90, 10)
    }


def test_the_images_of_a_group_are_those_with_its_value() -> None:
    groups = group_images(pd.Series(["b", "a", "", "b"]), "column")
    assert {name: members.tolist() for name, members in groups.items()} == {
        "a": [False, True, False, False],
        "b": [True, False, False, True],
        "unknown": [False, False, True, False],
    }


@pytest.mark.parametrize(
    ("values", "first", "last", "count"),
    [
        (range(11), "0 to 1", "10 to 11", 6),
        (range(2014, 2025), "2014 to 2015", "2024 to 2025", 6),
        (range(-12, 12), "-15 to -11", "10 to 14", 6),
        ([n / 10 for n in range(11)], "0 to below 0.2", "1 to below 1.2", 6),
        ([n / 100 for n in range(25, 37)], "0.24 to below 0.26", "0.36 to below 0.38", 7),
        ([n * 1000 for n in range(1, 50)], "0 to 4999", "45000 to 49999", 10),
    ],
)
def test_bands_have_round_limits(values: list[float], first: str, last: str, count: int) -> None:
    groups = sizes(*values)
    assert len(groups) == count
    names = [*groups]
    assert (names[0], names[-1]) == (first, last)


def test_a_number_at_a_limit_is_in_the_band_that_begins_there() -> None:
    groups = sizes(*(n / 10 for n in range(3, 14)))  # 0.6 / 0.2 is less than 3 in binary
    assert groups == {
        "0.2 to below 0.4": 1,
        "0.4 to below 0.6": 2,
        "0.6 to below 0.8": 2,
        "0.8 to below 1": 2,
        "1 to below 1.2": 2,
        "1.2 to below 1.4": 2,
    }


def test_few_numbers_are_groups_of_their_own() -> None:
    assert [*sizes(10, 2, "2.0", 1)] == ["1", "2", "10"]
    assert sizes(10, 2, "2.0", 1)["2"] == 2


def test_texts_are_in_alphabetical_order() -> None:
    assert [*sizes("male", "Unknown", "female", "N/A", "none", "NaN", "")] == [
        "female",
        "male",
        "none",
        "unknown",
    ]


def test_numbers_beside_a_text_are_texts() -> None:
    assert [*sizes(*range(12), "85+")] == sorted([*map(str, range(12)), "85+"])


def test_a_column_without_values_is_one_group() -> None:
    assert sizes("", "unknown") == {"unknown": 2}


def test_columns_that_are_none_of_groups_are_refused() -> None:
    ids = [f"P{number}" for number in range(MAX_GROUPS + 1)]
    with pytest.raises(InputError, match="--by: column 'column' has 51 different values, which"):
        sizes(*ids)
    assert len(sizes(*ids[1:], "")) == MAX_GROUPS + 1
    with pytest.raises(InputError, match="has 'Male' and 'male', which differ only in case"):
        sizes("male", "female", "Male")
