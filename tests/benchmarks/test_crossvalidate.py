import argparse
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks import crossvalidate
from benchmarks.crossvalidate import FOLDS, assign_folds, leave_out, record_recipe, summarize
from benchmarks.predictions import OVERLAP
from lesioncam.errors import InputError
from lesioncam.settings import TrainSettings
from lesioncam.storage.labels import LabelColumns, Labels, read_labels


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    (tmp_path / "labels.csv").write_text(
        "image_id,melanoma,seborrheic_keratosis\nA,1,0\nB,0,1\nC,0,0\n"
    )
    return read_labels(f"{tmp_path}/labels.csv", "nevus")


def test_folds_have_a_fifth_of_each_class_and_copies_together() -> None:
    classes = np.repeat([0, 1, 2], [50, 25, 100])
    groups = np.arange(175)
    groups[[60, 120]] = 3
    folds = assign_folds(classes, groups)
    assert folds[3] == folds[60] == folds[120]
    for index, members in ((0, 10), (1, 5), (2, 20)):
        counts = np.bincount(folds[classes == index], minlength=FOLDS)
        assert np.abs(counts - members).max() <= 1


def test_a_fold_is_scored_by_a_model_trained_on_the_others(
    labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pd.DataFrame({"image_id": [f"I{number}" for number in range(12)]})
    images["uri"] = [f"/images/{name}.jpg" for name in images["image_id"]]
    images["label"], images["fold"] = np.arange(12) % 3, np.arange(12) % 4
    images["group"] = [0, 1, 0, *range(3, 12)]
    requests: list[Any] = []
    monkeypatch.setattr(crossvalidate, "train", requests.append)
    monkeypatch.setattr(crossvalidate, "score", requests.append)
    monkeypatch.setattr(
        crossvalidate, "read_predictions", lambda *_: pd.DataFrame({"image_id": ["I1"]})
    )
    flags = argparse.Namespace(images="/images", masks="/masks", output=str(tmp_path))
    settings = TrainSettings(seed=4)
    crossvalidate.run_fold(1, images, labels, settings, flags, tmp_path / "work")
    trained, scored = requests
    assert (trained.images, trained.masks, trained.settings) == ("/images", "/masks", settings)
    given = read_labels(trained.labels, "nevus", columns=trained.label_columns)
    assert given.groups is not None
    assert given.groups[:3] == ("0", "0", "3")
    class_indices = dict(zip(given.ids, given.class_indices, strict=True))
    own = ["I1", "I5", "I9"]
    assert class_indices == {
        f"I{number}": number % 3 for number in range(12) if f"I{number}" not in own
    }
    assert scored.bundle == trained.bundle
    assert pd.read_csv(scored.images)["uri"].tolist() == [f"/images/{name}.jpg" for name in own]
    assert pd.read_csv(tmp_path / "fold1.csv")["image_id"].tolist() == ["I1"]


def test_folds_of_another_recipe_are_refused(tmp_path: Path) -> None:
    one, same = (TrainSettings(weights=f"/{folder}/w.safetensors") for folder in ("here", "there"))
    assert record_recipe(tmp_path, TrainSettings(seed=1), "images", masks=True, collections=False)
    # There is no fold yet.
    digest = record_recipe(tmp_path, one, "images", masks=True, collections=False)
    (tmp_path / "fold0.csv").touch()
    assert record_recipe(tmp_path, same, "images", masks=True, collections=False) == digest
    other = TrainSettings(weights="w.safetensors", seed=1)
    for settings, images, masks in (
        (other, "images", True),
        (one, "others", True),
        (one, "images", False),
    ):
        with pytest.raises(InputError, match=r"--output: .* has folds of another recipe"):
            record_recipe(tmp_path, settings, images, masks=masks, collections=False)
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(InputError, match="has folds of another recipe"):
        record_recipe(tmp_path, one, "images", masks=True, collections=False)


def write_recipe(output: Path, settings: TrainSettings) -> None:
    """As the first fold records it."""
    record_recipe(output / "new", settings, "images", masks=True, collections=False)
    (output / "new" / "recipe.json").rename(output / "recipe.json")


def test_the_summary_is_of_all_folds_in_the_output(labels: Labels, tmp_path: Path) -> None:
    truth = np.tile(np.eye(3), (10, 1))
    for fold, offset in ((0, 0.0), (3, 0.5)):
        rows = pd.DataFrame({"label": np.tile(labels.classes, 10)})
        rows["image_id"] = [f"{fold}-{number}" for number in range(30)]
        for prefix, shift in (("stage1_p_", 0.0), ("stage2_p_", 0.0), ("p_", offset)):
            rows[[prefix + name for name in labels.classes]] = truth + shift
        rows.to_csv(tmp_path / f"fold{fold}.csv", index=False)
    with pytest.raises(InputError, match=r"--output: .*/recipe.json is missing"):
        summarize(labels, tmp_path, None, None)
    write_recipe(tmp_path, TrainSettings(seed=3, weights="w.pth"))
    forms = pd.Series(
        {f"{fold}-{n}": "256" if n < 9 else "512" for fold in (0, 3) for n in range(30)}
    )
    text = summarize(labels, tmp_path, forms, None)
    assert text == (tmp_path / "README.md").read_text()
    assert "2 folds, 60 images" in text
    assert "not the default: `weights = 'w.pth'`, `seed = 3`." in text
    for fold in (0, 3):
        assert f"| {fold} | 30 | 1.000 (1.000 to 1.000) |" in text
    assert "| 0.7 | 1.000 (1.000 to 1.000) | 0.000 (0.000 to 0.000) |" in text
    for form, count in (("256", 18), ("512", 42)):
        assert f"| {form} | {count} | 1.000 (1.000 to 1.000) |" in text
    assert "| form |" not in summarize(labels, tmp_path, None, None)
    write_recipe(tmp_path, TrainSettings())
    assert "not the default: none." in summarize(labels, tmp_path, None, None)
    masks = tmp_path / "masks"
    masks.mkdir()
    for fold in (0, 3):
        rows = pd.read_csv(tmp_path / f"fold{fold}.csv")
        for number, name in enumerate(rows["image_id"]):
            mask = Image.new("1", (100, 100))
            mask.paste(1, (0, 0, 20 + 2 * number + fold, 10))
            mask.save(masks / f"{name}.png")
        rows.assign(**dict.fromkeys(OVERLAP, 0.25)).to_csv(
            tmp_path / f"fold{fold}.csv", index=False
        )
    text = summarize(labels, tmp_path, forms, f"{masks}")
    assert re.search(r"\n\| lesion's longer side \| images .*\n.*\n\| 0.20 to 0.36 \| 15 \|", text)
    assert re.search(
        r"\n\| fold, of 0.20 to 0.36 \| images .*\n.*\n\| 0 \| 8 \|.*\n\| 3 \| 7 \|", text
    )
    for part in ("melanoma | 20", "3 | 30", "256 | 18", "0.20 to 0.36 | 15"):
        assert f"\n| {part} | {' | '.join(['0.250'] * 5)} |" in text
    with pytest.raises(InputError, match=r"--output: .*/empty has no folds"):
        summarize(labels, tmp_path / "empty", None, None)


def test_a_fold_can_be_a_collection(labels: Labels, tmp_path: Path) -> None:
    (tmp_path / "collections.csv").write_text(
        "image_id,melanoma,clinic\nA,1,north\nB,0,south\nC,0,east\nD,1,south\n"
    )
    columns = LabelColumns(collection="clinic")
    known = read_labels(f"{tmp_path}/collections.csv", "nevus", columns=columns)
    images = pd.DataFrame({"image_id": ["B", "A", "D", "C"]})
    assert leave_out(images, known, ["south", "north"]).tolist() == [0, 1, 0, -1]
    with pytest.raises(InputError, match="--leave-out: no image is of collection 'west'"):
        leave_out(images, known, ["west"])


def test_collections_are_summarized_without_training_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "labels.csv", tmp_path / "folds"
    names, clinics = [f"I{number}" for number in range(12)], ["a"] * 4 + ["b"] * 8
    melanoma = [0] * 4 + [0, 1] * 4  # clinic a has none
    table = pd.DataFrame({"image_id": names, "melanoma": melanoma, "clinic": clinics})
    table.to_csv(path, index=False)
    write_recipe(tmp_path, TrainSettings())
    output.mkdir()
    (tmp_path / "recipe.json").rename(output / "recipe.json")
    rows = pd.DataFrame({"image_id": names})
    rows["label"] = np.where(melanoma, "melanoma", "nevus")
    for prefix in ("stage1_p_", "stage2_p_", "p_"):
        rows[f"{prefix}melanoma"], rows[f"{prefix}nevus"] = melanoma, 1 - np.array(melanoma)
    rows.to_csv(output / "fold0.csv", index=False)
    flags = ["--images", "images", "--labels", f"{path}", "--output", f"{output}"]
    monkeypatch.setattr(sys, "argv", ["crossvalidate", *flags, "--by", "clinic"])
    crossvalidate.main()
    text = capsys.readouterr().out
    assert "| all that have all classes | 8 | 1.000" in text
    assert "| a | 4 | undefined" in text
    assert "| b | 8 | 1.000" in text
