"""Localise: canvases -> stage-1 probabilities, boxes, and what stage 2 sees of each canvas.

The one place that composes them: training and scoring both crop through here, so stage 2 learns on
crops like those it will meet.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lesioncam.settings import CropRule
from lesioncam.vision.cam import choose_map, class_activation_maps, normalise_map
from lesioncam.vision.crop import crop_boxes, sample_boxes, with_context
from lesioncam.vision.network import VGGGAP

_FORMS: tuple[tuple[int, ...], ...] = ((), (2, 3))  # flipped axes of (B, C, h, w)


@dataclass(frozen=True)
class Localised:
    """What stage 1 found in a batch.

    Attributes:
        probabilities: (B, K) float32.
        boxes: (B, 4) int64 on the canvas: x0, y0, x1, y1, half-open; where the lesion is.
        views: (B, 4) int64 likewise: the crop that stage 2 sees, the box with its surroundings.
        maps: (B, h, w) uint8: the map behind the crop, 0 its minimum and 255 its peak.
        flat: (B,) bool: the map had no peak and the box is the whole canvas.
    """

    probabilities: Tensor
    boxes: Tensor
    views: Tensor
    maps: Tensor
    flat: Tensor


@torch.inference_mode()
def localise(
    network: VGGGAP, canvases: Tensor, side: int, rule: CropRule, half_turn: bool = False
) -> Localised:
    """Classify whole images and find the region that stage 2 looks at.

    Args:
        network: stage 1, in evaluation mode.
        canvases: (B, 3, S, S) uint8, on the network's device.
        side: the input side s.
        rule: which map, and how it becomes a box.
        half_turn: whether to look at each image a second time, turned by half, and take the mean.
    """
    images = sample_boxes(canvases, whole_boxes(canvases), side)
    probabilities, maps = _look(network, images, half_turn)
    chosen, flat = normalise_map(choose_map(maps, probabilities, rule.map))
    canvas_side = canvases.shape[-1]
    boxes = crop_boxes(chosen, flat, rule, canvas_side)
    views = with_context(boxes, rule, canvas_side)
    return Localised(probabilities, boxes, views, (chosen * 255).round().to(torch.uint8), flat)


@torch.inference_mode()
def classify(network: VGGGAP, crops: Tensor, half_turn: bool = False) -> Tensor:
    """Probabilities (B, K) of stage 2 for crops (B, 3, s, s) uint8 on the network's device."""
    probabilities, _ = _look(network, crops, half_turn)
    return probabilities


def _look(network: VGGGAP, images: Tensor, half_turn: bool) -> tuple[Tensor, Tensor]:
    """Probabilities (B, K) and class maps (B, K, h, w), the means where images are seen twice."""
    seen = []
    for axes in _FORMS if half_turn else _FORMS[:1]:
        logits, features = network(images.flip(axes))
        maps = class_activation_maps(features, network.linear.weight)
        seen.append((logits.softmax(dim=1), maps.flip(axes)))
    probabilities, maps = (torch.stack(part).mean(dim=0) for part in zip(*seen, strict=True))
    return probabilities, maps


def combine(stage1: Tensor, stage2: Tensor, stage2_weight: float) -> Tensor:
    """The final probabilities (B, K): the weighted mean of both stages'."""
    return (1 - stage2_weight) * stage1 + stage2_weight * stage2


def whole_boxes(canvases: Tensor) -> Tensor:
    """(B, 4): for each canvas the box of the whole of it."""
    side = canvases.shape[-1]
    return torch.tensor([0, 0, side, side], device=canvases.device).expand(len(canvases), 4)


def to_channels_first(canvases: Tensor) -> Tensor:
    """(B, S, S, 3), as decoding makes them, to (B, 3, S, S), as networks take them; no copy."""
    return canvases.permute(0, 3, 1, 2)
