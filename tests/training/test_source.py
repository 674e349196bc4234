"""Images, labels and masks that do not fit together are refused before anything is decoded."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesioncam.errors import InputError
from lesioncam.storage.labels import Labels
from lesioncam.training.job import read_inputs
from lesioncam.training.source import Source, check_counts, match_masks
from tests.training.small import request

SOURCE = Source(("/images/000.jpg", "/images/001.jpg"), np.array([0, 1]), {}, "--images")


def test_classes_of_fewer_than_two_images_are_refused() -> None:
    labels = Labels(("melanoma", "nevus"), ("melanoma",), (), np.zeros(0, np.int64))
    check_counts(labels, np.array([0, 0, 1, 1]))
    with pytest.raises(InputError, match="class 'melanoma' has 1 images under --images"):
        check_counts(labels, np.array([0, 1, 1]))
    with pytest.raises(InputError, match="class 'nevus' has 0 images"):
        check_counts(labels, np.array([0, 0]))


def test_masks_are_found_by_image_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("001_segmentation.png", "900.png"):
        Image.new("1", (8, 8)).save(tmp_path / name)
    with caplog.at_level(logging.INFO, "lesioncam"):
        assert match_masks(SOURCE, f"{tmp_path}") == {"001": f"{tmp_path}/001_segmentation.png"}
    assert "--masks: 1 of 2 images have a mask" in caplog.messages
    assert match_masks(SOURCE, None) == {}


def test_masks_of_other_images_are_refused(tmp_path: Path) -> None:
    Image.new("1", (8, 8)).save(tmp_path / "900.png")
    with pytest.raises(InputError, match=r"--masks: none of the masks in .* is of an image"):
        match_masks(SOURCE, f"{tmp_path}")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda frame: frame.drop(columns="image_id"), "no 'image_id' or 'image' column"),
        (lambda frame: frame.replace({"melanoma": {1.0: 0.5}}), "column 'melanoma' holds '0.5'"),
        (lambda frame: frame.assign(image_id="x" + frame["image_id"]), "none of its 36 ids"),
        (lambda frame: frame[frame["melanoma"] == 0], "class 'melanoma' has 0 images"),
    ],
)
def test_bad_labels_are_one_line(synthetic: Path, tmp_path: Path, edit: Any, message: str) -> None:
    edit(pd.read_csv(synthetic / "labels.csv")).to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "images").symlink_to(synthetic / "images")
    with pytest.raises(InputError, match=message) as error:
        read_inputs(request(tmp_path, tmp_path / "model"))
    assert "\n" not in str(error.value)


def test_validation_images_that_are_trained_on_are_refused(synthetic: Path) -> None:
    validation = {"val_images": f"{synthetic}/images", "val_labels": f"{synthetic}/labels.csv"}
    with pytest.raises(InputError, match="--val-images: 27 of its 36 images have the id of a"):
        read_inputs(request(synthetic, "model", **validation))


def test_more_workers_than_images_in_a_batch_are_refused(synthetic: Path) -> None:
    with pytest.raises(InputError, match="--workers: 9 workers cannot share a batch of 7 images"):
        read_inputs(request(synthetic, "model", workers=9))
