"""Crop: from a map to the lesion's box, and from a box to its pixels. Batched, on one device.

Boxes are on the canvas, in pixels: (x0, y0, x1, y1), x before y, half-open.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lesioncam.settings import CropRule

# Of the canvas: a fifth of a position of a 10 x 10 map. At the default threshold a region ends at
# the border itself only where the map is at its peak.
_BORDER_TOLERANCE = 0.02


def heaviest_region(maps: Tensor, threshold: float | Tensor) -> Tensor:
    """Each map's heaviest connected component (4-neighbors) at or above a threshold.

    A component's weight is `sum(map - threshold)` over its positions. Zhou et al. (CVPR 2016) take
    the largest component instead; by weight neither a spike in a corner wins, nor a wide and faint
    halo. The labeling is ours because `scipy.ndimage.label` cannot run on a GPU.

    Args:
        maps: (B, h, w) in [0, 1], as `normalize_map` gives them.
        threshold: one for all maps, or (B, 1, 1).

    Returns:
        (B, h, w) bool; all false where no position reaches the threshold. Of several components of
        one weight, the one that begins first in row-major order.
    """
    above = maps >= threshold
    batch, positions = len(maps), above[0].numel()
    numbers = torch.arange(positions, 0, -1, device=maps.device).view(1, *maps.shape[1:])
    labels = numbers * above  # grows to the highest number in the component, its first position's
    while True:
        grown = labels.clone()
        grown[:, 1:] = grown[:, 1:].maximum(labels[:, :-1])
        grown[:, :-1] = grown[:, :-1].maximum(labels[:, 1:])
        grown[:, :, 1:] = grown[:, :, 1:].maximum(labels[:, :, :-1])
        grown[:, :, :-1] = grown[:, :, :-1].maximum(labels[:, :, 1:])
        grown *= above
        if torch.equal(grown, labels):
            break
        labels = grown
    labels = positions - labels  # in row-major order; `positions` below the threshold
    excess = (maps - threshold).where(above, 0).flatten(1)
    weights = maps.new_full((batch, positions + 1), -1.0)
    weights.scatter_(1, labels.flatten(1), 0.0).scatter_add_(1, labels.flatten(1), excess)
    heaviest = weights[:, :-1].argmax(dim=1)
    return above & (labels == heaviest[:, None, None])


def region_bounds(maps: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Where each map's `heaviest_region` begins and ends, in fractions of a position.

    A bound is where the map, interpolated linearly between the centers of a position of the region
    and its neighbor outside, crosses the threshold; outside the map its value is 0. So a small
    change of the map is a small change of the bounds.

    Args:
        maps: (B, h, w) in [0, 1].
        threshold: of the region.

    Returns:
        The lowest and the highest (x, y), (B, 2) each, in positions of the map from its border.
    """
    region, padded = heaviest_region(maps, threshold), F.pad(maps, (1, 1, 1, 1))
    rows, columns = (torch.arange(n, device=maps.device) + 0.5 for n in maps.shape[1:])

    def farthest(neighbors: Tensor, centers: Tensor, sign: int) -> Tensor:
        inside = ((maps - threshold) / (maps - neighbors)).where(neighbors < threshold, 0)
        reach = (sign * centers + inside).masked_fill(~region, -torch.inf)
        return sign * reach.amax(dim=(1, 2))

    left = farthest(padded[:, 1:-1, :-2], columns, -1)
    right = farthest(padded[:, 1:-1, 2:], columns, 1)
    top = farthest(padded[:, :-2, 1:-1], rows[:, None], -1)
    bottom = farthest(padded[:, 2:, 1:-1], rows[:, None], 1)
    low, high = torch.stack([left, top], dim=1), torch.stack([right, bottom], dim=1)
    size = torch.tensor([len(columns), len(rows)], device=maps.device)
    return low.clamp(min=0), high.minimum(size)


def canvas_bounds(maps: Tensor, threshold: float, canvas_size: int) -> tuple[Tensor, Tensor]:
    """As `region_bounds`, on the canvas.

    Returns:
        The lowest and the highest (x, y), (B, 2) each, in pixels; infinite where no position
        reaches the threshold, as in a flat map.
    """
    scale = [canvas_size / maps.shape[2], canvas_size / maps.shape[1]]
    low, high = region_bounds(maps, threshold)
    return low * low.new_tensor(scale), high * high.new_tensor(scale)


def lesion_boxes(
    bounds: tuple[Tensor, Tensor], flat: Tensor, rule: CropRule, canvas_size: int
) -> Tensor:
    """The box around the heaviest region of each map.

    The region's bounds are padded on each side by `rule.padding` of the longer side, widened about
    their center to sides of at least `rule.smallest` of the canvas, and moved inside the canvas.
    A flat map gives the whole canvas.

    Args:
        bounds: as `canvas_bounds` gives them.
        flat: (B,) bool, as `normalize_map` gives it.
        rule: padding and smallest side.
        canvas_size: S, in pixels.

    Returns:
        (B, 4) int64: x0, y0, x1, y1 on the canvas, half-open.
    """
    low, high = bounds
    padding = 2 * rule.padding * (high - low).amax(dim=1, keepdim=True)
    lengths = (high - low + padding).clamp(rule.smallest * canvas_size, canvas_size).round()
    corners = ((low + high - lengths) / 2).round().clamp(min=0).minimum(canvas_size - lengths)
    boxes = torch.cat([corners, corners + lengths], dim=1).long()
    whole = torch.tensor([0, 0, canvas_size, canvas_size], device=boxes.device)
    return torch.where(flat[:, None], whole, boxes)


def at_border(bounds: tuple[Tensor, Tensor], canvas_size: int) -> Tensor:
    """Which regions reach the border of the image, within `_BORDER_TOLERANCE`: (B,) bool.

    Decided before a region is padded and widened to its box. A flat map has no region.

    Args:
        bounds: as `canvas_bounds` gives them.
        canvas_size: S, in pixels.
    """
    low, high = bounds
    nearest = torch.cat([low, canvas_size - high], dim=1).amin(dim=1)
    return nearest <= _BORDER_TOLERANCE * canvas_size


def crop_boxes(boxes: Tensor, rule: CropRule, canvas_size: int) -> Tensor:
    """The input region of stage 2: each box with its surroundings.

    A box is widened on each side by `rule.context` of the canvas, to at most the canvas, and moved
    inside it.

    Args:
        boxes: (B, 4) int64, as `lesion_boxes` gives them.
        rule: its context.
        canvas_size: S, in pixels.

    Returns:
        (B, 4) int64; each contains its box.
    """
    margin = round(rule.context * canvas_size)
    lengths = (boxes[:, 2:] - boxes[:, :2] + 2 * margin).clamp(max=canvas_size)
    corners = (boxes[:, :2] - margin).clamp(min=0).minimum(canvas_size - lengths)
    return torch.cat([corners, corners + lengths], dim=1)


def sample_boxes(
    canvases: Tensor, boxes: Tensor, size: int, affine: Tensor | None = None
) -> Tensor:
    """Cut boxes out of canvases and scale them to the input size, bilinearly.

    The box of the whole canvas gives stage 1's input, a crop box stage 2's; `affine` augments
    either. Each output pixel is sampled at one point, or is the mean of several points each way
    where the canvas is more than twice the input size.

    Args:
        canvases: (B, 3, S, S) uint8, or of another number of channels.
        boxes: (B, 4); need not lie inside the canvas (pixels are mirrored at its border).
        size: the input size s.
        affine: (B, 2, 2) float, applied to coordinates inside the box ((-1, -1) to (1, 1), x
            before y), or None for the identity.

    Returns:
        (B, 3, s, s) uint8.
    """
    canvas_size = canvases.shape[-1]
    boxes = boxes.to(torch.float32) * (2 / canvas_size) - 1
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    center = (boxes[:, 2:] + boxes[:, :2]) / 2
    if affine is None:
        affine = torch.eye(2, device=canvases.device).expand(len(canvases), 2, 2)
    theta = torch.cat([half[:, :, None] * affine, center[:, :, None]], dim=2)
    points = math.ceil(canvas_size / (2 * size))
    shape = [*canvases.shape[:2], size * points, size * points]
    grid = F.affine_grid(theta, shape, align_corners=False)
    pixels = F.grid_sample(
        canvases.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    if points > 1:
        pixels = F.avg_pool2d(pixels, points)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def boxes_in_image(boxes: Tensor, canvas_size: int, widths: Tensor, heights: Tensor) -> Tensor:
    """Map canvas boxes to the images' own pixels, rounded outwards so that none is empty.

    Args:
        boxes: (B, 4) int64, on the canvas.
        canvas_size: S, in pixels.
        widths: (B,) int64, the images' widths in pixels.
        heights: (B,) int64, the images' heights in pixels.

    Returns:
        (B, 4) int64 in image pixels, x before y, half-open, inside the image.
    """
    limits = torch.stack([widths, heights, widths, heights], dim=1)
    scaled = boxes * limits  # exact in integers; divided by the canvas size below
    low = torch.div(scaled[:, :2], canvas_size, rounding_mode="floor")
    high = -torch.div(-scaled[:, 2:], canvas_size, rounding_mode="floor")
    return torch.cat([low, torch.minimum(high, limits[:, 2:])], dim=1)
