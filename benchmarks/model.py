"""Model: a bundle to measure with, where no trained one is at hand.

Its weights cost the same as trained ones, and its probabilities differ between images: its linear
layers follow the directions in which the features of synthetic images differ most, so that a
difference in what two programs feed their networks shows in their probabilities.
"""

from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.images import SIZES, photographs
from lesioncam.demo import CLASSES
from lesioncam.settings import BACKBONES, CropRule, ModelSettings
from lesioncam.storage.bundle import Bundle, save_bundle
from lesioncam.storage.weights import load_backbone
from lesioncam.vision.classifier import to_channels_first
from lesioncam.vision.network import IMAGENET_MEAN, IMAGENET_STD, VGGGAP, build_network

_SEED = 1
_IMAGES = 24  # synthetic images that the linear layers are fitted to
_BATCH = 8
_RANDOM_THRESHOLD = 0.85  # random maps are so broad that at the usual one boxes are whole images
_SPREAD = 1.5  # standard deviation of a logit over images


def write_bundle(uri: str, backbone: str, weights: str | None) -> None:
    """Save a bundle whose convolutions are random, or as in a file of ImageNet weights."""
    side = BACKBONES[backbone].input_size
    rule = CropRule() if weights else CropRule(threshold=_RANDOM_THRESHOLD)
    settings = ModelSettings(
        CLASSES, backbone, side, 2 * side, IMAGENET_MEAN, IMAGENET_STD, 0.5, rule
    )
    torch.manual_seed(_SEED)
    network = build_network(settings).eval()
    if weights is not None:
        load_backbone(network, backbone, weights)
        mean, std = network.mean.flatten().tolist(), network.std.flatten().tolist()
        settings = replace(settings, mean=tuple(mean), std=tuple(std))
    fit_linear_layer(network, _images(side))
    state = network.state_dict()
    save_bundle(Bundle(settings, state, state), uri, "A model to measure speed with.\n")


@torch.inference_mode()
def fit_linear_layer(network: VGGGAP, images: Tensor) -> None:
    """Set the linear layer so that the logits of (B, 3, s, s) uint8 images differ.

    Its K rows become the first K principal components of the pooled features, scaled to logits of
    mean 0 and one standard deviation.
    """
    pooled = torch.cat(
        [network(batch)[1].mean(dim=(2, 3)) for batch in torch.split(images, _BATCH)]
    )
    mean = pooled.mean(dim=0)
    directions = torch.linalg.svd(pooled - mean, full_matrices=False).Vh[: len(CLASSES)]
    weight = directions * (_SPREAD / ((pooled - mean) @ directions.T).std(dim=0))[:, None]
    network.linear.weight.copy_(weight)
    network.linear.bias.copy_(-weight @ mean)


def _images(side: int) -> Tensor:
    """Synthetic images as a network takes them: (B, 3, s, s) uint8."""
    shrunken = [
        np.array(image.resize((side, side), Image.Resampling.BILINEAR))
        for image in islice(photographs(SIZES[0], _SEED), _IMAGES)
    ]
    return to_channels_first(torch.from_numpy(np.stack(shrunken)))
