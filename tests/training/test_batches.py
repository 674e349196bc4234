"""Batches: which images, in which order, and how they are augmented; without Ray."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch

from lesioncam.settings import Backbone, TrainSettings
from lesioncam.training.batches import Batch, Batches, Examples, LesionMasks

if TYPE_CHECKING:
    from lesioncam.training.canvases import Canvases

CANVAS, SIZE = 32, 16
SMALL = Backbone((4, "M", 4), SIZE)
SETTINGS = TrainSettings(backbone="tiny", batch_size=4, seed=1)
STILL = replace(SETTINGS, rotate=0.0, zoom=0.0, shift=0.0, brightness=0.0, color=0.0)


class Decoded:
    """Canvases in memory; those of `broken` raise."""

    def __init__(self, pixels: np.ndarray, broken: tuple[int, ...] = ()):
        self.pixels, self.broken = pixels, broken

    def __len__(self) -> int:
        return len(self.pixels)

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        if set(self.broken) & set(numbers.tolist()):
            raise RuntimeError("the object store is gone")
        return np.asarray(self.pixels[numbers])


def examples(count: int, held_out: tuple[int, ...] = (), broken: tuple[int, ...] = ()) -> Examples:
    """Images of noise; image i has the label i and the lesion weight i / 10."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, CANVAS, CANVAS, 3), np.uint8)
    numbers = np.arange(count)
    return Examples(
        canvases=cast("Canvases", Decoded(pixels, broken)),
        boxes=np.tile([0, 0, CANVAS, CANVAS], (count, 1)),
        labels=numbers,
        held_out=np.isin(numbers, held_out),
        lesion_masks=LesionMasks(
            grid=random.random((count, 64, 64)) < 0.5,
            given=np.ones(count, bool),
            weights=(numbers / 10).astype(np.float32),
        ),
        known_classes=np.ones((count, count), bool),
    )


def worker(
    shown: Examples,
    rank: int = 0,
    world: int = 1,
    settings: TrainSettings = SETTINGS,
    backbone: Backbone = SMALL,
    stage: str = "stage1",
) -> Batches:
    return Batches(shown, settings, backbone, rank, world, torch.device("cpu"), stage)


def batches(made: Batches, epoch: int = 0) -> Iterator[Batch]:
    return made.epoch(epoch, made.backbone.input_size)


def order(made: Batches, epoch: int = 0) -> list[int]:
    """The numbers of the images of an epoch."""
    return [number for batch in batches(made, epoch) for number in batch.labels.tolist()]


# Which images


@pytest.mark.parametrize(("count", "seen"), [(10, 8), (11, 8), (6, 4), (5, 3)])
def test_an_epoch_sees_training_images_once_and_no_held_out_one(count: int, seen: int) -> None:
    held_out = (1, 4)
    found = order(worker(examples(count, held_out)))
    assert len(found) == len(set(found)) == seen
    assert set(found) <= set(range(count)) - set(held_out)


def test_which_images_are_skipped_changes_from_epoch_to_epoch() -> None:
    made = worker(examples(7))
    assert set().union(*(order(made, epoch) for epoch in range(8))) == set(range(7))


def test_the_order_depends_on_epoch_and_seed_only() -> None:
    shown = examples(16)
    first = order(worker(shown))
    assert order(worker(shown)) == first
    assert order(worker(shown), epoch=1) != first
    assert order(worker(shown, settings=replace(SETTINGS, seed=2))) != first
    assert first != sorted(first)


def test_the_second_stage_has_its_own_order_and_augmentation() -> None:
    first, second = (worker(examples(20), stage=stage) for stage in ("stage1", "stage2"))
    assert order(first) != order(second)
    assert len({made.seed(1, number) for made in (first, second) for number in range(8)}) == 16


def test_an_epoch_again_is_the_same_to_the_pixel() -> None:
    made = worker(examples(8))
    next(batches(made, 3))
    for once, again in zip(batches(made, 3), batches(made, 3), strict=True):
        assert torch.equal(once.images, again.images)


# Slices


@pytest.mark.parametrize("world", [2, 3, 4])
def test_slices_of_all_workers_interleave_to_one_workers_batch(world: int) -> None:
    shown = examples(10, held_out=(0,))
    alone = list(batches(worker(shown)))
    slices = [list(batches(worker(shown, rank, world))) for rank in range(world)]
    assert {len(one) for one in slices} == {len(alone)}
    for step, whole in enumerate(alone):
        for rank in range(world):
            part = slices[rank][step]
            for name in ("images", "labels", "lesions", "lesion_weights"):
                expected = getattr(whole, name)[rank::world]
                assert torch.equal(getattr(part, name), expected), name
            assert part.size == whole.size == len(whole.labels)


def test_slices_differ_by_at_most_one_image() -> None:
    settings = replace(SETTINGS, batch_size=8)
    slices = [worker(examples(20), rank, 3, settings) for rank in range(3)]
    for step in zip(*map(batches, slices), strict=True):
        assert [len(batch.labels) for batch in step] == [3, 3, 2]
        assert [batch.size for batch in step] == [8] * 3


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_all_workers_together_see_each_held_out_image_once(world: int, batch_size: int) -> None:
    held_out = (0, 2, 3, 7, 8)
    shown = examples(10, held_out)
    found = []
    for rank in range(world):
        for numbers, images in worker(shown, rank, world).held_out(batch_size, SIZE):
            assert images.shape == (len(numbers), 3, SIZE, SIZE)
            assert 1 <= len(numbers) <= batch_size
            found += numbers.tolist()
    assert sorted(found) == list(held_out)


def test_a_worker_may_have_no_held_out_image() -> None:
    assert list(worker(examples(4, (1,)), rank=1, world=2).held_out(16, SIZE)) == []


# Images


def test_shapes_and_dtypes() -> None:
    first = next(batches(worker(examples(6))))
    assert first.images.shape == (4, 3, SIZE, SIZE)
    assert first.images.dtype == torch.uint8
    assert first.labels.dtype == torch.int64
    assert first.lesions.shape == (4, SIZE // 2, SIZE // 2)
    assert first.lesions.dtype == torch.float32
    assert first.lesion_weights.tolist() == pytest.approx((first.labels / 10).tolist())


def test_a_smaller_input_size_has_smaller_images_and_lesions() -> None:
    first = next(worker(examples(6)).epoch(0, 8))
    assert first.images.shape == (4, 3, 8, 8)
    assert first.lesions.shape == (4, 4, 4)


def test_held_out_images_have_the_requested_size() -> None:
    ((_, images),) = worker(examples(6, (1, 4))).held_out(16, 8)
    assert images.shape == (2, 3, 8, 8)


def test_held_out_images_are_not_augmented() -> None:
    shown = examples(3, (1,))
    ((numbers, images),) = worker(shown).held_out(16, SIZE)
    canvas = shown.canvases.gather(numbers).astype(float)
    means = canvas.reshape(1, SIZE, 2, SIZE, 2, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2)
    assert np.abs(images.numpy() - means).max() <= 0.51


def test_an_image_is_cut_to_its_box() -> None:
    left_red = np.zeros((2, CANVAS, CANVAS, 3), np.uint8)
    left_red[:, :, : CANVAS // 2, 0] = 200
    shown = replace(
        examples(2, (1,)),
        canvases=cast("Canvases", Decoded(left_red)),
        boxes=np.array([[0, 4, 16, 20], [16, 4, 32, 20]]),
    )
    made = worker(shown, settings=STILL)
    (left,), ((_, right),) = batches(made), made.held_out(4, SIZE)
    assert set(left.images[:, 0, :, 1:-1].flatten().tolist()) == {200}
    assert not right[:, 0, :, 1:-1].any()


@pytest.mark.parametrize("box", [[0, 0, 64, 64], [8, 4, 56, 44]])
def test_lesions_are_cut_and_augmented_like_their_images(box: list[int]) -> None:
    # As fine as the images, and the red channel is the lesion.
    same = Backbone((4,), 64)
    grid = np.zeros((6, 64, 64), bool)
    for number in range(6):
        grid[number, 10 : 30 + 4 * number, 20:28] = grid[number, 10:18, 20:50] = True
    pixels = np.zeros((6, 64, 64, 3), np.uint8)
    pixels[..., 0] = grid * 255
    shown = replace(
        examples(6),
        canvases=cast("Canvases", Decoded(pixels)),
        boxes=np.tile(box, (6, 1)),
        lesion_masks=LesionMasks(grid, np.ones(6, bool), np.ones(6, np.float32)),
    )
    settings = replace(SETTINGS, batch_size=6, brightness=0.0, color=0.0)
    (batch,) = batches(worker(shown, settings=settings, backbone=same))
    unaugmented = torch.from_numpy(grid[batch.labels.numpy()]).float()
    for image, lesion, before in zip(batch.images, batch.lesions, unaugmented, strict=True):
        assert (lesion - image[0] / 255).abs().mean() < 0.02
        assert (lesion - before).abs().mean() > 0.05


# Errors


@pytest.mark.parametrize("count", [4, 8, 12])
def test_an_error_while_preparing_reaches_the_caller(count: int) -> None:
    shown = examples(count, broken=(3,))
    with pytest.raises(RuntimeError, match="the object store is gone"):
        list(batches(worker(shown)))


def test_an_epoch_may_be_left_early() -> None:
    running = batches(worker(examples(12)))
    next(running)
    cast("Any", running).close()
    with pytest.raises(StopIteration):
        next(running)
