"""The recipe's formulas: input sizes, learning rate, frozen blocks, class weights, best epoch."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lesioncam.settings import TrainSettings
from lesioncam.vision.network import VGGGAP

_STRIDE = 16  # pixels; low resolutions are multiples of it, as a VGG halves its input four times


def epoch_sizes(settings: TrainSettings, size: int, epochs: int) -> tuple[int, ...]:
    """The input size of each epoch, in pixels: low resolution first, then `size`.

    The last epoch never has low resolution.
    """
    low_epochs = min(round(epochs * settings.low_resolution_fraction), epochs - 1)
    low = max(1, round(size * settings.low_resolution_scale / _STRIDE)) * _STRIDE
    return (low,) * low_epochs + (size,) * (epochs - low_epochs)


def one_cycle(step: int, total: int) -> float:
    """A step's learning rate as a fraction of its peak: up for a fifth, then down, by cosines.

    L. Smith, "Super-convergence" (arXiv 1708.07120), with a constant momentum.
    """
    peak = total / 5
    if step < peak:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * step / peak)) / 2
    return max(1e-4, (1 + math.cos(math.pi * (step - peak) / max(total - peak, 1))) / 2)


def freeze_blocks(network: VGGGAP, blocks: int) -> None:
    """Exclude the convolutions before the `blocks`-th max-pool from training."""
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


def best_epoch(aucs: Sequence[float | None], sizes: Sequence[int]) -> int:
    """The epoch, from 1, with the highest held-out mean AUC; the last of equals.

    Only epochs at the last epoch's input size compete, because scoring uses that size.

    Args:
        aucs: of each finished epoch; an undefined one, None, counts as the lowest.
        sizes: the input size of each epoch of the stage.

    Returns:
        The epoch, or 0 while none at that size is finished.
    """
    finished = [
        (auc or 0.0, epoch)
        for epoch, (auc, size) in enumerate(zip(aucs, sizes, strict=False), start=1)
        if size == sizes[-1]
    ]
    return max(finished, default=(0.0, 0))[1]
