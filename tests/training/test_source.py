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

SOURCE = Source(("/images/000.jpg", "/images/001.jpg"), np.array([0, 1]), ("", ""), {}, "--images")


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
        (lambda frame: frame.drop(columns="image_id"), "or 'img_id' column"),
        (lambda frame: frame.replace({"melanoma": {1.0: 0.5}}), "column 'melanoma' holds '0.5'"),
        (lambda frame: frame.assign(image_id="x" + frame["image_id"]), "none of its 36 ids"),
        (lambda frame: frame[frame["melanoma"] == 0][:3], "class 'nevus' has 1 images"),
    ],
)
def test_bad_labels_are_one_line(synthetic: Path, tmp_path: Path, edit: Any, message: str) -> None:
    edit(pd.read_csv(synthetic / "labels.csv")).to_csv(tmp_path / "train.csv", index=False)
    (tmp_path / "images").symlink_to(synthetic / "images")
    with pytest.raises(InputError, match=message) as error:
        read_inputs(request(tmp_path, tmp_path / "model"))
    assert "\n" not in str(error.value)


def test_a_class_without_an_image_is_left_out(
    synthetic: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.read_csv(synthetic / "labels.csv")
    columns = {name: frame.pop(name) for name in ("melanoma", "seborrheic_keratosis")}
    one_hot = frame.assign(UNK=0, MEL=columns["melanoma"], DF=0, SK=columns["seborrheic_keratosis"])
    (tmp_path / "masks").symlink_to(synthetic / "masks")
    (tmp_path / "images").symlink_to(synthetic / "images")
    elsewhere = pd.DataFrame({"image_id": ["elsewhere"], "DF": [1]})
    csv = pd.concat([one_hot, elsewhere]).fillna(0)
    csv.to_csv(tmp_path / "train.csv", index=False)
    inputs = read_inputs(request(tmp_path, tmp_path / "model"))
    assert inputs.labels.classes == ("MEL", "SK", "nevus")
    assert inputs.labels.target_classes == ("MEL", "SK")
    assert inputs.training.class_indices.tolist() == [0, 1, 2] * 12
    assert "--labels: class UNK, DF is left out: it has no image under --images" in caplog.messages


def test_validation_labels_may_have_their_classes_in_another_order(
    synthetic: Path, tmp_path: Path
) -> None:
    frame = pd.read_csv(synthetic / "val.csv")
    frame[["seborrheic_keratosis", "image_id", "melanoma"]].assign(UNK=0).to_csv(
        tmp_path / "val.csv", index=False
    )
    for labels in (f"{synthetic}/val.csv", f"{tmp_path}/val.csv"):
        validation = {"val_images": f"{synthetic}/images", "val_labels": labels}
        inputs = read_inputs(request(synthetic, "model", **validation))
        assert inputs.validation is not None
        assert inputs.validation.class_indices.tolist() == [0, 1, 2] * 3


def test_validation_labels_without_a_class_are_refused(synthetic: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(synthetic / "val.csv")
    frame.drop(columns="melanoma").to_csv(tmp_path / "val.csv", index=False)
    validation = {"val_images": f"{synthetic}/images", "val_labels": f"{tmp_path}/val.csv"}
    with pytest.raises(InputError, match="--val-labels: classes seborrheic_keratosis, nevus are"):
        read_inputs(request(synthetic, "model", **validation))


def test_training_images_of_a_validation_group_are_not_used(
    synthetic: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pd.read_csv(synthetic / "labels.csv")
    frame["patient"] = [f"p{number % 10}" if number % 7 else "" for number in range(36)]
    (tmp_path / "images").symlink_to(synthetic / "images")
    (tmp_path / "masks").symlink_to(synthetic / "masks")
    frame[:30].to_csv(tmp_path / "train.csv", index=False)
    frame[30:33].to_csv(tmp_path / "val.csv", index=False)  # of patients 0, 1 and 2
    validation = {"val_images": f"{synthetic}/images", "val_labels": f"{tmp_path}/val.csv"}
    inputs = read_inputs(request(tmp_path, "model", group_column="patient", **validation))
    assert inputs.validation is not None
    assert inputs.validation.groups == ("p0", "p1", "p2")
    numbers = [number for number in range(30) if number % 10 > 2 or number % 7 == 0]
    assert inputs.training.uris == tuple(
        f"{tmp_path}/images/DRAWN_{number:05d}.jpg" for number in numbers
    )
    assert inputs.training.class_indices.tolist() == [number % 3 for number in numbers]
    assert (
        f"--images: {30 - len(numbers)} images not used: of a group of --val-images" in caplog.text
    )


def test_validation_images_that_are_trained_on_are_refused(synthetic: Path) -> None:
    validation = {"val_images": f"{synthetic}/images", "val_labels": f"{synthetic}/labels.csv"}
    with pytest.raises(InputError, match="--val-images: 27 of its 36 images have the id of a"):
        read_inputs(request(synthetic, "model", **validation))


def test_more_workers_than_images_in_a_batch_are_refused(synthetic: Path) -> None:
    with pytest.raises(InputError, match="--workers: 9 workers cannot share a batch of 7 images"):
        read_inputs(request(synthetic, "model", workers=9))


def test_validation_labels_need_no_collections(synthetic: Path, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).symlink_to(synthetic / folder)
    frame = pd.read_csv(synthetic / "train.csv")
    frame.assign(clinic="a").to_csv(tmp_path / "train.csv", index=False)
    inputs = read_inputs(
        request(
            tmp_path,
            tmp_path / "model",
            collection_column="clinic",
            val_images=f"{synthetic}/images",
            val_labels=f"{synthetic}/val.csv",
        )
    )
    assert inputs.validation is not None
    assert set(inputs.labels.collection_by_id.values()) == {"a"}
