"""Images: synthetic JPEGs of the sizes dermoscopes write, with about as many bytes a pixel.

Over a synthetic lesion lies what makes a photograph expensive to decode: skin texture at every
scale, grain and hairs. `DISTINCT` images are made; more are hard links to the same files, which
cost a reader as much to open and decode as any others.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from lesioncam.demo import CLASSES, draw_lesion

SIZES = ((1022, 767), (3000, 2000))
DISTINCT = 24

_QUALITY = 90
_OCTAVES = 6  # scales of the skin's texture, each twice as large as the one before
_TEXTURE = 2.0  # standard deviation of an octave, in gray levels
_GRAIN = 2.0
_HAIRS = 12


def write_images(folder: Path, size: tuple[int, int], count: int) -> Path:
    """Write `count` JPEGs of `size` (width, height); returns their directory.

    The first images are the same for any count. Existing files stay.
    """
    distinct = _distinct(folder / f"distinct-{size[0]}x{size[1]}", size, min(count, DISTINCT))
    images = folder / f"{size[0]}x{size[1]}-{count}"
    images.mkdir(exist_ok=True)
    for number in range(count):
        link = images / f"IMAGE_{number:06d}.jpg"
        if not link.exists():
            link.hardlink_to(distinct[number % DISTINCT])
    return images


def photographs(size: tuple[int, int], seed: int) -> Iterator[Image.Image]:
    """Draw one image after another, the classes in turn."""
    random = np.random.default_rng(seed)
    texture = _texture(size, random)
    number = 0
    while True:
        lesion = draw_lesion(CLASSES[number % len(CLASSES)], random)
        yield _photograph(lesion.resize(size, Image.Resampling.BICUBIC), texture, random)
        number += 1


def _distinct(folder: Path, size: tuple[int, int], count: int) -> list[Path]:
    paths = [folder / f"{number:02d}.jpg" for number in range(count)]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        for path, image in zip(paths, islice(photographs(size, seed=0), count), strict=True):
            image.save(path, quality=_QUALITY)
    return paths


def _texture(size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """(height, width) float: the skin's texture, at every scale, and the camera's grain."""
    width, height = size
    texture = random.normal(0, _GRAIN, (height, width))
    for octave in range(1, _OCTAVES + 1):
        shape = (height >> octave, width >> octave)
        noise = random.normal(0, _TEXTURE, shape).astype(np.float32)
        texture += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
    return texture


def _photograph(
    lesion: Image.Image, texture: np.ndarray, random: np.random.Generator
) -> Image.Image:
    """Add texture, shifted at random, and hairs to a lesion."""
    shift = tuple(random.integers(0, texture.shape))
    pixels = np.asarray(lesion) + np.roll(texture, shift, axis=(0, 1))[..., None]
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    brush = ImageDraw.Draw(image)
    for _ in range(random.integers(_HAIRS)):
        _draw_hair(brush, image.size, random)
    return image


def _draw_hair(
    brush: ImageDraw.ImageDraw, size: tuple[int, int], random: np.random.Generator
) -> None:
    """A dark quadratic Bezier curve across the image."""
    ends, bend = random.uniform(0, 1, (2, 2)) * size, random.uniform(0, 1, 2) * size
    along = np.linspace(0, 1, 40)[:, None]
    curve = (1 - along) ** 2 * ends[0] + 2 * along * (1 - along) * bend + along**2 * ends[1]
    shade = int(random.integers(20, 70))
    width = max(1, round(size[0] * random.uniform(0.001, 0.003)))
    brush.line([(x, y) for x, y in curve.tolist()], (shade, shade - 8, shade - 12), width)
