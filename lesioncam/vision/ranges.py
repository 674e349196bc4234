"""Ranges of a network's activations, which int8 needs beside the weights.

A range goes up to the largest value, as clipping costs more than coarse steps: percentiles and the
least squared error were worse on a trained VGG-16, and a correction of the biases made no
difference. The images have to be many enough to hold values as large as those of other images.

Shapes: `B` batch, `s` input size.
"""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lesioncam.vision.network import VGGGAP

RANGE_IMAGES = 300  # that ranges are measured on, where there are so many

Item = TypeVar("Item")


def evenly_spaced(count: int, limit: int) -> np.ndarray:
    """Indices of at most `limit` of `count` items, in order, the first among them."""
    chosen = min(count, limit)
    return np.arange(chosen) * count // max(1, chosen)


def spread(items: Iterable[Item], limit: int) -> list[Item]:
    """At most `limit` of the items, evenly spaced, the first among them; holds three times as many.

    Args:
        items: any number of them.
        limit: at least 1.
    """
    kept: list[Item] = []
    step = 1
    for number, item in enumerate(items):
        if number % step == 0:
            kept.append(item)
        if len(kept) > 2 * limit:
            kept, step = kept[::2], 2 * step
    return [kept[index] for index in evenly_spaced(len(kept), limit)]


@torch.inference_mode()
def activation_ranges(
    network: VGGGAP, images: Tensor, *, rotation: bool = False
) -> tuple[float, ...]:
    """The largest value that each convolution after the first takes; 0 where it takes only zeros.

    Args:
        network: in float32.
        images: (B, 3, s, s) uint8 RGB, as the network classifies them.
        rotation: whether it also classifies them rotated by 180 degrees.
    """
    if rotation:
        images = torch.cat([images, images.flip((2, 3))])
    values, largest = network.normalize(images), []
    for module in network.features:
        if isinstance(module, nn.Conv2d):
            largest.append(values.max())
        values = module(values)
    return tuple(torch.stack(largest[1:]).tolist())


def widest_ranges(ranges: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """The ranges that hold all of these, of one network on several batches.

    A convolution that took only zeros gets a range of 1: it has to have one.
    """
    return tuple(max(ends) or 1.0 for ends in zip(*ranges, strict=True))
