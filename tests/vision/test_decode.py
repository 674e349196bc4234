"""Image bytes to a canvas: formats, colors, orientation, and every way that bytes can be bad."""

import io
import random
import struct
import time
import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from lesioncam.columns import ErrorKind
from lesioncam.vision.decode import Decoded, DecodeError, decode
from tests.faults.fuzz import mutated

SIZE = 32
RED, GREEN, BLUE, GRAY = (220, 30, 40), (20, 200, 60), (30, 50, 210), (120, 120, 120)
INT32_MAX = 2**31 - 1

# Format, options for saving, and how far JPEG or WebP may move a color.
FORMATS: list[tuple[str, dict[str, Any], int]] = [
    ("JPEG", {"quality": 95, "subsampling": 0}, 4),
    ("PNG", {}, 0),
    ("WEBP", {"lossless": True}, 0),
    ("WEBP", {"quality": 95}, 12),
    ("BMP", {}, 0),
    ("TIFF", {}, 0),
    ("TIFF", {"compression": "tiff_lzw"}, 0),
    ("TIFF", {"compression": "tiff_deflate"}, 0),
    ("GIF", {}, 0),
]
FORMAT_NAMES = [name + "".join(f"-{value}" for value in how.values()) for name, how, _ in FORMATS]


def encoded(image: Image.Image, file_format: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **how)
    return buffer.getvalue()


def quadrants(width: int = 96, height: int = 64) -> Image.Image:
    """Red, green / blue, gray: every rotation and flip of it is another image."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = GREEN
    pixels[height // 2 :, : width // 2] = BLUE
    pixels[height // 2 :, width // 2 :] = GRAY
    return Image.fromarray(pixels)


def noise(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def smooth(width: int, height: int) -> Image.Image:
    x = np.linspace(0, 3 * np.pi, width)
    y = np.linspace(0, 2 * np.pi, height)[:, None]
    waves = [np.sin(x) * np.cos(y), np.cos(x + y), np.sin(x - y)]
    return Image.fromarray((127 + 120 * np.stack(waves, axis=2)).astype(np.uint8))


def uniform(mode: str, color: Any, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new(mode, size, color)


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(width: int, height: int, pixels: bytes = b"", bits: int = 8, color: int = 2) -> bytes:
    """A PNG with this header, true or not; `pixels` are the compressed scan lines."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def float_rgb_tiff() -> bytes:
    """Three channels of float32: a sound TIFF that Pillow has no pixel type for."""
    pixels = bytes(8 * 8 * 3 * 4)
    tags = {256: 8, 257: 8, 258: 32, 259: 1, 262: 2, 273: 8, 277: 3, 278: 8, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    entries += struct.pack("<HHII", 339, 3, 1, 3)
    directory = struct.pack("<H", len(tags) + 1) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def squashed(image: Image.Image, size: int = SIZE) -> np.ndarray:
    """A canvas by its definition: orientation applied, RGB, scaled to a square."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR))


def difference(canvas: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(canvas.astype(int) - expected.astype(int)))


def color_of(data: bytes) -> tuple[int, ...]:
    """The one color of an image that has one."""
    canvas = decode(data, SIZE).canvas
    assert canvas.shape == (SIZE, SIZE, 3)
    assert (canvas == canvas[0, 0]).all()
    return tuple(int(value) for value in canvas[0, 0])


def failure(data: bytes, **how: int) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(data, SIZE, **how)
    error = caught.value
    assert error.message
    assert error.message == " ".join(error.message.split())
    return error


# Formats and colors


@pytest.mark.parametrize(("file_format", "how", "tolerance"), FORMATS, ids=FORMAT_NAMES)
def test_every_format_gives_canvas_in_right_colors(
    file_format: str, how: dict[str, Any], tolerance: int
) -> None:
    decoded = decode(encoded(quadrants(), file_format, **how), SIZE)
    assert (decoded.width, decoded.height) == (96, 64)
    assert decoded.canvas.shape == (SIZE, SIZE, 3)
    assert decoded.canvas.dtype == np.uint8
    quarter, three_quarters = SIZE // 4, 3 * SIZE // 4
    for (y, x), color in {
        (quarter, quarter): RED,
        (quarter, three_quarters): GREEN,
        (three_quarters, quarter): BLUE,
        (three_quarters, three_quarters): GRAY,
    }.items():
        assert difference(decoded.canvas[y, x], np.array(color)).max() <= tolerance


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(80, 60), (1, 1), (1, 300)])
def test_canvas_is_the_whole_image_squashed(file_format: str, size: tuple[int, int]) -> None:
    image = noise(*size)
    decoded = decode(encoded(image, file_format), SIZE)
    assert (decoded.width, decoded.height) == size
    np.testing.assert_array_equal(decoded.canvas, squashed(image))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_animation_gives_first_frame(file_format: str) -> None:
    frames = [uniform("RGB", color) for color in (BLUE, RED, GREEN)]
    how = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **how)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert color_of(data) == BLUE


def test_multi_page_tiff_gives_first_page() -> None:
    pages = [uniform("RGB", BLUE, (40, 30)), uniform("RGB", RED, (20, 50))]
    decoded = decode(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]), SIZE)
    assert (decoded.width, decoded.height) == (40, 30)
    assert (decoded.canvas == BLUE).all()


def pages(*marked: tuple[Image.Image, dict[int, int]]) -> bytes:
    """A TIFF of several pages, each with these tags."""
    sink = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(sink, new=True) as writer:
        for image, tags in marked:
            image.save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
    return sink.getvalue()


REDUCED, SUBPAGE, OLD_REDUCED = {254: 1}, {254: 2}, {255: 2}


@pytest.mark.parametrize("mark", [REDUCED, OLD_REDUCED, {254: 3}, {254: 4}])
@pytest.mark.parametrize("count", [1, 2])
def test_a_tiffs_reduced_copies_are_passed_over(mark: dict[int, int], count: int) -> None:
    thumbnail = (uniform("RGB", RED, (4, 3)), mark)
    image: tuple[Image.Image, dict[int, int]] = (uniform("RGB", BLUE, (40, 30)), {})
    decoded = decode(pages(*[thumbnail] * count, image, thumbnail), SIZE)
    assert (decoded.width, decoded.height) == (40, 30)
    assert (decoded.canvas == BLUE).all()


@pytest.mark.parametrize("marks", [({}, REDUCED), (SUBPAGE, {}), (REDUCED, REDUCED)])
def test_the_first_page_is_taken_where_none_is_a_better_one(
    marks: tuple[dict[int, int], ...],
) -> None:
    colors = (BLUE, RED)
    data = pages(*((uniform("RGB", c), mark) for c, mark in zip(colors, marks, strict=True)))
    assert color_of(data) == BLUE


def test_the_page_that_is_decoded_is_the_one_whose_size_is_checked() -> None:
    data = pages((uniform("RGB", RED, (4, 3)), REDUCED), (uniform("RGB", BLUE), {}))
    assert failure(data, max_pixels=1000).size == (40, 30)


def test_a_thumbnail_before_an_image_out_of_the_row_of_pages_is_unsupported() -> None:
    """As camera makers' raw files are built: the image is below the thumbnail's page."""
    data = pages((uniform("RGB", RED, (4, 3)), {254: 1, 330: 8}))
    assert failure(data).kind == ErrorKind.UNSUPPORTED


def test_gray_jpeg_becomes_equal_channels() -> None:
    gray = noise().convert("L")
    data = encoded(gray, "JPEG", quality=95)
    canvas = decode(data, SIZE).canvas
    assert (canvas == canvas[:, :, :1]).all()
    assert difference(canvas, squashed(Image.open(io.BytesIO(data)))).max() <= 1


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP"])
def test_one_bit_image_is_smoothed_not_thresholded(file_format: str) -> None:
    stripes = Image.fromarray(np.tile([[True, False]], (64, 32)))
    assert stripes.mode == "1"
    assert difference(decode(encoded(stripes, file_format), 16).canvas, np.array(127)).max() <= 20


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_palette_image_has_its_colors_and_white_where_transparent(file_format: str) -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (0, 0, 40, 20))
    canvas = decode(encoded(image, file_format, transparency=0), SIZE).canvas
    assert (canvas[: SIZE // 2 - 1] == GREEN).all()
    assert (canvas[SIZE // 2 + 1 :] == 255).all()


def test_palette_png_with_graded_transparency_is_blended() -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([*RED, 0, 0, 0])
    assert color_of(encoded(image, "PNG", transparency=b"\x00\x80")) == (127, 127, 127)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("color", "expected"),
    [
        ((200, 0, 100, 255), (200, 0, 100)),
        ((200, 0, 100, 1), (255, 254, 254)),
        ((200, 0, 100, 51), (244, 204, 224)),  # a fifth of the color over white
    ],
)
def test_rgba_is_laid_over_white(
    file_format: str, color: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    how = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(uniform("RGBA", color), file_format, **how)
    assert difference(np.array(color_of(data)), np.array(expected)).max() <= 1


def test_hidden_color_does_not_bleed_from_transparent_pixels() -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, ::2] = (255, 0, 0, 0)  # invisible red
    pixels[:, 1::2] = (0, 0, 255, 255)
    canvas = decode(encoded(Image.fromarray(pixels), "PNG"), 16).canvas
    assert difference(canvas[:, :, 0], canvas[:, :, 1]).max() <= 1
    assert (canvas[:, :, 2] >= 254).all()


@pytest.mark.parametrize(("color", "expected"), [((60, 255), 60), ((60, 1), 254), ((100, 51), 224)])
def test_gray_with_alpha_is_laid_over_white(color: tuple[int, int], expected: int) -> None:
    data = encoded(uniform("LA", color), "PNG")
    assert difference(np.array(color_of(data)), np.array(expected)).max() <= 1


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_alpha_channel_that_is_zero_everywhere_is_ignored(file_format: str, mode: str) -> None:
    image = noise()
    expected = squashed(image.convert(mode[:-1]))
    image = image.convert(mode)
    image.putalpha(0)
    np.testing.assert_array_equal(decode(encoded(image, file_format), SIZE).canvas, expected)
    image.putpixel((0, 0), (0, 255) if mode == "LA" else (0, 0, 0, 255))
    assert (decode(encoded(image, file_format), SIZE).canvas[SIZE // 2 :] == 255).all()


def test_a_bitmap_with_an_alpha_mask_that_is_zero_everywhere_is_opaque() -> None:
    """As Photoshop writes them: 32 bits with masks, whose fourth byte is not used."""
    pixels = np.zeros((30, 40, 4), np.uint8)
    pixels[..., :3] = RED[::-1]
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 40, 30, 1, 32, 3, pixels.size, 0, 0, 0, 0) + masks
    header += bytes(108 - len(header))
    data = struct.pack("<2sIII", b"BM", 14 + 108 + pixels.size, 0, 14 + 108) + header
    assert color_of(data + pixels.tobytes()) == RED


def test_a_palette_of_nothing_but_transparent_colors_is_opaque() -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([*RED, *GREEN])
    assert color_of(encoded(image, "PNG", transparency=b"\x00\x00")) == GREEN


@pytest.mark.parametrize(
    ("mode", "transparent", "other"), [("RGB", RED, GREEN), ("L", 40, 200), ("1", 0, 1)]
)
def test_transparent_color_of_png_is_white(mode: str, transparent: Any, other: Any) -> None:
    image = Image.new(mode, (40, 40), other)
    image.paste(transparent, (0, 20, 40, 40))
    canvas = decode(encoded(image, "PNG", transparency=transparent), SIZE).canvas
    opaque = np.asarray(uniform(mode, other, (1, 1)).convert("RGB"))[0, 0]
    assert (canvas[: SIZE // 2 - 1] == opaque).all()
    assert (canvas[SIZE // 2 + 1 :] == 255).all()


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
@pytest.mark.parametrize("color", [(10, 200, 30, 40), (0, 0, 0, 255)])
def test_cmyk_has_the_colors_of_pillows_own_conversion(
    file_format: str, color: tuple[int, ...]
) -> None:
    data = encoded(uniform("CMYK", color), file_format)
    image = Image.open(io.BytesIO(data))
    assert image.mode == "CMYK"
    expected = np.asarray(image.convert("RGB"))[0, 0]
    assert difference(np.array(color_of(data)), expected).max() <= 1


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (65535, 255), (25700, 100)])
def test_sixteen_bit_gray_is_scaled_to_eight(file_format: str, value: int, expected: int) -> None:
    image = Image.fromarray(np.full((30, 40), value, np.uint16))
    assert color_of(encoded(image, file_format)) == (expected, expected, expected)


def test_big_endian_sixteen_bit_tiff_is_scaled_to_eight() -> None:
    image = Image.new("I;16B", (40, 30), 25700)
    data = encoded(image, "TIFF")
    assert data.startswith(b"MM")
    assert color_of(data) == (100, 100, 100)


def test_sixteen_bit_color_png_is_scaled_to_eight() -> None:
    lines = 30 * (b"\0" + struct.pack(">HHH", 25700, 65535, 0) * 40)
    assert color_of(png(40, 30, zlib.compress(lines), bits=16)) == (100, 255, 0)


# Orientation


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(quadrants(), file_format, exif=exif)
    decoded = decode(data, SIZE)
    expected = (64, 96) if orientation >= 5 else (96, 64)
    assert (decoded.width, decoded.height) == expected
    larger = decode(data, 64).canvas  # too large for JPEG to be decoded at a reduced scale
    assert difference(larger, squashed(Image.open(io.BytesIO(data)), 64)).max() <= 1
    # By hand: where the image's first pixel, in the red quadrant, is after rotation.
    quarter, three_quarters = SIZE // 4, 3 * SIZE // 4
    x = quarter if orientation in (1, 4, 5, 8) else three_quarters
    y = quarter if orientation in (1, 2, 5, 6) else three_quarters
    assert difference(decoded.canvas[y, x], np.array(RED)).max() <= 12


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_orientation_outside_one_to_eight_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = noise()
    decoded = decode(encoded(image, "PNG", exif=exif), SIZE)
    assert (decoded.width, decoded.height) == (80, 60)
    np.testing.assert_array_equal(decoded.canvas, squashed(image))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x05\0\0\0",  # orientation as text, cut off
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_ignored(file_format: str, exif: bytes) -> None:
    image = quadrants()
    plain = decode(encoded(image, file_format), SIZE)
    broken = decode(encoded(image, file_format, exif=exif), SIZE)
    assert (broken.width, broken.height) == (96, 64)
    np.testing.assert_array_equal(broken.canvas, plain.canvas)


# Scaled decoding


def sizes_resized(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes of images before they are resized: those at which they were decoded."""
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, *args: Any, **how: Any) -> Image.Image:
        sizes.append(image.size)
        return resize(image, *args, **how)

    monkeypatch.setattr(Image.Image, "resize", watched)
    return sizes


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_big_jpeg_is_decoded_at_reduced_scale(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth(2000, 1500).convert(mode)
    data = encoded(image, "JPEG", quality=90)
    full = squashed(Image.open(io.BytesIO(data)), 180)
    sizes = sizes_resized(monkeypatch)
    decoded = decode(data, 180)
    assert sizes[0] == (250, 188)  # quality looks at the canvas afterwards
    assert (decoded.width, decoded.height) == (2000, 1500)
    assert difference(decoded.canvas, full).mean() < 1
    assert difference(decoded.canvas, full).max() <= 8


def test_reduced_scale_leaves_at_least_the_canvas_each_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = sizes_resized(monkeypatch)
    for width, height in [(800, 200), (200, 800), (511, 511), (512, 512), (255, 257), (100, 90)]:
        sizes.clear()
        decode(encoded(smooth(width, height), "JPEG"), 128)
        assert min(sizes[0]) >= min(128, width, height)


# Too large


def test_bomb_is_refused_by_its_header() -> None:
    started = time.process_time()
    error = failure(png(60_000, 60_000, zlib.compress(b"")))
    assert time.process_time() - started < 0.5
    assert error.kind == ErrorKind.TOO_LARGE
    assert error.size == (60_000, 60_000)
    assert "60000 x 60000" in error.message


@pytest.mark.parametrize(("limit", "fits"), [(59, False), (60, True), (61, True)])
def test_limit_itself_is_allowed(limit: int, fits: bool) -> None:
    data = encoded(noise(10, 6), "PNG")
    if fits:
        assert decode(data, SIZE, max_pixels=limit).width == 10
    else:
        assert failure(data, max_pixels=limit).kind == ErrorKind.TOO_LARGE


def test_image_above_pillows_own_limit_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(encoded(noise(), "PNG"), SIZE).width == 80


@pytest.mark.parametrize(("width", "height"), [(0xFFFFFFFF, 1), (1, 0xFFFFFFFF), (2**31, 4)])
def test_size_that_no_column_can_hold_is_not_reported(width: int, height: int) -> None:
    error = failure(png(width, height, zlib.compress(b"")))
    assert error.kind == ErrorKind.TOO_LARGE
    assert error.size is None or max(error.size) <= INT32_MAX


# Bad bytes


def test_no_bytes_are_empty() -> None:
    error = failure(b"")
    assert error.kind == ErrorKind.EMPTY
    assert error.size is None


@pytest.mark.parametrize("fraction", [0.4, 0.95])
@pytest.mark.parametrize(("file_format", "how", "_tolerance"), FORMATS, ids=FORMAT_NAMES)
def test_cut_file_is_truncated(
    file_format: str, how: dict[str, Any], _tolerance: int, fraction: float
) -> None:
    data = encoded(noise(), file_format, **how)
    error = failure(data[: int(len(data) * fraction)])
    assert error.kind == ErrorKind.TRUNCATED
    assert error.size in (None, (80, 60))


@pytest.mark.parametrize("length", [12, 24])
@pytest.mark.parametrize(("file_format", "how", "_tolerance"), FORMATS, ids=FORMAT_NAMES)
def test_file_cut_in_its_header_is_truncated(
    file_format: str, how: dict[str, Any], _tolerance: int, length: int
) -> None:
    data = encoded(noise(), file_format, **how)
    assert failure(data[:length]).kind == ErrorKind.TRUNCATED


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_truncated_image_reports_size_of_its_header(file_format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    data = encoded(noise(), file_format, exif=exif)
    assert failure(data[: len(data) // 2]).size == (80, 60)


@pytest.mark.parametrize("offset", range(10, 300, 40))
def test_png_with_damaged_pixels_is_truncated(offset: int) -> None:
    """Never a canvas that is black from the damage on."""
    shades = np.linspace(50, 200, 80).astype(np.uint8)
    lines = 60 * (b"\0" + np.repeat(shades, 3).tobytes())
    pixels = bytearray(zlib.compress(lines))
    assert (decode(png(80, 60, bytes(pixels)), SIZE).canvas > 40).all()
    pixels[offset] ^= 0x55
    assert failure(png(80, 60, bytes(pixels))).kind == ErrorKind.TRUNCATED


def test_png_with_a_wrong_checksum_is_truncated() -> None:
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 0x55
    assert failure(bytes(data)).kind == ErrorKind.TRUNCATED


def test_png_without_pixels_is_truncated() -> None:
    data = png(80, 60).replace(chunk(b"IDAT", b""), b"")
    assert failure(data).kind == ErrorKind.TRUNCATED


@pytest.mark.parametrize(
    "data",
    [
        b"hello, world\nthis is text\n" * 40,
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b"\x00",
        b"BMI,age,sex\n" * 40,  # begins as a bitmap does
        bytes(range(256)) * 8,
    ],
)
def test_other_bytes_are_not_an_image(data: bytes) -> None:
    error = failure(data)
    assert error.kind == ErrorKind.NOT_AN_IMAGE
    assert "JPEG" in error.message
    assert error.size is None


@pytest.mark.parametrize(
    "image",
    [
        Image.new("F", (40, 30), 0.5),
        Image.new("I", (40, 30), 70_000),
        Image.new("LAB", (40, 30), (100, 20, 30)),
    ],
    ids=lambda image: str(image.mode),
)
def test_pixel_type_of_unknown_range_is_unsupported(image: Image.Image) -> None:
    error = failure(encoded(image, "TIFF"))
    assert error.kind == ErrorKind.UNSUPPORTED
    assert error.size == (40, 30)
    assert image.mode in error.message


def test_sound_tiff_of_unknown_pixel_type_is_unsupported() -> None:
    assert failure(float_rgb_tiff()).kind == ErrorKind.UNSUPPORTED


def outcome_of(data: bytes) -> Decoded | DecodeError:
    try:
        return decode(data, SIZE, max_pixels=1_000_000)
    except DecodeError as error:
        return error


FUZZED: list[tuple[str, str, dict[str, Any]]] = [
    ("JPEG", "RGB", {}),
    ("JPEG", "CMYK", {"progressive": True}),
    ("PNG", "RGB", {}),
    ("PNG", "P", {"transparency": 3}),
    ("WEBP", "RGBA", {}),
    ("BMP", "RGB", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "L", {"compression": "tiff_lzw"}),
    ("GIF", "P", {"transparency": 3}),
]


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize(("file_format", "mode", "how"), FUZZED)
def test_mutations_never_raise_anything_else(
    file_format: str, mode: str, how: dict[str, Any]
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    if file_format in ("JPEG", "PNG", "WEBP"):
        how = {**how, "exif": exif}
    data = encoded(noise(40, 30).convert(mode), file_format, **how)
    chance = random.Random(f"{file_format} {mode}")
    outcomes: Counter[str] = Counter()
    for number in range(100):
        outcome = outcome_of(mutated(data, chance))
        if isinstance(outcome, DecodeError):
            assert "\n" not in outcome.message, number
            outcomes[ErrorKind(outcome.kind)] += 1
        else:
            assert outcome.canvas.shape == (SIZE, SIZE, 3), number
            assert outcome.canvas.dtype == np.uint8, number
            assert 0 < outcome.width * outcome.height <= 1_000_000, number
            outcomes["ok"] += 1
    assert outcomes["ok"] < 100  # the mutations do damage
    assert outcomes[ErrorKind.TRUNCATED] > 0
