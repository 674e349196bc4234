"""From a map to a box and from a box to a crop, on cases worked by hand."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from lesioncam.settings import CropRule
from lesioncam.vision.crop import (
    at_border,
    boxes_in_image,
    canvas_bounds,
    crop_boxes,
    heaviest_region,
    lesion_boxes,
    region_bounds,
    sample_boxes,
)

WEIGHT = {"#": 0.5, "@": 1.0, ".": 0.1}  # above the threshold, the peak, below


def map_of(picture: str) -> Tensor:
    """A map (h, w) from a picture: `@` is the peak, `#` above the threshold, `.` below."""
    return torch.tensor([[WEIGHT[mark] for mark in row] for row in picture.split()])


def as_picture(region: Tensor) -> list[str]:
    return ["".join(".#"[int(value)] for value in row) for row in region]


def region_of(picture: str) -> list[str]:
    return as_picture(heaviest_region(map_of(picture)[None], 0.2)[0])


def rectangle(x0: int, y0: int, x1: int, y1: int, cells: int = 10) -> Tensor:
    """A map (1, cells, cells) that is 1 in one rectangle of positions, half-open, and else 0."""
    maps = torch.zeros(1, cells, cells)
    maps[:, y0:y1, x0:x1] = 1
    return maps


def box_of(maps: Tensor, rule: CropRule, canvas_size: int = 100) -> list[int]:
    bounds = canvas_bounds(maps, rule.threshold, canvas_size)
    (box,) = lesion_boxes(bounds, torch.tensor([False]), rule, canvas_size).tolist()
    return [int(value) for value in box]


def random_canvases(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def whole(count: int, size: int) -> Tensor:
    return torch.tensor([[0, 0, size, size]] * count)


# Region


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        pytest.param(
            "@#...  #..##  ..###  ..###",
            "..... ...## ..### ..###",
            id="a wide one outweighs the peak",
        ),
        pytest.param(
            "@@...  .....  ...##  ...##",
            "##... ..... ..... .....",
            id="a high one outweighs a wide one",
        ),
        pytest.param("@.. .#. ..#", "#.. ... ...", id="diagonal neighbors do not join"),
        pytest.param(".#. #@# .#.", ".#. ### .#.", id="four neighbors join"),
        pytest.param(
            "#...@ #...# #...# #####", "#...# #...# #...# #####", id="down, along and up a U"
        ),
        pytest.param(
            "##### #...# #.@.# #...# #####",
            "##### #...# #...# #...# #####",
            id="a ring but not its hole",
        ),
        pytest.param("##### ....# @###. #...# #####", "..... ..... ####. #...# #####", id="spiral"),
        pytest.param("### #@# ###", "### ### ###", id="everything"),
        pytest.param("... .@. ...", "... .#. ...", id="one position"),
        pytest.param("@.@ ... @..", "#.. ... ...", id="first of equals"),
        pytest.param("..@ ... @..", "..# ... ...", id="first in row-major order"),
        pytest.param("..@ ##. @..", "... ##. #..", id="together heavier"),
        pytest.param("... ...", "... ...", id="nothing"),
        pytest.param("#..@", "...#", id="one row"),
    ],
)
def test_region_by_hand(picture: str, expected: str) -> None:
    assert region_of(picture) == expected.split()


def test_position_at_the_threshold_belongs() -> None:
    maps = torch.tensor([[[1.0, 0.25, 0.2499]]])
    assert as_picture(heaviest_region(maps, 0.25)[0]) == ["##."]


@pytest.mark.parametrize("cells", [8, 14, 32])
def test_region_is_the_heaviest_component_that_scipy_finds(cells: int) -> None:
    maps = torch.rand(30, cells, cells, generator=torch.Generator().manual_seed(2))
    thresholds = torch.linspace(0.2, 0.9, 30).view(30, 1, 1)
    regions = heaviest_region(maps, thresholds)
    for map_, threshold, region in zip(maps, thresholds, regions, strict=True):
        labels, count = ndimage.label(map_ >= threshold)
        weights = ndimage.sum_labels(map_ - threshold[0], labels, range(1, count + 1))
        assert torch.equal(region, torch.from_numpy(labels == 1 + weights.argmax()))


# Box

BARE = CropRule(padding=0.0, smallest=0.25)


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        pytest.param((2, 3, 6, 7), [20, 30, 60, 70], id="square"),
        pytest.param((2, 4, 8, 7), [20, 40, 80, 70], id="wide"),
        pytest.param((4, 2, 7, 8), [40, 20, 70, 80], id="tall"),
        pytest.param((2, 4, 8, 5), [20, 32, 80, 57], id="widened about its center"),
        pytest.param((0, 2, 2, 8), [0, 20, 25, 80], id="moved inside from the left"),
        pytest.param((2, 8, 8, 10), [20, 75, 80, 100], id="moved inside from the bottom"),
        pytest.param((4, 4, 5, 5), [32, 32, 57, 57], id="smallest side"),
        pytest.param((9, 0, 10, 1), [75, 0, 100, 25], id="smallest side in a corner"),
        pytest.param((0, 0, 10, 10), [0, 0, 100, 100], id="everything"),
        pytest.param((0, 4, 10, 5), [0, 32, 100, 57], id="as wide as the canvas"),
    ],
)
def test_box_by_hand(region: tuple[int, int, int, int], expected: list[int]) -> None:
    assert box_of(rectangle(*region), BARE) == expected


@pytest.mark.parametrize(
    ("region", "padding", "expected"),
    [
        pytest.param((3, 3, 7, 7), 0.25, [20, 20, 80, 80], id="on each side"),
        pytest.param((3, 4, 7, 6), 0.25, [20, 30, 80, 70], id="a fraction of the longer side"),
        pytest.param((4, 4, 6, 6), 0.5, [30, 30, 70, 70], id="doubles"),
        pytest.param((0, 3, 4, 7), 0.25, [0, 20, 60, 80], id="moved inside, not cut"),
        pytest.param((1, 1, 9, 9), 0.25, [0, 0, 100, 100], id="not larger than the canvas"),
        pytest.param((4, 4, 5, 5), 0.5, [32, 32, 57, 57], id="counts toward the smallest side"),
    ],
)
def test_padding_by_hand(
    region: tuple[int, int, int, int], padding: float, expected: list[int]
) -> None:
    assert box_of(rectangle(*region), CropRule(padding=padding, smallest=0.25)) == expected


@pytest.mark.parametrize(
    ("smallest", "expected"),
    [(0.5, [20, 30, 70, 80]), (0.6, [15, 25, 75, 85]), (1.0, [0, 0] + [100] * 2)],
)
def test_smallest_side_is_about_the_same_center(smallest: float, expected: list[int]) -> None:
    assert box_of(rectangle(4, 5, 5, 6), CropRule(padding=0.0, smallest=smallest)) == expected


def test_cells_scale_to_any_canvas() -> None:
    maps = rectangle(7, 0, 14, 7, cells=14)
    assert box_of(maps, BARE, canvas_size=448) == [224, 0, 448, 224]
    assert box_of(maps, BARE, canvas_size=224) == [112, 0, 224, 112]


def test_a_spike_in_a_corner_does_not_change_the_box() -> None:
    maps = 0.9 * rectangle(3, 2, 8, 7)
    alone = box_of(maps, BARE)
    maps[0, 9, 9] = 1.0
    assert box_of(maps, BARE) == alone


def test_flat_map_gives_the_whole_canvas() -> None:
    maps = torch.cat([rectangle(2, 3, 6, 7)] * 3 + [torch.zeros(1, 10, 10)])
    flat = torch.tensor([False, True, False, True])
    part, everything = [20, 30, 60, 70], [0, 0, 100, 100]
    boxes = lesion_boxes(canvas_bounds(maps, BARE.threshold, 100), flat, BARE, 100)
    assert boxes.dtype == torch.int64
    assert boxes.tolist() == [part, everything, part, everything]


@pytest.mark.parametrize("canvas_size", [97, 448])
@pytest.mark.parametrize("rule", [BARE, CropRule(), CropRule(padding=1.0, smallest=0.33)], ids=str)
def test_every_box_is_inside_and_large_enough(canvas_size: int, rule: CropRule) -> None:
    cells = 7
    spans = list(itertools.combinations(range(cells + 1), 2))
    regions = [(x0, y0, x1, y1) for x0, x1 in spans for y0, y1 in spans]
    maps = torch.cat([rectangle(*region, cells=cells) for region in regions])
    flat = torch.zeros(len(regions), dtype=torch.bool)
    boxes = lesion_boxes(canvas_bounds(maps, rule.threshold, canvas_size), flat, rule, canvas_size)
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= round(rule.smallest * canvas_size)
    # The region's own box lies inside, but for a pixel's rounding.
    extents = torch.tensor(regions) * (canvas_size / cells)
    assert (boxes[:, :2] <= extents[:, :2] + 1).all()
    assert (boxes[:, 2:] >= extents[:, 2:] - 1).all()
    widened = crop_boxes(boxes, rule, canvas_size)
    assert widened.min() >= 0
    assert widened.max() <= canvas_size
    assert (widened[:, :2] <= boxes[:, :2]).all()
    assert (widened[:, 2:] >= boxes[:, 2:]).all()


# Bounds between positions

ROW = [0.0, 0.25, 1.0, 0.75, 0.0]


def bounds_of(maps: Tensor, threshold: float = 0.5) -> list[float]:
    low, high = region_bounds(maps, threshold)
    return [float(value) for value in torch.cat([low, high], dim=1)[0]]


@pytest.mark.parametrize(
    ("row", "threshold", "expected"),
    [
        # Between 0.25 at 1.5 and 1 at 2.5 a third of the way; between 0.75 at 3.5 and 0 likewise.
        pytest.param(ROW, 0.5, (1.5 + 1 / 3, 3.5 + 1 / 3), id="where the threshold is crossed"),
        pytest.param(ROW, 0.75, (1.5 + 2 / 3, 3.5), id="at a center that just reaches it"),
        pytest.param(ROW, 0.2, (1.5 - 0.2, 3.5 + 0.55 / 0.75), id="a position more"),
        pytest.param([1, 0.5, 0, 0, 0], 0.5, (0, 1.5), id="to the border where the map is at peak"),
        pytest.param([0, 0, 0, 1, 0.8], 0.5, (2.5 + 0.5, 4.5 + 0.375), id="near the border"),
        pytest.param([0, 0, 0, 1, 0.8], 0.1, (2.5 + 0.1, 5), id="no further than the border"),
    ],
)
def test_bounds_by_hand(row: list[float], threshold: float, expected: tuple[float, float]) -> None:
    along = torch.tensor([[row]])
    x0, _, x1, _ = bounds_of(along, threshold)
    assert (x0, x1) == pytest.approx(expected)
    _, y0, _, y1 = bounds_of(along.transpose(1, 2), threshold)
    assert (y0, y1) == pytest.approx(expected)


def test_the_outermost_crossing_of_all_rows_counts() -> None:
    maps = torch.tensor([[[0.0, 0.4, 0.6, 0.0], [0.3, 0.7, 1.0, 0.2], [0.0, 0.0, 0.9, 0.45]]])
    x0, y0, x1, y1 = bounds_of(maps)
    assert x0 == pytest.approx(1.5 - 0.2 / 0.4)
    assert x1 == pytest.approx(2.5 + 0.4 / 0.45)
    assert y0 == pytest.approx(0.5 - 0.1 / 0.6)
    assert y1 == pytest.approx(2.5 + 0.4 / 0.9)


def test_a_small_change_of_the_map_is_a_small_change_of_the_box() -> None:
    random = torch.Generator().manual_seed(0)
    axis = torch.arange(14) + 0.5
    centers = 4 + 6 * torch.rand(200, 2, 1, generator=random)
    widths = 1.5 + 2 * torch.rand(200, 2, 1, generator=random)
    across, down = (-((axis - centers) ** 2) / (2 * widths**2)).exp().unbind(dim=1)
    maps = down[:, :, None] * across[:, None, :]
    disturbed = (maps + 0.004 * (torch.rand(maps.shape, generator=random) - 0.5)).clamp(0, 1)
    flat = torch.zeros(len(maps), dtype=torch.bool)
    before, after = (
        lesion_boxes(canvas_bounds(each, BARE.threshold, 448), flat, BARE, 448)
        for each in (maps, disturbed)
    )
    assert (before - after).abs().max() <= 2  # pixels of 448; a position has 32


# At the border


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        pytest.param((8, 40, 16, 60), False, id="its box reaches the border, the lesion does not"),
        pytest.param((3, 40, 50, 60), False, id="near the left"),
        pytest.param((1, 40, 50, 60), True, id="within the tolerance of the left"),
        pytest.param((0, 40, 50, 60), True, id="left"),
        pytest.param((40, 0, 60, 50), True, id="top"),
        pytest.param((50, 40, 100, 60), True, id="right"),
        pytest.param((50, 40, 97, 60), False, id="near the right"),
        pytest.param((40, 50, 60, 100), True, id="bottom"),
    ],
)
def test_a_lesion_at_the_border_is_known_by_its_region(
    region: tuple[int, int, int, int], expected: bool
) -> None:
    maps = rectangle(*region, cells=100)
    assert box_of(rectangle(8, 40, 16, 60, cells=100), CropRule())[0] == 0
    assert at_border(canvas_bounds(maps, CropRule().threshold, 320), 320).tolist() == [expected]


def test_a_flat_map_is_not_at_the_border() -> None:
    maps = torch.zeros(1, 10, 10)
    assert at_border(canvas_bounds(maps, CropRule().threshold, 320), 320).tolist() == [False]


# Context


@pytest.mark.parametrize(
    ("box", "context", "expected"),
    [
        pytest.param([30, 40, 60, 70], 0.1, [20, 30, 70, 80], id="as much on each side"),
        pytest.param([30, 40, 60, 70], 0.0, [30, 40, 60, 70], id="none"),
        pytest.param([5, 65, 35, 95], 0.1, [0, 50, 50, 100], id="moved inside the canvas"),
        pytest.param([10, 0, 95, 30], 0.1, [0, 0, 100, 50], id="no longer than the canvas"),
        pytest.param([0, 0, 100, 100], 0.5, [0, 0, 100, 100], id="the whole canvas"),
    ],
)
def test_context_around_a_box(box: list[int], context: float, expected: list[int]) -> None:
    widened = crop_boxes(torch.tensor([box]), CropRule(context=context), 100)
    assert widened.tolist() == [expected]


# Crop


@pytest.mark.parametrize("size", [7, 96, 448])
def test_whole_box_at_the_canvas_size_is_the_canvas(size: int) -> None:
    canvases = random_canvases(2, size)
    crops = sample_boxes(canvases, whole(2, size), size)
    assert crops.dtype == torch.uint8
    assert torch.equal(crops, canvases)


@pytest.mark.parametrize("size", [6, 224])
def test_scaled_by_half_is_the_mean_of_two_by_two(size: int) -> None:
    canvases = random_canvases(2, 2 * size)
    blocks = canvases.double().unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    crops = sample_boxes(canvases, whole(2, 2 * size), size).double()
    assert (crops - blocks).abs().max() <= 0.501  # rounding; either way where it is a half
    assert (crops - blocks).mean().abs() < 0.02


@pytest.mark.parametrize(("canvas_size", "size"), [(448, 128), (192, 48)])
def test_much_finer_canvases_do_not_alias(canvas_size: int, size: int) -> None:
    canvases = random_canvases(2, canvas_size)
    means = F.interpolate(canvases.float(), size=(size, size), mode="area")
    crops = sample_boxes(canvases, whole(2, canvas_size), size).float()
    assert crops.std() < 1.6 * means.std()  # noise that aliases keeps more of its contrast


@pytest.mark.parametrize(("x", "y"), [(0, 8), (8, 0)])
def test_quadrant_at_its_own_size_is_its_pixels(x: int, y: int) -> None:
    canvases = random_canvases(1, 16)
    crop = sample_boxes(canvases, torch.tensor([[x, y, x + 8, y + 8]]), 8)
    assert torch.equal(crop, canvases[:, :, y : y + 8, x : x + 8])


def test_box_enlarged_by_two_is_bilinear_by_hand() -> None:
    row = torch.tensor([0, 0, 40, 80, 0, 0], dtype=torch.uint8)
    canvases = row.expand(1, 3, 6, 6)
    crop = sample_boxes(canvases, torch.tensor([[2, 2, 4, 4]]), 4)
    assert crop[0, 0].tolist() == [[30, 50, 70, 60]] * 4


def test_batch_of_crops_equals_singles() -> None:
    canvases = random_canvases(6, 64)
    boxes = torch.tensor([[0, 0, 64, 64], [1, 2, 33, 34], [20, 10, 60, 50], [0, 32, 32, 64]])
    boxes = torch.cat([boxes, torch.tensor([[31, 0, 64, 33], [5, 5, 59, 59]])])
    together = sample_boxes(canvases, boxes, 32)
    singles = [sample_boxes(canvases[i : i + 1], boxes[i : i + 1], 32) for i in range(6)]
    assert torch.equal(together, torch.cat(singles))


@pytest.mark.parametrize(("scales", "axis"), [((-1.0, 1.0), 3), ((1.0, -1.0), 2)])
def test_affine_flip_is_the_crop_flipped(scales: tuple[float, float], axis: int) -> None:
    canvases = random_canvases(2, 64)
    boxes = torch.tensor([[0, 0, 64, 64], [8, 24, 40, 56]])
    flip = torch.diag(torch.tensor(scales)).expand(2, 2, 2)
    flipped = sample_boxes(canvases, boxes, 32, flip)
    plain = sample_boxes(canvases, boxes, 32)
    assert (flipped.int() - plain.flip(axis).int()).abs().max() <= 1
    assert (flipped != plain).float().mean() > 0.5


def test_box_across_the_border_keeps_its_inner_part() -> None:
    canvases = random_canvases(1, 16)
    crop = sample_boxes(canvases, torch.tensor([[8, 8, 24, 24]]), 16)
    assert torch.equal(crop[:, :, :8, :8], canvases[:, :, 8:, 8:])


def test_channels_last_canvases_give_the_same() -> None:
    canvases = random_canvases(2, 64)
    boxes = torch.tensor([[3, 5, 43, 45], [0, 0, 64, 64]])
    strided = canvases.contiguous(memory_format=torch.channels_last)
    assert torch.equal(sample_boxes(strided, boxes, 32), sample_boxes(canvases, boxes, 32))


# Box in the image


@pytest.mark.parametrize(
    ("box", "width", "height", "expected"),
    [
        pytest.param([0, 0, 100, 100], 640, 480, [0, 0, 640, 480], id="whole"),
        pytest.param([25, 50, 75, 100], 640, 480, [160, 240, 480, 480], id="scaled apart"),
        pytest.param([25, 50, 75, 100], 100, 100, [25, 50, 75, 100], id="same size"),
        pytest.param([10, 10, 45, 45], 55, 33, [5, 3, 25, 15], id="rounded outwards"),
        pytest.param([10, 10, 50, 50], 1, 1, [0, 0, 1, 1], id="one pixel"),
        pytest.param([60, 60, 100, 100], 1, 500, [0, 300, 1, 500], id="one pixel wide"),
        pytest.param([0, 30, 40, 70], 500, 1, [0, 0, 200, 1], id="one pixel high"),
        pytest.param([50, 50, 100, 100], 3, 3, [1, 1, 3, 3], id="three pixels"),
        pytest.param([0, 1, 99, 100], 30_000, 20_000, [0, 200, 29_700, 20_000], id="large"),
    ],
)
def test_box_in_image_by_hand(box: list[int], width: int, height: int, expected: list[int]) -> None:
    found = boxes_in_image(torch.tensor([box]), 100, torch.tensor([width]), torch.tensor([height]))
    assert found.dtype == torch.int64
    assert found.tolist() == [expected]


def test_boxes_in_image_are_inside_not_empty_and_cover() -> None:
    size = 14
    spans = list(itertools.combinations(range(size + 1), 2))
    boxes = torch.tensor([[x0, x0 // 2, x1, x1] for x0, x1 in spans])
    for width, height in [(1, 1), (2, 3), (100, 7), (6001, 3999)]:
        widths, heights = torch.full((len(boxes),), width), torch.full((len(boxes),), height)
        found = boxes_in_image(boxes, size, widths, heights)
        x0, y0, x1, y1 = found.T
        assert ((x0 >= 0) & (x0 < x1) & (x1 <= width)).all()
        assert ((y0 >= 0) & (y0 < y1) & (y1 <= height)).all()
        exact = boxes * torch.tensor([width, height, width, height]) / size
        assert (found[:, :2] <= exact[:, :2] + 1e-3).all()
        assert (found[:, 2:] >= exact[:, 2:] - 1e-3).all()
        assert ((found - exact).abs() < 1).all()


def test_boxes_of_a_batch_each_use_their_own_image() -> None:
    boxes = torch.tensor([[0, 0, 50, 50], [50, 50, 100, 100]])
    found = boxes_in_image(boxes, 100, torch.tensor([10, 200]), torch.tensor([20, 400]))
    assert found.tolist() == [[0, 0, 5, 10], [100, 200, 200, 400]]
