"""Bytes -> canvas: one image file becomes a square RGB array of fixed size.

Knows nothing about where the bytes came from. Every failure is a `DecodeError` with one of the
schema's error kinds.
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
# Image files people do have in such folders and that are not decoded: (offset, magic, name).
_FOREIGN = (
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypavif", "AVIF"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (128, b"DICM", "DICOM"),
)
_OURS = (
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
        kind: one of `ErrorKind`.
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
        canvas: (S, S, 3) uint8 RGB; the whole image squashed onto a square, x and y scaled apart.
        width: the image's width in pixels after EXIF orientation.
        height: the image's height in pixels after EXIF orientation.
    """

    canvas: np.ndarray
    width: int
    height: int


def decode(data: bytes, side: int, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode an image file onto a square canvas.

    JPEG is decoded at a reduced scale where that leaves at least `side` pixels each way. EXIF
    orientation is applied, transparency is laid over white, and gray, palette, CMYK and 16-bit
    pixels become 8-bit RGB. Of an animation or a multi-page file, the first picture is taken.

    Args:
        data: the file's bytes.
        side: the canvas's side in pixels.
        max_pixels: the largest width x height that is decoded; checked on the header.

    Raises:
        DecodeError: the bytes are not an image that can be decoded.
    """
    if not data:
        raise DecodeError(ErrorKind.EMPTY, "the file has no bytes")
    image = _open(data)
    size = image.size
    _check_pixels(size, max_pixels)
    image.draft("RGB" if image.mode == "YCbCr" else image.mode, (side, side))
    return _to_canvas(image, size, side)


def decode_image(image: Image.Image, side: int, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Put an image that Pillow has opened onto a square canvas; else as `decode`.

    All of its pixels are used: a large JPEG, which `decode` reads at a reduced scale, gives
    slightly other pixels here.
    """
    _check_pixels(image.size, max_pixels)
    return _to_canvas(image, image.size, side)


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise DecodeError(
            ErrorKind.TOO_LARGE,
            f"{size[0]} x {size[1]} pixels; the limit is {max_pixels / 1e6:g} megapixels",
            size if max(size) <= _INT32_MAX else None,
        )


def _to_canvas(image: Image.Image, size: tuple[int, int], side: int) -> Decoded:
    """The canvas of an opened image whose header declares `size`."""
    try:
        # Before anything asks for EXIF: Pillow may load a PNG to find it, and a second load after
        # one that failed passes. TIFF is turned upright by loading, and then says so.
        image.load()
        if image.format == "TIFF":
            size = image.size
        orientation = _orientation(image)
        canvas = _to_rgb(image, (side, side))
    except DecodeError as error:
        raise DecodeError(error.kind, error.message, size) from error
    except MemoryError as error:
        raise DecodeError(ErrorKind.TOO_LARGE, "not enough memory", size) from error
    except Exception as error:  # Pillow's decoders raise many types on damaged pixel data
        raise DecodeError(
            ErrorKind.TRUNCATED, f"damaged or incomplete pixel data: {error}", size
        ) from error
    width, height = size[::-1] if orientation >= 5 else size
    return Decoded(_turn(canvas, orientation), width, height)


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    Image.MAX_IMAGE_PIXELS = None  # ours is `max_pixels`; Pillow's own is below it
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise _not_ours(data) from None
    except Exception as error:  # a header that starts well and breaks off or lies
        raise DecodeError(ErrorKind.TRUNCATED, f"damaged header: {error}") from error


def _not_ours(data: bytes) -> DecodeError:
    for offset, magic, name in _FOREIGN:
        if data[offset : offset + len(magic)] == magic:
            return DecodeError(ErrorKind.UNSUPPORTED, f"{name} is not supported; {_SUPPORTED}")
    if _has_tiff_directory(data):
        return DecodeError(ErrorKind.UNSUPPORTED, "this kind of TIFF is not supported")
    for offset, magic, name in _OURS:
        if data[offset : offset + len(magic)] == magic:
            return DecodeError(ErrorKind.TRUNCATED, f"the {name} header is damaged or incomplete")
    if data[:2] == b"BM" and data[6:10] == bytes(4):
        return DecodeError(ErrorKind.TRUNCATED, "the BMP header is damaged or incomplete")
    return DecodeError(ErrorKind.NOT_AN_IMAGE, f"not an image file; {_SUPPORTED}")


def _has_tiff_directory(data: bytes) -> bool:
    """Whether a TIFF's first directory is there in full: it is sound, but Pillow cannot read it."""
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
    except Exception:  # EXIF is free-form bytes; no fault in it makes the pixels less good
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Shrink (or enlarge) to `size` and turn into 8-bit RGB."""
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


def _turn(canvas: Image.Image, orientation: int) -> np.ndarray:
    """Apply EXIF orientation to the (square) canvas, where turning is cheap."""
    if orientation != 1:
        canvas.getexif()[0x0112] = orientation
        canvas = ImageOps.exif_transpose(canvas)
    return np.asarray(canvas)
