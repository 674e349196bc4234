from dataclasses import replace

import numpy as np
import torch

from lesioncam.settings import TrainSettings
from lesioncam.vision.augment import Draws, apply_geometry, augment, draw

SETTINGS = TrainSettings()


def canvases(count: int, size: int = 32) -> torch.Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (count, 3, size, size)).astype(np.uint8))


def whole(count: int, size: int = 32) -> torch.Tensor:
    return torch.tensor([[0, 0, size, size]]).expand(count, 4)


def identity(count: int) -> Draws:
    ones = torch.ones(count)
    return Draws(
        affine=torch.eye(2).expand(count, 2, 2),
        shift=torch.zeros(count, 2),
        brightness=ones,
        contrast=ones,
        tint=torch.ones(count, 3),
        saturation=ones,
    )


def test_identity_changes_nothing() -> None:
    pixels = canvases(2)
    assert torch.equal(augment(pixels, whole(2), identity(2), 32), pixels)


def test_affine_rotates_by_90_degrees() -> None:
    pixels = canvases(1)
    draws = replace(identity(1), affine=torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]))
    assert torch.equal(augment(pixels, whole(1), draws, 32), torch.rot90(pixels, 1, (2, 3)))


def test_brightness_and_contrast_by_hand() -> None:
    pixels = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    pixels[..., :4] = 50  # mean 75
    draws = replace(identity(1), brightness=torch.tensor([1.2]), contrast=torch.tensor([0.5]))
    augmented = augment(pixels, whole(1, 8), draws, 8)
    # (75 - 12.5) x 1.2 and (75 + 12.5) x 1.2
    assert sorted(set(augmented.flatten().tolist())) == [75, 105]


def one_color(red: int, green: int, blue: int) -> torch.Tensor:
    return torch.tensor([red, green, blue], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)


def colors(pixels: torch.Tensor) -> list[list[int]]:
    """Each image's color, which must be the same everywhere."""
    assert torch.equal(pixels, pixels[..., :1, :1].expand_as(pixels))
    return pixels[..., 0, 0].tolist()


def test_tint_and_saturation_by_hand() -> None:
    pixels = one_color(100, 150, 50).expand(4, 3, 8, 8)
    draws = replace(
        identity(4),
        tint=torch.tensor([[1.2, 1.0, 0.5], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [2.0, 1.0, 0.0]]),
        saturation=torch.tensor([1.0, 0.5, 0.0, 2.0]),
    )
    expected = [
        [120, 150, 25],
        [100, 125, 75],  # halfway to the gray of 100
        [100, 100, 100],
        [255, 183, 0],  # tinted 200, 150, 0, whose gray is 116.7; then twice as far from it
    ]
    assert colors(augment(pixels, whole(4, 8), draws, 8)) == expected


def test_saturation_keeps_gray_levels() -> None:
    pixels = canvases(1)
    draws = replace(identity(1), saturation=torch.tensor([0.5]))
    after = augment(pixels, whole(1), draws, 32).float().mean(dim=1)
    assert (after - pixels.float().mean(dim=1)).abs().max() <= 1


def test_masks_get_the_geometry_of_their_images() -> None:
    pixels = canvases(6)
    draws = draw(6, replace(SETTINGS, brightness=0.0, color=0.0), torch.Generator().manual_seed(0))
    images = augment(pixels, whole(6), draws, 16)
    assert torch.equal(apply_geometry(pixels[:, :1], whole(6), draws, 16), images[:, :1])


def test_shift_is_a_fraction_of_the_box() -> None:
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    pixels[..., 16:] = 200
    draws = replace(identity(1), shift=torch.tensor([[0.5, 0.0]]))
    box = torch.tensor([[0, 0, 16, 16]])
    assert set(augment(pixels, box, draws, 8)[..., 4:].flatten().tolist()) == {200}


def test_draws_stay_within_the_settings() -> None:
    draws = draw(500, SETTINGS, torch.Generator().manual_seed(0))
    scale = torch.linalg.det(draws.affine).abs().sqrt()
    assert scale.max() <= 1 + SETTINGS.zoom + 1e-5
    assert scale.min() >= 1 / (1 + SETTINGS.zoom) - 1e-5
    assert draws.shift.abs().max() <= SETTINGS.shift
    assert (draws.brightness - 1).abs().max() <= SETTINGS.brightness
    assert (draws.contrast - 1).abs().max() <= SETTINGS.brightness
    assert (draws.tint - 1).abs().max() <= SETTINGS.color
    assert (draws.saturation - 1).abs().max() <= 2 * SETTINGS.color
    flipped = torch.linalg.det(draws.affine) < 0
    assert 0.4 < flipped.float().mean() < 0.6


def test_rank_slices_of_all_workers_are_the_whole_batch() -> None:
    draws = draw(7, SETTINGS, torch.Generator().manual_seed(0))
    slices = [draws.rank_slice(rank, 3) for rank in range(3)]
    for name, values in vars(draws).items():
        for image in range(7):
            assert torch.equal(getattr(slices[image % 3], name)[image // 3], values[image]), name
