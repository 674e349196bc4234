from dataclasses import replace

import numpy as np
import torch

from lesioncam.settings import TrainSettings
from lesioncam.vision.augment import Draws, augment, draw, turn

SETTINGS = TrainSettings()


def canvases(count: int, side: int = 32) -> torch.Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (count, 3, side, side)).astype(np.uint8))


def whole(count: int, side: int = 32) -> torch.Tensor:
    return torch.tensor([[0, 0, side, side]]).expand(count, 4)


def still(count: int) -> Draws:
    ones = torch.ones(count)
    return Draws(
        affine=torch.eye(2).expand(count, 2, 2),
        shift=torch.zeros(count, 2),
        brightness=ones,
        contrast=ones,
        tint=torch.ones(count, 3),
        saturation=ones,
    )


def test_no_change_gives_the_picture_back() -> None:
    pixels = canvases(2)
    assert torch.equal(augment(pixels, whole(2), still(2), 32), pixels)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    pixels = canvases(1)
    draws = replace(still(1), affine=torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]))
    assert torch.equal(augment(pixels, whole(1), draws, 32), torch.rot90(pixels, 1, (2, 3)))


def test_brightness_and_contrast_by_hand() -> None:
    pixels = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    pixels[..., :4] = 50  # mean 75
    draws = replace(still(1), brightness=torch.tensor([1.2]), contrast=torch.tensor([0.5]))
    lit = augment(pixels, whole(1, 8), draws, 8)
    assert sorted(set(lit.flatten().tolist())) == [
        75,
        105,
    ]  # (75 - 12.5) x 1.2 and (75 + 12.5) x 1.2


def one_color(red: int, green: int, blue: int) -> torch.Tensor:
    return torch.tensor([red, green, blue], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)


def colors(pixels: torch.Tensor) -> list[list[int]]:
    """Of each image its color, which must be the same everywhere."""
    assert torch.equal(pixels, pixels[..., :1, :1].expand_as(pixels))
    return pixels[..., 0, 0].tolist()


def test_tint_and_saturation_by_hand() -> None:
    pixels = one_color(100, 150, 50).expand(4, 3, 8, 8)
    draws = replace(
        still(4),
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


def test_color_changes_no_gray_level_on_the_whole() -> None:
    pixels = canvases(1)
    draws = replace(still(1), saturation=torch.tensor([0.5]))
    after = augment(pixels, whole(1), draws, 32).float().mean(dim=1)
    assert (after - pixels.float().mean(dim=1)).abs().max() <= 1


def test_masks_turn_as_their_images_do() -> None:
    pixels = canvases(6)
    draws = draw(6, replace(SETTINGS, brightness=0.0, color=0.0), torch.Generator().manual_seed(0))
    turned = augment(pixels, whole(6), draws, 16)
    assert torch.equal(turn(pixels[:, :1], whole(6), draws, 16), turned[:, :1])


def test_a_shift_moves_by_a_share_of_the_box() -> None:
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    pixels[..., 16:] = 200
    draws = replace(still(1), shift=torch.tensor([[0.5, 0.0]]))
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


def test_shares_of_all_workers_are_the_whole_batch() -> None:
    draws = draw(7, SETTINGS, torch.Generator().manual_seed(0))
    shares = [draws.share(rank, 3) for rank in range(3)]
    for number in range(7):
        share = shares[number % 3]
        for name, part in vars(draws).items():
            assert torch.equal(getattr(share, name)[number // 3], part[number]), name
