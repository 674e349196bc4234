from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.compare import common_sets, compare, within_collections
from lesioncam.columns import STAGES, probability_columns
from lesioncam.errors import InputError
from lesioncam.storage.labels import LabelColumns, Labels, read_labels


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    (tmp_path / "labels.csv").write_text("image_id,melanoma\nA,1\nB,0\n")
    return read_labels(f"{tmp_path}/labels.csv", "nevus")


def predictions(labels: Labels, **right: float) -> pd.DataFrame:
    """Ten images a class; a stage ranks the fraction `right` of its melanomas best."""
    rows = pd.DataFrame({"image_id": [f"{n:02d}" for n in range(20)]})
    rows["label"] = np.repeat(labels.classes, 10)
    for stage in STAGES:
        melanoma = np.full(20, 0.5)
        melanoma[:10] = np.where(np.arange(10) < 10 * right.get(stage, 1.0), 0.9, 0.1)
        rows[probability_columns(labels.classes, stage)] = np.stack([melanoma, 1 - melanoma], 1)
    return rows


def test_each_stage_is_compared_with_the_same_one(labels: Labels) -> None:
    one = predictions(labels, stage2=0.8)
    other = predictions(labels, stage2=0.6, final=0.9)
    found = compare(one, other.sample(frac=1, random_state=0), labels)
    assert [cells[:2] for cells in found] == [
        [stage, name] for stage in STAGES for name in ("mean", "melanoma")
    ]
    assert found[0][2:] == ["1.000 (1.000 to 1.000)"] * 2 + ["0.000 (0.000 to 0.000)"]
    for name in range(2):  # the mean is of melanoma alone
        assert [cell[:5] for cell in found[2 + name][2:]] == ["0.800", "0.600", "0.200"]
        assert [cell[:5] for cell in found[4 + name][2:]] == ["1.000", "0.900", "0.100"]


def test_collections_with_all_classes_are_compared_too(labels: Labels, tmp_path: Path) -> None:
    path = tmp_path / "collections.csv"
    rows = predictions(labels)
    # Of melanoma alone; of both classes.
    rows["collection"] = ["a"] * 5 + ["b"] * 15
    rows.assign(melanoma=(rows["label"] == "melanoma").astype(int))[
        ["image_id", "melanoma", "collection"]
    ].to_csv(path, index=False)
    known = read_labels(str(path), "nevus", columns=LabelColumns(collection="collection"))
    pairs = within_collections({"of all folds": (rows, rows)}, known)
    assert {name: len(one) for name, (one, _) in pairs.items()} == {
        "of all folds": 20,
        "of all folds, collections with all classes": 15,
    }


def test_other_images_are_refused(labels: Labels) -> None:
    one = predictions(labels)
    for other in (one[1:], one.replace({"image_id": {"03": "33"}})):
        with pytest.raises(InputError, match="--other: its images or their labels"):
            compare(one, other, labels)


def test_sets_and_folds_that_both_have_are_compared(labels: Labels, tmp_path: Path) -> None:
    right, wrong = predictions(labels), predictions(labels, final=0.5)
    for name in ("one", "other", "third"):
        (tmp_path / name / "held-out").mkdir(parents=True)
    for name, rows in (("one", right), ("other", wrong)):
        rows.to_csv(tmp_path / name / "held-out" / "predictions.csv", index=False)
        rows[::2].to_csv(tmp_path / name / "fold0.csv", index=False)
        rows[1::2].to_csv(tmp_path / name / "fold3.csv", index=False)
        rows[:7].to_csv(tmp_path / name / "fold4.csv", index=False)
    right.to_csv(tmp_path / "one" / "fold1.csv", index=False)
    right[1:8].to_csv(tmp_path / "one" / "fold4.csv", index=False)  # another split's
    pairs, not_compared = common_sets(tmp_path / "one", tmp_path / "other")
    assert not_compared == ["of fold 1", "of fold 4"]
    assert {name: len(one) for name, (one, _) in pairs.items()} == {
        "held-out": 20,
        "of fold 0": 10,
        "of fold 3": 10,
        "of all folds": 20,
    }
    final = compare(*pairs["of all folds"], labels)[4]
    assert [cell[:5] for cell in final[2:]] == ["1.000", "0.500", "0.500"]
    with pytest.raises(InputError, match=r"--other: .*/third has none of the sets"):
        common_sets(tmp_path / "one", tmp_path / "third")
