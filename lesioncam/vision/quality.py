"""Quality: what a reader should know of a picture, from its canvas and its size.

The thresholds were chosen on the ISIC-2017 training images, so that about one in a hundred or fewer
is flagged for each reason; `python -m benchmarks.quality` prints how many are. Knows nothing about
files. Shapes: `S` canvas size.
"""

import numpy as np
from PIL import Image

from lesioncam.columns import Quality

# Blur is measured at this size: what is finer, the networks do not see.
_MEASURED_SIZE = 224
_FINE, _MEDIUM = 3, 9  # sides, in pixels, of the means that split detail into two scales
_SHARPEST = 99  # percentile: a sharp picture may have little detail, but some of it is sharp
_ROUNDING = 0.3  # fine detail, of 255, that rounding to 8 bits leaves in a picture without any
# Fine detail as a fraction of medium detail. 1 in 100 training images is below it, and 9 in 10 of
# them when blurred by a Gaussian whose sigma is 1 / 224 of the side.
MIN_SHARPNESS = 0.33

_SATURATED = 250  # of 255, in all channels
# Training images with more saturated pixels are seen to have lost the skin around the lesion.
MAX_SATURATED = 0.1
_BRIGHTEST = 90  # percentile: a dark vignette may take most of a picture
# A quarter of the range. The darkest training images, of dark skin, are at a third of it.
MIN_BRIGHTNESS = 64
# Pixels of the shorter side. ISIC's own images have at least twice as many.
MIN_SIDE = 224


def picture_quality(canvas: np.ndarray, width: int, height: int) -> tuple[Quality, ...]:
    """What a reader should know of a picture; empty for a good one.

    Args:
        canvas: (S, S, 3) uint8 RGB.
        width: of the image, in pixels.
        height: of the image, in pixels.
    """
    shorter = min(width, height)
    size = min(len(canvas), _MEASURED_SIZE, shorter)
    image = Image.fromarray(canvas).resize((size, size), Image.Resampling.BILINEAR)
    red, green, blue = (np.asarray(band) for band in image.split())
    gray = (red.astype(np.float32) + green + blue) / 3
    saturated = np.minimum(np.minimum(red, green), blue) >= _SATURATED
    found = {
        Quality.BLURRED: _sharpness(gray) < MIN_SHARPNESS,
        Quality.OVEREXPOSED: saturated.mean() > MAX_SATURATED,
        Quality.UNDEREXPOSED: _percentile(gray, _BRIGHTEST) < MIN_BRIGHTNESS,
        Quality.LOW_RESOLUTION: shorter < MIN_SIDE,
    }
    return tuple(name for name, is_so in found.items() if is_so)


def _sharpness(gray: np.ndarray) -> float:
    """Fine detail at the sharpest locations, as a fraction of medium detail there.

    Does not depend on contrast. 0 for a picture without detail; infinite for one that is too small
    to have any.
    """
    if min(gray.shape) <= _MEDIUM:
        return np.inf
    smooth = _mean_of_three(gray, 1)
    smoother = _mean_of_three(smooth, _FINE)  # of nine by nine pixels
    fine = np.abs(gray[1:-1, 1:-1] - smooth)
    medium = np.abs(smooth[_FINE:-_FINE, _FINE:-_FINE] - smoother)
    highest = _percentile(medium, _SHARPEST)
    return max(_percentile(fine, _SHARPEST) - _ROUNDING, 0.0) / highest if highest > 0 else 0.0


def _mean_of_three(gray: np.ndarray, step: int) -> np.ndarray:
    """The mean of each value and its neighbors at this step both ways, where it has all of them."""
    twice = 2 * step
    gray = gray[:-twice] + gray[step:-step] + gray[twice:]
    gray = gray[:, :-twice] + gray[:, step:-step] + gray[:, twice:]
    return gray / 9


def _percentile(values: np.ndarray, percent: int) -> float:
    """As `numpy.percentile`, without interpolation, in a fraction of its time."""
    index = (values.size - 1) * percent // 100
    return float(np.partition(values, index, axis=None)[index])
