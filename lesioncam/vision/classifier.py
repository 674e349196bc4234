"""The two-stage classifier: canvases in; probabilities of both stages, map, box and crop out.

The one place that composes network, CAM and crop. Scoring, training, the benchmarks and the Python
API all use it, so stage 2 is trained on crops like those it scores. Knows nothing about files, Ray
or class names.

Shapes: `B` batch, `C` feature channels, `K` classes, `S` canvas size, `s` input size, `h, w` rows
and columns of a map. Boxes are on the canvas, in pixels: (x0, y0, x1, y1), x before y, half-open.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lesioncam.settings import ModelSettings
from lesioncam.vision.calibration import calibrate
from lesioncam.vision.cam import choose_map, class_activation_maps, normalize_map
from lesioncam.vision.crop import (
    at_border,
    canvas_bounds,
    crop_boxes,
    lesion_boxes,
    sample_boxes,
)


class Network(Protocol):
    """One stage's network, ready for inference, whichever engine runs it.

    Inputs and results are tensors on the device of the canvases that the classifier is given.
    """

    @property
    def class_weights(self) -> Tensor:
        """(K, C) float32, the linear layer's weights."""

    def __call__(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """Classify (B, 3, s, s) uint8 RGB.

        Returns:
            logits (B, K) float32, and the features before pooling (B, C, h, w), in any precision.
        """


@dataclass(frozen=True)
class Localization:
    """Stage 1's results for a batch.

    Attributes:
        probabilities: (B, K) float32.
        boxes: (B, 4) int64, where the lesion is.
        crop_boxes: (B, 4) int64, the boxes with their surroundings.
        crops: (B, 3, s, s) uint8, stage 2's input: the pixels of `crop_boxes`.
        maps: (B, h, w) uint8, the map behind the box, 0 its minimum and 255 its peak.
        flat: (B,) bool, whether the map had no peak, so that the box is the whole canvas.
        at_border: (B,) bool, whether the lesion reaches the border of the image.
    """

    probabilities: Tensor
    boxes: Tensor
    crop_boxes: Tensor
    crops: Tensor
    maps: Tensor
    flat: Tensor
    at_border: Tensor


@dataclass(frozen=True)
class Prediction:
    """Both stages' results for a batch.

    Attributes:
        localization: stage 1's.
        stage2: (B, K) float32, stage 2's probabilities.
        final: (B, K) float32, the final probabilities.
    """

    localization: Localization
    stage2: Tensor
    final: Tensor


@dataclass(frozen=True)
class Localizer:
    """Stage 1: classifies whole images, and finds and cuts out the lesion.

    Attributes:
        settings: the bundle's.
        network: stage 1's.
    """

    settings: ModelSettings
    network: Network

    @torch.inference_mode()
    def __call__(self, canvases: Tensor) -> Localization:
        """Localize the lesions of (B, 3, S, S) uint8 canvases, on the network's device."""
        rule, canvas_size = self.settings.crop, canvases.shape[-1]
        images = sample_boxes(canvases, whole_boxes(canvases), self.settings.input_size)
        probabilities, class_maps = _predict(self.network, images, self.settings.test_time_rotation)
        maps, flat = normalize_map(choose_map(class_maps, probabilities, rule.map))
        bounds = canvas_bounds(maps, rule.threshold, canvas_size)
        boxes = lesion_boxes(bounds, flat, rule, canvas_size)
        widened = crop_boxes(boxes, rule, canvas_size)
        return Localization(
            probabilities=probabilities,
            boxes=boxes,
            crop_boxes=widened,
            crops=sample_boxes(canvases, widened, self.settings.input_size),
            maps=(maps * 255).round().to(torch.uint8),
            flat=flat,
            at_border=at_border(bounds, canvas_size),
        )


@dataclass(frozen=True)
class CropClassifier:
    """Stage 2: classifies crops.

    Attributes:
        settings: the bundle's.
        network: stage 2's.
    """

    settings: ModelSettings
    network: Network

    @torch.inference_mode()
    def __call__(self, crops: Tensor) -> Tensor:
        """Probabilities (B, K) float32 of crops (B, 3, s, s) uint8, on the network's device."""
        probabilities, _ = _predict(self.network, crops, self.settings.test_time_rotation)
        return probabilities


@dataclass(frozen=True)
class TwoStageClassifier:
    """Both stages together.

    Attributes:
        localize: stage 1.
        classify: stage 2.
    """

    localize: Localizer
    classify: CropClassifier

    def __call__(self, canvases: Tensor) -> Prediction:
        """Classify (B, 3, S, S) uint8 canvases, on the networks' device."""
        found = self.localize(canvases)
        stage2 = self.classify(found.crops)
        final = combine(found.probabilities, stage2, self.classify.settings)
        return Prediction(found, stage2, final)


def combine(stage1: Tensor, stage2: Tensor, settings: ModelSettings) -> Tensor:
    """The final probabilities: the calibrated mean of both stages', all (B, K)."""
    mean = mean_of_stages(stage1, stage2, settings.stage2_weight)
    return mean if settings.calibration is None else calibrate(mean, settings.calibration)


def mean_of_stages(stage1: Tensor, stage2: Tensor, stage2_weight: float) -> Tensor:
    """The weighted mean of both stages' probabilities, all (B, K)."""
    return (1 - stage2_weight) * stage1 + stage2_weight * stage2


def whole_boxes(canvases: Tensor) -> Tensor:
    """(B, 4) int64: each box is the whole canvas."""
    size = canvases.shape[-1]
    return torch.tensor([0, 0, size, size], device=canvases.device).expand(len(canvases), 4)


def to_channels_first(canvases: Tensor) -> Tensor:
    """(B, S, S, 3), as decoded, to (B, 3, S, S), as networks take them; copies nothing."""
    return canvases.permute(0, 3, 1, 2)


def _predict(network: Network, images: Tensor, rotation: bool) -> tuple[Tensor, Tensor]:
    """Probabilities (B, K) and class maps (B, K, h, w) of images (B, 3, s, s).

    With `rotation` the means over two views, the images and the images rotated by 180 degrees;
    the maps of the rotated ones are rotated back.
    """
    probabilities, maps = _predict_view(network, images)
    if rotation:
        rotated_probabilities, rotated_maps = _predict_view(network, _rotated(images))
        probabilities = (probabilities + rotated_probabilities) / 2
        maps = (maps + _rotated(rotated_maps)) / 2
    return probabilities, maps


def _predict_view(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    logits, features = network(images)
    return logits.softmax(dim=1), class_activation_maps(features, network.class_weights)


def _rotated(pixels: Tensor) -> Tensor:
    """(B, C, h, w) rotated by 180 degrees."""
    return pixels.flip((2, 3))
