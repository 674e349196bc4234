"""Masks estimated from color, of discs on skin."""

import pytest
import torch
from torch import Tensor

from lesioncam.vision.lesion_masks import CELLS, estimate_lesion_masks, otsu_threshold

SKIN = (225, 180, 155)
BROWN = (130, 80, 60)
WHITE = (255, 255, 255)
Disc = tuple[float, float, float]  # x, y and radius in fractions of the image


def inside(disc: Disc, size: int) -> Tensor:
    x, y, radius = disc
    axis = (torch.arange(size) + 0.5) / size
    return (axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2 < radius**2


def image_of(*discs: tuple[Disc, tuple[int, int, int]], size: int = 128, noise: int = 8) -> Tensor:
    """(1, 3, size, size): discs on skin that is a little uneven."""
    image = torch.tensor(SKIN).view(3, 1, 1).repeat(1, size, size)
    for disc, color in discs:
        image[:, inside(disc, size)] = torch.tensor(color)[:, None]
    generator = torch.Generator().manual_seed(0)
    image = image + torch.randint(-noise, noise + 1, (1, size, size), generator=generator)
    return image.clamp(0, 255).to(torch.uint8)[None]


def overlap(mask: Tensor, disc: Disc) -> float:
    truth = inside(disc, CELLS)
    return ((mask & truth).sum() / (mask | truth).sum()).item()


@pytest.mark.parametrize(
    "disc",
    [(0.5, 0.5, 0.2), (0.5, 0.5, 0.35), (0.35, 0.6, 0.15), (0.6, 0.4, 0.25), (0.7, 0.7, 0.1)],
    ids=str,
)
@pytest.mark.parametrize("color", [BROWN, (40, 30, 60), (200, 120, 100)], ids=str)
def test_a_dark_disc_on_skin_is_found(disc: Disc, color: tuple[int, int, int]) -> None:
    (mask,) = estimate_lesion_masks(image_of((disc, color)))
    assert overlap(mask, disc) > 0.6


def test_the_dark_region_near_the_center_counts() -> None:
    near, far = (0.45, 0.5, 0.15), (0.95, 0.1, 0.2)
    (mask,) = estimate_lesion_masks(image_of((near, BROWN), (far, (0, 0, 0))))
    assert overlap(mask, near) > 0.6
    assert not (mask & inside(far, CELLS)).any()


def test_a_faint_halo_is_not_the_lesion() -> None:
    halo, disc = (0.5, 0.5, 0.35), (0.5, 0.5, 0.15)
    (mask,) = estimate_lesion_masks(image_of((halo, (215, 165, 140)), (disc, BROWN)))
    assert overlap(mask, disc) > 0.6


def test_of_two_regions_one_is_chosen() -> None:
    left, right = (0.35, 0.5, 0.12), (0.7, 0.5, 0.12)
    (mask,) = estimate_lesion_masks(image_of((left, BROWN), (right, BROWN)))
    assert overlap(mask, left) > 0.6
    assert not (mask & inside(right, CELLS)).any()


@pytest.mark.parametrize("value", [0, 90, 255])
def test_a_uniform_image_has_no_lesion(value: int) -> None:
    images = torch.full((2, 3, 64, 64), value, dtype=torch.uint8)
    assert not estimate_lesion_masks(images).any()


def test_noise_alone_is_no_lesion() -> None:
    assert not estimate_lesion_masks(image_of(size=256)).any()


def test_a_bright_disc_is_no_lesion() -> None:
    assert not estimate_lesion_masks(image_of(((0.5, 0.5, 0.2), WHITE), size=256)).any()


@pytest.mark.parametrize("size", [CELLS, 33, 100, 448])
def test_the_mask_has_the_same_cells_at_every_size(size: int) -> None:
    disc = (0.4, 0.55, 0.2)
    masks = estimate_lesion_masks(image_of((disc, BROWN), size=size))
    assert masks.shape == (1, CELLS, CELLS)
    assert masks.dtype == torch.bool
    assert overlap(masks[0], disc) > 0.6


def test_batch_equals_singles() -> None:
    images = torch.cat(
        [
            image_of(((0.4, 0.5, 0.2), BROWN)),
            image_of(noise=0),
            image_of(((0.6, 0.6, 0.1), (60, 40, 50))),
            image_of(((0.5, 0.5, 0.2), WHITE)),
        ]
    )
    together = estimate_lesion_masks(images)
    singles = torch.cat([estimate_lesion_masks(image[None]) for image in images])
    assert torch.equal(together, singles)
    assert together.any(dim=(1, 2)).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("low", "high", "many"), [(0.0, 1.0, 8), (0.21, 0.8, 1), (0.72, 0.9, 15), (0.0, 0.1, 8)]
)
def test_threshold_separates_two_values(low: float, high: float, many: int) -> None:
    values = torch.full((16,), low)
    values[:many] = high
    (threshold,) = otsu_threshold(values.view(1, 4, 4)).flatten().tolist()
    assert low <= threshold < high


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        # 8 x 2 x 0.75^2 = 9 for separating at 0.5 against 9 x 1 x 0.944^2 = 8.0 at 1
        ([0.0] * 8 + [0.5, 1.0], 0.0, 0.5),
        ([0.0, 0.5] + [1.0] * 8, 0.5, 1.0),
        # 5 x 6 x 0.417^2 = 5.2 against 10 x 1 x 0.85^2 = 7.2
        ([0.0] * 5 + [0.3] * 5 + [1.0], 0.3, 1.0),
    ],
)
def test_threshold_by_hand(values: list[float], low: float, high: float) -> None:
    (threshold,) = otsu_threshold(torch.tensor(values)[None, None]).flatten().tolist()
    assert low <= threshold < high
