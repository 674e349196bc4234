"""Calibrate: the ranges of activations."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lesioncam.settings import ModelSettings
from lesioncam.vision.network import VGGGAP, build_network
from lesioncam.vision.ranges import activation_ranges, evenly_spaced, spread, widest_ranges


@pytest.fixture
def network(model_settings: ModelSettings) -> VGGGAP:
    torch.manual_seed(0)
    return build_network(model_settings).eval()


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 96, 96), dtype=torch.uint8, generator=generator)


def test_a_range_ends_at_the_largest_input_of_its_convolution(network: VGGGAP) -> None:
    inputs: list[Tensor] = []
    convolutions = [module for module in network.features if isinstance(module, nn.Conv2d)]
    for module in convolutions[1:]:
        module.register_forward_hook(lambda _, taken, __: inputs.append(taken[0].clone()))
    network(images(3))
    expected = tuple(values.max().item() for values in inputs)
    inputs.clear()
    assert len(expected) == 3
    assert activation_ranges(network, images(3)) == pytest.approx(expected, rel=1e-5)


def test_batches_together_have_the_ranges_of_all_their_images(network: VGGGAP) -> None:
    batches = torch.chunk(images(6), 3)
    found = widest_ranges(activation_ranges(network, batch) for batch in batches)
    assert found == pytest.approx(activation_ranges(network, images(6)), rel=1e-5)


def test_rotated_images_count_where_the_network_sees_them(network: VGGGAP) -> None:
    rotated = images(2).flip((2, 3))
    both = widest_ranges(activation_ranges(network, batch) for batch in (images(2), rotated))
    found = activation_ranges(network, images(2), rotation=True)
    assert found == pytest.approx(both, rel=1e-5)
    assert found != activation_ranges(network, images(2))


def test_a_convolution_that_takes_only_zeros_has_a_range() -> None:
    assert widest_ranges([(0.0, 2.0), (0.0, 3.0)]) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(0, 3, []), (2, 3, [0, 1]), (3, 3, [0, 1, 2]), (7, 3, [0, 2, 4])],
)
def test_evenly_spaced(count: int, limit: int, expected: list[int]) -> None:
    np.testing.assert_array_equal(evenly_spaced(count, limit), expected)


@pytest.mark.parametrize("count", [0, 1, 5, 11, 12, 1000])
def test_items_of_a_stream_are_chosen_from_all_of_it(count: int) -> None:
    chosen = spread(iter(range(count)), 5)
    assert len(chosen) == min(count, 5)
    assert chosen == sorted(set(chosen))
    assert not chosen or (chosen[0] == 0 and chosen[-1] >= 0.6 * (count - 1))
