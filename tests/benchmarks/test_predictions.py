"""Predictions in parts and tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.predictions import (
    OVERLAP,
    by_class,
    by_size,
    figures_of,
    localization_table,
    weights_table,
)
from lesioncam.columns import probability_columns
from lesioncam.storage.labels import Labels, read_labels


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    (tmp_path / "labels.csv").write_text("image_id,melanoma\nA,1\nB,0\n")
    return read_labels(f"{tmp_path}/labels.csv", "nevus")


@pytest.fixture
def rows(labels: Labels) -> pd.DataFrame:
    """Twenty images; each stage is wrong about different ones, so their mean is wrong about few."""
    random = np.random.default_rng(0)
    rows = pd.DataFrame({"image_id": [f"{number:02d}" for number in range(20)]})
    rows["label"] = np.repeat(labels.classes, 10)
    truth = np.repeat([0.6, 0.4], 10)
    for stage in ("stage1", "stage2"):
        melanoma = truth + random.normal(0, 0.15, 20)
        rows[probability_columns(labels.classes, stage)] = np.stack([melanoma, 1 - melanoma], 1)
    for name in probability_columns(labels.classes, "final"):
        rows[name] = (rows[f"stage1_{name}"] + rows[f"stage2_{name}"]) / 2
    return rows


def test_weights_of_0_and_1_are_the_stages_themselves(rows: pd.DataFrame, labels: Labels) -> None:
    figures = figures_of(rows, labels)
    cells = dict(line.split(" | ")[:2] for line in weights_table(rows, labels)[2:])
    expected = {"| 0.0": "stage1", "| 0.5": "final", "| 1.0": "stage2"}
    aucs = {weight: figures[stage]["mean"]["auc"] for weight, stage in expected.items()}
    assert len(set(aucs.values())) == 3
    for weight, auc in aucs.items():
        assert cells[weight].startswith(f"{auc:.3f} (")


def test_images_are_divided_by_the_longer_side_of_their_lesion(
    rows: pd.DataFrame, tmp_path: Path
) -> None:
    for number in range(18):  # the last two have no mask
        mask = Image.new("1", (100, 50))
        if number:  # the first one's is empty
            mask.paste(1, (0, 0, 4 * number, 5))  # 0.04 to 0.68 wide, 0.1 high
        mask.save(tmp_path / f"{number:02d}.png")
    parts = by_size(rows, str(tmp_path))
    assert [part["image_id"].tolist() for part in parts.values()] == [
        [f"{number:02d}" for number in numbers]
        for numbers in (range(1, 6), range(6, 10), range(10, 14), range(14, 18))
    ]


def test_overlap_is_reported_for_parts_with_masks(rows: pd.DataFrame, labels: Labels) -> None:
    rows[OVERLAP] = 0.25
    rows.loc[rows["label"] == "nevus", "box_iou"] = 0.75
    rows.loc[:2, OVERLAP] = np.nan  # three melanomas have no mask
    parts = {**by_class(rows, labels), "others": rows.drop(columns=OVERLAP)}
    assert localization_table("class", parts)[2:] == [
        "| melanoma | 7 | 0.250 | 0.250 | 0.250 | 0.250 | 0.250 |",
        "| nevus | 10 | 0.250 | 0.750 | 0.250 | 0.250 | 0.250 |",
    ]
