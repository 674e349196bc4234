"""Decode: what one core turns from JPEG bytes into canvases, which feeds a GPU or does not.

    python -m benchmarks.decode

Bytes in memory to a canvas of 448 x 448, by the code that scoring runs, and by decoding the whole
JPEG before it is made smaller, as most programs do. One thread, in turn. Prints images a second of
a core for both, and how far their pixels lie apart.
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
from lesioncam.vision.decode import decode

_SIDE = 448  # of VGG-16's canvas
_IMAGES = 8
_ROUNDS = 5


def reduced(data: bytes) -> np.ndarray:
    """A (448, 448, 3) canvas as scoring makes it."""
    return decode(data, _SIDE).canvas


def whole(data: bytes) -> np.ndarray:
    """The same from every pixel of the file."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))


def compare(size: tuple[int, int]) -> list[object]:
    """A row of the table."""
    with TemporaryDirectory() as folder:
        images = write_images(Path(folder), size, _IMAGES)
        files = [path.read_bytes() for path in images.iterdir()]
    rates = []
    apart = np.mean([np.abs(reduced(data).astype(int) - whole(data)).mean() for data in files])
    for way in (reduced, whole):
        seconds = [seconds_of(partial(list, map(way, files))) for _ in range(_ROUNDS)]
        rates.append(Rounds(tuple(_IMAGES / each for each in seconds)))
    kilobytes = sum(map(len, files)) / len(files) / 1000
    return [f"{size[0]} x {size[1]}", f"{kilobytes:,.0f}", *rates, f"{apart:.2f}"]


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    print(f"# Decode\n\n{machine_line(machine('uint8', 'pillow'))}\n")
    head = (
        "JPEG",
        "kB",
        "images/s of a core",
        "decoded whole",
        "mean difference of a pixel, of 255",
    )
    print(markdown(head, [compare(size) for size in SIZES]))


if __name__ == "__main__":
    main()
