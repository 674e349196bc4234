"""Formats: which image formats can be read here, and which format a file's bytes are.

Knows nothing about pixels.
"""

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import IO, Literal, NamedTuple

from PIL import Image, ImageFile, TiffImagePlugin, features

# Pillow's name of a format -> ours, and the endings of its files in lower case.
_NAMES = {
    "JPEG": ("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif")),
    "PNG": ("PNG", (".png",)),
    "WEBP": ("WebP", (".webp",)),
    "BMP": ("BMP", (".bmp",)),
    "TIFF": ("TIFF", (".tif", ".tiff")),
    "GIF": ("GIF", (".gif",)),
    "JPEG2000": ("JPEG 2000", (".jp2", ".j2k", ".jpf", ".jpx")),
    "AVIF": ("AVIF", (".avif",)),
    "HEIF": ("HEIC", (".heic", ".heif", ".hif")),
    "DICOM": ("DICOM photographs", (".dcm", ".dicom")),
}
_ALWAYS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_PYDICOM_VERSION = 3  # the first major version that has `pydicom.pixels`

# Offset, bytes, name, and Pillow's name of the format if it has one.
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG", "PNG"),
    (0, b"GIF87a", "GIF", "GIF"),
    (0, b"GIF89a", "GIF", "GIF"),
    (0, b"II*\0", "TIFF", "TIFF"),
    (0, b"MM\0*", "TIFF", "TIFF"),
    (0, b"II+\0", "TIFF", "TIFF"),  # BigTIFF
    (0, b"MM\0+", "TIFF", "TIFF"),
    (8, b"WEBP", "WebP", "WEBP"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000", "JPEG2000"),
    (0, b"\xffO\xffQ", "JPEG 2000", "JPEG2000"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL", None),
    (0, b"\xff\n", "JPEG XL", None),
    (0, b"II\xbc\x01", "JPEG XR", None),
    (0, b"8BPS", "Photoshop", None),
    (0, b"%PDF", "PDF", None),
    (128, b"DICM", "DICOM", "DICOM"),
    # Without the preamble: the file meta information, or the beginning of a data set.
    (0, b"\x02\0\0\0UL\x04\0", "DICOM", "DICOM"),
    (0, b"\x08\0\x05\0CS", "DICOM", "DICOM"),
    (0, b"\x08\0\x05\0\x0a\0\0\0ISO_IR", "DICOM", "DICOM"),
    (0, b"\x08\0\x08\0CS", "DICOM", "DICOM"),
    (0, b"\x08\0\x16\0UI", "DICOM", "DICOM"),
)
_SIGNATURE_BYTES = 256  # of a file, where all of its signature is
# Brands of ISO media files, as `ftyp` names them.
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_HEIF_BRANDS = frozenset({b"mif1", b"mif2", b"msf1"})  # pixels in any coding

_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_LOSSLESS_SOF = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_JPEG_LS_SOF = 0xF7
_END_OF_IMAGE = 0xD9
# A marker that begins a segment: not a stuffed byte, a restart, a start of image or a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)

_MAX_ENTRIES = 65535  # of a TIFF's directory
_TIFF_TYPE_SIZES = {2: 1, 3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8,
                    18: 8}  # bytes; 1 for all others  # fmt: skip
_COMPRESSION_TAG = 259
_COMPRESSIONS = {  # of TIFF files that not every Pillow can read
    22610: "JPEG XR",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}


class Format(NamedTuple):
    """A file format.

    Attributes:
        name: as people write it.
        pillow: Pillow's name; None if Pillow cannot read it.
    """

    name: str
    pillow: str | None


@cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be read here: some need an optional library."""
    formats = list(_ALWAYS)
    if "jpg_2000" in features.get_supported_codecs():
        formats.append("JPEG2000")
    if "avif" in features.get_supported_modules():
        formats.append("AVIF")
    with suppress(ImportError):
        from pillow_heif import register_heif_opener  # noqa: PLC0415

        register_heif_opener()
        formats.append("HEIF")
    if _has_pydicom():
        Image.register_open("DICOM", _open_dicom)
        formats.append("DICOM")
    return tuple(formats)


def _has_pydicom() -> bool:
    """Whether pydicom is installed, in a version that decodes as `lesioncam.vision.dicom` needs."""
    try:
        return int(version("pydicom").partition(".")[0]) >= _PYDICOM_VERSION
    except PackageNotFoundError:
        return False


def _open_dicom(file: IO[bytes], name: str | bytes) -> ImageFile.ImageFile:
    """As Pillow opens a file that is no other image's; pydicom is imported for DICOM only."""
    found = format_of(file.read(_SIGNATURE_BYTES))
    if found is None or found.pillow != "DICOM":
        raise SyntaxError("not DICOM")
    from lesioncam.vision.dicom import DicomImage  # noqa: PLC0415

    file.seek(0)
    return DicomImage(file, name)


@cache
def image_endings() -> frozenset[str]:
    """Endings, in lower case, of the files that can be read here."""
    return frozenset(ending for name in readable_formats() for ending in _NAMES[name][1])


def describe_readable() -> str:
    """The formats that can be read here, in words."""
    *names, last = (_NAMES[name][0] for name in readable_formats())
    return f"supported are {', '.join(names)} and {last}"


def format_of(data: bytes) -> Format | None:
    """The format whose signature the bytes have; None if they have none."""
    if data[4:8] == b"ftyp":
        return _media_format(data)
    if data[:2] == b"BM" and data[6:10] == bytes(4):
        return Format("BMP", "BMP")
    return next(
        (
            Format(name, pillow)
            for start, magic, name, pillow in _SIGNATURES
            if data.startswith(magic, start)
        ),
        None,
    )


def _media_format(data: bytes) -> Format | None:
    """The image format of an ISO media file; None for other media."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]
    if _AVIF_BRANDS & set(brands):
        return Format("AVIF", "AVIF")
    if _HEIC_BRANDS & set(brands):
        return Format("HEIC", "HEIF")
    if _HEIF_BRANDS & set(brands):
        return Format("HEIF", "HEIF")
    return Format("Canon raw", None) if brands[0] == b"crx " else None


def unreadable_variant(data: bytes) -> str | None:
    """What kind of JPEG, TIFF or DICOM this is, if it is one that is not read here; else None."""
    match format_of(data):
        case Format(pillow="JPEG"):
            return _unreadable_jpeg(data)
        case Format(pillow="TIFF"):
            return _unreadable_tiff(data)
        case Format(pillow="DICOM") if "DICOM" in readable_formats():
            from lesioncam.vision.dicom import unreadable_dicom  # noqa: PLC0415

            return unreadable_dicom(data)
    return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The segments of a JPEG that have a length: marker and content.

    After a start of scan (0xDA) the search goes on behind its coded pixels.
    """
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        marker, start = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            return
        end = start + int.from_bytes(data[start : start + 2], "big")
        if end < start + 2 or end > len(data):
            return
        yield marker, data[start + 2 : end]
        at = end


def _unreadable_jpeg(data: bytes) -> str | None:
    for marker, content in jpeg_segments(data):
        if marker == _JPEG_LS_SOF:
            return "JPEG-LS"
        if marker in _SOF_MARKERS and content:
            if marker in _LOSSLESS_SOF:
                return "lossless JPEG"
            return None if content[0] == 8 else f"{content[0]}-bit JPEG"
    return None


def _unreadable_tiff(data: bytes) -> str | None:
    tags = _first_directory(data)
    if tags is None:
        return None
    code = tags.get(_COMPRESSION_TAG, 1)
    if code in _COMPRESSIONS and not _reads_compression(code):
        return f"TIFF with {_COMPRESSIONS[code]} compression"
    return None


def has_tiff_directory(data: bytes) -> bool:
    """Whether these bytes have a TIFF's first directory, with all its values."""
    return bool(_first_directory(data))


def _first_directory(data: bytes) -> dict[int, int] | None:
    """Tag -> value, or the beginning of its offset, of a TIFF's first directory.

    None if the directory, or a value that it points to, is not all in the file.
    """
    if data[:2] not in (b"II", b"MM"):
        return None
    order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    is_big = number(2, 2) == 43
    word, entry_size = (8, 20) if is_big else (4, 12)
    start = number(word, word)
    count_size = 8 if is_big else 2
    entries = number(start, count_size)
    first = start + count_size
    if start < 8 or not 0 < entries <= _MAX_ENTRIES or first + entry_size * entries > len(data):
        return None
    tags = {}
    for at in range(first, first + entry_size * entries, entry_size):
        value_size = _TIFF_TYPE_SIZES.get(number(at + 2, 2), 1)
        size, value = value_size * number(at + 4, word), at + 4 + word
        if size > word and number(value, word) + size > len(data):
            return None
        tags[number(at, 2)] = number(value, min(value_size, word))
    return tags


@cache
def _reads_compression(code: int) -> bool:
    """Whether Pillow's libtiff was built with this compression: then it also writes it."""
    name = TiffImagePlugin.COMPRESSION_INFO.get(code)
    if name is None:
        return False
    try:
        Image.new("RGB", (16, 16)).save(io.BytesIO(), "TIFF", compression=name)
    except (OSError, RuntimeError, KeyError):
        return False
    return True
