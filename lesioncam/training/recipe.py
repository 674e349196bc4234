"""The recipe's formulas: sides, rate, frozen layers, class weights, the best epoch."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lesioncam.settings import TrainSettings
from lesioncam.vision.network import VGGGAP

_COARSE = 16  # pixels; sides of coarse images are a multiple, as a VGG halves them four times


def epoch_sides(settings: TrainSettings, side: int, epochs: int) -> tuple[int, ...]:
    """Of each of so many epochs the side of its images in pixels: coarse ones first, then `side`.

    The last epoch is never coarse.
    """
    coarse = min(round(epochs * settings.low_resolution_fraction), epochs - 1)
    small = max(1, round(side * settings.low_resolution_scale / _COARSE)) * _COARSE
    return (small,) * coarse + (side,) * (epochs - coarse)


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


def best_epoch(aucs: Sequence[float | None], sides: Sequence[int]) -> int:
    """The epoch, from 1, with the highest held-out mean AUC; of equals the last, at a lower rate.

    Only epochs at the last one's side compete, as scoring shows the network images of that side.

    Args:
        aucs: of each epoch that is done; None, where it is undefined, is the lowest.
        sides: of each epoch of the stage, the side of its images.

    Returns:
        The epoch, or 0 while none at that side is done.
    """
    done = [
        (auc or 0.0, epoch)
        for epoch, (auc, side) in enumerate(zip(aucs, sides, strict=False), start=1)
        if side == sides[-1]
    ]
    return max(done, default=(0.0, 0))[1]
