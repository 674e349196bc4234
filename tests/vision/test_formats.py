"""Formats: recognized by their bytes, read where a library is there, named where not."""

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lesioncam.columns import ErrorKind
from lesioncam.vision import formats
from lesioncam.vision.decode import DecodeError, decode
from lesioncam.vision.formats import (
    describe_readable,
    format_of,
    image_endings,
    readable_formats,
    unreadable_variant,
)
from tests.messy import lesion

SIZE = 64

needs = {
    name: pytest.mark.skipif(
        name not in readable_formats(), reason=f"needs a library that reads {name}"
    )
    for name in ("JPEG2000", "AVIF", "HEIF")
}


def encoded(image: Image.Image, file_format: str, **how: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, file_format, **how)
    return sink.getvalue()


def failure(data: bytes) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(data, SIZE)
    return caught.value


@pytest.fixture
def without_optional(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation that reads only what every Pillow reads."""
    for module in ("decode", "formats"):
        monkeypatch.setattr(f"lesioncam.vision.{module}.readable_formats", lambda: formats._ALWAYS)
    image_endings.cache_clear()
    yield
    image_endings.cache_clear()


@pytest.fixture
def fresh_formats() -> Iterator[None]:
    """What is readable is found out again."""
    readable_formats.cache_clear()
    yield
    readable_formats.cache_clear()


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    brands = major + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(100)


# Named


@pytest.mark.parametrize(
    ("data", "name"),
    [
        *((ftyp(brand, b"mif1", b"heic"), "HEIC") for brand in formats._HEIC_BRANDS),
        (ftyp(b"mif1", b"heic"), "HEIC"),
        (ftyp(b"mif1", b"miaf"), "HEIF"),
        (ftyp(b"msf1"), "HEIF"),
        (ftyp(b"avif", b"mif1"), "AVIF"),
        (ftyp(b"avis"), "AVIF"),
        (ftyp(b"mif1", b"avif"), "AVIF"),
        (ftyp(b"crx "), "Canon raw"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(100), "PDF"),
        (b"8BPS\0\x01" + bytes(100), "Photoshop"),
        (bytes(128) + b"DICM" + bytes(100), "DICOM"),
        (b"\x02\0\0\0UL\x04\0" + bytes(100), "DICOM"),
        (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", "DICOM"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "JPEG 2000"),
        (b"\xff\x4f\xff\x51\0\x2f" + bytes(100), "JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "JPEG XL"),
        (b"\xff\x0a\xfb\x06" + bytes(100), "JPEG XL"),
        (b"II\xbc\x01 \0\0\0" + bytes(100), "JPEG XR"),
    ],
)
def test_a_format_that_is_not_read_is_named(data: bytes, name: str, without_optional: None) -> None:
    error = failure(data)
    assert error.kind == ErrorKind.UNSUPPORTED
    assert error.message.startswith(f"{name} is not supported; ")
    assert error.message.endswith("supported are JPEG, PNG, WebP, BMP, TIFF and GIF")


def test_the_extra_that_reads_a_format_is_named(without_optional: None) -> None:
    assert "pip install 'lesioncam[heif]'" in failure(ftyp(b"heic", b"mif1")).message
    assert "pip install 'lesioncam[dicom]'" in failure(bytes(128) + b"DICM").message
    assert "pip" not in failure(b"8BPS\0\x01").message


@pytest.mark.parametrize("brand", [b"isom", b"mp42", b"qt  ", b"M4A "])
def test_other_media_are_not_images(brand: bytes) -> None:
    assert failure(ftyp(brand)).kind == ErrorKind.NOT_AN_IMAGE


@pytest.mark.parametrize("prefix", [b"II+\0", b"MM\0+"])
def test_bigtiff_of_a_broken_header_is_truncated(prefix: bytes) -> None:
    error = failure(prefix + bytes(4))
    assert error.kind == ErrorKind.TRUNCATED
    assert "TIFF" in error.message


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_sound_bigtiff_that_pillow_cannot_read_is_unsupported(order: str) -> None:
    tags = {256: 8, 257: 8, 258: 64, 259: 1, 262: 2, 273: 16, 277: 1, 278: 8, 279: 512}
    prefix = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HHHQ", 43, 8, 0, 16)
    entries = b"".join(struct.pack(f"{order}HHQQ", tag, 16, 1, v) for tag, v in tags.items())
    data = prefix + struct.pack(f"{order}Q", len(tags)) + entries + bytes(8)
    assert failure(data).kind == ErrorKind.UNSUPPORTED


def test_a_bigtiff_is_read() -> None:
    image = lesion(80, 60)
    data = encoded(image, "TIFF", big_tiff=True)
    assert data.startswith(b"II+\0")
    np.testing.assert_array_equal(
        decode(data, SIZE).canvas, decode(encoded(image, "PNG"), SIZE).canvas
    )


def with_frame_header(jpeg: bytes, marker: int, bits: int) -> bytes:
    """The same with another start of frame: the kind of coding, and bits of a sample."""
    at = jpeg.index(b"\xff\xc0")
    return jpeg[: at + 1] + bytes([marker]) + jpeg[at + 2 : at + 4] + bytes([bits]) + jpeg[at + 5 :]


@pytest.mark.parametrize(
    ("marker", "bits", "name"),
    [
        (0xC1, 12, "12-bit JPEG"),
        (0xC0, 16, "16-bit JPEG"),
        (0xC2, 12, "12-bit JPEG"),
        (0xC3, 16, "lossless JPEG"),
        (0xC3, 12, "lossless JPEG"),
        (0xF7, 8, "JPEG-LS"),
    ],
)
def test_a_jpeg_of_another_kind_is_named(marker: int, bits: int, name: str) -> None:
    jpeg = with_frame_header(encoded(lesion(80, 60), "JPEG"), marker, bits)
    error = failure(jpeg)
    assert error.kind == ErrorKind.UNSUPPORTED
    assert error.message.startswith(f"{name} is not supported")


def test_an_ordinary_jpeg_is_no_variant() -> None:
    jpeg = encoded(lesion(80, 60), "JPEG")
    for length in range(0, len(jpeg), 7):
        assert unreadable_variant(jpeg[:length]) is None


@pytest.mark.parametrize(
    ("code", "name"), [(34712, "JPEG 2000"), (50001, "WebP"), (50002, "JPEG XL"), (34887, "LERC")]
)
def test_the_compression_of_a_tiff_is_named(
    code: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncam.vision.formats._reads_compression", lambda _: False)
    tiff = encoded(lesion(80, 60), "TIFF", compression="tiff_lzw")
    entry = struct.pack("<HHI", 259, 3, 1)
    error = failure(tiff.replace(entry + struct.pack("<I", 5), entry + struct.pack("<I", code)))
    assert error.kind == ErrorKind.UNSUPPORTED
    assert error.message.startswith(f"TIFF with {name} compression is not supported")


@pytest.mark.parametrize("length", [1, 3, 12])
def test_a_tiff_cut_in_the_values_of_its_directory_is_truncated(length: int) -> None:
    tiff = encoded(lesion(80, 60), "TIFF", compression="tiff_lzw")  # the directory is at its end
    assert failure(tiff[:-length]).kind == ErrorKind.TRUNCATED


@pytest.mark.parametrize("code", [1, 5, 50000])
def test_compressions_that_this_pillow_writes_are_no_variant(code: int) -> None:
    names = {1: "raw", 5: "tiff_lzw", 50000: "zstd"}
    try:
        tiff = encoded(lesion(80, 60), "TIFF", compression=names[code])
    except OSError:
        pytest.skip("needs a Pillow whose libtiff has Zstandard")
    assert unreadable_variant(tiff) is None


# Read


OPTIONAL = pytest.mark.parametrize(
    ("file_format", "how"),
    [
        pytest.param("JPEG2000", {}, marks=needs["JPEG2000"], id="jp2"),
        pytest.param("JPEG2000", {"no_jp2": True}, marks=needs["JPEG2000"], id="j2k"),
        pytest.param("AVIF", {"quality": 95}, marks=needs["AVIF"], id="avif"),
        pytest.param("HEIF", {"quality": 95}, marks=needs["HEIF"], id="heic"),
    ],
)


@OPTIONAL
def test_an_optional_format_is_read(file_format: str, how: dict[str, Any]) -> None:
    image = lesion(96, 64)
    decoded = decode(encoded(image, file_format, **how), SIZE)
    assert (decoded.width, decoded.height) == (96, 64)
    expected = decode(encoded(image, "PNG"), SIZE).canvas.astype(int)
    assert np.abs(decoded.canvas - expected).mean() < 3


@OPTIONAL
@pytest.mark.parametrize("fraction", [0.2, 0.6, 0.95])
def test_an_optional_format_that_is_cut_off_is_truncated(
    file_format: str, how: dict[str, Any], fraction: float
) -> None:
    data = encoded(lesion(96, 64), file_format, **how)
    assert failure(data[: int(len(data) * fraction)]).kind == ErrorKind.TRUNCATED


@pytest.mark.parametrize(
    "file_format",
    [pytest.param("AVIF", marks=needs["AVIF"]), pytest.param("HEIF", marks=needs["HEIF"])],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_optional_format_is_turned_upright_once(file_format: str, orientation: int) -> None:
    image = lesion(96, 64)
    image.getexif()[0x0112] = orientation
    exif = image.getexif().tobytes()
    expected = decode(encoded(image, "PNG", exif=exif), SIZE)
    decoded = decode(encoded(image, file_format, exif=exif), SIZE)
    assert (decoded.width, decoded.height) == (expected.width, expected.height)
    assert np.abs(decoded.canvas.astype(int) - expected.canvas).mean() < 5


def test_what_is_read_is_said() -> None:
    message = failure(b"text").message
    assert describe_readable() in message
    for name in readable_formats():
        assert formats._NAMES[name][0] in message


def test_endings_are_in_lower_case_with_their_dot() -> None:
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff"} <= image_endings()
    assert all(one.startswith(".") and one == one.lower() for one in image_endings())


def test_endings_are_those_that_can_be_read(without_optional: None) -> None:
    assert not {".heic", ".avif", ".jp2", ".dcm"} & image_endings()


@pytest.mark.parametrize("data", [b"", b"\xff", b"BM", b"II*", b"\0\0\0\x18ftyp"])
def test_few_bytes_have_no_format(data: bytes) -> None:
    assert format_of(data) is None


@pytest.mark.parametrize(("version", "is_read"), [("2.4.4", False), ("3.0.2", True)])
def test_dicom_is_read_from_pydicom_3_on(
    version: str, is_read: bool, fresh_formats: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "version", lambda _: version)
    assert ("DICOM" in readable_formats()) == is_read
    if not is_read:
        error = failure(bytes(128) + b"DICM" + bytes(100))
        assert error.kind == ErrorKind.UNSUPPORTED
        assert error.message.startswith(
            "DICOM is not supported; pip install 'lesioncam[dicom]' reads it; "
        )
