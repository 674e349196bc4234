"""Augmentation: random turns, flips, zoom, shifts, light and color, drawn and then applied.

Rotation and flips as in Jia & Shen (arXiv 1703.01053); zoom and shifts keep stage 2 from learning
where exactly a box sits, light and color either stage from learning one camera's. Drawing is apart
from applying, so that workers can draw for the whole batch and apply to their share: how many there
are does not change what an image becomes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lesioncam.settings import TrainSettings
from lesioncam.vision.crop import sample_boxes


@dataclass(frozen=True)
class Draws:
    """What happens to each image of a batch.

    Attributes:
        affine: (B, 2, 2), turn, flip and zoom, as `sample_boxes` takes it.
        shift: (B, 2), in sides of the box, x before y.
        brightness: (B,), a factor on all pixels.
        contrast: (B,), a factor on their distance from the image's mean.
        tint: (B, 3), a factor on each channel, as another white balance would make it.
        saturation: (B,), a factor on each channel's distance from the pixel's gray.
    """

    affine: Tensor
    shift: Tensor
    brightness: Tensor
    contrast: Tensor
    tint: Tensor
    saturation: Tensor

    def share(self, rank: int, world: int) -> "Draws":
        """The draws of every `world`-th image, from `rank` on."""
        return Draws(*(part[rank::world] for part in vars(self).values()))


def draw(count: int, settings: TrainSettings, generator: torch.Generator) -> Draws:
    """Draw the augmentation of `count` images."""

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


def augment(canvases: Tensor, boxes: Tensor, draws: Draws, side: int) -> Tensor:
    """Cut, turn, tint and light a batch.

    Args:
        canvases: (B, 3, S, S) uint8.
        boxes: (B, 4) on the canvas: the whole of it for stage 1, the crop for stage 2.
        draws: of the same B.
        side: the input side s.

    Returns:
        (B, 3, s, s) uint8.
    """
    images = turn(canvases, boxes, draws, side).float()

    def factor(draws: Tensor) -> Tensor:
        return draws.to(images.device).view(len(images), -1, 1, 1)

    images *= factor(draws.tint)
    gray = images.mean(dim=1, keepdim=True)
    images = gray + (images - gray) * factor(draws.saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    lit = (mean + (images - mean) * factor(draws.contrast)) * factor(draws.brightness)
    return lit.round_().clamp_(0, 255).to(torch.uint8)


def turn(canvases: Tensor, boxes: Tensor, draws: Draws, side: int) -> Tensor:
    """The geometry of `augment` alone, for pictures of any number of channels: masks too."""
    boxes = boxes.float()
    moved = draws.shift.to(boxes.device) * (boxes[:, 2:] - boxes[:, :2])
    boxes = boxes + torch.cat([moved, moved], dim=1)
    return sample_boxes(canvases, boxes, side, draws.affine.to(canvases.device))
