"""Synthetic lesions to train on, and what a run has before its first stage."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from lesioncam.demo import draw_images
from tests.training.small import Prepared, prepare, request


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 images with labels, 27 to train on and 9 for validation; 20 masks, 3 of them empty."""
    folder = tmp_path_factory.mktemp("synthetic")
    draw_images(folder, 36, seed=3)
    labels = pd.read_csv(folder / "labels.csv")
    labels[:27].to_csv(folder / "train.csv", index=False)
    labels[27:].to_csv(folder / "val.csv", index=False)
    (folder / "masks").mkdir()
    for number in range(20):
        mask = Image.new("1", (480, 360))
        if number >= 3:
            mask.paste(1, (120, 90, 360, 270))
        mask.save(folder / "masks" / f"DRAWN_{number:05d}.png")
    return folder


@pytest.fixture(scope="session")
def prepared(
    synthetic: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> Prepared:
    """Images, setup and weights for stage 1 on one worker."""
    return prepare(request(synthetic, tmp_path_factory.mktemp("prepared") / "model"))
