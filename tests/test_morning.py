"""The notebook examples/morning.ipynb: its cells run in their order, and find what is there.

docs/guide/morning.md is made of the same cells. They run in this process, without Jupyter, so that
their results can be looked at.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from lesioncam.columns import probability_columns
from lesioncam.schema import scores_schema
from lesioncam.storage.results import Results
from lesioncam.storage.runs import RunRecord
from tests.conftest import CLASSES

NOTEBOOK = Path(__file__).parents[1] / "examples" / "morning.ipynb"
FIRST, LAST = "20260101T020000Z-aaaaaa", "20260102T020000Z-bbbbbb"
HOSPITAL = r"""file,patient
C:\pictures\NEW_000.JPG,p0
new_001,p1
 New_002.tif ,p2
new_003,p3
NEW_003.jpg,p4
twin.jpg,p5
absent.jpg,p6
,p7
old_000.jpg,p8
"""


def score_rows(run: str, names: list[str], melanoma: np.ndarray) -> pd.DataFrame:
    """Scored images; each second of the stages' probabilities are those of another class."""
    others = (1 - melanoma)[:, None] * [0.25, 0.75]
    final = np.column_stack([melanoma, others]).astype(np.float32)
    rows = pd.DataFrame({"uri": names}).assign(
        image_id=[Path(name).stem for name in names],
        status="ok",
        prediction="nevus",
        model="model",
        run_id=run,
        scored_at=datetime(2026, 1, 2, tzinfo=UTC),
    )
    for stage in ("final", "stage1", "stage2"):
        rows[probability_columns(CLASSES, stage)] = final
    rows.loc[0, probability_columns(CLASSES, "stage1")] = (0.9, 0.05, 0.05)
    rows.loc[0, probability_columns(CLASSES, "stage2")] = (0.1, 0.1, 0.8)
    return rows


def failed_rows(run: str, **kinds: str) -> pd.DataFrame:
    rows = pd.DataFrame({"uri": kinds.keys(), "error_kind": kinds.values()})
    rows["uri"] = "/images/" + rows["uri"].str.replace("_", "/", n=1) + ".jpg"
    return rows.assign(image_id=rows["uri"].map(lambda uri: Path(uri).stem), status="failed",
                       error="it ends early", model="model", run_id=run)  # fmt: skip


def write_output(folder: Path, rows: pd.DataFrame) -> None:
    schema = scores_schema(CLASSES)
    columns = rows.reindex(columns=schema.names).astype(object)
    table = pa.Table.from_pandas(columns, schema, preserve_index=False)
    results = Results(str(folder))
    results.write_part("part-0.parquet", table)
    for run in rows["run_id"].unique():
        RunRecord(results.store, run).finish({"outcome": "done", "listed": len(rows), "failed": 4})
    results.succeed()


@dataclass(frozen=True)
class Executed:
    """What the notebook's cells left behind."""

    names: dict[str, Any]
    printed: str


def run_notebook(folder: Path, capsys: pytest.CaptureFixture[str]) -> Executed:
    """Run the cells in a folder with `scores` and `hospital.csv`."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for cell in cells:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    return Executed(names, capsys.readouterr().out)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Two runs: the last one's images are more suspicious, and 4 of them failed."""
    old = [f"/images/a/old_{number:03d}.jpg" for number in range(400)]
    new = [f"/images/b/NEW_{number:03d}.jpg" for number in range(300)]
    twins = ["/images/a/twin.jpg", "/images/b/Twin.png"]
    return pd.concat(
        [
            score_rows(FIRST, old, np.linspace(0, 0.6, 400)),
            score_rows(LAST, [*new, *twins], np.linspace(0.3, 0.9, 302)),
            failed_rows(LAST, a_x="empty", b_x="truncated", b_y="truncated", b_z="permission"),
        ],
        ignore_index=True,
    )


@pytest.fixture(scope="module")
def folder(rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("morning")
    write_output(folder / "scores", rows)
    (folder / "hospital.csv").write_text(HOSPITAL)
    return folder


def test_the_morning_after_two_runs(
    folder: Path, rows: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    executed = run_notebook(folder, capsys)
    names = executed.names
    assert names["last"] == LAST
    assert names["summary"] == {"outcome": "done", "listed": 706, "failed": 4, "complete": True}

    expected = rows[rows["run_id"] == LAST].nlargest(20, "p_melanoma")
    assert names["suspicious"]["uri"].tolist() == expected["uri"].tolist()
    assert "302 new images, 20 listed here" in executed.printed

    assert names["by_run"].loc[LAST].tolist() == [302, 1 / 302]
    assert names["disagreeing"]["image_id"].tolist() == ["NEW_000"]
    assert names["disagreeing"]["difference"].tolist() == [pytest.approx(0.8)]

    failures = names["failures"]
    assert failures.index.tolist() == ["/images/b", "/images/a"]
    assert failures.loc["/images/b", ["truncated", "permission", "failed"]].tolist() == [2, 1, 3]
    assert failures["failed_fraction"].tolist() == [3 / 304, 1 / 402]

    assert names["changes"].loc["melanoma", "drifted"]
    assert names["changes"]["images"].tolist() == [302] * 3

    hospital = names["hospital"].set_index("patient")["match"]
    assert hospital[hospital == "matched"].index.tolist() == ["p0", "p1", "p2", "p8"]
    assert hospital[["p3", "p4", "p5", "p6", "p7"]].tolist() == [
        "id in several rows", "id in several rows", "id of several images", "no such image",
        "no id",
    ]  # fmt: skip
    found = names["matched"].set_index("patient")["image_id"].to_dict()
    assert found == {"p0": "NEW_000", "p1": "NEW_001", "p2": "NEW_002", "p8": "old_000"}
    assert "4 of 9 rows matched" in executed.printed
    assert "NOT MATCHED: 5 rows, and 699 images" in executed.printed


def test_flagged_images_are_the_suspicious_ones(
    folder: Path, rows: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flagged = rows.assign(flag_melanoma=(rows["p_melanoma"] > 0.5).where(rows["status"] == "ok"))
    write_output(tmp_path / "scores", flagged)
    (tmp_path / "hospital.csv").write_text(HOSPITAL)
    found = run_notebook(tmp_path, capsys).names["suspicious"]
    expected = rows[(rows["run_id"] == LAST) & (rows["p_melanoma"] > 0.5)]
    assert len(found) == len(expected) > 20
    assert found["p_melanoma"].is_monotonic_decreasing


def test_the_first_run_has_nothing_to_compare_with(
    rows: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_run = rows[rows["run_id"] == FIRST]
    write_output(tmp_path / "scores", one_run)
    (tmp_path / "scores" / "_SUCCESS").unlink()
    (tmp_path / "scores" / "_lesioncam" / "runs" / FIRST / "summary.json").unlink()
    (tmp_path / "hospital.csv").write_text(HOSPITAL)
    names = run_notebook(tmp_path, capsys).names
    assert names["summary"] == {
        "outcome": "not known: the run is under way, or was killed",
        "complete": False,
    }
    assert len(names["suspicious"]) == 20
    assert names["changes"] == "no new images, or no earlier run to compare with"
    assert names["failures"].empty


def test_the_notebook_has_no_outputs() -> None:
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
