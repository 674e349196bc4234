"""From a map to a box, from a box to what is seen of it. All batched, all on the map's device.

Boxes here are on the canvas: pixels, (x0, y0, x1, y1), x before y, half-open.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lesioncam.settings import CropRule


def heaviest_region(maps: Tensor, threshold: float | Tensor) -> Tensor:
    """The connected component (4-neighbors) with most above the threshold, of each map.

    Zhou et al. take the largest component above 20 % of the peak. What a component has above the
    threshold, summed over its positions, counts its height as well as its size: neither a spike
    in a corner wins, nor a wide and faint halo.

    Args:
        maps: (B, h, w) in [0, 1], as `normalize_map` gives them.
        threshold: positions with a value of at least this belong; one for all or (B, 1, 1).

    Returns:
        (B, h, w) bool, nothing where no position belongs. Of several equal components, the one
        that begins first in row-major order counts.
    """
    above = maps >= threshold
    batch, positions = len(maps), above[0].numel()
    numbers = torch.arange(positions, 0, -1, device=maps.device).view(1, *maps.shape[1:])
    names = numbers * above  # the highest number, its first position's, becomes a component's name
    while True:
        grown = names.clone()
        grown[:, 1:] = grown[:, 1:].maximum(names[:, :-1])
        grown[:, :-1] = grown[:, :-1].maximum(names[:, 1:])
        grown[:, :, 1:] = grown[:, :, 1:].maximum(names[:, :, :-1])
        grown[:, :, :-1] = grown[:, :, :-1].maximum(names[:, :, 1:])
        grown *= above
        if torch.equal(grown, names):
            break
        names = grown
    names = positions - names  # in row-major order; `positions` for what is below
    excess = (maps - threshold).where(above, 0).flatten(1)
    weights = maps.new_full((batch, positions + 1), -1.0)
    weights.scatter_(1, names.flatten(1), 0.0).scatter_add_(1, names.flatten(1), excess)
    heaviest = weights[:, :-1].argmax(dim=1)
    return above & (names == heaviest[:, None, None])


def region_bounds(maps: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Where each map's `heaviest_region` begins and ends, finer than the map's positions.

    That is where the map crosses the threshold between a position of the region and its
    neighbor outside, linearly between their centers; beyond the map's border stands 0. So a
    small change of the map is a small change of the bounds.

    Args:
        maps: (B, h, w) in [0, 1].
        threshold: of the region.

    Returns:
        The lowest x and y and the highest, (B, 2) each, in positions of the map from its border.
    """
    region, beyond = heaviest_region(maps, threshold), F.pad(maps, (1, 1, 1, 1))
    rows, columns = (torch.arange(n, device=maps.device) + 0.5 for n in maps.shape[1:])

    def farthest(neighbors: Tensor, centers: Tensor, sign: int) -> Tensor:
        inside = ((maps - threshold) / (maps - neighbors)).where(neighbors < threshold, 0)
        reach = (sign * centers + inside).masked_fill(~region, -torch.inf)
        return sign * reach.amax(dim=(1, 2))

    left = farthest(beyond[:, 1:-1, :-2], columns, -1)
    right = farthest(beyond[:, 1:-1, 2:], columns, 1)
    top = farthest(beyond[:, :-2, 1:-1], rows[:, None], -1)
    bottom = farthest(beyond[:, 2:, 1:-1], rows[:, None], 1)
    low, high = torch.stack([left, top], dim=1), torch.stack([right, bottom], dim=1)
    size = torch.tensor([len(columns), len(rows)], device=maps.device)
    return low.clamp(min=0), high.minimum(size)


def lesion_boxes(maps: Tensor, flat: Tensor, rule: CropRule, side: int) -> Tensor:
    """The box around the heaviest region of each map, on a canvas of `side` pixels.

    The region's bounds are scaled to the canvas, padded on each side by `rule.padding` of
    the longer side, widened about their center to sides of at least `rule.smallest` of the canvas,
    and moved inside the canvas. A flat map gives the whole canvas.

    Args:
        maps: (B, h, w) in [0, 1], as `normalize_map` gives them.
        flat: (B,) bool, likewise.
        rule: threshold, padding and smallest side.
        side: the canvas's side S in pixels.

    Returns:
        (B, 4) int64: x0, y0, x1, y1 on the canvas, half-open.
    """
    bounds = region_bounds(maps, rule.threshold)
    cell = torch.tensor([side / maps.shape[2], side / maps.shape[1]], device=maps.device)
    low, high = (bound * cell for bound in bounds)
    padding = 2 * rule.padding * (high - low).amax(dim=1, keepdim=True)
    lengths = (high - low + padding).clamp(rule.smallest * side, side).round()
    corners = ((low + high - lengths) / 2).round().clamp(min=0).minimum(side - lengths)
    boxes = torch.cat([corners, corners + lengths], dim=1).long()
    whole = torch.tensor([0, 0, side, side], device=boxes.device)
    return torch.where(flat[:, None], whole, boxes)


def crop_boxes(boxes: Tensor, rule: CropRule, side: int) -> Tensor:
    """What stage 2 sees: each box and its surroundings.

    A box is widened on each side by `rule.context` of the canvas and moved inside it; where it
    becomes longer than the canvas it ends with it.

    Args:
        boxes: (B, 4) int64 on the canvas, as `lesion_boxes` gives them.
        rule: its context.
        side: the canvas's side S in pixels.

    Returns:
        (B, 4) int64, on the canvas likewise; each holds its box.
    """
    margin = round(rule.context * side)
    lengths = (boxes[:, 2:] - boxes[:, :2] + 2 * margin).clamp(max=side)
    corners = (boxes[:, :2] - margin).clamp(min=0).minimum(side - lengths)
    return torch.cat([corners, corners + lengths], dim=1)


def sample_boxes(
    canvases: Tensor, boxes: Tensor, side: int, affine: Tensor | None = None
) -> Tensor:
    """Cut boxes out of canvases and scale them to `side`, bilinearly.

    With the box of the whole canvas this is the shrunken image that stage 1 classifies; with
    crop boxes it is stage 2's input; with `affine` it is either's augmented form. A canvas up to
    twice as fine as what is made of it is sampled at one point a pixel, which for an untouched box
    is the mean of its four nearest; of a finer one each pixel is the mean of several points each
    way.

    Args:
        canvases: (B, 3, S, S) uint8, or of another number of channels.
        boxes: (B, 4), on the canvas; need not lie inside it (pixels are mirrored at its border).
        side: the input side s.
        affine: (B, 2, 2) float, applied to coordinates inside the box ((-1, -1) to (1, 1), x
            before y), or None for none.

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
    points = math.ceil(canvas_size / (2 * side))
    size = [*canvases.shape[:2], side * points, side * points]
    grid = F.affine_grid(theta, size, align_corners=False)
    pixels = F.grid_sample(
        canvases.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    if points > 1:
        pixels = F.avg_pool2d(pixels, points)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def boxes_in_image(boxes: Tensor, side: int, widths: Tensor, heights: Tensor) -> Tensor:
    """Map canvas boxes to the images' own pixels, rounded outwards so that none is empty.

    Args:
        boxes: (B, 4) on a canvas of `side` pixels.
        side: the canvas's side S.
        widths: (B,) image widths in pixels.
        heights: (B,) image heights in pixels.

    Returns:
        (B, 4) int64 in image pixels, x before y, half-open, inside the image.
    """
    limits = torch.stack([widths, heights, widths, heights], dim=1)
    scaled = boxes * limits  # exact in integers; divided by the side below
    low = torch.div(scaled[:, :2], side, rounding_mode="floor")
    high = -torch.div(-scaled[:, 2:], side, rounding_mode="floor")
    return torch.cat([low, torch.minimum(high, limits[:, 2:])], dim=1)
