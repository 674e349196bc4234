"""The split, copies that are not used, and lesion masks."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesioncam.errors import InputError
from lesioncam.settings import TrainSettings
from lesioncam.storage.labels import Labels
from lesioncam.storage.listing import image_id
from lesioncam.training.dataset import (
    decode,
    hold_out,
    known_classes,
    read_lesion_masks,
    split,
    without_copies_of,
)
from lesioncam.training.job import read_inputs
from tests.training.small import flat_images, request

CLASSES = ("melanoma", "nevus")
LABELS = Labels(CLASSES, CLASSES[:1], (), np.zeros(0, np.int64))


# The split


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ((10, 20), 0.2, [2, 4]),
        ((10, 20), 0.24, [2, 5]),
        ((3, 40), 0.1, [1, 4]),  # at least one
        ((2, 2), 0.9, [1, 1]),  # and one to train on
        ((1, 10), 0.5, [0, 5]),
    ],
)
def test_the_fraction_is_of_each_class(
    counts: tuple[int, int], fraction: float, expected: list[int]
) -> None:
    labels = np.repeat([0, 1], counts)
    held_out = hold_out(labels, np.arange(len(labels)), fraction, seed=0)
    assert held_out.dtype == bool
    assert np.bincount(labels[held_out], minlength=2).tolist() == expected


def test_the_split_is_of_the_seed_alone() -> None:
    labels, groups = np.arange(40) % 2, np.arange(40)
    first = hold_out(labels, groups, 0.3, seed=0)
    assert np.array_equal(hold_out(labels, groups, 0.3, seed=0), first)
    assert not np.array_equal(hold_out(labels, groups, 0.3, seed=1), first)


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_on_the_same_side(seed: int) -> None:
    groups = np.arange(40)
    groups[20:30] = groups[:10]  # also where two labels name one picture
    held_out = hold_out(np.arange(40) % 3, groups, 0.4, seed)
    assert np.array_equal(held_out[20:30], held_out[:10])
    assert 0 < held_out.sum() < 40


@pytest.mark.parametrize("seed", range(10))
def test_a_class_with_copies_is_on_both_sides_if_it_can_be(seed: int) -> None:
    labels, groups = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 2, 3, 4, 3])
    held_out = hold_out(labels, groups, 0.2, seed)
    for class_index in (0, 1):
        assert set(held_out[labels == class_index]) == {True, False}


@pytest.mark.parametrize("seed", range(5))
def test_images_of_a_patient_and_their_copies_are_on_the_same_side(seed: int) -> None:
    grays = [10, 60, 110, 160, 210, 240, 12, 85, 35]  # 0 and 6 are copies
    patients = ("p1", "p2", "p1", "", "", "p3", "p2", "p3", "")
    images = replace(flat_images(*grays), groups=patients)
    held_out = split(images, LABELS, TrainSettings(val_fraction=0.4, seed=seed))
    assert len(set(held_out[[0, 2, 6, 1]])) == 1  # p1 and p2 have one picture in common
    assert held_out[5] == held_out[7]


@pytest.mark.parametrize("seed", range(10))
def test_a_rare_class_is_on_both_sides_though_its_patients_have_others(seed: int) -> None:
    groups = np.repeat(np.arange(0, 400, 20), 20)
    labels = np.zeros(400, int)
    labels[[25, 87, 199, 305]] = 1  # never a patient's first image
    held_out = hold_out(labels, groups, 0.2, seed)
    for group in range(0, 400, 20):
        assert len(set(held_out[group : group + 20])) == 1
    assert set(held_out[labels == 1]) == {True, False}
    assert 0.1 < held_out.mean() < 0.3


def test_a_class_missing_on_one_side_is_refused() -> None:
    with pytest.raises(InputError, match="class melanoma has no image to hold out; unreadable"):
        split(flat_images(10, 90, 170, 250).without(np.array([0])), LABELS, TrainSettings())
    copies = flat_images(10, 90, 10, 91, 170, 250).without(np.array([4]))  # one picture a class
    with pytest.raises(InputError, match="class melanoma has no image to hold out"):
        split(copies, LABELS, TrainSettings())
    held_out = split(flat_images(10, 90, 170, 250), LABELS, TrainSettings())
    assert held_out.sum() == 2


# Copies of validation images


def test_copies_of_validation_images_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    training = flat_images(10, 90, 170, 12, 250)
    with caplog.at_level(logging.WARNING, "lesioncam"):
        rest = without_copies_of(training, flat_images(11, 13, 168, prefix="val"))
    assert rest.uris == ("/images/001.jpg", "/images/004.jpg")
    assert rest.canvases.rows.tolist() == [1, 4]
    assert rest.labels.tolist() == [1, 0]
    assert rest.thumbnails[:, 0, 0, 0].tolist() == [90, 250]
    assert len(rest.estimated_masks) == len(rest) == 2
    assert "--images: 3 images not used: duplicates of --val-images" in caplog.text


def test_without_copies_all_stay(caplog: pytest.LogCaptureFixture) -> None:
    training = flat_images(10, 90, 170)
    rest = without_copies_of(training, flat_images(50, prefix="val"))
    assert rest.uris == training.uris
    assert rest.canvases.rows.tolist() == [0, 1, 2]
    assert not caplog.messages


@pytest.mark.usefixtures("local_ray")
def test_a_copy_is_found_in_another_encoding(synthetic: Path, tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    labels = pd.read_csv(synthetic / "labels.csv")
    for number in range(6):
        with Image.open(synthetic / "images" / f"DRAWN_{number:05d}.jpg") as image:
            image.save(tmp_path / "val" / f"COPY_{number}.jpg", quality=80)
    copies = labels[:6].assign(image_id=[f"COPY_{number}" for number in range(6)])
    copies.to_csv(tmp_path / "val.csv", index=False)
    validation = {"val_images": f"{tmp_path}/val", "val_labels": f"{tmp_path}/val.csv"}
    inputs = read_inputs(request(synthetic, tmp_path / "model", **validation))
    images, others = decode(inputs, 96)
    assert others is not None
    assert (len(images), len(images.canvases), len(others)) == (21, 21, 6)


# Lesion masks


def write_mask(path: Path, x0: int, y0: int, x1: int, y1: int) -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[y0:y1, x0:x1] = 255
    Image.fromarray(mask).save(path)


SETTINGS = TrainSettings(mask_weight=0.5, estimated_mask_weight=0.25)


def test_an_image_knows_of_the_classes_of_its_collection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = flat_images(10, 60, 110, 160)  # of classes 0, 1, 0, 1
    ids = tuple(image_id(uri) for uri in images.uris)
    labels = replace(LABELS, ids=ids, classes=("a", "b", "c"))
    assert known_classes(images, labels).all()
    labels = replace(labels, collections=("x", "y", "y", ""))
    with caplog.at_level(logging.INFO, "lesioncam"):
        assert known_classes(images, labels).tolist() == [
            [True, False, False],
            [True, True, False],
            [True, True, False],
            [True, True, True],  # of no collection
        ]
    assert "--collection-column: 3 images say nothing of the classes" in caplog.text
    assert "1 of them are of collections with one class" in caplog.text


def test_masks_are_estimated_where_none_is_given() -> None:
    found = read_lesion_masks(flat_images(1, 2), {}, SETTINGS)
    assert found.given.tolist() == [False, False]
    assert found.weights.tolist() == [0.25, 0.25]
    assert found.weights.dtype == np.float32
    assert found.grid.shape == (2, 64, 64)
    assert found.grid[:, :, :32].all()
    assert not found.grid[:, :, 32:].any()


def test_given_masks_replace_estimated_ones(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.png", 0, 48, 128, 96)
    images = flat_images(1, 2, 3)
    found = read_lesion_masks(images, {"001": f"{tmp_path}/mask.png"}, SETTINGS)
    assert found.given.tolist() == [False, True, False]
    assert found.weights.tolist() == [0.25, 0.5, 0.25]
    assert found.grid[1, 32:].all()
    assert not found.grid[1, :32].any()
    assert found.grid[[0, 2], :, :32].all()
    assert images.estimated_masks[1, :, :16].all()  # unchanged


def test_a_mask_of_another_frame_is_refused(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.png", 0, 48, 128, 96)
    images = replace(flat_images(1, 2), sizes=np.array([[128, 96], [256, 256]]))
    read_lesion_masks(images, {"000": f"{tmp_path}/mask.png"}, SETTINGS)
    with pytest.raises(InputError, match="has 128 x 96 pixels, its image 256 x 256"):
        read_lesion_masks(images, {"001": f"{tmp_path}/mask.png"}, SETTINGS)
