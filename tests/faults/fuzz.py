r"""Fuzz the decoder that scoring uses with damaged images of every supported format.

    python -m tests.faults.fuzz --images 24000

Prints the outcomes, the longest time and the peak memory. Images that hang or crash the decoder,
or whose error is not printable, are kept in `fuzz/`.
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

CANVAS_SIZE = 448
FORMATS: list[tuple[str, str, dict[str, Any]]] = [
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


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Change, remove, insert or cut off some bytes, more often near the beginning."""
    content = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        start = int(len(content) * rng.random() ** 3)
        match rng.randrange(5):
            case 0:
                content[start] = rng.randrange(256)
            case 1:
                del content[start : start + rng.randrange(1, 20)]
            case 2:
                content[start:start] = rng.randbytes(rng.randrange(1, 20))
            case 3:
                size = rng.choice([2, 4])  # a wrong length or offset
                content[start : start + size] = rng.choice([b"\xff", b"\x7f", b"\0"]) * size
            case _:
                content[start] ^= 1 << rng.randrange(8)
        if not content:
            break
    if rng.random() < 0.1:
        del content[rng.randrange(len(content) + 1) :]
    return bytes(content)


def originals() -> dict[str, bytes]:
    """One good file of each format, by the format's description."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    files = {}
    for number, (kind, mode, options) in enumerate(FORMATS):
        image = lesion(300, 200, number)
        converted = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
        arguments = dict(options)
        if options.get("save_all"):
            arguments["append_images"] = [lesion(300, 200, 90 + k).convert(mode) for k in range(3)]
        if kind in ("JPEG", "PNG", "WEBP"):
            arguments["exif"] = exif
        sink = io.BytesIO()
        converted.save(sink, kind, **arguments)
        files[" ".join([kind, mode, *(f"{key}={value}" for key, value in options.items())])] = (
            sink.getvalue()
        )
    return files


def main() -> None:
    """Damage, decode, count; exits with 1 if an image hung or crashed the decoder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=24_000, help="(24000)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="(the time)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time limit of one decode (20)")
    flags = parser.parse_args()
    print(f"{flags.images} damaged images, seed {flags.seed}\n")
    rng, decoder, files = random.Random(flags.seed), Decoder(flags.seconds), originals()
    names = list(files)
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    slowest, peak, bad = 0.0, 0, 0
    for number in range(flags.images):
        name = names[number % len(names)]
        data = mutated(files[name], rng)
        started = time.monotonic()
        try:
            decoder.decode(data, CANVAS_SIZE)
            outcome, message = "ok", ""
        except DecodeError as error:
            outcome, message = error.kind, error.message
        slowest = max(slowest, time.monotonic() - started)
        outcomes[name][outcome] += 1
        failed = outcome == ErrorKind.DECODE_TIMEOUT or "crashes" in message
        if failed or not message.isprintable():
            bad += 1
            Path("fuzz").mkdir(exist_ok=True)
            Path("fuzz", f"{flags.seed}-{number}").write_bytes(data)
            print(f"{name}: {message!r}")
        if number % 100 == 0:
            peak = max(peak, psutil.Process(decoder._started().pid).memory_info().rss)
    kinds = sorted({kind for counts in outcomes.values() for kind in counts})
    print("| format | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    for name, counts in outcomes.items():
        print(f"| {name} | " + " | ".join(str(counts[kind]) for kind in kinds) + " |")
    print(f"\nhung, crashed or failed without a printable error: {bad}")
    print(f"slowest {slowest:.2f} s; peak memory {peak / 2**20:.0f} MiB")
    decoder.close()
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
