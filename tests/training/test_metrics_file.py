"""metrics.csv and curves.png, rewritten after each epoch."""

import io
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from lesioncam.storage.bundle import CURVES_FILE, METRICS_FILE
from lesioncam.training.metrics_file import MetricsFile, draw_curves
from lesioncam.training.progress import EpochReport


def entry(epoch: int, loss: float = 0.5, mean_auc: float | None = 0.8) -> dict[str, Any]:
    return {"epoch": epoch, "loss": loss, "mean_auc": mean_auc, "seconds": 2.0}


def report(stage: str, *history: dict[str, Any], resumed: bool = False) -> EpochReport:
    return EpochReport(stage, 3, history, 60.0, resumed)


def rows(bundle: Path) -> pd.DataFrame:
    return pd.read_csv(bundle / METRICS_FILE)


def test_each_report_rewrites_both_files(tmp_path: Path) -> None:
    bundle = tmp_path / "model"
    metrics_file = MetricsFile(str(bundle))
    metrics_file.update(report("stage1", entry(1, loss=0.9)))
    assert rows(bundle)["loss"].tolist() == [0.9]
    metrics_file.update(report("stage1", entry(1, loss=0.9), entry(2, loss=0.7)))
    assert rows(bundle)["loss"].tolist() == [0.9, 0.7]
    metrics_file.update(report("stage2", entry(1, loss=0.6)))
    found = rows(bundle)
    assert found["stage"].tolist() == ["stage1", "stage1", "stage2"]
    assert found["epoch"].tolist() == [1, 2, 1]
    assert found["loss"].tolist() == [0.9, 0.7, 0.6]
    assert found.columns.tolist() == ["stage", "epoch", "loss", "mean_auc", "seconds"]
    assert {path.name for path in bundle.iterdir()} == {METRICS_FILE, CURVES_FILE}


def test_the_curves_are_a_picture(tmp_path: Path) -> None:
    MetricsFile(str(tmp_path)).update(report("stage1", entry(1), entry(2)))
    with Image.open(tmp_path / CURVES_FILE) as image:
        assert image.format == "PNG"
        image.load()
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 2


def test_a_resumed_stage_without_an_epoch_writes_nothing(tmp_path: Path) -> None:
    bundle = tmp_path / "model"
    MetricsFile(str(bundle)).update(report("stage1", resumed=True))
    assert not bundle.exists()


def test_a_resumed_stage_keeps_its_epochs(tmp_path: Path) -> None:
    metrics_file = MetricsFile(str(tmp_path))
    metrics_file.update(report("stage1", entry(1), entry(2), resumed=True))
    metrics_file.update(report("stage2", resumed=True))
    metrics_file.update(report("stage2", entry(1)))
    assert rows(tmp_path)["epoch"].tolist() == [1, 2, 1]


def test_an_undefined_auc_is_an_empty_cell(tmp_path: Path) -> None:
    MetricsFile(str(tmp_path)).update(report("stage1", entry(1, mean_auc=None), entry(2)))
    assert rows(tmp_path)["mean_auc"].isna().tolist() == [True, False]
    assert (tmp_path / METRICS_FILE).read_text().splitlines()[1] == "stage1,1,0.5,,2.0"


def test_curves_of_no_defined_auc_are_drawn() -> None:
    frame = pd.DataFrame([{"stage": "stage1", **entry(1, mean_auc=None)}])
    assert Image.open(io.BytesIO(draw_curves(frame))).size == (1080, 408)


def test_a_failed_write_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    metrics_file = MetricsFile(str(tmp_path / "file" / "model"))
    with caplog.at_level(logging.WARNING, "lesioncam"):
        metrics_file.update(report("stage1", entry(1)))
    (warning,) = caplog.messages
    assert warning.startswith(f"{METRICS_FILE} could not be written: ")
    assert len(metrics_file.frame()) == 1


def test_a_failed_write_is_repeated_with_the_next_report(tmp_path: Path) -> None:
    blocked = tmp_path / "model"
    blocked.write_text("")
    metrics_file = MetricsFile(str(blocked))
    metrics_file.update(report("stage1", entry(1)))
    blocked.unlink()
    metrics_file.update(report("stage1", entry(1), entry(2)))
    assert rows(blocked)["epoch"].tolist() == [1, 2]
