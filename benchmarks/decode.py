"""Decode: the canvases that one core makes of JPEG bytes in a second.

    python -m benchmarks.decode

From bytes in memory to a canvas of 320 x 320: in a decoder's process, as scoring does it; by the
same code in this process; and by decoding the whole JPEG before shrinking it, as most programs do.
One image at a time, the three methods in turn. Prints each method's images/s of a core, and how far
the last one's pixels are from scoring's.
"""

import argparse
import io
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.images import SIZES, write_images
from benchmarks.report import Rounds, machine, machine_line, markdown, seconds_of
from lesioncam.settings import BACKBONES
from lesioncam.vision.decode import decode
from lesioncam.vision.decoder import Decoder

_SIDE = 2 * BACKBONES["vgg16"].input_size  # of the canvas
_IMAGES = 8
_ROUNDS = 5


def whole(data: bytes) -> np.ndarray:
    """A (320, 320, 3) canvas from every pixel of the file."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))


def compare(size: tuple[int, int]) -> list[object]:
    """A row of the table."""
    with TemporaryDirectory() as folder:
        images = write_images(Path(folder), size, _IMAGES)
        files = [path.read_bytes() for path in images.iterdir()]
    decoder = Decoder()
    methods = (
        lambda data: decoder.decode(data, _SIDE).canvas,
        lambda data: decode(data, _SIDE).canvas,
        whole,
    )
    scored, _, others = ([method(data).astype(int) for data in files] for method in methods)
    apart = np.abs(np.subtract(scored, others)).mean()
    seconds = [
        [seconds_of(partial(list, map(method, files))) for method in methods]
        for _ in range(_ROUNDS)
    ]
    decoder.close()
    rates = [
        Rounds(tuple(_IMAGES / each for each in times)) for times in zip(*seconds, strict=True)
    ]
    kilobytes = sum(map(len, files)) / len(files) / 1000
    return [f"{size[0]} x {size[1]}", f"{kilobytes:,.0f}", *rates, f"{apart:.2f}"]


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    print(f"# Decode\n\n{machine_line(machine('pillow'))}\n")
    head = (
        "JPEG",
        "kB",
        "images/s of a core",
        "in this process",
        "decoded whole",
        "mean difference of a pixel, of 255",
    )
    print(markdown(head, [compare(size) for size in SIZES]))


if __name__ == "__main__":
    main()
