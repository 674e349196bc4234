"""Class activation maps: formulas on cases worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from lesioncam.settings import MAP_RULES, CropRule
from lesioncam.vision.cam import (
    FLAT_RANGE,
    choose_map,
    class_activation_maps,
    mask_loss,
    normalise_map,
)
from lesioncam.vision.network import VGGGAP

# Two classes' maps on a 2x2 grid, for two images.
MAPS = torch.tensor(
    [
        [[[1.0, 5.0], [3.0, 0.0]], [[2.0, 4.0], [6.0, -1.0]]],
        [[[0.0, 1.0], [1.0, 1.0]], [[9.0] * 2] * 2],
    ]
)


def test_map_is_weight_times_features_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[10.0, 0.0], [0.0, -10.0]]]])
    weight = torch.tensor([[1.0, 0.5], [-2.0, 1.0], [0.0, 0.0]])
    expected = [
        [[6.0, 2.0], [3.0, -1.0]],
        [[8.0, -4.0], [-6.0, -18.0]],
        [[0.0, 0.0], [0.0, 0.0]],
    ]
    assert class_activation_maps(features, weight).tolist() == [expected]


def test_map_is_float32_for_features_in_bfloat16() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.bfloat16)
    maps = class_activation_maps(features, torch.tensor([[1.01]]))
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, torch.tensor([[[[1.01, 2.02], [3.03, 4.04]]]]))


def test_mean_of_map_plus_bias_is_logit() -> None:
    torch.manual_seed(0)
    network = VGGGAP("tiny", 3).eval()
    torch.nn.init.normal_(network.linear.bias)
    images = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8)
    with torch.inference_mode():
        logits, features = network(images)
        maps = class_activation_maps(features, network.linear.weight)
    assert maps.shape == (4, 3, 12, 12)
    torch.testing.assert_close(maps.mean(dim=(2, 3)) + network.linear.bias, logits)


@pytest.mark.parametrize(("winner", "loser"), [(0, 1), (1, 0)])
def test_predicted_is_map_of_class_with_highest_logit(winner: int, loser: int) -> None:
    logits = torch.zeros(2, 2)
    logits[0, winner] = 1.0
    logits[1, loser] = 0.5
    chosen = choose_map(MAPS, logits, "predicted")
    assert chosen.tolist() == [MAPS[0, winner].tolist(), MAPS[1, loser].tolist()]


@pytest.mark.parametrize("logits", [[[1.0, 0.0], [1.0, 0.0]], [[-3.0, 7.0], [0.0, 2.0]]])
def test_maximum_is_highest_at_each_position_whatever_the_logits(logits: list[list[float]]) -> None:
    chosen = choose_map(MAPS, torch.tensor(logits), "maximum")
    assert chosen.tolist() == [[[2.0, 5.0], [6.0, 0.0]], [[9.0, 9.0], [9.0, 9.0]]]


def test_rules_are_those_the_crop_settings_allow() -> None:
    assert [CropRule(map=rule).map for rule in MAP_RULES] == list(MAP_RULES)


def test_normalise_by_hand() -> None:
    maps = torch.tensor([[[2.0, 4.0], [3.0, 6.0]], [[-1.0, 0.0], [-0.5, 1.0]]])
    scaled, flat = normalise_map(maps)
    assert scaled.tolist() == [[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.5], [0.25, 1.0]]]
    assert scaled.dtype == torch.float32
    assert flat.dtype == torch.bool
    assert flat.tolist() == [False, False]


@pytest.mark.parametrize(
    "bad",
    [
        [[3.0, 3.0], [3.0, 3.0]],
        [[0.0, 0.0], [0.0, FLAT_RANGE / 2]],
        [[1.0, 2.0], [float("nan"), 3.0]],
        [[float("nan")] * 2] * 2,
        [[1.0, 2.0], [float("inf"), 3.0]],
        [[1.0, 2.0], [float("-inf"), 3.0]],
        [[float("inf")] * 2] * 2,
        [[float("inf"), float("-inf")], [0.0, 0.0]],
        [[3e38, -3e38], [0.0, 0.0]],  # finite, but their difference is not
    ],
    ids=str,
)
def test_map_without_peak_or_not_finite_is_flat_and_zero(bad: list[list[float]]) -> None:
    good = [[0.0, 1.0], [2.0, 4.0]]
    scaled, flat = normalise_map(torch.tensor([good, bad]))
    assert flat.tolist() == [False, True]
    assert scaled.tolist() == [[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_span_just_above_flat_range_has_a_peak() -> None:
    scaled, flat = normalise_map(torch.tensor([[[0.0, 0.0], [0.0, FLAT_RANGE * 1.01]]]))
    assert flat.tolist() == [False]
    assert scaled.flatten().tolist() == [0.0, 0.0, 0.0, 1.0]


def test_normalised_maps_do_not_depend_on_scale_or_offset() -> None:
    maps: Tensor = torch.rand(5, 6, 6, generator=torch.Generator().manual_seed(0))
    scaled, _ = normalise_map(maps)
    moved, _ = normalise_map(maps * 40 - 7)
    torch.testing.assert_close(moved, scaled, atol=1e-5, rtol=0)
    assert (scaled.amin(dim=(1, 2)) == 0).all()
    assert (scaled.amax(dim=(1, 2)) == 1).all()


def test_mask_loss_by_hand() -> None:
    maps = torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]])  # standard deviation 2 / sqrt 3
    mask = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    high, low = math.exp(math.sqrt(3)), 1.0
    expected = -math.log(high / (2 * high + 2 * low))
    assert mask_loss(maps, mask).tolist() == pytest.approx([expected])


def test_mask_loss_of_a_map_inside_its_mask_is_small_and_outside_large() -> None:
    peak = torch.zeros(1, 2, 8, 8)
    peak[..., 3:5, 3:5] = 10
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, 2:6] = 1
    assert mask_loss(peak, mask).item() < mask_loss(peak, 1 - mask).item() / 3


def test_an_image_without_a_mask_costs_nothing_and_pulls_nothing() -> None:
    maps = torch.randn(2, 3, 4, 4, requires_grad=True)
    masks = torch.zeros(2, 4, 4)
    masks[1, 1:3, 1:3] = 1
    loss = mask_loss(maps, masks)
    (pull,) = torch.autograd.grad(loss.sum(), maps)
    assert loss[0] == 0
    assert loss[1] > 0
    assert pull[0].abs().max() == 0
    assert pull[1].abs().max() > 0


def test_mask_loss_of_a_flat_map_is_finite() -> None:
    maps = torch.zeros(1, 1, 4, 4, requires_grad=True)
    (pull,) = torch.autograd.grad(mask_loss(maps, torch.ones(1, 4, 4)).sum(), maps)
    assert torch.isfinite(pull).all()
