"""Labels: the official CSV as it is, and every refusal in one line without an image id."""

from pathlib import Path

import numpy as np
import pytest

from lesioncam.errors import InputError
from lesioncam.storage.labels import Labels, match, read_labels
from lesioncam.storage.uris import open_store
from tests.conftest import CLASSES, SHARED, needs_shared
from tests.storage.conftest import refused

OFFICIAL = (
    "image_id,melanoma,seborrheic_keratosis\n"
    "ISIC_1,0.0,0.0\n"
    "ISIC_2,1.0,0.0\n"
    "ISIC_3,0.0,1.0\n"
    "ISIC_4,0.0,0.0\n"
)


def read(location: str, text: str | bytes, rest_class: str = "nevus") -> Labels:
    open_store(location).write("labels.csv", text if isinstance(text, bytes) else text.encode())
    return read_labels(f"{location}/labels.csv", rest_class)


def by_name(labels: Labels) -> dict[str, str]:
    return {name: labels.classes[index] for name, index in labels.by_id.items()}


def test_reads_the_official_format(location: str) -> None:
    labels = read(location, OFFICIAL)
    assert labels.classes == CLASSES
    assert labels.target_classes == ("melanoma", "seborrheic_keratosis")
    assert labels.ids == ("ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4")
    assert labels.class_indices.tolist() == [2, 0, 1, 2]
    assert labels.class_indices.dtype == np.int64
    assert labels.by_id == {"ISIC_1": 2, "ISIC_2": 0, "ISIC_3": 1, "ISIC_4": 2}


@pytest.mark.parametrize(
    "text",
    [
        OFFICIAL.replace("image_id", "image"),
        OFFICIAL.replace("\n", "\r\n"),
        OFFICIAL.replace(".0", ""),
        OFFICIAL.rstrip("\n"),
        OFFICIAL + "\n\n",
        "\ufeff" + OFFICIAL,
        OFFICIAL.replace("ISIC_3", '" ISIC_3 "'),
    ],
    ids=["image", "crlf", "whole numbers", "no last newline", "blank end", "mark", "blanks"],
)
def test_reads_its_variants_alike(location: str, text: str) -> None:
    labels, official = read(location, text), read(location, OFFICIAL)
    assert by_name(labels) == by_name(official)
    assert labels.classes == official.classes
    assert labels.target_classes == official.target_classes


def test_the_id_column_may_stand_anywhere(location: str) -> None:
    labels = read(location, "b,image,a\n0,x,1\n1,y,0\n")
    assert labels.classes == ("b", "a")
    assert by_name(labels) == {"x": "a", "y": "b"}


def test_ids_stay_text(location: str) -> None:
    assert read(location, "image,a\n007,1\n7,0\nNA,1\n1e3,0\n").ids == ("007", "7", "NA", "1e3")


def test_rows_without_a_1_are_of_the_rest_class(location: str) -> None:
    labels = read(location, OFFICIAL, rest_class="other")
    assert labels.classes == ("melanoma", "seborrheic_keratosis", "other")
    assert by_name(labels)["ISIC_4"] == "other"


def test_a_fully_one_hot_file_has_no_rest_class(location: str) -> None:
    labels = read(location, "image,MEL,NV,BCC\na,1,0,0\nb,0,1,0\nc,0,0,1\n", rest_class="NV")
    assert labels.classes == labels.target_classes == ("MEL", "NV", "BCC")
    assert labels.class_indices.tolist() == [0, 1, 2]


def test_missing_classes_are_those_that_do_not_occur(location: str) -> None:
    labels = read(location, OFFICIAL)
    assert labels.missing_classes(labels.class_indices) == []
    assert labels.missing_classes(np.array([2, 2, 0])) == ["seborrheic_keratosis"]
    assert labels.missing_classes(np.array([], np.int64)) == list(CLASSES)


REFUSALS = {
    "no id column": ("name,a,b\nISIC_7,1,0\n",
                     ["has no 'image_id' or 'image' column (found: name, a, b)"]),
    "no header": ("ISIC_7,1.0,0.0\nISIC_8,0.0,0.0\n",
                  ["has no 'image_id' or 'image' column (its first line must name it)"]),
    "half": ("image,a,b\nISIC_6,1,0\nISIC_7,0.5,0\n", ["'a'", "0.5", "line 3"]),
    "two": ("image,a,b\nISIC_7,0,2\n", ["'b'", "line 2"]),
    "minus one": ("image,a,b\nISIC_7,0,-1\n", ["'b'", "line 2"]),
    "text": ("image,a,b\nISIC_7,0,yes\n", ["'b'", "line 2"]),
    "no value": ("image,a,b\nISIC_6,0,1\nISIC_7,0,\n", ["'b'", "line 3"]),
    "nan": ("image,a,b\nISIC_7,nan,1\n", ["'a'", "line 2"]),
    "short row": ("image,a,b\nISIC_6,0,1\nISIC_7,0\n", ["'b'", "line 3"]),
    "two classes": ("image,a,b\nISIC_6,1,0\nISIC_7,1,1\n", ["line 3", "more than one class"]),
    "same id": ("image,a,b\nISIC_7,1,0\nISIC_6,1,0\nISIC_7,0,1\n", ["line 4"]),
    "same id but blanks": ("image,a,b\nISIC_7,1,0\n ISIC_7 ,0,1\n", ["line 3"]),
    "no id": ("image,a,b\nISIC_7,1,0\n,0,1\n", ["line 3", "no image id"]),
    "blank id": ("image,a,b\nISIC_7,1,0\n  ,0,1\n", ["line 3", "no image id"]),
    "many lines": (
        "image,a,b\n" + "".join(f"ISIC_7{i},1,1\n" for i in range(5)),
        ["line 2, 3, 4 and 2 more"],
    ),
    "no rows": ("image,a,b\n", ["no rows"]),
    "no class column": ("image\nISIC_7\nISIC_8\n", ["class"]),
    "one class": ("image,a\nISIC_7,1\nISIC_8,1\n", ["1 class"]),
    "rest class has a column": ("image,nevus,b\nISIC_6,1,0\nISIC_7,0,0\n",
                                ["line 3", "'nevus'", "--rest-class"]),
    "bad class name": ("image,a b,c\nISIC_7,1,0\n", ["'a b'"]),
    "class mean": ("image,mean,c\nISIC_7,1,0\n", ["'mean'"]),
    "same column": ("image,a,a\nISIC_7,0,0\nISIC_8,1,0\n", ["twice"]),
    "both id columns": ("image_id,image,a\nISIC_6,ISIC_7,1\nISIC_8,ISIC_9,0\n", ["image"]),
    "after a blank line": ("image,a,b\nISIC_6,1,0\n\nISIC_7,1,1\n", ["line 4"]),
    "line break in an id": ('image,a,b\n"ISIC\n6",1,0\nISIC_7,1,1\n', []),
    "long row": ("image,a,b\nISIC_6,1,0\nISIC_7,1,0,0,0\n", ["line 3"]),
    "every row long": ("image,a,b\nISIC_7,0,1,0\nISIC_8,0,1,1\nISIC_9,0,0,0\n", []),
    "semicolons": ("image;a;b\nISIC_7;1;0\n", ["(its first line must name it)"]),
    "empty": ("", []),
    "newline": ("\n", []),
    "open quote": ('image,a,b\n"ISIC_7,1,0\n', []),
}  # fmt: skip


@pytest.mark.parametrize(("text", "parts"), REFUSALS.values(), ids=REFUSALS)
def test_refuses_in_one_line_without_ids(tmp_path: Path, text: str, parts: list[str]) -> None:
    where = str(tmp_path / "labels.csv")
    with refused("--labels", where, *parts, kind=InputError, without=("ISIC_",)):
        read(str(tmp_path), text)


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n\xff\xfe", b"\x00" * 100, b"image,a\n\xff,1\n"]
)
def test_refuses_what_is_not_a_csv(location: str, data: bytes) -> None:
    with refused("--labels", f"{location}/labels.csv", kind=InputError):
        read(location, data)


def test_refuses_a_file_that_is_not_there(location: str) -> None:
    with refused("--labels", f"{location}/labels.csv", "no such", kind=InputError):
        read_labels(f"{location}/labels.csv", "nevus")


def test_a_server_that_is_away_is_one_line(unreachable: str) -> None:
    with refused("--labels", f"{unreachable}/labels.csv"):
        read_labels(f"{unreachable}/labels.csv", "nevus")


def test_names_the_flag_it_was_given(location: str) -> None:
    with refused("--val-labels", kind=InputError, without=("--labels",)):
        read_labels(f"{location}/labels.csv", "nevus", "--val-labels")


# Images and labels


def test_match_joins_by_id_and_counts_the_rest(location: str) -> None:
    labels = read(location, OFFICIAL)
    found = match(labels, ["ISIC_9", "ISIC_3", "ISIC_1", "ISIC_3", "ISIC_8", "ISIC_1", "ISIC_9"])
    assert found.rows.tolist() == [1, 2]
    assert found.class_indices.tolist() == [1, 2]
    assert found.rows.dtype == found.class_indices.dtype == np.int64
    assert (found.unlabeled, found.unused, found.duplicates) == (3, 2, 2)


def test_match_of_nothing_leaves_all_labels(location: str) -> None:
    found = match(read(location, OFFICIAL), [])
    assert found.rows.tolist() == found.class_indices.tolist() == []
    assert (found.unlabeled, found.unused, found.duplicates) == (0, 4, 0)


def test_match_of_all_leaves_nothing(location: str) -> None:
    labels = read(location, OFFICIAL)
    found = match(labels, iter(reversed(labels.ids)))
    assert found.rows.tolist() == [0, 1, 2, 3]
    assert found.class_indices.tolist() == labels.class_indices.tolist()[::-1]
    assert (found.unlabeled, found.unused, found.duplicates) == (0, 0, 0)


# The real files


@needs_shared
@pytest.mark.parametrize(
    ("split", "counts"), [("Training", [374, 254, 1372]), ("Validation", [30, 42, 78])]
)
def test_reads_the_real_files(split: str, counts: list[int]) -> None:
    path = SHARED / "isic2017" / f"ISIC-2017_{split}_Part3_GroundTruth.csv"
    labels = read_labels(str(path), "nevus")
    assert labels.classes == CLASSES
    assert labels.target_classes == CLASSES[:2]
    assert np.bincount(labels.class_indices).tolist() == counts
    assert len(set(labels.ids)) == sum(counts)


@needs_shared
def test_refuses_the_real_metadata() -> None:
    path = SHARED / "isic2017" / "ISIC-2017_Training_Data_metadata.csv"
    with refused("--labels", str(path), "age_approximate", "line 2", without=("ISIC_",)):
        read_labels(str(path), "nevus")
