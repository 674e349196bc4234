from pathlib import Path

import pandas as pd
import pytest

from lesioncam.storage import metadata
from lesioncam.storage.metadata import read_metadata
from lesioncam.storage.uris import open_store
from tests.storage.conftest import refused

TABLE = "image_id,age_approximate,sex\nI1,55, female \nI2,unknown,male\nI3,,\nI4,30,male\n"
COLUMNS = ("sex", "age_approximate")


def read(folder: Path, text: str, ids: tuple[str, ...] = ("I1", "I3"), **more: str) -> pd.DataFrame:
    (folder / "meta.csv").write_text(text)
    return read_metadata(f"{folder}/meta.csv", COLUMNS, ids, **more)


def test_cells_are_those_of_the_images_that_are_asked_for(location: str) -> None:
    open_store(location).write("meta.csv", TABLE.encode())
    found = read_metadata(f"{location}/meta.csv", COLUMNS, ["I3", "I1", "I9"])
    assert found.to_dict("index") == {
        "I1": {"sex": "female", "age_approximate": "55"},
        "I3": {"sex": "", "age_approximate": ""},
    }


def test_a_large_table_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "_CHUNK_ROWS", 2)
    for text in (TABLE, ",,\n,,\n,,\n" + TABLE):
        found = read(tmp_path, text, ("I1", "I2", "I4"))
        assert found["sex"].to_dict() == {"I1": "female", "I2": "male", "I4": "male"}
    with refused("line 7 have an id seen before", without=("I1",)):
        read(tmp_path, TABLE + "I5,1,male\nI1,60,male\n")


def test_other_separators_and_id_columns(tmp_path: Path) -> None:
    text = TABLE.replace(",", ";").replace("image_id", "file")
    found = read(tmp_path, text, id_name="file")
    assert found["age_approximate"].to_dict() == {"I1": "55", "I3": ""}
    with refused("--metadata: ", "meta.csv has no 'image_id', "):
        read(tmp_path, text)
    with refused("has no 'name' column; check --id-column"):
        read(tmp_path, text, id_name="name")


def test_ids_of_other_images_may_repeat(tmp_path: Path) -> None:
    assert read(tmp_path, TABLE + "I4,31,female\n,,male\n").index.tolist() == ["I1", "I3"]


def test_a_column_of_ids_can_be_read_too(tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_text(TABLE)
    found = read_metadata(f"{tmp_path}/meta.csv", ["image_id"], ["I1"])
    assert found["image_id"].to_dict() == {"I1": "I1"}


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with refused("no column 'sex'; check --by (found: image_id, age_approximate, gender)"):
        read(tmp_path, TABLE.replace("sex", "gender"))
    with refused("none of its ids is an image_id of the 2 labeled images"):
        read(tmp_path, TABLE.replace("I", "J"))
    with refused("meta.csv has no rows"):
        read(tmp_path, ",,\n,,\n")
    with refused("a column occurs twice"):
        read(tmp_path, TABLE.replace("age_approximate", "sex"))
    with refused("--metadata: ", "nothing.csv: no such file"):
        read_metadata(f"{tmp_path}/nothing.csv", COLUMNS, ["I1"])
