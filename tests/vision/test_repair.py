"""Repair: files that lack nothing but an end or have broken metadata; and truly truncated ones."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from lesioncam.columns import ErrorKind
from lesioncam.vision.decode import DecodeError, decode
from tests import icc
from tests.messy import lesion

SIZE = 64
PNG_HEADER = 8 + 25  # bytes of the signature and the first chunk

JPEGS = pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("RGB", {}),
        ("RGB", {"subsampling": 0, "quality": 97}),
        ("RGB", {"progressive": True}),
        ("RGB", {"restart_marker_rows": 1}),
        ("L", {}),
        ("CMYK", {}),
    ],
    ids=["baseline", "4:4:4", "progressive", "restarts", "gray", "CMYK"],
)


def jpeg(mode: str, how: dict[str, Any], size: tuple[int, int] = (160, 120)) -> bytes:
    sink = io.BytesIO()
    lesion(*size).convert(mode).save(sink, "JPEG", **how)
    return sink.getvalue()


def kind_of(data: bytes) -> str:
    try:
        decode(data, SIZE)
    except DecodeError as error:
        return error.kind
    return "ok"


@JPEGS
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_end_marker_is_whole(
    mode: str, how: dict[str, Any], missing: int
) -> None:
    data = jpeg(mode, how)
    expected = decode(data, SIZE)
    decoded = decode(data[:-missing], SIZE)
    np.testing.assert_array_equal(decoded.canvas, expected.canvas)
    assert (decoded.width, decoded.height) == (160, 120)


@JPEGS
@pytest.mark.parametrize("size", [(160, 120), (40, 30)])
def test_a_jpeg_that_lacks_pixels_is_truncated(
    mode: str, how: dict[str, Any], size: tuple[int, int]
) -> None:
    data = jpeg(mode, how, size)
    for length in range(4, len(data) - 8, len(data) // 20):
        assert kind_of(data[:length]) == ErrorKind.TRUNCATED, length


@JPEGS
def test_a_large_jpeg_is_judged_by_all_its_pixels(mode: str, how: dict[str, Any]) -> None:
    """Also those that its canvas does not show, as it is decoded at an eighth of its size."""
    data = jpeg(mode, how, (1600, 1200))
    np.testing.assert_array_equal(decode(data[:-2], SIZE).canvas, decode(data, SIZE).canvas)
    for missing in (4, 8, 30, 1000, len(data) // 2):
        assert kind_of(data[:-missing]) == ErrorKind.TRUNCATED, missing


def test_a_progressive_jpeg_without_its_last_scans_is_truncated() -> None:
    """It could be shown, but blurred: its rest is missing."""
    data = jpeg("RGB", {"progressive": True})
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    tables = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xc4"]
    assert len(scans) > 5
    for start in scans[1:]:  # cut where a scan ends: before the next one's tables
        end = max((at for at in tables if scans[0] < at < start), default=start)
        assert kind_of(data[:end]) == ErrorKind.TRUNCATED


@JPEGS
def test_zeros_in_place_of_the_rest_are_no_pixels(mode: str, how: dict[str, Any]) -> None:
    data = jpeg(mode, how)
    half = len(data) // 2
    assert kind_of(data[:half] + bytes(len(data) - half)) == ErrorKind.TRUNCATED
    assert kind_of(data[:half] + bytes(100_000)) == ErrorKind.TRUNCATED
    whole = decode(data, SIZE).canvas
    np.testing.assert_array_equal(decode(data + bytes(1000), SIZE).canvas, whole)
    np.testing.assert_array_equal(decode(data[:-2] + bytes(1000), SIZE).canvas, whole)


def chunk(kind: bytes, body: bytes, *, sound: bool = True) -> bytes:
    checksum = zlib.crc32(kind + body) ^ (not sound)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(**how: Any) -> bytes:
    sink = io.BytesIO()
    lesion(160, 120).save(sink, "PNG", **how)
    return sink.getvalue()


BIG = zlib.compress(bytes(20 * 2**20))
CHUNKS = {
    "text with a wrong checksum": chunk(b"tEXt", b"Comment\0hello", sound=False),
    "large compressed text": chunk(b"zTXt", b"Comment\0\0" + BIG),
    "large international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + BIG),
    "large profile": chunk(b"iCCP", b"icc\0\0" + BIG),
    "profile with a wrong checksum": chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"x"), sound=False),
    "profile that is no zlib stream": chunk(b"iCCP", b"icc\0\0garbage"),
    "size with a wrong checksum": chunk(b"pHYs", bytes(9), sound=False),
    "private chunk with a wrong checksum": chunk(b"prVt", bytes(100), sound=False),
}


@pytest.mark.parametrize("extra", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_png_whose_metadata_is_damaged_or_large_is_whole(extra: bytes, where: str) -> None:
    data = png()
    at = PNG_HEADER if where == "first" else len(data) - 12
    decoded = decode(data[:at] + extra + data[at:], SIZE)
    np.testing.assert_array_equal(decoded.canvas, decode(data, SIZE).canvas)
    assert (decoded.width, decoded.height) == (160, 120)


def test_what_matters_for_pixels_is_kept() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = png(exif=exif, icc_profile=icc.display_p3(), transparency=(225, 180, 155))
    damaged = data[:PNG_HEADER] + CHUNKS["text with a wrong checksum"] + data[PNG_HEADER:]
    expected, decoded = decode(data, SIZE), decode(damaged, SIZE)
    np.testing.assert_array_equal(decoded.canvas, expected.canvas)
    assert (decoded.width, decoded.height) == (120, 160)


def test_a_profile_above_a_megabyte_is_used() -> None:
    profile = icc.display_p3() + bytes(2 * 2**20)
    size = struct.pack(">I", len(profile))
    data = png(icc_profile=size + profile[4:])
    expected = decode(png(icc_profile=icc.display_p3()), SIZE).canvas
    np.testing.assert_array_equal(decode(data, SIZE).canvas, expected)
    assert (expected != decode(png(), SIZE).canvas).any()


@pytest.mark.parametrize("fraction", [0.3, 0.9])
def test_a_png_with_damaged_metadata_that_lacks_pixels_is_truncated(fraction: float) -> None:
    data = png()
    data = data[:PNG_HEADER] + CHUNKS["text with a wrong checksum"] + data[PNG_HEADER:]
    assert kind_of(data[: int(len(data) * fraction)]) == ErrorKind.TRUNCATED


def test_a_png_with_a_wrong_checksum_of_its_header_is_truncated() -> None:
    data = bytearray(png())
    data[PNG_HEADER - 1] ^= 1
    assert kind_of(bytes(data)) == ErrorKind.TRUNCATED
