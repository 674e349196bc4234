"""The two-stage classifier: canvases in; probabilities of both stages, map, box and crop out.

The one place that composes network, CAM and crop. Scoring, training, the benchmarks and the Python
API all go through it, so stage 2 learns on crops like those it will meet. Knows nothing about
files, Ray or class names.

Shapes: `B` batch, `K` classes, `S` canvas size, `s` input size, `h, w` rows and columns of a map.
Boxes are on the canvas, in pixels: (x0, y0, x1, y1), x before y, half-open.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lesioncam.settings import ModelSettings
from lesioncam.vision.cam import choose_map, class_activation_maps, normalize_map
from lesioncam.vision.crop import crop_boxes, lesion_boxes, sample_boxes

_ROWS_AND_COLUMNS = (2, 3)  # axes of (B, C, h, w); flipping both is a rotation by 180 degrees


class Network(Protocol):
    """One stage's network, ready for inference, whichever engine runs it."""

    @property
    def class_weights(self) -> Tensor:
        """(K, C) float32, the linear layer's weights, on the network's device."""

    def __call__(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        """(B, 3, s, s) uint8 RGB -> logits (B, K) float32 and features (B, C, h, w)."""


@dataclass(frozen=True)
class Localization:
    """What stage 1 found in a batch.

    Attributes:
        probabilities: (B, K) float32.
        boxes: (B, 4) int64, where the lesion is.
        crop_boxes: (B, 4) int64, what stage 2 sees: the box with its surroundings.
        crops: (B, 3, s, s) uint8, the content of `crop_boxes`.
        maps: (B, h, w) uint8, the map behind the box, 0 its minimum and 255 its peak.
        flat: (B,) bool, the map had no peak and the box is the whole canvas.
    """

    probabilities: Tensor
    boxes: Tensor
    crop_boxes: Tensor
    crops: Tensor
    maps: Tensor
    flat: Tensor


@dataclass(frozen=True)
class Prediction:
    """What both stages found in a batch.

    Attributes:
        localization: stage 1's.
        stage2: (B, K) float32, stage 2's probabilities.
        final: (B, K) float32, both combined.
    """

    localization: Localization
    stage2: Tensor
    final: Tensor


@dataclass(frozen=True)
class Localizer:
    """Stage 1: classifies whole images and finds the region that stage 2 sees.

    Attributes:
        settings: the bundle's.
        network: stage 1's.
    """

    settings: ModelSettings
    network: Network

    @torch.inference_mode()
    def __call__(self, canvases: Tensor) -> Localization:
        """(B, 3, S, S) uint8 canvases, on the network's device."""
        rule, canvas_size = self.settings.crop, canvases.shape[-1]
        images = sample_boxes(canvases, whole_boxes(canvases), self.settings.input_size)
        probabilities, maps = _forward(self.network, images, self.settings.test_time_rotation)
        chosen, flat = normalize_map(choose_map(maps, probabilities, rule.map))
        boxes = lesion_boxes(chosen, flat, rule, canvas_size)
        seen = crop_boxes(boxes, rule, canvas_size)
        return Localization(
            probabilities=probabilities,
            boxes=boxes,
            crop_boxes=seen,
            crops=sample_boxes(canvases, seen, self.settings.input_size),
            maps=(chosen * 255).round().to(torch.uint8),
            flat=flat,
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
        probabilities, _ = _forward(self.network, crops, self.settings.test_time_rotation)
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
        """(B, 3, S, S) uint8 canvases, on the networks' device."""
        found = self.localize(canvases)
        stage2 = self.classify(found.crops)
        weight = self.localize.settings.stage2_weight
        return Prediction(found, stage2, combine(found.probabilities, stage2, weight))


def combine(stage1: Tensor, stage2: Tensor, stage2_weight: float) -> Tensor:
    """The final probabilities (B, K): the weighted mean of both stages'."""
    return (1 - stage2_weight) * stage1 + stage2_weight * stage2


def whole_boxes(canvases: Tensor) -> Tensor:
    """(B, 4): for each canvas the box of the whole of it."""
    size = canvases.shape[-1]
    return torch.tensor([0, 0, size, size], device=canvases.device).expand(len(canvases), 4)


def to_channels_first(canvases: Tensor) -> Tensor:
    """(B, S, S, 3), as decoding makes them, to (B, 3, S, S), as networks take them; no copy."""
    return canvases.permute(0, 3, 1, 2)


def _forward(network: Network, images: Tensor, rotation: bool) -> tuple[Tensor, Tensor]:
    """Probabilities (B, K) and class maps (B, K, h, w), averaged over the views.

    The views are the images and, with `rotation`, the images rotated by 180 degrees; the maps of
    those are rotated back.
    """
    views = list(_views(network, images, rotation))
    probabilities, maps = (torch.stack(part).mean(dim=0) for part in zip(*views, strict=True))
    return probabilities, maps


def _views(network: Network, images: Tensor, rotation: bool) -> Iterator[tuple[Tensor, Tensor]]:
    for axes in ((), _ROWS_AND_COLUMNS)[: 1 + rotation]:
        logits, features = network(images.flip(axes))
        maps = class_activation_maps(features, network.class_weights)
        yield logits.softmax(dim=1), maps.flip(axes)
