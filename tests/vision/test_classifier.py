"""Localize: the composition of network, map and crop, and what comes of it."""

import pytest
import torch
from torch import Tensor, nn

from lesioncam.settings import CropRule, ModelSettings
from lesioncam.vision.cam import choose_map, class_activation_maps
from lesioncam.vision.classifier import (
    CropClassifier,
    Localization,
    Localizer,
    combine,
    to_channels_first,
    whole_boxes,
)
from lesioncam.vision.crop import sample_boxes
from lesioncam.vision.network import VGGGAP

SIDE, CANVAS = 96, 192
CELL = CANVAS // 12  # the tiny network's map has 12 x 12 positions
RULES = [
    CropRule(threshold=0.7, smallest=0.25),
    CropRule(map="predicted", threshold=0.5, padding=0.0, smallest=0.25),
]


def network(seed: int = 0) -> VGGGAP:
    torch.manual_seed(seed)
    return VGGGAP("tiny", 3).eval()


def settings(stage: VGGGAP, rule: CropRule, rotation: bool) -> ModelSettings:
    classes = tuple(f"class{k}" for k in range(len(stage.class_weights)))
    return ModelSettings(classes, "tiny", SIDE, CANVAS, (0.5,) * 3, (0.5,) * 3, 0.5, rule, rotation)


def localize(stage: VGGGAP, batch: Tensor, rule: CropRule, rotation: bool = False) -> Localization:
    return Localizer(settings(stage, rule, rotation), stage)(batch)


def classify(stage: VGGGAP, crops: Tensor, rotation: bool = False) -> Tensor:
    return CropClassifier(settings(stage, CropRule(), rotation), stage)(crops)


def canvases(count: int, seed: int = 0) -> Tensor:
    """Smooth blobs of color, so that every image's map has a peak of its own."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 255
    smooth = nn.functional.interpolate(coarse, size=CANVAS, mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8)


def brightness_detector(classes: int = 3) -> VGGGAP:
    """A network whose feature is brightness, and whose first class is for the bright."""
    made = VGGGAP("tiny", classes, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    for module in made.features:
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            with torch.no_grad():
                module.weight[0, :, 1, 1] = 1 / 3 if module.in_channels == 3 else 0.0
                if module.in_channels != 3:
                    module.weight[0, 0, 1, 1] = 1.0
    nn.init.zeros_(made.linear.weight)
    nn.init.zeros_(made.linear.bias)
    with torch.no_grad():
        made.linear.weight[0, 0] = 1.0
    return made


def with_bright_square(x0: int, y0: int, x1: int, y1: int) -> Tensor:
    """A dark canvas with a bright rectangle, given in positions of the map."""
    canvas = torch.zeros(1, 3, CANVAS, CANVAS, dtype=torch.uint8)
    canvas[:, :, y0 * CELL : y1 * CELL, x0 * CELL : x1 * CELL] = 255
    return canvas


def parts(found: Localization) -> list[Tensor]:
    return [found.probabilities, found.boxes, found.maps, found.flat]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.map)
def test_shapes_and_dtypes(rule: CropRule) -> None:
    found = localize(network(), canvases(4), rule)
    assert [tuple(part.shape) for part in parts(found)] == [(4, 3), (4, 4), (4, 12, 12), (4,)]
    assert [part.dtype for part in parts(found)] == [
        torch.float32,
        torch.int64,
        torch.uint8,
        torch.bool,
    ]
    torch.testing.assert_close(found.probabilities.sum(dim=1), torch.ones(4))
    assert found.maps.amin(dim=(1, 2)).tolist() == [0] * 4
    assert found.maps.amax(dim=(1, 2)).tolist() == [255] * 4
    assert not found.flat.any()


def test_probabilities_are_those_of_the_shrunken_image() -> None:
    stage1, batch = network(), canvases(3)
    found = localize(stage1, batch, CropRule())
    small = sample_boxes(batch, whole_boxes(batch), SIDE)
    assert small.shape == (3, 3, SIDE, SIDE)
    with torch.inference_mode():
        logits, _ = stage1(small)
    torch.testing.assert_close(found.probabilities, logits.softmax(dim=1))
    torch.testing.assert_close(classify(stage1, small), found.probabilities)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.map)
def test_map_is_the_one_the_rule_names(rule: CropRule) -> None:
    stage1, batch = network(), canvases(3)
    found = localize(stage1, batch, rule)
    with torch.inference_mode():
        logits, features = stage1(sample_boxes(batch, whole_boxes(batch), SIDE))
        maps = class_activation_maps(features, stage1.class_weights)
        chosen = choose_map(maps, logits, rule.map)
    low = chosen.amin(dim=(1, 2), keepdim=True)
    expected = (chosen - low) / (chosen.amax(dim=(1, 2), keepdim=True) - low) * 255
    assert (found.maps - expected).abs().max() <= 0.51


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.map)
def test_batch_equals_singles_whatever_else_is_in_it(rule: CropRule) -> None:
    stage1, batch = network(), canvases(6)
    together = localize(stage1, batch, rule)
    with_others = localize(stage1, torch.cat([canvases(3, seed=9), batch.flip(0)]), rule)
    for place in range(6):
        alone = localize(stage1, batch[place : place + 1], rule)
        for found, index in ((together, place), (with_others, -1 - place)):
            torch.testing.assert_close(found.probabilities[index], alone.probabilities[0])
            assert found.boxes[index].tolist() == alone.boxes[0].tolist()
            assert (found.maps[index].int() - alone.maps[0].int()).abs().max() <= 1
            assert bool(found.flat[index]) == bool(alone.flat[0])
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
def test_box_finds_the_bright_square(
    square: tuple[int, int, int, int], expected: list[int]
) -> None:
    rule = CropRule(threshold=0.5, padding=0.0, smallest=0.25)
    found = localize(brightness_detector(), with_bright_square(*square), rule)
    assert found.boxes.tolist() == [expected]
    x0, y0, x1, y1 = square
    by_hand = torch.zeros(12, 12, dtype=torch.uint8)
    by_hand[y0:y1, x0:x1] = 255
    assert torch.equal(found.maps[0], by_hand)
    assert found.flat.tolist() == [False]


def test_stage_2_sees_each_box_with_its_surroundings() -> None:
    rule = CropRule(threshold=0.5, padding=0.0, smallest=0.25, context=0.125)
    found = localize(brightness_detector(), with_bright_square(2, 3, 6, 7), rule)
    assert found.boxes.tolist() == [[32, 48, 96, 112]]
    assert found.crop_boxes.tolist() == [[8, 24, 120, 136]]  # an eighth of 192 more on each side


def test_probabilities_of_the_bright_square_by_hand() -> None:
    found = localize(brightness_detector(), with_bright_square(0, 0, 6, 6), CropRule())
    # A quarter is bright: the first logit is 0.25, the others 0.
    odds = torch.tensor([0.25, 0.0, 0.0]).exp()
    torch.testing.assert_close(found.probabilities[0], odds / odds.sum())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.map)
def test_flat_map_gives_the_whole_canvas(rule: CropRule) -> None:
    square = with_bright_square(2, 3, 6, 7)
    batch = torch.cat([square, torch.full_like(square, 90), torch.zeros_like(square)])
    found = localize(brightness_detector(), batch, rule)
    assert found.flat.tolist() == [False, True, True]
    assert found.boxes.tolist()[1:] == [[0, 0, CANVAS, CANVAS]] * 2
    assert found.boxes.tolist()[0] != [0, 0, CANVAS, CANVAS]
    assert not found.maps[1:].any()


def test_canvas_may_be_as_small_as_the_input() -> None:
    small = canvases(2)[:, :, :SIDE, :SIDE]
    found = localize(network(), small, CropRule())
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= SIDE


def test_results_carry_no_gradient() -> None:
    found = localize(network(), canvases(1), CropRule())
    assert not found.probabilities.requires_grad
    assert not classify(network(), canvases(1)[:, :, :SIDE, :SIDE]).requires_grad


def test_classify_by_hand() -> None:
    crops = torch.stack(
        [torch.full((3, SIDE, SIDE), value, dtype=torch.uint8) for value in (0, 255)]
    )
    dark, bright = classify(brightness_detector(classes=2), crops).tolist()
    assert dark == pytest.approx([0.5, 0.5])
    assert bright == pytest.approx([0.7310586, 0.2689414], abs=1e-6)  # odds of e to 1


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(0.0, [0.8, 0.2]), (1.0, [0.4, 0.6]), (0.5, [0.6, 0.4]), (0.25, [0.7, 0.3])],
)
def test_combine_by_hand(weight: float, expected: list[float]) -> None:
    combined = combine(torch.tensor([[0.8, 0.2]]), torch.tensor([[0.4, 0.6]]), weight)
    torch.testing.assert_close(combined, torch.tensor([expected]))


# Half turns

HALF_TURN = (2, 3)


def half_canvases(count: int) -> Tensor:
    """Canvases of the input side, which sampling leaves as they are, turned or not."""
    return canvases(count)[:, :, ::2, ::2]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.map)
def test_with_a_half_turn_an_image_and_its_half_turn_are_seen_alike(rule: CropRule) -> None:
    stage1, batch = network(), half_canvases(4)
    found = localize(stage1, batch, rule, rotation=True)
    turned = localize(stage1, batch.flip(HALF_TURN), rule, rotation=True)
    torch.testing.assert_close(turned.probabilities, found.probabilities)
    turned_back = turned.maps.flip((1, 2))
    assert (turned_back.int() - found.maps.int()).abs().max() <= 1
    expected = SIDE - found.boxes[:, [2, 3, 0, 1]]
    assert (turned.boxes - expected).abs().max() <= 1  # half pixels round to even


def test_without_it_a_half_turn_is_another_image() -> None:
    stage1, batch = network(), half_canvases(4)
    plain, turned = (classify(stage1, form) for form in (batch, batch.flip(HALF_TURN)))
    assert (plain - turned).abs().max() > 0.001


def test_probabilities_are_the_mean_over_the_image_and_its_half_turn() -> None:
    stage1, batch = network(), half_canvases(3)
    by_hand = (classify(stage1, batch) + classify(stage1, batch.flip(HALF_TURN))) / 2
    torch.testing.assert_close(classify(stage1, batch, rotation=True), by_hand)
    found = localize(stage1, batch, CropRule(), rotation=True)
    torch.testing.assert_close(found.probabilities, by_hand)


def test_the_map_with_a_half_turn_is_the_mean_of_both_maps_one_turned_back() -> None:
    stage1, batch = network(), half_canvases(3)
    with torch.inference_mode():
        turned_back = [
            class_activation_maps(stage1(batch.flip(axes))[1], stage1.class_weights).flip(axes)
            for axes in ((), HALF_TURN)
        ]
    chosen = torch.stack(turned_back).mean(dim=0).amax(dim=1)
    low = chosen.amin(dim=(1, 2), keepdim=True)
    expected = (chosen - low) / (chosen.amax(dim=(1, 2), keepdim=True) - low) * 255
    found = localize(stage1, batch, CropRule(map="maximum"), rotation=True)
    assert (found.maps - expected).abs().max() <= 0.51


def test_a_network_that_cannot_tell_up_from_down_sees_the_same_with_a_half_turn() -> None:
    square = with_bright_square(2, 3, 6, 7)
    batch = torch.cat([square, square.flip(3), torch.zeros_like(square)])
    rule = CropRule(threshold=0.5, padding=0.0, smallest=0.25)
    plain, twice = (
        localize(brightness_detector(), batch, rule, rotation) for rotation in (False, True)
    )
    torch.testing.assert_close(twice.probabilities, plain.probabilities)
    for part in ("boxes", "maps", "flat"):
        assert torch.equal(getattr(twice, part), getattr(plain, part)), part


def test_whole_boxes_are_one_for_each_canvas() -> None:
    boxes = whole_boxes(torch.zeros(3, 3, 10, 10, dtype=torch.uint8))
    assert boxes.tolist() == [[0, 0, 10, 10]] * 3


def test_channels_first_moves_no_pixel() -> None:
    decoded = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    moved = to_channels_first(decoded)
    assert moved.shape == (2, 3, 4, 4)
    assert moved[1, 2, 3, 0] == decoded[1, 3, 0, 2]
    assert moved.data_ptr() == decoded.data_ptr()
