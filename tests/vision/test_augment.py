import numpy as np
import torch

from lesioncam.settings import TrainSettings
from lesioncam.vision.augment import Draws, augment, draw

SETTINGS = TrainSettings()


def canvases(count: int, side: int = 32) -> torch.Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (count, 3, side, side)).astype(np.uint8))


def whole(count: int, side: int = 32) -> torch.Tensor:
    return torch.tensor([[0, 0, side, side]]).expand(count, 4)


def still(count: int) -> Draws:
    ones = torch.ones(count)
    return Draws(torch.eye(2).expand(count, 2, 2), torch.zeros(count, 2), ones, ones)


def test_no_change_gives_the_picture_back() -> None:
    pixels = canvases(2)
    assert torch.equal(augment(pixels, whole(2), still(2), 32), pixels)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    pixels = canvases(1)
    turn = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
    draws = Draws(turn, *(getattr(still(1), name) for name in ("shift", "brightness", "contrast")))
    assert torch.equal(augment(pixels, whole(1), draws, 32), torch.rot90(pixels, 1, (2, 3)))


def test_brightness_and_contrast_by_hand() -> None:
    pixels = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    pixels[..., :4] = 50  # mean 75
    draws = Draws(torch.eye(2)[None], torch.zeros(1, 2), torch.tensor([1.2]), torch.tensor([0.5]))
    lit = augment(pixels, whole(1, 8), draws, 8)
    assert sorted(set(lit.flatten().tolist())) == [
        75,
        105,
    ]  # (75 - 12.5) x 1.2 and (75 + 12.5) x 1.2


def test_a_shift_moves_by_a_share_of_the_box() -> None:
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    pixels[..., 16:] = 200
    draws = Draws(torch.eye(2)[None], torch.tensor([[0.5, 0.0]]), torch.ones(1), torch.ones(1))
    box = torch.tensor([[0, 0, 16, 16]])
    assert set(augment(pixels, box, draws, 8)[..., 4:].flatten().tolist()) == {200}


def test_draws_stay_within_the_settings() -> None:
    draws = draw(500, SETTINGS, torch.Generator().manual_seed(0))
    scale = torch.linalg.det(draws.affine).abs().sqrt()
    assert scale.max() <= 1 + SETTINGS.zoom + 1e-5
    assert scale.min() >= 1 / (1 + SETTINGS.zoom) - 1e-5
    assert draws.shift.abs().max() <= SETTINGS.shift
    assert (draws.brightness - 1).abs().max() <= SETTINGS.brightness
    flipped = torch.linalg.det(draws.affine) < 0
    assert 0.4 < flipped.float().mean() < 0.6


def test_shares_of_all_workers_are_the_whole_batch() -> None:
    draws = draw(7, SETTINGS, torch.Generator().manual_seed(0))
    shares = [draws.share(rank, 3) for rank in range(3)]
    for number in range(7):
        share = shares[number % 3]
        assert torch.equal(share.affine[number // 3], draws.affine[number])
        assert torch.equal(share.brightness[number // 3], draws.brightness[number])
