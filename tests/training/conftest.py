"""Drawn lesions to train on."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from lesioncam.demo import draw_images


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 drawn lesions and their labels, 27 to train on and 9 for validation; 20 masks, 3 empty."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_images(folder, 36, seed=3)
    labels = pd.read_csv(folder / "labels.csv")
    labels[:27].to_csv(folder / "train.csv", index=False)
    labels[27:].to_csv(folder / "val.csv", index=False)
    (folder / "masks").mkdir()
    for number in range(20):
        mask = Image.new("1", (480, 360))
        if number >= 3:  # the others say that there is no lesion
            mask.paste(1, (120, 90, 360, 270))
        mask.save(folder / "masks" / f"DRAWN_{number:05d}.png")
    return folder
