"""The two-stage classifier: each half, both together, and another engine behind the protocol."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lesioncam.settings import CropRule, ModelSettings
from lesioncam.vision.cam import choose_map, class_activation_maps
from lesioncam.vision.classifier import (
    CropClassifier,
    Localization,
    Localizer,
    Network,
    TwoStageClassifier,
    mean_of_stages,
    to_channels_first,
    whole_boxes,
)
from lesioncam.vision.crop import sample_boxes
from lesioncam.vision.network import VGGGAP

SIZE, CANVAS = 96, 192
CELL = CANVAS // 12  # the tiny network's map has 12 x 12 positions
TIGHT = CropRule(threshold=0.5, padding=0.0, smallest=0.25)
RULES = [
    CropRule(threshold=0.7, smallest=0.25),
    CropRule(map="predicted", threshold=0.5, padding=0.0, smallest=0.25),
]
by_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.map)


def network(seed: int = 0) -> VGGGAP:
    torch.manual_seed(seed)
    return VGGGAP("tiny", 3).eval()


def settings(stage: Network, rule: CropRule, rotation: bool = False) -> ModelSettings:
    classes = tuple(f"class{k}" for k in range(len(stage.class_weights)))
    return ModelSettings(classes, "tiny", SIZE, CANVAS, (0.5,) * 3, (0.5,) * 3, 0.5, rule, rotation)


def localize(stage: Network, batch: Tensor, rule: CropRule, rotation: bool = False) -> Localization:
    return Localizer(settings(stage, rule, rotation), stage)(batch)


def classify(stage: Network, crops: Tensor, rotation: bool = False) -> Tensor:
    return CropClassifier(settings(stage, CropRule(), rotation), stage)(crops)


def canvases(count: int, seed: int = 0) -> Tensor:
    """Smooth blobs of color, so that every image's map has a peak of its own."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 255
    smooth = nn.functional.interpolate(coarse, size=CANVAS, mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8)


class BrightnessDetector:
    """Another engine: its one feature is the brightness of a cell; the first class is the bright.

    Args:
        classes: K.
    """

    def __init__(self, classes: int = 3):
        self.class_weights = torch.zeros(classes, 1)
        self.class_weights[0] = 1.0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        brightness = images.numpy().reshape(len(images), 3, 12, SIZE // 12, 12, SIZE // 12) / 255
        features = torch.from_numpy(brightness.mean(axis=(1, 3, 5))).float()[:, None]
        return features.mean(dim=(2, 3)) @ self.class_weights.T, features


def bright_square(x0: int, y0: int, x1: int, y1: int) -> Tensor:
    """A dark canvas with a bright rectangle, given in positions of the map."""
    canvas = torch.zeros(1, 3, CANVAS, CANVAS, dtype=torch.uint8)
    canvas[:, :, y0 * CELL : y1 * CELL, x0 * CELL : x1 * CELL] = 255
    return canvas


def scaled(maps: Tensor) -> Tensor:
    """(B, h, w) from 0 to 255."""
    low = maps.amin(dim=(1, 2), keepdim=True)
    return (maps - low) / (maps.amax(dim=(1, 2), keepdim=True) - low) * 255


# Stage 1


@by_rule
def test_shapes_and_dtypes(rule: CropRule) -> None:
    found = localize(network(), canvases(4), rule)
    described = {name: (tuple(part.shape), part.dtype) for name, part in vars(found).items()}
    assert described == {
        "probabilities": ((4, 3), torch.float32),
        "boxes": ((4, 4), torch.int64),
        "crop_boxes": ((4, 4), torch.int64),
        "crops": ((4, 3, SIZE, SIZE), torch.uint8),
        "maps": ((4, 12, 12), torch.uint8),
        "flat": ((4,), torch.bool),
        "at_border": ((4,), torch.bool),
    }
    torch.testing.assert_close(found.probabilities.sum(dim=1), torch.ones(4))
    assert found.maps.amin(dim=(1, 2)).tolist() == [0] * 4
    assert found.maps.amax(dim=(1, 2)).tolist() == [255] * 4
    assert not found.flat.any()
    assert not found.probabilities.requires_grad


@by_rule
def test_probabilities_and_map_are_those_of_the_scaled_image(rule: CropRule) -> None:
    stage1, batch = network(), canvases(3)
    found = localize(stage1, batch, rule)
    with torch.inference_mode():
        logits, features = stage1(sample_boxes(batch, whole_boxes(batch), SIZE))
        maps = class_activation_maps(features, stage1.class_weights)
    torch.testing.assert_close(found.probabilities, logits.softmax(dim=1))
    assert (found.maps - scaled(choose_map(maps, logits, rule.map))).abs().max() <= 0.51


@by_rule
def test_batch_equals_singles_whatever_else_is_in_it(rule: CropRule) -> None:
    stage1, batch = network(), canvases(6)
    together = localize(stage1, batch, rule)
    with_others = localize(stage1, torch.cat([canvases(3, seed=9), batch.flip(0)]), rule)
    for image in range(6):
        alone = localize(stage1, batch[image : image + 1], rule)
        for found, row in ((together, image), (with_others, -1 - image)):
            torch.testing.assert_close(found.probabilities[row], alone.probabilities[0])
            assert found.boxes[row].tolist() == alone.boxes[0].tolist()
            assert (found.maps[row].int() - alone.maps[0].int()).abs().max() <= 1
            assert bool(found.flat[row]) == bool(alone.flat[0])
    assert len({tuple(box) for box in together.boxes.tolist()}) > 1


@pytest.mark.parametrize(
    ("square", "expected"),
    [
        ((2, 3, 6, 7), [32, 48, 96, 112]),
        ((0, 0, 4, 4), [0, 0, 64, 64]),
        ((8, 1, 12, 5), [128, 16, 192, 80]),
        ((3, 9, 6, 12), [48, 144, 96, 192]),
    ],
)
def test_box_is_that_of_the_bright_square(
    square: tuple[int, int, int, int], expected: list[int]
) -> None:
    found = localize(BrightnessDetector(), bright_square(*square), TIGHT)
    assert found.boxes.tolist() == [expected]
    x0, y0, x1, y1 = square
    by_hand = torch.zeros(12, 12, dtype=torch.uint8)
    by_hand[y0:y1, x0:x1] = 255
    assert torch.equal(found.maps[0], by_hand)
    assert found.flat.tolist() == [False]


def test_crop_is_the_box_with_its_surroundings() -> None:
    rule = replace(TIGHT, context=0.125)
    found = localize(BrightnessDetector(), bright_square(2, 3, 6, 7), rule)
    assert found.boxes.tolist() == [[32, 48, 96, 112]]
    assert found.crop_boxes.tolist() == [[8, 24, 120, 136]]  # an eighth of 192 more on each side
    bright = (found.crops[0, 0] > 127).nonzero()
    assert bright.amin(dim=0).tolist() == [21, 21]  # 24 of 112 pixels, at 96
    assert bright.amax(dim=0).tolist() == [74, 74]


@by_rule
def test_flat_map_gives_the_whole_canvas(rule: CropRule) -> None:
    square = bright_square(2, 3, 6, 7)
    batch = torch.cat([square, torch.full_like(square, 90), torch.zeros_like(square)])
    found = localize(BrightnessDetector(), batch, rule)
    assert found.flat.tolist() == [False, True, True]
    assert found.boxes.tolist()[1:] == [[0, 0, CANVAS, CANVAS]] * 2
    assert found.boxes.tolist()[0] != [0, 0, CANVAS, CANVAS]
    assert not found.maps[1:].any()


def test_canvas_may_be_as_small_as_the_input() -> None:
    found = localize(network(), canvases(2)[:, :, :SIZE, :SIZE], CropRule())
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= SIZE


# Stage 2, and both


def test_crops_are_classified_by_hand() -> None:
    crops = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    crops[1] = 255
    dark, bright = classify(BrightnessDetector(classes=2), crops).tolist()
    assert dark == pytest.approx([0.5, 0.5])
    assert bright == pytest.approx([0.7310586, 0.2689414], abs=1e-6)  # odds of e to 1


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(0.0, [0.8, 0.2]), (1.0, [0.4, 0.6]), (0.5, [0.6, 0.4]), (0.25, [0.7, 0.3])],
)
def test_combine_by_hand(weight: float, expected: list[float]) -> None:
    combined = mean_of_stages(torch.tensor([[0.8, 0.2]]), torch.tensor([[0.4, 0.6]]), weight)
    torch.testing.assert_close(combined, torch.tensor([expected]))


def test_two_stages_by_hand() -> None:
    engine = BrightnessDetector(classes=2)
    model = replace(settings(engine, replace(TIGHT, context=0.125)), stage2_weight=0.25)
    classifier = TwoStageClassifier(Localizer(model, engine), CropClassifier(model, engine))
    found = classifier(bright_square(2, 3, 6, 7))
    assert found.localization.boxes.tolist() == [[32, 48, 96, 112]]
    # Of the canvas 16 of 144 cells are bright, of the crop 4 x 4 of 7 x 7.
    stage1, stage2 = (torch.tensor([[bright, 0.0]]).softmax(dim=1) for bright in (1 / 9, 16 / 49))
    torch.testing.assert_close(found.localization.probabilities, stage1)
    torch.testing.assert_close(found.stage2, stage2, atol=0.002, rtol=0)  # edges are interpolated
    torch.testing.assert_close(found.final, 0.75 * stage1 + 0.25 * found.stage2)


@pytest.mark.parametrize("rotation", [False, True])
def test_two_stages_are_their_halves(rotation: bool) -> None:
    stage1, stage2, batch = network(0), network(1), canvases(3)
    model = settings(stage1, RULES[0], rotation)
    whole = TwoStageClassifier(Localizer(model, stage1), CropClassifier(model, stage2))(batch)
    half = localize(stage1, batch, RULES[0], rotation)
    assert torch.equal(whole.localization.crops, half.crops)
    assert torch.equal(half.crops, sample_boxes(batch, half.crop_boxes, SIZE))
    assert torch.equal(whole.stage2, classify(stage2, half.crops, rotation))
    torch.testing.assert_close(whole.final, (half.probabilities + whole.stage2) / 2)


# Test-time rotation

ROWS_AND_COLUMNS = (2, 3)  # flipping both rotates by 180 degrees


def small_canvases(count: int) -> Tensor:
    """Canvases of the input size, which sampling does not change, rotated or not."""
    return canvases(count)[:, :, ::2, ::2]


@by_rule
def test_with_rotation_a_rotated_image_has_the_same_results(rule: CropRule) -> None:
    stage1, batch = network(), small_canvases(4)
    found = localize(stage1, batch, rule, rotation=True)
    rotated = localize(stage1, batch.flip(ROWS_AND_COLUMNS), rule, rotation=True)
    torch.testing.assert_close(rotated.probabilities, found.probabilities)
    assert (rotated.maps.flip((1, 2)).int() - found.maps.int()).abs().max() <= 1
    expected = SIZE - found.boxes[:, [2, 3, 0, 1]]
    assert (rotated.boxes - expected).abs().max() <= 1  # half pixels round to even


def test_rotation_averages_both_views() -> None:
    stage1, batch = network(), small_canvases(3)
    views = [classify(stage1, batch), classify(stage1, batch.flip(ROWS_AND_COLUMNS))]
    assert (views[0] - views[1]).abs().max() > 0.001
    mean = (views[0] + views[1]) / 2
    torch.testing.assert_close(classify(stage1, batch, rotation=True), mean)
    found = localize(stage1, batch, CropRule(map="maximum"), rotation=True)
    torch.testing.assert_close(found.probabilities, mean)
    with torch.inference_mode():
        rotated_back = [
            class_activation_maps(stage1(batch.flip(axes))[1], stage1.class_weights).flip(axes)
            for axes in ((), ROWS_AND_COLUMNS)
        ]
    maps = torch.stack(rotated_back).mean(dim=0).amax(dim=1)
    assert (found.maps - scaled(maps)).abs().max() <= 0.51


# Shapes


def test_whole_boxes_are_one_for_each_canvas() -> None:
    boxes = whole_boxes(torch.zeros(3, 3, 10, 10, dtype=torch.uint8))
    assert boxes.tolist() == [[0, 0, 10, 10]] * 3


def test_channels_first_copies_nothing() -> None:
    decoded = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    moved = to_channels_first(decoded)
    assert moved.shape == (2, 3, 4, 4)
    assert moved[1, 2, 3, 0] == decoded[1, 3, 0, 2]
    assert moved.data_ptr() == decoded.data_ptr()
