import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks import headline
from lesioncam.demo import draw_images
from lesioncam.settings import TrainSettings
from lesioncam.storage.bundle import Bundle, load_bundle, save_bundle
from lesioncam.training.job import TrainRequest, train
from lesioncam.training.stage import StageJob


@pytest.fixture
def isic(tmp_path: Path) -> Path:
    """The layout of `benchmarks.isic2017`: 24 training, 12 validation images, 6 of them twice."""
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
    return folder


def held_out_by_training(isic: Path, settings: TrainSettings) -> set[str]:
    """The images that `train` would hold out."""

    class Asked(Exception):  # noqa: N818
        pass

    def fit(job: StageJob, *_: object) -> None:
        raise Asked(job.examples.held_out)

    request = TrainRequest(f"{isic}/train", f"{isic}/train.csv", f"{isic}/model", settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lesioncam.training.job.fit", fit)
        with pytest.raises(Asked) as asked:
            train(request)
    names = np.array(sorted(path.stem for path in (isic / "train").iterdir()))
    return set(names[asked.value.args[0]])


@pytest.mark.usefixtures("local_ray")
def test_its_figures_are_of_the_images_that_training_did_not_learn_from(
    isic: Path, bundle_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings(backbone="tiny", val_fraction=0.25, seed=3)
    tiny = load_bundle(bundle_uri)
    facts = {"settings": asdict(settings), "lesioncam_version": "0.1"}
    trained = Bundle(tiny.settings, tiny.stage1, tiny.stage2, training=facts)
    save_bundle(trained, f"{tmp_path}/model", "# Its card\n")
    for name in ("metrics.csv", "curves.png"):
        (tmp_path / "model" / name).write_text(name)

    command = ["headline", "--isic", f"{isic}", "--bundle", f"{tmp_path}/model"]
    command += ["--output", f"{tmp_path}/figures", "--work", f"{tmp_path}/work"]
    monkeypatch.setattr(sys, "argv", command)
    headline.main()

    output = tmp_path / "figures"
    found = pd.read_csv(output / "held-out.csv")
    assert set(found["image_id"]) == held_out_by_training(isic, settings)
    assert len(pd.read_csv(output / "validation.csv")) == 12
    assert len(pd.read_csv(output / "validation-512.csv")) == 6
    assert json.loads((output / "held-out.json").read_text())["localisation"]["masks"] == 6
    text = (output / "README.md").read_text()
    for row in ("| held out | 6 |", "| of these at 512 |", "| validation at 256 | 12 |"):
        assert row in text
    assert "| 6 validation at 512 | " in text
    assert "validation at 256 | 0" not in text.split("CAM peak")[1]
    assert (output / "model-card.md").read_text() == "# Its card\n"
