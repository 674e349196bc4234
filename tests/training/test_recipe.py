import numpy as np
import pytest
import torch
from torch import nn

from lesioncam.settings import TrainSettings
from lesioncam.training.recipe import (
    balanced_weights,
    best_epoch,
    epoch_sizes,
    freeze_blocks,
    one_cycle,
)
from lesioncam.vision.network import VGGGAP


@pytest.mark.parametrize(
    ("fraction", "scale", "size", "epochs", "expected"),
    [
        (0.8, 0.8, 160, 5, (128, 128, 128, 128, 160)),
        (0.5, 0.75, 64, 4, (48, 48, 64, 64)),
        (0.9, 0.5, 96, 3, (48, 48, 96)),  # one has full resolution in any case
        (0.9, 0.5, 96, 1, (96,)),
        (0.0, 0.5, 96, 2, (96, 96)),
    ],
)
def test_low_resolution_epochs_come_first_and_the_last_is_full(
    fraction: float, scale: float, size: int, epochs: int, expected: tuple[int, ...]
) -> None:
    settings = TrainSettings(low_resolution_fraction=fraction, low_resolution_scale=scale)
    assert epoch_sizes(settings, size, epochs) == expected


def test_freezing_stops_at_the_block() -> None:
    network = VGGGAP("tiny", 3)
    freeze_blocks(network, 2)
    convolutions = [module for module in network.features if isinstance(module, nn.Conv2d)]
    assert [c.weight.requires_grad for c in convolutions] == [False, False, True, True]
    assert network.linear.weight.requires_grad


@pytest.mark.parametrize("total", range(1, 13))
def test_the_rate_goes_up_and_then_down_whatever_the_number_of_steps(total: int) -> None:
    rates = [one_cycle(step, total) for step in range(total + 1)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] <= 0.01 or total == 1


def test_freezing_no_block_freezes_nothing() -> None:
    network = VGGGAP("tiny", 3)
    freeze_blocks(network, 0)
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("power", "expected"), [(0.0, [1.0, 1.0]), (1.0, [2.0, 2 / 3]), (0.5, [1.464, 0.845])]
)
def test_class_weights_by_hand(power: float, expected: list[float]) -> None:
    labels = np.array([0, 1, 1, 1])  # frequencies 1/4 and 3/4
    weights = balanced_weights(labels, 2, power)
    torch.testing.assert_close(weights, torch.tensor(expected), atol=1e-3, rtol=0)
    assert float(weights[torch.from_numpy(labels)].mean()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("aucs", "expected"),
    [
        ([], 0),
        ([0.9, 0.8], 0),  # low resolution only
        ([0.9, 0.8, 0.6], 3),
        ([0.9, 0.8, None], 3),
        ([0.9, 0.8, 0.6, 0.7, 0.65], 4),
        ([0.9, 0.8, 0.6, 0.7, 0.7], 5),  # the last of equals
    ],
)
def test_the_best_epoch_is_one_at_full_resolution(aucs: list[float | None], expected: int) -> None:
    assert best_epoch(aucs, (128, 128, 224, 224, 224)) == expected
