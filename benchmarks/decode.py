"""Decode: what one core turns from JPEG bytes into canvases, which feeds a GPU or does not.

    python -m benchmarks.decode

Bytes in memory to a canvas of 448 x 448, by the code that scoring runs, and by decoding the whole
JPEG before it is made smaller, as most programs do. One thread, in turn. Prints images a second of
a core for both, and how far their pixels lie apart.
"""

import argparse
import io
from functools import partial
from itertools import islice

import numpy as np
from PIL import Image

from benchmarks.compiled import seconds_of
from benchmarks.images import QUALITY, SIZES, photographs
from benchmarks.report import Rounds, machine, machine_line, markdown
from lesioncam.vision.decode import decode

_SIDE = 448  # of VGG-16's canvas
_IMAGES = 8
_ROUNDS = 5


def encoded(size: tuple[int, int]) -> list[bytes]:
    """Drawn photographs of (width, height) as JPEG files."""
    files = []
    for image in islice(photographs(size, seed=0), _IMAGES):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return files


def reduced(data: bytes) -> np.ndarray:
    """A (448, 448, 3) canvas as scoring makes it."""
    return decode(data, _SIDE).canvas


def whole(data: bytes) -> np.ndarray:
    """The same from every pixel of the file."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))


def compare(size: tuple[int, int]) -> list[object]:
    """A row of the table."""
    files = encoded(size)
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
    print(f"# Decode\n\n{machine_line(machine('float32'))}\n")
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
