"""The recipe's parts that are formulas: rate, frozen layers, class weights."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from lesioncam.vision.network import VGGGAP


def one_cycle(step: int, total: int) -> float:
    """The learning rate of a step as a share of its peak: up for a fifth, then down, by cosines.

    L. Smith, "Super-convergence" (arXiv 1708.07120), with a constant momentum.
    """
    peak = total / 5
    if step < peak:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * step / peak)) / 2
    return max(1e-4, (1 + math.cos(math.pi * (step - peak) / max(total - peak, 1))) / 2)


def freeze_blocks(network: VGGGAP, blocks: int) -> None:
    """Keep the convolutions of the first `blocks` blocks (up to so many max-pools) as they are."""
    block = 0
    for module in network.features:
        if isinstance(module, nn.MaxPool2d):
            block += 1
        if block < blocks:
            module.requires_grad_(False)


def balanced_weights(labels: np.ndarray, classes: int, power: float) -> Tensor:
    """(K,) class weights: (1 / frequency) ** power, scaled so that the images' mean weight is 1."""
    counts = np.bincount(labels, minlength=classes)
    weights = (len(labels) / np.maximum(counts, 1)) ** power
    return torch.tensor(weights / (weights * counts).sum() * len(labels), dtype=torch.float32)
