"""A folder as users have them: good images of every kind beside broken ones and odd names."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Expected:
    """What a file's row must say: an error kind or None, and the size after orientation."""

    kind: str | None
    size: tuple[int, int] | None


def lesion(width: int, height: int, seed: int = 0) -> Image.Image:
    """A dark blob, off the center, on skin."""
    y, x = np.mgrid[0:height, 0:width]
    inside = ((x / width - 0.35) ** 2 + (y / height - 0.6) ** 2) < 0.02
    noise = np.random.default_rng(seed).integers(0, 12, (height, width, 1))
    pixels = np.where(inside[..., None], (90, 50, 40), (225, 180, 155)) + noise
    return Image.fromarray(pixels.astype(np.uint8))


def write_lesions(folder: Path, count: int) -> None:
    """Write so many good images of 120 x 90: `0.jpg`, `1.jpg` and so on."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        lesion(120, 90, number).save(folder / f"{number}.jpg")


def fill(folder: Path) -> dict[str, Expected]:
    """Write the folder; returns what each listed file's row must say, by relative name."""
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[str, Expected] = {}

    def good(name: str, image: Image.Image, size: tuple[int, int], **options: Any) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        expected[name] = Expected(None, size)

    def bad(name: str, data: bytes, kind: str, size: tuple[int, int] | None = None) -> None:
        (folder / name).write_bytes(data)
        expected[name] = Expected(kind, size)

    color = lesion(320, 240)
    for number in range(3):
        good(f"good_{number}.jpg", lesion(320, 240, number), (320, 240))
    good("gray.jpg", color.convert("L"), (320, 240))
    good("cmyk.jpg", color.convert("CMYK"), (320, 240))
    palette = color.quantize(16)
    good("palette.png", palette, (320, 240), transparency=0)
    sixteen = Image.fromarray((np.asarray(color.convert("L")).astype(np.uint16)) * 257)
    good("sixteen_bit.png", sixteen, (320, 240))
    exif = Image.Exif()
    exif[0x0112] = 6
    good("rotated.jpg", color, (240, 320), exif=exif)
    frames = [lesion(320, 240, seed) for seed in (1, 2)]
    good("animated.gif", frames[0], (320, 240), save_all=True, append_images=frames[1:])
    good("large.jpg", lesion(1200, 900).resize((12000, 9000)), (12000, 9000), quality=60)
    for name in ("with space.jpg", "hash#1.jpg", "per%20cent.jpg", "Läsion 皮肤.jpg", "UPPER.JPG"):
        good(f"odd/{name}", color, (320, 240))

    whole = (folder / "good_0.jpg").read_bytes()
    bad("cut_off.jpg", whole[: len(whole) // 2], "truncated", (320, 240))
    bad("empty.jpg", b"", "empty")
    bad("text.jpg", b"saved from a web page\n" * 20, "not_an_image")
    bad("bomb.png", png_header(60000, 60000), "too_large", (60000, 60000))
    (folder / "notes.txt").write_text("not an image\n")
    (folder / "x_superpixels.png").write_bytes(whole)
    return expected


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
