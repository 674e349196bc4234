import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from PIL import Image

from benchmarks import headline
from benchmarks.model import write_bundle
from lesioncam.columns import STAGES
from lesioncam.demo import draw_images
from lesioncam.errors import InputError
from lesioncam.settings import CropRule, ModelSettings, TrainSettings
from lesioncam.storage.bundle import Bundle, load_bundle
from lesioncam.storage.labels import read_labels
from lesioncam.training.job import TrainRequest, train
from lesioncam.training.progress import EpochReport
from lesioncam.training.stage import StageJob, StageState

SETTINGS = TrainSettings(
    backbone="tiny", stage1_epochs=1, stage2_epochs=1, batch_size=8, val_fraction=0.25, seed=3
)


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    """The layout of `benchmarks.isic2017`: 24 training, 12 validation images, 6 of them twice.

    The second training image and the fifth show the same picture.
    """
    folder = tmp_path / "isic"
    draw_images(folder, 36, seed=5)
    (folder / "images").rename(folder / "train")
    labels = pd.read_csv(folder / "labels.csv")
    labels[:24].to_csv(folder / "train.csv", index=False)
    labels[24:].to_csv(folder / "val.csv", index=False)
    forms = pd.DataFrame({"image_id": labels["image_id"][:24], "form": ["256", "512"] * 12})
    forms.to_csv(folder / "forms.csv", index=False)
    for name in ("masks", "val", "val-512", "masks-512"):
        (folder / name).mkdir()
    for number, name in enumerate(labels["image_id"]):
        mask = Image.new("1", (48, 36))
        mask.paste(1, (12, 9, 36, 27))
        mask.save(folder / ("masks" if number < 24 else "masks-512") / f"{name}.png")
        if number >= 24:
            (folder / "train" / f"{name}.jpg").rename(folder / "val" / f"{name}.jpg")
        if number >= 30:
            shutil.copy(folder / "val" / f"{name}.jpg", folder / "val-512")
    with Image.open(folder / "train" / "DRAWN_00001.jpg") as image:
        image.save(folder / "train" / "DRAWN_00004.jpg", quality=80)
    return folder


@pytest.mark.usefixtures("local_ray", "in_process")
def test_its_figures_are_of_the_images_that_training_held_out(
    isic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = []
    write_bundle(f"{tmp_path}/other", "tiny", None)
    weights = load_bundle(f"{tmp_path}/other").stage1  # whose probabilities differ by image
    facts = ("mean_auc", "images_per_second", "seconds", "waited_seconds", "prepared_seconds")

    def fit(
        job: StageJob, checkpoint_dir: str, record: Callable[[EpochReport], None]
    ) -> StageState:
        held_out.append(ray.get(job.examples).held_out.copy())
        epoch = {"epoch": 1, "size": 96, "loss": 1.0, **dict.fromkeys(facts, 0.5)}
        history = [{**epoch, "held_out_seconds": 0.5}]
        record(EpochReport(job.stage, 1, history, 0.0))
        return StageState(epoch=1, best=dict(weights), best_epoch=1, history=history)

    monkeypatch.setattr("lesioncam.training.job.fit", fit)
    # A pair of so few images changes the AUC by more; the check has a test of its own below.
    monkeypatch.setattr(headline, "SAME_AUC", 0.2)
    monkeypatch.setattr(headline, "ROTATION_AUC", 0.5)
    train(TrainRequest(f"{isic}/train", f"{isic}/train.csv", f"{tmp_path}/model", SETTINGS))

    command = ["headline", "--isic", f"{isic}", "--bundle", f"{tmp_path}/model"]
    command += ["--output", f"{tmp_path}/figures", "--work", f"{tmp_path}/work"]
    monkeypatch.setattr(sys, "argv", command)
    headline.main()

    output = tmp_path / "figures"
    found = pd.read_csv(output / "held-out" / "predictions.csv")
    names = np.array(sorted(path.stem for path in (isic / "train").iterdir()))
    assert set(found["image_id"]) == set(names[held_out[0]])
    assert len(pd.read_csv(output / "validation" / "predictions.csv")) == 12
    assert len(pd.read_csv(output / "validation-512" / "predictions.csv")) == 6
    content = json.loads((output / "held-out" / "evaluation.json").read_text())
    assert content["images"]["evaluated"] == content["localization"]["masks"] == len(found)
    text = (output / "README.md").read_text()
    for form in ("256", "512"):
        assert f"| of these at {form} | {(found['form'] == int(form)).sum()} |" in text
    assert "| validation at 256 | 12 |" in text
    assert (output / "model-card.md").read_text() == (tmp_path / "model/README.md").read_text()

    command[command.index("--output") + 1] = f"{tmp_path}/rotated"
    monkeypatch.setattr(sys, "argv", [*command, "--test-time-rotation"])
    image_sets = headline.image_sets  # the first set is enough
    monkeypatch.setattr(headline, "image_sets", lambda *of: dict([*image_sets(*of).items()][:1]))
    headline.main()
    rotated = pd.read_csv(tmp_path / "rotated" / "held-out" / "predictions.csv")
    assert rotated["image_id"].tolist() == found["image_id"].tolist()
    assert not np.allclose(rotated["p_melanoma"], found["p_melanoma"])
    text = (tmp_path / "rotated" / "README.md").read_text()
    assert "scored in float32 with test-time rotation." in text
    assert not (tmp_path / "rotated" / "model-card.md").exists()


def test_images_that_it_was_not_trained_on_are_refused(
    isic: Path, model_settings: ModelSettings
) -> None:
    classes = ("melanoma", "seborrheic_keratosis", "nevus")
    facts: dict[str, Any] = {
        "training_images": dict(zip(classes, (6, 5, 6), strict=True)),
        "held_out_images": dict(zip(classes, (2, 3, 2), strict=True)),  # both copies
    }
    figures = {stage: {"mean": {"auc": 0.91}} for stage in STAGES}
    bundle = Bundle(model_settings, {}, {}, training=facts, metrics={"held_out": figures})
    labels = read_labels(f"{isic}/train.csv", "nevus")
    uris = headline.held_out_images(f"{isic}/train", labels, SETTINGS, bundle)
    assert len(uris) == 7
    other = replace(bundle, training={**facts, "held_out_images": dict.fromkeys(classes, 3)})
    with pytest.raises(InputError, match=r"--bundle: its held_out_images were .*'melanoma': 3"):
        headline.held_out_images(f"{isic}/train", labels, SETTINGS, other)
    near = {stage: {"mean": {"auc": 0.912}} for stage in STAGES}
    headline.check_held_out(near, bundle)
    for stage, name in zip(STAGES, ("stage 1", "stage 2", "final"), strict=True):
        with pytest.raises(InputError, match=rf"--isic: {name} has a mean AUC of 0\.8900"):
            headline.check_held_out({**near, stage: {"mean": {"auc": 0.89}}}, bundle)


def test_a_copy_with_rotation_is_otherwise_the_same(tmp_path: Path) -> None:
    write_bundle(f"{tmp_path}/model", "tiny", None)
    bundle = load_bundle(f"{tmp_path}/model")
    copy = load_bundle(headline.with_rotation(bundle, f"{tmp_path}/copy"))
    assert not bundle.settings.test_time_rotation
    assert copy.settings == replace(bundle.settings, test_time_rotation=True)
    for one, other in ((bundle.stage1, copy.stage1), (bundle.stage2, copy.stage2)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_changed_settings_are_listed() -> None:
    assert headline.changed_settings(TrainSettings()) == "none"
    changed = TrainSettings(seed=3, crop=CropRule(smallest=1.0))
    assert headline.changed_settings(changed) == "`seed = 3`, `crop.smallest = 1.0`"


def test_tables_have_a_row_for_each_class_and_set() -> None:
    def figure(auc: float) -> dict[str, float]:
        return {"auc": auc, "low": auc - 0.1, "high": auc + 0.1}

    figures: dict[str, Any] = {"one": {}, "two": {}}
    for title, add in (("one", 0.0), ("two", 0.05)):
        for stage, auc in (("stage1", 0.7), ("stage2", 0.6), ("final", 0.8)):
            figures[title][stage] = {"melanoma": figure(auc + add)}
    assert headline.classes_table(figures, ["melanoma"])[2:] == [
        "| melanoma | one | 0.700 (0.600 to 0.800) | 0.600 (0.500 to 0.700) "
        "| 0.800 (0.700 to 0.900) |",
        "| melanoma | two | 0.750 (0.650 to 0.850) | 0.650 (0.550 to 0.750) "
        "| 0.850 (0.750 to 0.950) |",
    ]
