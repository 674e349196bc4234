"""Labels: the official CSV as it is, and every refusal in one line without an image id."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from lesioncam.errors import InputError
from lesioncam.storage.labels import LabelColumns, Labels, match, read_labels
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


def read(
    location: str,
    text: str | bytes,
    rest_class: str = "nevus",
    columns: LabelColumns | None = None,
) -> Labels:
    open_store(location).write("labels.csv", text if isinstance(text, bytes) else text.encode())
    return read_labels(f"{location}/labels.csv", rest_class, columns=columns)


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
                     ["or 'img_id' column (found: name, a, b; name one of them with --id-column)"]),
    "no header": ("ISIC_7,1.0,0.0\nISIC_8,0.0,0.0\n",
                  ["column (its first line must name it, such as image_id,melanoma)"]),
    "no header and few rows": ("ISIC_7,malignant\nISIC_8,benign\n", ["first line must name it"]),
    "no header, 0 and 1": ("ISIC_7,0.0\nISIC_8,1.0\nISIC_9,0.0\n", ["first line must name it"]),
    "half": ("image,a,b\nISIC_6,1,0\nISIC_7,0.5,0\n", ["'a'", "0.5", "line 3"]),
    "two": ("image,a,b\nISIC_7,0,2\n", ["'b'", "line 2"]),
    "minus one": ("image,a,b\nISIC_7,0,-1\n", ["'b'", "line 2"]),
    "text": ("image,a,b\nISIC_7,0,yes\n", ["'b'", "line 2"]),
    "no number": ("image,a,b\nISIC_6,0,1\nISIC_7,0,\n", ["'b'", "line 3"]),
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
    "long row": ("image,a,b\nISIC_6,1,0\nISIC_7,1,0,0,0\n", ["line 3 has more fields"]),
    "every row long": ("image,a,b\nISIC_7,0,1,0\nISIC_8,0,1,1\nISIC_9,0,0,0\n", []),
    "two separators": ("image;a,b\nISIC_7;1,0\n", ["first line holds ',' and ';'; use one"]),
    "two columns of names": (
        "image_name,diagnosis,benign_malignant,target\nISIC_7,nevus,benign,0\n",
        ["read from diagnosis, benign_malignant, target; name one with --class-column"],
    ),
    "columns of no class": (
        "isic_id,age,sex\nISIC_7,70,male\n", ["'age'", "--class-column"]
    ),
    "weights beside classes": (
        "image,MEL,NV,score_weight\nISIC_7,1,0,0.4\n", ["'score_weight'", "'0.4'", "line 2"]
    ),
    "free text": ("image,note\nISIC_7,Jane\nISIC_8,John\n", ["'note'", "other text"]),
    "two ways to write a class": (
        "image,dx\nISIC_7,Mel\nISIC_8,mel\nISIC_9,nv\n", ["'Mel', 'mel'", "one way"]
    ),
    "same name of two classes": ("image,dx\nISIC_7,a b\nISIC_8,a?b\n", ["'a b', 'a?b'"]),
    "no value": ("image,dx\nISIC_7,mel\nISIC_8,nan\n", ["line 3", "no class name"]),
    "a number between": ("image,target\nISIC_7,0\nISIC_8,0.5\n", ["line 3", "no class name"]),
    "a class name that is not Latin": ("image,dx\nISIC_7,痣\nISIC_8,nv\n", ["'痣'"]),
    "one class name": ("image,dx\nISIC_7,mel\nISIC_8,mel\n", ["1 class"]),
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


# Other forms

VARIANTS = {
    "isic_id": OFFICIAL.replace("image_id", "isic_id"),
    "image_name": OFFICIAL.replace("image_id", "image_name"),
    "img_id": OFFICIAL.replace("image_id", "IMG_ID"),
    "spaces in the header": OFFICIAL.replace("image_id,melanoma,", " image_id , melanoma ,"),
    "semicolons": OFFICIAL.replace(",", ";"),
    "tabs": OFFICIAL.replace(",", "\t"),
    "bars": OFFICIAL.replace(",", "|"),
    "decimal commas": OFFICIAL.replace(",", ";").replace(".", ","),
    "True and False": OFFICIAL.replace("0.0", "False").replace("1.0", "True"),
    "true and false": OFFICIAL.replace("0.0", "false").replace("1.0", " true "),
    "quotes": "".join(
        ",".join(f'"{cell}"' for cell in line.split(",")) + "\n" for line in OFFICIAL.splitlines()
    ),
}


@pytest.mark.parametrize("text", VARIANTS.values(), ids=VARIANTS)
def test_reads_other_ways_to_write_the_same(tmp_path: Path, text: str) -> None:
    labels, official = read(str(tmp_path), text), read(str(tmp_path), OFFICIAL)
    assert labels.classes == official.classes
    assert labels.target_classes == official.target_classes
    assert by_name(labels) == by_name(official)


def test_a_compressed_file_is_read(tmp_path: Path) -> None:
    assert read(str(tmp_path), gzip.compress(OFFICIAL.encode())).ids[0] == "ISIC_1"


HAM10000 = (
    "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
    "HAM_1,ISIC_1,bkl,histo,80.0,male,scalp\n"
    "HAM_1,ISIC_2,bkl,histo,80.0,male,scalp\n"
    "HAM_2,ISIC_3,mel,histo,,male,ear\n"
    "HAM_3,ISIC_4,nv,follow_up,50.0,female,back\n"
)


def test_reads_one_column_of_class_names(location: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lesioncam"):
        labels = read(location, HAM10000)
    assert labels.classes == labels.target_classes == ("bkl", "mel", "nv")
    assert by_name(labels) == {"ISIC_1": "bkl", "ISIC_2": "bkl", "ISIC_3": "mel", "ISIC_4": "nv"}
    assert labels.class_indices.dtype == np.int64
    assert labels.from_names
    assert "--labels: classes are read from dx; 5 other columns are not" in caplog.messages


ISIC_2020 = (
    "image_name,patient_id,sex,diagnosis,benign_malignant,target\n"
    "ISIC_1,IP_1,male,unknown,benign,0\n"
    "ISIC_2,IP_1,male,lentigo NOS,benign,0\n"
    "ISIC_3,IP_2,female,melanoma,malignant,1\n"
    "ISIC_4,,,café-au-lait macule,benign,0\n"
)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("diagnosis", ["unknown", "lentigo_NOS", "melanoma", "cafe-au-lait_macule"]),
        ("benign_malignant", ["benign", "benign", "malignant", "benign"]),
        ("target", ["benign_lesion", "benign_lesion", "target", "benign_lesion"]),
    ],
)
def test_a_flag_names_the_column_of_classes(
    tmp_path: Path, column: str, expected: list[str]
) -> None:
    labels = read(str(tmp_path), ISIC_2020, "benign_lesion", LabelColumns(class_name=column))
    assert list(by_name(labels).values()) == expected
    assert labels.from_names == (column != "target")


def test_a_flag_names_the_id_column(tmp_path: Path) -> None:
    columns = LabelColumns(image_id="file")
    labels = read(str(tmp_path), "image,file,a,b\n1,x,0,0\n0,y,0,0\n", columns=columns)
    assert labels.ids == ("x", "y")
    assert labels.classes == ("image", "a", "b", "nevus")


def test_rows_without_a_class_name_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = HAM10000.replace("ISIC_3,mel", "ISIC_3, ") + "HAM_9,ISIC_5,mel,,,,\n"
    labels = read(str(tmp_path), text)
    assert labels.ids == ("ISIC_1", "ISIC_2", "ISIC_4", "ISIC_5")
    assert labels.class_indices.tolist() == [0, 0, 2, 1]
    assert "--labels: 1 rows without a class are left out" in caplog.messages


@pytest.mark.parametrize("header", ["", "img_id,Label\n", "image_id,benign_or_malignant\n"])
def test_two_columns_are_ids_and_class_names(tmp_path: Path, header: str) -> None:
    labels = read(str(tmp_path), header + "ISIC_1,benign\nISIC_2,malignant\nISIC_3,benign\n"
                  "ISIC_4,malignant\n")  # fmt: skip
    assert by_name(labels) == {
        "ISIC_1": "benign", "ISIC_2": "malignant", "ISIC_3": "benign", "ISIC_4": "malignant"
    }  # fmt: skip


def test_isic_2024_has_one_class_column_among_others(tmp_path: Path) -> None:
    labels = read(str(tmp_path), "isic_id,target,patient_id,age_approx\nISIC_1,0,IP_1,60.0\n"
                  "ISIC_2,1,IP_2,\n", "benign")  # fmt: skip
    assert by_name(labels) == {"ISIC_1": "benign", "ISIC_2": "target"}


def test_groups_are_read_beside_the_classes(tmp_path: Path) -> None:
    labels = read(str(tmp_path), HAM10000, columns=LabelColumns(group="lesion_id"))
    assert labels.groups == ("HAM_1", "HAM_1", "HAM_2", "HAM_3")
    text = "image,MEL,NV,patient\nISIC_1,1,0, p1\nISIC_2,0,1,p1\nISIC_3,0,1,\n"
    labels = read(str(tmp_path), text, columns=LabelColumns(group="patient"))
    assert labels.classes == ("MEL", "NV")
    assert labels.group_by_id == {"ISIC_1": "p1", "ISIC_2": "p1"}


def test_collections_are_read_beside_the_classes(tmp_path: Path) -> None:
    text = "image,MEL,NV,clinic\nISIC_1,1,0, a\nISIC_2,0,1,b\n"
    labels = read(str(tmp_path), text, columns=LabelColumns(collection="clinic"))
    assert labels.classes == ("MEL", "NV")
    assert labels.of_classes(("NV", "MEL")).collection_by_id == {"ISIC_1": "a", "ISIC_2": "b"}


@pytest.mark.parametrize(
    ("columns", "flag"),
    [
        (LabelColumns(image_id="x"), "--id-column"),
        (LabelColumns(class_name="x"), "--class-column"),
        (LabelColumns(group="x"), "--group-column"),
        (LabelColumns(collection="x"), "--collection-column"),
    ],
)
def test_a_column_that_is_not_there_is_refused(
    tmp_path: Path, columns: LabelColumns, flag: str
) -> None:
    with refused("--labels", "has no 'x' column", flag, kind=InputError):
        read(str(tmp_path), HAM10000, columns=columns)


# Classes of a model


def test_labels_of_some_classes_are_indices_into_them(tmp_path: Path) -> None:
    labels = read(str(tmp_path), "image,MEL,NV,UNK\na,1,0,0\nb,0,1,0\nc,0,0,1\nd,0,1,0\n")
    some = labels.of_classes(("NV", "MEL"))
    assert (some.classes, some.ids) == (("NV", "MEL"), ("a", "b", "d"))
    assert some.target_classes == ("MEL", "NV")
    assert by_name(some) == {"a": "MEL", "b": "NV", "d": "NV"}


def test_labels_must_say_which_of_the_expected_classes_an_image_is(tmp_path: Path) -> None:
    marked = read(str(tmp_path), "image,MEL,NV,UNK\na,1,0,0\nb,0,1,0\n")
    marked.check_classes(("MEL", "NV"), "nevus", "--labels")  # there is no UNK
    with refused("--labels: classes MEL, NV, UNK are not those of the model, MEL, NV, BKL"):
        marked.check_classes(("MEL", "NV", "BKL"), "nevus", "--labels")
    named = read(str(tmp_path), HAM10000)
    named.check_classes(("nv", "mel", "bkl", "df"), "nevus", "--labels")  # there is no df
    with refused("--labels: classes bkl, mel, nv are not those"):
        named.check_classes(("nv", "mel"), "nevus", "--labels")


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
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("booleans", {"melanoma": 100, "seborrheic_keratosis": 100, "nevus": 100}),
        ("ham10000_metadata", {"bkl": 100, "mel": 100, "nv": 100}),
        ("header_spaces", {"melanoma": 100, "seborrheic_keratosis": 100, "nevus": 100}),
        ("isic2016_no_header", {"benign": 200, "malignant": 100}),
        ("isic2019_UNK", {"MEL": 100, "NV": 100, "BKL": 100, "UNK": 0}),
        ("isic_id_column", {"melanoma": 100, "seborrheic_keratosis": 100, "nevus": 100}),
        ("semicolon", {"melanoma": 100, "seborrheic_keratosis": 100, "nevus": 100}),
    ],
)
def test_reads_files_as_people_have_them(name: str, counts: dict[str, int]) -> None:
    labels = read_labels(str(SHARED / "wild" / "labels" / f"{name}.csv"), "nevus")
    found = np.bincount(labels.class_indices, minlength=len(labels.classes)).tolist()
    assert dict(zip(labels.classes, found, strict=True)) == counts
    assert labels.by_id["DRAWN_00000"] == labels.by_id["DRAWN_00003"]


@needs_shared
def test_refuses_the_real_metadata() -> None:
    path = SHARED / "isic2017" / "ISIC-2017_Training_Data_metadata.csv"
    with refused("--labels", str(path), "age_approximate", "line 2", without=("ISIC_",)):
        read_labels(str(path), "nevus")
