"""Quality: drawn pictures with one fault each, and what is said of them."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lesioncam.columns import Quality
from lesioncam.vision.decode import decode_image
from lesioncam.vision.quality import MIN_SIDE, _mean_of_three, _percentile
from tests.messy import lesion

SIZE = 320


def photograph(width: int = 640, height: int = 480) -> Image.Image:
    """A lesion with hairs, as sharp as a photograph."""
    pixels = np.asarray(lesion(width, height)).copy()
    pixels[:, 10::20] = (60, 40, 30)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(width / 700))


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(image.width / 112))


def brightened(image: Image.Image) -> Image.Image:
    return image.point(lambda value: min(255, value + 100))


def darkened(image: Image.Image) -> Image.Image:
    return image.point(lambda value: value // 5)


def low_contrast(image: Image.Image) -> Image.Image:
    return image.point(lambda value: 150 + value // 5)


def with_vignette(image: Image.Image) -> Image.Image:
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    pixels = np.asarray(image).copy()
    pixels[x * x + y * y > 0.8] = 0
    return Image.fromarray(pixels)


def reduced(image: Image.Image) -> Image.Image:
    return image.resize((MIN_SIDE, MIN_SIDE - 1), Image.Resampling.LANCZOS)


def quality(image: Image.Image, size: int = SIZE) -> list[Quality]:
    return list(decode_image(image, size).quality)


@pytest.mark.parametrize("size", [224, 320, 448])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda image: image, []),
        (with_vignette, []),
        (low_contrast, []),
        (blurred, [Quality.BLURRED]),
        (brightened, [Quality.OVEREXPOSED]),
        (darkened, [Quality.UNDEREXPOSED]),
        (lambda image: darkened(blurred(image)), [Quality.BLURRED, Quality.UNDEREXPOSED]),
    ],
)
def test_each_fault_is_found_alone(
    change: Callable[[Image.Image], Image.Image], expected: list[Quality], size: int
) -> None:
    assert quality(change(photograph()), size) == expected


@pytest.mark.parametrize("size", [224, 448])
def test_a_small_image_is_of_low_resolution_and_not_blurred_by_enlarging_it(size: int) -> None:
    assert quality(reduced(photograph()), size) == [Quality.LOW_RESOLUTION]
    assert quality(photograph(MIN_SIDE, MIN_SIDE), size) == []


def test_a_picture_of_one_color_is_blurred() -> None:
    assert quality(Image.new("RGB", (640, 480), (200, 150, 120))) == [Quality.BLURRED]


@pytest.mark.parametrize("side", [1, 2, 9])
def test_a_tiny_image_is_no_error(side: int) -> None:
    assert quality(Image.new("RGB", (side, side), (200, 150, 120))) == [Quality.LOW_RESOLUTION]


def test_local_means_are_those_of_squares() -> None:
    values = np.random.default_rng(0).random((20, 15)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3)).mean(axis=(2, 3))
    np.testing.assert_allclose(_mean_of_three(values, 1), windows, rtol=1e-5)
    windows = np.lib.stride_tricks.sliding_window_view(values, (9, 9)).mean(axis=(2, 3))
    nine = _mean_of_three(_mean_of_three(values, 1), 3)
    np.testing.assert_allclose(nine, windows, rtol=1e-5)


@pytest.mark.parametrize("percent", [0, 50, 90, 99, 100])
def test_percentiles_are_values(percent: int) -> None:
    values = np.random.default_rng(0).random((30, 7))
    assert _percentile(values, percent) == np.percentile(values, percent, method="lower")
