"""Decode: what one core turns from JPEG bytes into canvases, which feeds a GPU or does not.

    python -m benchmarks.decode

Bytes in memory to a canvas of 320 x 320: in a decoder's process, as scoring does it, by the same
code in this one, and by decoding the whole JPEG before it is made smaller, as most programs do. One
image at a time, the three ways in turn. Prints images a second of a core for each, and how far the
pixels of the last lie from scoring's.
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

_SIDE = 2 * BACKBONES["vgg16"].input_size  # of its canvas
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
    ways = (
        lambda data: decoder.decode(data, _SIDE).canvas,
        lambda data: decode(data, _SIDE).canvas,
        whole,
    )
    scored, _, others = ([way(data).astype(int) for data in files] for way in ways)
    apart = np.abs(np.subtract(scored, others)).mean()
    seconds = [[seconds_of(partial(list, map(way, files))) for way in ways] for _ in range(_ROUNDS)]
    decoder.close()
    rates = [
        Rounds(tuple(_IMAGES / each for each in of_way)) for of_way in zip(*seconds, strict=True)
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
