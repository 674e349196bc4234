"""Class activation maps: formulas on cases worked by hand."""

import math

import pytest
import torch

from lesioncam.vision.cam import (
    FLAT_RANGE,
    choose_map,
    class_activation_maps,
    lesion_loss,
    normalize_map,
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


def test_normalize_by_hand() -> None:
    maps = torch.tensor([[[2.0, 4.0], [3.0, 6.0]], [[-1.0, 0.0], [-0.5, 1.0]]])
    scaled, flat = normalize_map(maps)
    assert scaled.tolist() == [[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.5], [0.25, 1.0]]]
    assert scaled.dtype == torch.float32
    assert flat.dtype == torch.bool
    assert flat.tolist() == [False, False]


@pytest.mark.parametrize(
    "bad",
    [
        [[3.0, 3.0], [3.0, 3.0]],
        [[0.0, 0.0], [0.0, FLAT_RANGE / 2]],
        [[1.0, 2.0], [math.nan, 3.0]],
        [[1.0, 2.0], [math.inf, 3.0]],
        [[math.inf, -math.inf], [0.0, 0.0]],
        [[3e38, -3e38], [0.0, 0.0]],  # finite, but their difference is not
    ],
    ids=str,
)
def test_map_without_peak_or_not_finite_is_flat_and_zero(bad: list[list[float]]) -> None:
    good = [[0.0, 1.0], [2.0, 4.0]]
    scaled, flat = normalize_map(torch.tensor([good, bad]))
    assert flat.tolist() == [False, True]
    assert scaled.tolist() == [[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_span_just_above_flat_range_has_a_peak() -> None:
    scaled, flat = normalize_map(torch.tensor([[[0.0, 0.0], [0.0, FLAT_RANGE * 1.01]]]))
    assert flat.tolist() == [False]
    assert scaled.flatten().tolist() == [0.0, 0.0, 0.0, 1.0]


def test_lesion_loss_by_hand() -> None:
    maps = torch.zeros(1, 2, 2)  # a sigmoid of a half everywhere
    lesions = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    dice = 1 - (2 * 0.5 + 1) / (2 + 1 + 1)
    assert lesion_loss(maps, lesions).tolist() == pytest.approx([math.log(2) + dice])


def test_lesion_loss_of_a_map_on_its_lesion_is_small_and_elsewhere_large() -> None:
    lesions = torch.zeros(1, 8, 8)
    lesions[:, 2:6, 2:6] = 1
    maps = lesions * 20 - 10
    assert lesion_loss(maps, lesions).item() < 0.001
    assert lesion_loss(-maps, lesions).item() > 10


def test_a_map_that_misses_a_small_lesion_has_a_large_loss() -> None:
    lesions = torch.zeros(1, 14, 14)
    lesions[:, 3, 3] = 1
    nothing = torch.full((1, 14, 14), -10.0)
    found = nothing + lesions * 20
    assert lesion_loss(nothing, lesions).item() > 10 * lesion_loss(found, lesions).item()


def test_a_term_common_to_all_classes_changes_the_loss_and_no_probability() -> None:
    lesions = torch.zeros(1, 2, 2)
    lesions[0, 0, 1] = 1
    logits, common = MAPS[:1].mean(dim=(2, 3)), lesions * 9 - 4
    moved = MAPS[:1] + common[:, None]
    torch.testing.assert_close(
        moved.mean(dim=(2, 3)).softmax(dim=1), logits.softmax(dim=1), atol=1e-6, rtol=0
    )
    before, after = (choose_map(maps, logits, "maximum") for maps in (MAPS[:1], moved))
    assert lesion_loss(after, lesions).item() < lesion_loss(before, lesions).item()


def test_an_image_without_a_lesion_has_no_loss_and_no_gradient() -> None:
    maps = torch.randn(2, 4, 4, requires_grad=True)
    lesions = torch.zeros(2, 4, 4)
    lesions[1, 1:3, 1:3] = 1
    loss = lesion_loss(maps, lesions)
    (gradient,) = torch.autograd.grad(loss.sum(), maps)
    assert loss[0] == 0
    assert loss[1] > 0
    assert gradient[0].abs().max() == 0
    assert gradient[1].abs().max() > 0


@pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
def test_lesion_loss_of_a_flat_map_is_finite(value: float) -> None:
    maps = torch.full((1, 4, 4), value, requires_grad=True)
    loss = lesion_loss(maps, torch.eye(4)[None])
    (gradient,) = torch.autograd.grad(loss.sum(), maps)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
