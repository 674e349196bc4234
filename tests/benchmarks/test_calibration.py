"""The tables of calibration: what was fitted to some folds is applied to the others."""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.calibration import chance_error, cross_fit, tables
from lesioncam.columns import STAGES, probability_columns
from lesioncam.settings import ModelSettings
from lesioncam.storage.labels import LabelColumns, read_labels

CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")


def predictions(count: int) -> pd.DataFrame:
    """Overconfident predictions of so many images in three folds."""
    random = np.random.default_rng(0)
    truth = np.arange(count) % 3
    rows = pd.DataFrame({"image_id": [f"I{number}" for number in range(count)]})
    rows["label"] = np.array(CLASSES)[truth]
    rows["fold"] = random.integers(0, 3, count)
    logits = 3 * (np.eye(3)[truth] + random.normal(0, 1, (count, 3)))
    for stage in STAGES:
        raw = np.exp(logits)
        rows[probability_columns(CLASSES, stage)] = raw / raw.sum(axis=1, keepdims=True)
    return rows


def test_a_fold_does_not_fit_itself(model_settings: ModelSettings) -> None:
    rows = predictions(150)
    truth = np.arange(150) % 3
    final, flagged = cross_fit(rows, truth, model_settings, {"melanoma": ("sensitivity", 0.9)})
    changed = truth.copy()
    own = (rows["fold"] == 1).to_numpy()
    changed[own] = (changed[own] + 1) % 3
    again, flagged_again = cross_fit(
        rows, changed, model_settings, {"melanoma": ("sensitivity", 0.9)}
    )
    np.testing.assert_array_equal(again[own], final[own])
    np.testing.assert_array_equal(flagged_again[own], flagged[own])
    assert not np.allclose(again[~own], final[~own])
    assert not flagged[:, 1:].any()


def test_tables_are_of_collections_with_all_classes(tmp_path: Path) -> None:
    rows = predictions(150)
    labels = pd.DataFrame({"image_id": rows["image_id"], "clinic": ["a"] * 60 + ["b"] * 90})
    for name in CLASSES[:2]:
        labels[name] = (rows["label"] == name).astype(int)
    rows, labels = (part.drop(index=range(0, 60, 3)) for part in (rows, labels))  # a: no melanoma
    labels.to_csv(tmp_path / "labels.csv", index=False)
    columns = LabelColumns(collection="clinic")
    known = read_labels(f"{tmp_path}/labels.csv", "nevus", columns=columns)
    text = tables(rows, known, 0.9)
    assert text.startswith("90 images, calibrated on the other folds.")
    assert "| melanoma | 30 |" in text
    assert "| melanoma | 0.9 |" in text


def test_the_error_by_chance_shrinks_with_more_images() -> None:
    random = np.random.default_rng(0)
    few, many = (chance_error(random.random(count)) for count in (100, 10_000))
    assert 0 < many < few / 5
