r"""Fuzz the decoder that scoring uses with damaged images of every supported format.

    python -m tests.faults.fuzz --images 100000 --docs

Continues where an earlier call of the same seed stopped: its counts are in `fuzz/<seed>.json`.
Prints the outcomes, the longest time and the peak memory; `--docs` also writes the table to
docs/reliability.md. Images that hang or crash the decoder, or whose error is not printable or not
true, are kept in `fuzz/`.
"""

import argparse
import io
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from PIL import ExifTags, Image

from lesioncam.columns import ErrorKind
from lesioncam.vision.decode import DecodeError
from lesioncam.vision.decoder import Decoder
from lesioncam.vision.formats import format_of, readable_formats
from tests import icc
from tests.docs_page import DOCS, commit, paragraph, today, write_section
from tests.messy import lesion

FOLDER = Path("fuzz")
PAGE = DOCS / "reliability.md"
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
    ("JPEG", "RGB", {"icc_profile": icc.display_p3()}),
    ("JPEG", "CMYK", {"icc_profile": icc.printer()}),
    ("PNG", "L", {"icc_profile": icc.gray(1.0)}),
    ("TIFF", "RGB", {"big_tiff": True}),
    ("JPEG2000", "RGB", {}),
    ("JPEG2000", "L", {"no_jp2": True}),
    ("AVIF", "RGB", {}),
    ("AVIF", "RGBA", {}),
    ("HEIF", "RGB", {}),
    ("HEIF", "RGBA", {}),
    ("DICOM", "RGB", {"syntax": "ExplicitVRLittleEndian"}),
    ("DICOM", "L", {"syntax": "ImplicitVRLittleEndian"}),
    ("DICOM", "RGB", {"syntax": "DeflatedExplicitVRLittleEndian"}),
    ("DICOM", "RGB", {"syntax": "RLELossless"}),
    ("DICOM", "RGB", {"syntax": "JPEGBaseline8Bit"}),
    ("DICOM", "RGB", {"syntax": "JPEG2000"}),
    ("DICOM", "RGB", {"syntax": "JPEGLSLossless"}),
    ("DICOM", "RGB", {"syntax": "JPEGLosslessSV1"}),
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
    readable = [one for one in FORMATS if one[0] in readable_formats()]
    for number, (kind, mode, options) in enumerate(readable):
        image = lesion(300, 200, number)
        converted = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
        arguments = dict(options)
        if options.get("save_all"):
            arguments["append_images"] = [lesion(300, 200, 90 + k).convert(mode) for k in range(3)]
        if kind in ("JPEG", "PNG", "WEBP", "AVIF", "HEIF"):
            arguments["exif"] = exif.tobytes()
        files[_described(kind, mode, options)] = _encoded(converted, kind, arguments)
    return files


def _encoded(image: Image.Image, kind: str, arguments: dict[str, Any]) -> bytes:
    if kind == "DICOM":
        from pydicom import uid

        from tests.dicom import encoded

        return encoded(image, getattr(uid, arguments["syntax"]))
    sink = io.BytesIO()
    image.save(sink, kind, **arguments)
    return sink.getvalue()


def _described(kind: str, mode: str, options: dict[str, Any]) -> str:
    shown = (
        key if isinstance(value, bytes) else f"{key}={value}" for key, value in options.items()
    )
    return " ".join([kind, mode, *shown])


def is_true(outcome: str, data: bytes) -> bool:
    """Whether an outcome can be right for these bytes, as far as they show it themselves."""
    match outcome:
        case ErrorKind.EMPTY:
            return not data
        case ErrorKind.NOT_AN_IMAGE:
            return format_of(data) is None
        case ErrorKind.TRUNCATED:
            # Of a damaged bitmap Pillow wants only the first two bytes.
            return format_of(data) is not None or data.startswith(b"BM")
    return outcome in ("ok", ErrorKind.UNSUPPORTED, ErrorKind.TOO_LARGE)


@dataclass
class Findings:
    """What came of the images so far.

    Attributes:
        seed: of the damage.
        images: how many were decoded.
        outcomes: by format, how many were `ok` or failed with which kind.
        bad: how many hung or crashed the decoder, or had an error that is not printable or true.
        slowest: seconds of the slowest.
        peak: bytes of the decoder's memory at its peak.
    """

    seed: int
    images: int = 0
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    bad: int = 0
    slowest: float = 0.0
    peak: int = 0

    @property
    def file(self) -> Path:
        """Where they are kept between calls."""
        return FOLDER / f"{self.seed}.json"

    def table(self) -> str:
        """In Markdown."""
        kinds = sorted({kind for counts in self.outcomes.values() for kind in counts})
        lines = [f"| format | {' | '.join(kinds)} |", f"|---|{'---:|' * len(kinds)}"]
        for name, counts in self.outcomes.items():
            lines.append(f"| {name} | {' | '.join(f'{counts.get(k, 0):,}' for k in kinds)} |")
        return "\n".join(lines)

    def summary(self) -> str:
        """In one sentence each."""
        return (
            f"{self.images:,} damaged files of {len(self.outcomes)} variants of image formats, "
            f"seed {self.seed}. {self.bad} hung or crashed the decoder or had an untrue kind. The "
            f"slowest took {self.slowest:.2f} s; the decoder's memory peaked at "
            f"{self.peak / 2**20:.0f} MiB."
        )


def fuzz_one(findings: Findings, name: str, original: bytes, decoder: Decoder) -> None:
    """Damage and decode the next image, and count what came of it."""
    # A number's damage is the same in every call.
    data = mutated(original, random.Random(f"{findings.seed} {findings.images}"))
    started = time.monotonic()
    try:
        decoder.decode(data, CANVAS_SIZE)
        outcome, message = "ok", ""
    except DecodeError as error:
        outcome, message = error.kind, error.message
    findings.slowest = max(findings.slowest, time.monotonic() - started)
    counts = Counter(findings.outcomes.get(name, {}))
    counts[outcome] += 1
    findings.outcomes[name] = dict(counts)
    if "crashes" in message or not message.isprintable() or not is_true(outcome, data):
        findings.bad += 1
        (FOLDER / f"{findings.seed}-{findings.images}").write_bytes(data)
        print(f"{name}: {outcome} {message!r}", flush=True)
    findings.images += 1


def write_docs(findings: Findings) -> None:
    """Write the table into docs/reliability.md."""
    summary = f"**Fuzzing** ({today()}, commit {commit()}): {findings.summary()}"
    write_section(PAGE, "fuzz", f"{paragraph(summary)}\n\n{findings.table()}")


def main() -> None:
    """Damage, decode, count; exits with 1 if an image hung or crashed the decoder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=24_000, help="(24000)")
    parser.add_argument("--seed", type=int, default=1, help="(1)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time limit of one decode (20)")
    parser.add_argument("--docs", action="store_true", help="write the table to the documentation")
    flags = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    findings = Findings(flags.seed)
    if findings.file.exists():
        findings = Findings(**json.loads(findings.file.read_text()))
    decoder, files = Decoder(flags.seconds), originals()
    names = list(files)
    print(f"{flags.images} damaged images, {findings.images} done, seed {flags.seed}", flush=True)
    while findings.images < flags.images:
        name = names[findings.images % len(names)]
        fuzz_one(findings, name, files[name], decoder)
        if findings.images % 100 == 0:
            process = psutil.Process(decoder._started().pid)
            findings.peak = max(findings.peak, process.memory_info().rss)
        if findings.images % 1000 == 0 or findings.images == flags.images:
            findings.file.write_text(json.dumps(asdict(findings)))
    print(f"{findings.table()}\n\n{findings.summary()}")
    if flags.docs:
        write_docs(findings)
    decoder.close()
    sys.exit(bool(findings.bad))


if __name__ == "__main__":
    main()
