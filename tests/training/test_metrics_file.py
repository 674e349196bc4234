"""The record: metrics.csv and curves.png, written anew after each epoch."""

import io
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from lesioncam.training.progress import EpochReport
from lesioncam.training.record import CURVES_FILE, METRICS_FILE, Record, draw_curves


def entry(epoch: int, loss: float = 0.5, mean_auc: float | None = 0.8) -> dict[str, Any]:
    return {"epoch": epoch, "loss": loss, "mean_auc": mean_auc, "seconds": 2.0}


def post(stage: str, *history: dict[str, Any], resumed: bool = False) -> EpochReport:
    return EpochReport(stage, epochs=3, history=history, left=60.0, resumed=resumed)


def rows(bundle: Path) -> pd.DataFrame:
    return pd.read_csv(bundle / METRICS_FILE)


def test_each_post_writes_both_files_anew(tmp_path: Path) -> None:
    bundle = tmp_path / "model"
    record = Record(str(bundle))
    record.take(post("stage1", entry(1, loss=0.9)))
    assert rows(bundle)["loss"].tolist() == [0.9]
    record.take(post("stage1", entry(1, loss=0.9), entry(2, loss=0.7)))
    assert rows(bundle)["loss"].tolist() == [0.9, 0.7]
    record.take(post("stage2", entry(1, loss=0.6)))
    found = rows(bundle)
    assert found["stage"].tolist() == ["stage1", "stage1", "stage2"]
    assert found["epoch"].tolist() == [1, 2, 1]
    assert found["loss"].tolist() == [0.9, 0.7, 0.6]
    assert found.columns.tolist() == ["stage", "epoch", "loss", "mean_auc", "seconds"]
    assert {path.name for path in bundle.iterdir()} == {METRICS_FILE, CURVES_FILE}


def test_the_curves_are_a_picture(tmp_path: Path) -> None:
    Record(str(tmp_path)).take(post("stage1", entry(1), entry(2)))
    with Image.open(tmp_path / CURVES_FILE) as image:
        assert image.format == "PNG"
        image.load()
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 2


def test_a_stage_that_goes_on_without_an_epoch_writes_nothing(tmp_path: Path) -> None:
    bundle = tmp_path / "model"
    Record(str(bundle)).take(post("stage1", resumed=True))
    assert not bundle.exists()


def test_a_stage_that_goes_on_keeps_its_epochs(tmp_path: Path) -> None:
    record = Record(str(tmp_path))
    record.take(post("stage1", entry(1), entry(2), resumed=True))
    record.take(post("stage2", resumed=True))
    record.take(post("stage2", entry(1)))
    assert rows(tmp_path)["epoch"].tolist() == [1, 2, 1]


def test_an_undefined_auc_is_an_empty_cell(tmp_path: Path) -> None:
    Record(str(tmp_path)).take(post("stage1", entry(1, mean_auc=None), entry(2)))
    assert rows(tmp_path)["mean_auc"].isna().tolist() == [True, False]
    assert (tmp_path / METRICS_FILE).read_text().splitlines()[1] == "stage1,1,0.5,,2.0"


def test_curves_of_no_defined_auc_are_drawn() -> None:
    frame = pd.DataFrame([{"stage": "stage1", **entry(1, mean_auc=None)}])
    assert Image.open(io.BytesIO(draw_curves(frame))).size == (1080, 408)


def test_a_place_that_cannot_be_written_is_told_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    record = Record(str(tmp_path / "file" / "model"))
    with caplog.at_level(logging.WARNING, "lesioncam"):
        record.take(post("stage1", entry(1)))
    (told,) = caplog.messages
    assert told.startswith(f"{METRICS_FILE} could not be written: ")
    assert len(record.frame()) == 1


def test_what_could_not_be_written_is_written_next_time(tmp_path: Path) -> None:
    blocked = tmp_path / "model"
    blocked.write_text("")
    record = Record(str(blocked))
    record.take(post("stage1", entry(1)))
    blocked.unlink()
    record.take(post("stage1", entry(1), entry(2)))
    assert rows(blocked)["epoch"].tolist() == [1, 2]
