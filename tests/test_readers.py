"""Readers: each is right or fails loudly, on an output, a folder of outputs and a tree of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from lesioncam.schema import scores_schema
from lesioncam.storage.results import COMMIT_FILE, STAGING, Results
from lesioncam.storage.runs import RunRecord
from lesioncam.storage.store import Entry
from tests.readers import ERROR, FOLDER, READERS, RIGHT, Reader, table

CLASSES = ("melanoma", "nevus")
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "readers.md"
FOLDERS = {"output": [""], "parent": ["a", "b"], "tree": ["model=v1", "model=v2"]}


def write_output(folder: Path, images: list[str], model: str) -> None:
    """An output with every file that a run may have beside its scores, some of them leftovers."""
    results = Results(str(folder))
    for number, name in enumerate(images):
        row: dict[str, Any] = {"uri": name, "image_id": name, "model": model, "status": "failed"}
        if number % 2:
            row |= {"status": "ok", "prediction": "nevus", "width": 640, "cam": b"\0\xff"}
            row["quality"] = ["blurred", "low_resolution"] if number == 1 else []
        rows = pa.Table.from_pylist([row], schema=scores_schema(CLASSES))
        results.write_part(f"part-run-1-{number:09d}.parquet", rows)
    record = RunRecord(results.store, "run-1")
    record.record_listing(Entry(name) for name in images)
    record.record_pending(results.partitions(record.manifest(), 9), retry_failed=True)
    record.finish({"outcome": "done"})
    part = (folder / results.parts()[0]).read_bytes()
    results.store.write(f"{STAGING}/part-run-1-000000009.parquet-1f", part)
    results.store.write(COMMIT_FILE, json.dumps({"added": []}).encode())
    results.succeed()


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`output`, `parent` and `tree`."""
    root = tmp_path_factory.mktemp("layouts")
    for layout, folders in FOLDERS.items():
        for number, folder in enumerate(folders):
            images = [f"/{layout}/{number}/{image}.jpg" for image in range(3)]
            write_output(root / layout / folder, images, f"digest-{number}")
    return root


@pytest.fixture
def available(
    reader: Reader, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is installed; what it keeps goes to a temporary directory."""
    package = pytest.importorskip(reader.package)
    if reader.package == "ray":
        request.getfixturevalue("local_ray")
    if reader.package == "datasets":
        monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", str(tmp_path))
    if reader.package == "pyspark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")


def quality_of(value: Any) -> tuple[str, ...] | None:
    """A list of strings, as whichever type a reader gives."""
    return None if value is None or value is pd.NA else tuple(value)


def outcome(reader: Reader, path: Path) -> str:
    """As the table says it; the rows must be right unless there is an error."""
    layout = path.name
    folders = FOLDERS[layout]
    try:
        frame = reader.read(str(path))
    except Exception:  # every reader has errors of its own
        return ERROR
    expected = [f"/{layout}/{n}/{image}.jpg" for n in range(len(folders)) for image in range(3)]
    assert sorted(frame["uri"]) == expected
    assert {str(name) for name in scores_schema(CLASSES).names} <= set(frame.columns)
    assert {quality_of(value) for value in frame["quality"]} == {
        None,
        ("blurred", "low_resolution"),
    }
    models = set(frame["model"].astype(str))
    if models == {f"digest-{number}" for number in range(len(folders))}:
        return RIGHT
    assert models == {folder.removeprefix("model=") for folder in folders}
    return FOLDER


@pytest.mark.usefixtures("available")
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.code)
def test_a_reader_is_right_or_fails_loudly(reader: Reader, layouts: Path) -> None:
    found = tuple(outcome(reader, layouts / layout) for layout in FOLDERS)
    assert found == reader.outcomes


def test_only_scores_are_parquet_files(layouts: Path) -> None:
    below = [path for path in layouts.rglob("*.parquet") if path.is_file()]
    assert len(below) == 15
    for path in below:
        assert pd.read_parquet(path, columns=["uri", "status"]).shape == (1, 2)
        assert not any(part.startswith("_") for part in path.relative_to(layouts).parts)


def test_the_documented_table_is_this_one() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "paste what python -m tests.readers prints"
