"""Quality: how many real images are flagged for which reason, as they are and made worse.

    python -m benchmarks.quality ../shared/isic2017/images_512/train

Prints a table in Markdown. The thresholds of `lesioncam/vision/quality.py` were chosen by it.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageFilter

from lesioncam.columns import Quality
from lesioncam.vision.decode import decode_image
from lesioncam.vision.quality import picture_quality

_CANVAS_SIZE = 320
_CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as they are": lambda image: image,
    "blurred, sigma 1/224 of the side": lambda image: image.filter(
        ImageFilter.GaussianBlur(image.width / 224)
    ),
    "blurred, sigma 1/112 of the side": lambda image: image.filter(
        ImageFilter.GaussianBlur(image.width / 112)
    ),
    "brighter, values times 1.5": lambda image: image.point(lambda value: min(255, value * 1.5)),
    "darker, values divided by 4": lambda image: image.point(lambda value: value / 4),
}


def main() -> None:
    """Print how many of the images are flagged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path, help="a directory of images")
    parser.add_argument("--limit", type=int, default=200, help="images, evenly spread (200)")
    flags = parser.parse_args()
    paths = sorted(flags.images.iterdir())
    paths = paths[:: max(1, len(paths) // flags.limit)]
    reasons = [reason for reason in Quality if reason is not Quality.LESION_AT_BORDER]
    print(f"{len(paths):,} images\n\n| images | {' | '.join(reasons)} |")
    print(f"|---|{'---:|' * len(reasons)}")
    seconds = 0.0
    for name, change in _CHANGES.items():
        counts: Counter[Quality] = Counter()
        for path in paths:
            with Image.open(path) as image:
                decoded = decode_image(change(image.convert("RGB")), _CANVAS_SIZE)
            counts.update(decoded.quality)
            started = time.process_time()
            picture_quality(decoded.canvas, decoded.width, decoded.height)
            seconds += time.process_time() - started
        cells = (f"{counts[reason] / len(paths):.1%}" for reason in reasons)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"\n{1000 * seconds / (len(paths) * len(_CHANGES)):.1f} ms of CPU an image")


if __name__ == "__main__":
    main()
