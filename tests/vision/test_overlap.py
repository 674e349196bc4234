"""Overlap of maps and boxes with masks, on cases worked by hand."""

import numpy as np
import pytest

from lesioncam.vision.overlap import bounding_box, compare, iou, mean_overlap, overlap_table

BOX = (0.2, 0.4, 0.6, 0.8)


def peak_at(x: int, y: int) -> np.ndarray:
    cam = np.zeros((4, 4), np.uint8)
    cam[y, x] = 255
    return cam


def mask_of(x0: int, y0: int, x1: int, y1: int, width: int = 320, height: int = 240) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_a_box_on_the_mask_is_perfect() -> None:
    assert compare(mask_of(64, 96, 192, 192), peak_at(1, 2), BOX) == {  # the peak is at 120, 150
        "peak_inside": 1.0,
        "box_iou": 1.0,
        "lesion_kept": 1.0,
        "center_inside": 1.0,
        "central_box_iou": pytest.approx(128 * 96 / (192 * 144)),
    }


def test_a_mask_may_have_another_size_than_the_image() -> None:
    right_half = mask_of(64, 48, 96, 96, width=160, height=120)
    found = compare(right_half, peak_at(1, 2), BOX)  # the peak is at 60, 75
    assert found["box_iou"] == pytest.approx(0.5)
    assert found["lesion_kept"] == 1.0
    assert found["peak_inside"] == 0.0


def test_lesion_kept_is_the_fraction_inside_the_box() -> None:
    found = compare(mask_of(0, 96, 256, 192), peak_at(0, 2), BOX)  # 64 to 192 of 0 to 256
    assert found["lesion_kept"] == 0.5
    assert found["box_iou"] == pytest.approx(0.5)


def test_a_box_elsewhere_keeps_nothing() -> None:
    found = compare(mask_of(256, 0, 320, 48), peak_at(0, 3), BOX)
    assert set(found.values()) == {0.0}


def test_peaks_in_the_corners_are_inside_the_frame() -> None:
    everything = np.ones((3, 5), bool)  # coarser than the map
    for corner in (peak_at(0, 0), peak_at(3, 3)):
        assert compare(everything, corner, (0.0, 0.0, 1.0, 1.0))["peak_inside"] == 1.0


def test_bounding_box_is_half_open_in_fractions() -> None:
    assert bounding_box(mask_of(1, 3, 2, 6, width=4, height=12)) == (0.25, 0.25, 0.5, 0.5)
    assert bounding_box(np.ones((7, 3), bool)) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((0.0, 0.0, 0.5, 0.5), 1.0),
        ((0.5, 0.0, 1.0, 0.5), 0.0),
        ((0.6, 0.6, 0.9, 0.9), 0.0),  # apart both ways: the two gaps make no area
        ((0.25, 0.0, 0.75, 0.5), 1 / 3),
        ((0.0, 0.0, 1.0, 1.0), 0.25),
    ],
)
def test_iou_by_hand(second: tuple[float, float, float, float], expected: float) -> None:
    first = (0.0, 0.0, 0.5, 0.5)
    assert iou(first, second) == iou(second, first) == pytest.approx(expected)


def test_means_are_over_the_masks() -> None:
    found = iter([{"box_iou": 1.0}, {"box_iou": 0.5}])
    assert mean_overlap(found) == {"masks": 2, "box_iou": 0.75}
    assert mean_overlap([]) == {"masks": 0}


def test_table_names_its_figures() -> None:
    figures = mean_overlap([compare(mask_of(64, 96, 192, 192), peak_at(1, 2), BOX)])
    table = "\n".join(overlap_table(figures))
    assert "1 lesion masks" in table
    assert "| mean IoU with the lesion's box | 1.000 | 0.444 (central 60% box) |" in table


def test_table_without_masks_is_undefined() -> None:
    (line,) = overlap_table(mean_overlap([]))
    assert line == "Localization: undefined, none of these images has a lesion mask."
