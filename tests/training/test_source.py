"""The split, what is left out of it, and the lesions; without Ray."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesioncam.errors import InputError
from lesioncam.settings import TrainSettings
from lesioncam.storage.labels import Labels
from lesioncam.training.canvases import Canvases
from lesioncam.training.source import (
    Images,
    Source,
    check_classes,
    check_counts,
    hold_out,
    match_masks,
    read_lesions,
    without_copies_of,
)

CLASSES = ("melanoma", "nevus")


def labels_of(indices: list[int]) -> Labels:
    ids = tuple(f"{number:03d}" for number in range(len(indices)))
    return Labels(CLASSES, CLASSES[:1], ids, np.array(indices, np.int64))


def images(*grays: int, prefix: str = "") -> Images:
    """Images of one gray level each, guessed to be all lesion in their left half."""
    count = len(grays)
    guesses = np.zeros((count, 32, 32), bool)
    guesses[:, :, :16] = True
    return Images(
        uris=tuple(f"/images/{prefix}{number:03d}.jpg" for number in range(count)),
        canvases=Canvases((), np.arange(count)),
        labels=np.arange(count) % 2,
        thumbnails=np.stack([np.full((16, 16, 3), gray, np.uint8) for gray in grays]),
        guesses=guesses,
    )


# The split


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ((10, 20), 0.2, [2, 4]),
        ((10, 20), 0.24, [2, 5]),
        ((3, 40), 0.1, [1, 4]),  # at least one
        ((2, 2), 0.9, [1, 1]),  # and one is left to train on
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
    for place in (0, 1):
        assert set(held_out[labels == place]) == {True, False}


def test_classes_of_fewer_than_two_images_are_refused() -> None:
    labels = labels_of([0, 1, 1])
    check_counts(labels_of([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    with pytest.raises(InputError, match="class 'melanoma' has 1 images under --images"):
        check_counts(labels, labels.class_indices)
    with pytest.raises(InputError, match="class 'nevus' has 0 images"):
        check_counts(labels, np.array([0, 0]))


@pytest.mark.parametrize(
    ("held_out", "where"),
    [([True, True, False, True], "left to train on"), ([False, False, True, False], "held out")],
)
def test_a_class_missing_on_one_side_is_refused(held_out: list[bool], where: str) -> None:
    labels = labels_of([0, 0, 1, 1])
    with pytest.raises(InputError, match=rf"no image of class melanoma .* {where}"):
        check_classes(labels, labels.class_indices, np.array(held_out))
    check_classes(labels, labels.class_indices, np.array([True, False] * 2))


# Copies of validation images


def test_copies_of_validation_images_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    training = images(10, 90, 170, 12, 250)
    with caplog.at_level(logging.WARNING, "lesioncam"):
        left = without_copies_of(training, images(11, 13, 168, prefix="val"))
    assert left.uris == ("/images/001.jpg", "/images/004.jpg")
    assert left.canvases.places.tolist() == [1, 4]
    assert left.labels.tolist() == [1, 0]
    assert left.thumbnails[:, 0, 0, 0].tolist() == [90, 250]
    assert len(left.guesses) == len(left) == 2
    assert "--images: 3 left out, copies of --val-images" in caplog.text


def test_where_there_are_no_copies_all_stay(caplog: pytest.LogCaptureFixture) -> None:
    training = images(10, 90, 170)
    left = without_copies_of(training, images(50, prefix="val"))
    assert left.uris == training.uris
    assert left.canvases.places.tolist() == [0, 1, 2]
    assert not caplog.messages


# Lesions


def write_mask(path: Path, x0: int, y0: int, x1: int, y1: int) -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[y0:y1, x0:x1] = 255
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(mask).save(path)


SETTINGS = TrainSettings(mask_weight=0.5, estimated_mask_weight=0.25)


def source(images: Images) -> Source:
    return Source(images.uris, images.labels, {}, "--images")


def test_lesions_are_guessed_where_nobody_drew_them() -> None:
    found = read_lesions(images(1, 2), {}, SETTINGS)
    assert found.drawn.tolist() == [False, False]
    assert found.weights.tolist() == [0.25, 0.25]
    assert found.weights.dtype == np.float32
    assert found.grid.shape == (2, 64, 64)
    assert found.grid[:, :, :32].all()
    assert not found.grid[:, :, 32:].any()


def test_drawn_outlines_take_the_guesses_place(tmp_path: Path) -> None:
    write_mask(tmp_path / "masks" / "001_segmentation.png", 0, 48, 128, 96)
    write_mask(tmp_path / "masks" / "900.png", 0, 0, 10, 10)
    shown = images(1, 2, 3)
    masks = match_masks(source(shown), f"{tmp_path}/masks")
    found = read_lesions(shown, masks, SETTINGS)
    assert found.drawn.tolist() == [False, True, False]
    assert found.weights.tolist() == [0.25, 0.5, 0.25]
    assert found.grid[1, 32:].all()
    assert not found.grid[1, :32].any()
    assert found.grid[[0, 2], :, :32].all()
    assert shown.guesses[1, :, :16].all()  # left as they were


def test_masks_of_other_images_are_refused(tmp_path: Path) -> None:
    write_mask(tmp_path / "masks" / "900.png", 0, 0, 10, 10)
    with pytest.raises(InputError, match=r"--masks: none of the masks in .* is of an image"):
        match_masks(source(images(1, 2)), f"{tmp_path}/masks")
