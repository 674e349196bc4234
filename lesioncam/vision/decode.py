"""Bytes -> canvas: one image file becomes a square RGB array of fixed size.

Knows nothing about where the bytes came from. Every failure is a `DecodeError` with one of the
error kinds of `lesioncam.columns`.
"""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lesioncam.columns import ErrorKind

MAX_PIXELS = 200_000_000  # width x height; a decoded image of this size takes 0.6 to 0.8 GB

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_SUPPORTED = "supported are JPEG, PNG, WebP, BMP, TIFF and GIF"
# Signatures by which files are recognized: (offset, bytes, format).
_UNSUPPORTED_SIGNATURES = (
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypavif", "AVIF"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (128, b"DICM", "DICOM"),
)
_SUPPORTED_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (8, b"WEBP", "WebP"),
)
_WHITE = 255
_INT32_MAX = 2**31 - 1


class DecodeError(Exception):
    """An image that could not become a canvas.

    Attributes:
        kind: why, one of `ErrorKind`.
        message: one line of text, without the file's name.
        size: (width, height) in pixels as the header declares them, or None if it has no header.
    """

    def __init__(self, kind: ErrorKind, message: str, size: tuple[int, int] | None = None):
        super().__init__(kind, message, size)  # all, so that it survives pickling
        self.kind = kind
        self.message = " ".join(message.split())
        self.size = size

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        canvas: (S, S, 3) uint8 RGB: the whole image, x and y scaled apart to fill a square.
        width: the image's width in pixels after EXIF orientation.
        height: the image's height in pixels after EXIF orientation.
    """

    canvas: np.ndarray
    width: int
    height: int


def decode(data: bytes, size: int, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode an image file onto a square canvas.

    JPEG is decoded at a reduced scale where that keeps at least `size` pixels each way. EXIF
    orientation is applied, transparency is laid over white, and gray, palette, CMYK and 16-bit
    pixels become 8-bit RGB. Of an animation or a multi-page file, the first picture is taken.

    Args:
        data: the file's bytes.
        size: the canvas size S in pixels.
        max_pixels: the largest width x height that is decoded; checked on the header.

    Raises:
        DecodeError: the bytes are not an image that can be decoded.
    """
    if not data:
        raise DecodeError(ErrorKind.EMPTY, "the file has no bytes")
    image = _open(data)
    declared = image.size
    _check_pixels(declared, max_pixels)
    image.draft("RGB" if image.mode == "YCbCr" else image.mode, (size, size))
    return _to_canvas(image, declared, size)


def decode_image(image: Image.Image, size: int, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Scale an image that Pillow has opened to a square canvas; else as `decode`.

    All of its pixels are used: a large JPEG, which `decode` reads at a reduced scale, gives
    slightly other pixels here.
    """
    _check_pixels(image.size, max_pixels)
    return _to_canvas(image, image.size, size)


def _check_pixels(declared: tuple[int, int], max_pixels: int) -> None:
    if declared[0] * declared[1] > max_pixels:
        raise DecodeError(
            ErrorKind.TOO_LARGE,
            f"{declared[0]} x {declared[1]} pixels; the limit is {max_pixels / 1e6:g} megapixels",
            declared if max(declared) <= _INT32_MAX else None,
        )


def _to_canvas(image: Image.Image, declared: tuple[int, int], size: int) -> Decoded:
    """The canvas of an opened image whose header declares this width and height."""
    try:
        # Load before reading EXIF: Pillow may load a PNG to find it, and a second load after a
        # failed one passes. A TIFF is rotated as it is loaded, and then has another size.
        image.load()
        if image.format == "TIFF":
            declared = image.size
        orientation = _orientation(image)
        canvas = _to_rgb(image, (size, size))
    except DecodeError as error:
        raise DecodeError(error.kind, error.message, declared) from error
    except MemoryError as error:
        raise DecodeError(ErrorKind.TOO_LARGE, "not enough memory", declared) from error
    except Exception as error:  # Pillow's decoders raise many types on damaged pixel data
        raise DecodeError(
            ErrorKind.TRUNCATED, f"damaged or incomplete pixel data: {error}", declared
        ) from error
    width, height = declared[::-1] if orientation >= 5 else declared
    return Decoded(_oriented(canvas, orientation), width, height)


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is below `max_pixels`
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise _unrecognized(data) from None
    except Exception as error:  # Pillow's parsers raise many types on damaged headers
        raise DecodeError(ErrorKind.TRUNCATED, f"damaged header: {error}") from error


def _unrecognized(data: bytes) -> DecodeError:
    """The error for bytes that Pillow does not recognize as one of `_FORMATS`."""
    if name := _signed(data, _UNSUPPORTED_SIGNATURES):
        return DecodeError(ErrorKind.UNSUPPORTED, f"{name} is not supported; {_SUPPORTED}")
    if _has_tiff_directory(data):
        return DecodeError(ErrorKind.UNSUPPORTED, "this kind of TIFF is not supported")
    is_bmp = data[:2] == b"BM" and data[6:10] == bytes(4)
    if name := "BMP" if is_bmp else _signed(data, _SUPPORTED_SIGNATURES):
        return DecodeError(ErrorKind.TRUNCATED, f"the {name} header is damaged or incomplete")
    return DecodeError(ErrorKind.NOT_AN_IMAGE, f"not an image file; {_SUPPORTED}")


def _signed(data: bytes, signatures: tuple[tuple[int, bytes, str], ...]) -> str | None:
    """The format whose signature the bytes have; None if they have none of these."""
    return next((name for start, magic, name in signatures if data.startswith(magic, start)), None)


def _has_tiff_directory(data: bytes) -> bool:
    """Whether a TIFF's first directory is complete: then it is sound, but Pillow cannot read it."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return False
    order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"
    start = int.from_bytes(data[4:8], order)
    entries = int.from_bytes(data[start : start + 2], order)
    return start >= 8 and entries > 0 and start + 2 + 12 * entries <= len(data)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; broken EXIF counts as upright."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # Pillow raises many types on broken EXIF; the pixels are sound
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale to `size` and convert to 8-bit RGB."""
    if image.mode.startswith("I;16"):  # 16-bit gray: keep the upper byte
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "I" and image.format == "PNG":  # older Pillow's name for 16-bit gray
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F", "LAB"):
        raise DecodeError(ErrorKind.UNSUPPORTED, f"pixel type {image.mode} is not supported")
    if image.mode in ("1", "P", "PA", "YCbCr", "HSV") or "transparency" in image.info:
        image = image.convert("RGBA" if _has_transparency(image) else "RGB")
    image = image.resize(size, Image.Resampling.BILINEAR)
    if image.mode in ("RGBA", "LA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (_WHITE, _WHITE, _WHITE, _WHITE))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _has_transparency(image: Image.Image) -> bool:
    return image.mode == "PA" or "transparency" in image.info


def _oriented(canvas: Image.Image, orientation: int) -> np.ndarray:
    """Apply EXIF orientation to the canvas, which is smaller than the image."""
    if orientation != 1:
        canvas.getexif()[0x0112] = orientation
        canvas = ImageOps.exif_transpose(canvas)
    return np.asarray(canvas)
