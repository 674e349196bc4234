"""Augmentation: random rotation, flips, zoom, shift, brightness, contrast and color.

Rotation and flips as in Jia & Shen (arXiv 1703.01053). Zoom and shift keep stage 2 from learning
a box's exact position, brightness and color keep both stages from learning one camera. Parameters
are drawn apart from applying them: every worker draws those of the whole batch and applies its
slice, so the number of workers does not change what an image becomes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lesioncam.settings import TrainSettings
from lesioncam.vision.crop import sample_boxes


@dataclass(frozen=True)
class Draws:
    """The random parameters of each image of a batch.

    Attributes:
        affine: (B, 2, 2), rotation, flip and zoom, as `sample_boxes` takes it.
        shift: (B, 2), in fractions of the box, x before y.
        brightness: (B,), a factor on all pixels.
        contrast: (B,), a factor on their distance from the image's mean.
        tint: (B, 3), a factor on each channel: another white balance.
        saturation: (B,), a factor on each channel's distance from the pixel's gray.
    """

    affine: Tensor
    shift: Tensor
    brightness: Tensor
    contrast: Tensor
    tint: Tensor
    saturation: Tensor

    def rank_slice(self, rank: int, world: int) -> "Draws":
        """Those of one worker: of every `world`-th image, from `rank` on."""
        return Draws(*(part[rank::world] for part in vars(self).values()))


def draw(count: int, settings: TrainSettings, generator: torch.Generator) -> Draws:
    """Draw the parameters of `count` images, uniformly within the settings."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    angle = uniform(count) * math.radians(settings.rotate)
    flip = torch.where(uniform(count, 2) < 0, -1.0, 1.0)
    scale = (1 + settings.zoom) ** uniform(count)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rotation = torch.stack([cos, -sin, sin, cos], dim=1).view(count, 2, 2)
    return Draws(
        rotation * flip[:, None, :],
        uniform(count, 2) * settings.shift,
        1 + uniform(count) * settings.brightness,
        1 + uniform(count) * settings.brightness,
        1 + uniform(count, 3) * settings.color,
        1 + uniform(count) * 2 * settings.color,
    )


def augment(canvases: Tensor, boxes: Tensor, draws: Draws, size: int) -> Tensor:
    """Cut boxes out of canvases and apply geometry, color, contrast and brightness.

    Args:
        canvases: (B, 3, S, S) uint8.
        boxes: (B, 4) on the canvas: the whole of it for stage 1, the crop for stage 2.
        draws: the parameters of these B images.
        size: the input size s.

    Returns:
        (B, 3, s, s) uint8.
    """
    images = apply_geometry(canvases, boxes, draws, size).float()

    def factor(values: Tensor) -> Tensor:
        return values.to(images.device).view(len(images), -1, 1, 1)

    images *= factor(draws.tint)
    gray = images.mean(dim=1, keepdim=True)
    images = gray + (images - gray) * factor(draws.saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * factor(draws.contrast)) * factor(draws.brightness)
    return images.round_().clamp_(0, 255).to(torch.uint8)


def apply_geometry(canvases: Tensor, boxes: Tensor, draws: Draws, size: int) -> Tensor:
    """The geometry of `augment` alone, for any number of channels: masks too."""
    boxes = boxes.float()
    shift = draws.shift.to(boxes.device) * (boxes[:, 2:] - boxes[:, :2])
    boxes = boxes + torch.cat([shift, shift], dim=1)
    return sample_boxes(canvases, boxes, size, draws.affine.to(canvases.device))
