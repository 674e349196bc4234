r"""Damaged images by the thousand, of every supported format, through the decoder scoring uses.

    python -m tests.faults.fuzz --images 24000

Prints what became of them, the slowest and the most memory; what hangs or crashes the decoder, or
makes it answer in unprintable words, is kept in `fuzz/`.
"""

import argparse
import io
import random
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psutil
from PIL import ExifTags, Image

from lesioncam.columns import ErrorKind
from lesioncam.vision.decode import DecodeError
from lesioncam.vision.decoder import Decoder
from tests.messy import lesion

SIDE = 448
FORMS: list[tuple[str, str, dict[str, Any]]] = [
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    ("JPEG", "L", {}),
    ("JPEG", "CMYK", {}),
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {}),
    ("PNG", "I;16", {}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("WEBP", "RGB", {"save_all": True}),
    ("BMP", "RGB", {}),
    ("BMP", "P", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "L", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "1", {"compression": "group4"}),
    ("TIFF", "RGB", {"save_all": True}),
    ("GIF", "P", {}),
    ("GIF", "P", {"save_all": True}),
]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Flip, cut out, repeat or cut off some of the bytes, rather at the front than later."""
    content = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = int(len(content) * chance.random() ** 3)
        match chance.randrange(5):
            case 0:
                content[place] = chance.randrange(256)
            case 1:
                del content[place : place + chance.randrange(1, 20)]
            case 2:
                content[place:place] = chance.randbytes(chance.randrange(1, 20))
            case 3:
                size = chance.choice([2, 4])  # a length or an offset that lies
                content[place : place + size] = chance.choice([b"\xff", b"\x7f", b"\0"]) * size
            case _:
                content[place] ^= 1 << chance.randrange(8)
        if not content:
            break
    if chance.random() < 0.1:
        del content[chance.randrange(len(content) + 1) :]
    return bytes(content)


def originals() -> dict[str, bytes]:
    """One sound file of each form, by a name for it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    files = {}
    for number, (kind, mode, how) in enumerate(FORMS):
        image = lesion(300, 200, number)
        shown = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
        options = dict(how)
        if options.get("save_all"):
            options["append_images"] = [lesion(300, 200, 90 + k).convert(mode) for k in range(3)]
        if kind in ("JPEG", "PNG", "WEBP"):
            options["exif"] = exif
        sink = io.BytesIO()
        shown.save(sink, kind, **options)
        files[" ".join([kind, mode, *(f"{key}={value}" for key, value in how.items())])] = (
            sink.getvalue()
        )
    return files


def main() -> None:
    """Damage, decode, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float, default=20.0, help="limit of one decode")
    flags = parser.parse_args()
    print(f"{flags.images} damaged images, seed {flags.seed}\n")
    dice, decoder, files = random.Random(flags.seed), Decoder(flags.seconds), originals()
    names = list(files)
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    slowest, most, bad = 0.0, 0, 0
    for number in range(flags.images):
        name = names[number % len(names)]
        data = mutated(files[name], dice)
        started = time.monotonic()
        try:
            decoder.decode(data, SIDE)
            outcome, message = "ok", ""
        except DecodeError as error:
            outcome, message = error.kind, error.message
        slowest = max(slowest, time.monotonic() - started)
        outcomes[name][outcome] += 1
        hurt = outcome == ErrorKind.DECODE_TIMEOUT or "crashes" in message
        if hurt or not message.isprintable():
            bad += 1
            Path("fuzz").mkdir(exist_ok=True)
            Path("fuzz", f"{flags.seed}-{number}").write_bytes(data)
            print(f"{name}: {message!r}")
        if number % 100 == 0:
            most = max(most, psutil.Process(decoder._started().pid).memory_info().rss)
    kinds = sorted({kind for counts in outcomes.values() for kind in counts})
    print("| form | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    for name, counts in outcomes.items():
        print(f"| {name} | " + " | ".join(str(counts[kind]) for kind in kinds) + " |")
    print(f"\nhung, crashed or answered in unprintable words: {bad}")
    print(f"slowest {slowest:.2f} s; most memory {most / 2**20:.0f} MiB")
    decoder.close()
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
