"""Bytes -> canvas: one image file becomes a square RGB array of fixed size.

Knows nothing about where the bytes came from. Every failure is a `DecodeError` with one of the
error kinds of `lesioncam.columns`.
"""

import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from lesioncam.columns import ErrorKind, Quality
from lesioncam.vision.color import to_srgb
from lesioncam.vision.formats import (
    describe_readable,
    format_of,
    has_tiff_directory,
    readable_formats,
    unreadable_variant,
)
from lesioncam.vision.quality import picture_quality
from lesioncam.vision.repair import (
    MAX_PNG_PROFILE,
    with_end_marker,
    without_padding,
    without_unused_chunks,
)

MAX_PIXELS = 200_000_000  # width x height; a decoded image of this size takes 0.6 to 0.8 GB

_WHITE = 255
_INT32_MAX = 2**31 - 1
_PACKAGES = {  # that read a format
    "HEIC": "'lesioncam[heif]'",
    "HEIF": "'lesioncam[heif]'",
    "DICOM": "'lesioncam[dicom]'",
    "DICOM in JPEG-LS": "'lesioncam[dicom]'",
    "DICOM in lossless JPEG": "pylibjpeg pylibjpeg-libjpeg",
}
_ALPHA_MODES = {"RGBA": "RGBA", "LA": "LA", "RGBa": "RGBA", "La": "LA"}  # not premultiplied
_REDUCED_PAGE, _MASK_PAGE = 1, 4  # bits of a TIFF page's NewSubfileType
_OLD_REDUCED_PAGE = 2  # its older SubfileType


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
        quality: as `picture_quality` gives it.
    """

    canvas: np.ndarray
    width: int
    height: int
    quality: tuple[Quality, ...]


def decode(data: bytes, size: int, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode an image file onto a square canvas.

    JPEG is decoded at a reduced scale where that keeps at least `size` pixels each way. EXIF
    orientation is applied, colors become sRGB by the image's ICC profile, transparency is laid
    over white, and gray, palette, CMYK and 16-bit pixels become 8-bit RGB. An alpha channel that
    is zero everywhere is ignored. Of an animation or a multi-page file, the first picture is
    taken that is not marked as a reduced copy of another.

    Args:
        data: the file's bytes.
        size: the canvas size S in pixels.
        max_pixels: the largest width x height that is decoded; checked on the header.

    Raises:
        DecodeError: the bytes are not an image that can be decoded.
    """
    if not data:
        raise DecodeError(ErrorKind.EMPTY, "the file has no bytes")
    is_jpeg = data.startswith(b"\xff\xd8\xff")
    if is_jpeg:
        data = without_padding(data)
    try:
        return _decode(data, size, max_pixels)
    except DecodeError as error:
        if error.kind is not ErrorKind.TRUNCATED:
            raise
        if variant := unreadable_variant(data):
            raise _unsupported(variant, error.size) from error
        whole = _decode_jpeg_without_end if is_jpeg else _decode_png_without_metadata
        decoded = whole(data, size, max_pixels)
        if decoded is None:
            raise
        return decoded


def _decode(data: bytes, size: int, max_pixels: int) -> Decoded:
    image = _open(data)
    declared = image.size
    _check_pixels(declared, max_pixels)
    image.draft("RGB" if image.mode == "YCbCr" else image.mode, (size, size))
    return _to_canvas(image, declared, size)


def _decode_jpeg_without_end(data: bytes, size: int, max_pixels: int) -> Decoded | None:
    """The canvas of a JPEG that only lacks its end marker; None if pixels are missing."""
    ended = with_end_marker(data)
    if ended is None:
        return None
    with suppress(DecodeError, OSError):
        if _pixel_digest(ended[0]) == _pixel_digest(ended[1]):
            return _decode(ended[0], size, max_pixels)
    return None


def _pixel_digest(data: bytes) -> bytes:
    return hashlib.sha256(_open(data).tobytes()).digest()


def _decode_png_without_metadata(data: bytes, size: int, max_pixels: int) -> Decoded | None:
    """The canvas of a PNG of which only metadata is damaged or too large; else None."""
    pixels = without_unused_chunks(data) if data.startswith(b"\x89PNG\r\n\x1a\n") else None
    if pixels is not None:
        with suppress(DecodeError):
            return _decode(pixels, size, max_pixels)
    return None


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
    pixels = _oriented(canvas, orientation)
    return Decoded(pixels, width, height, picture_quality(pixels, width, height))


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is below `max_pixels`
    PngImagePlugin.MAX_TEXT_CHUNK = MAX_PNG_PROFILE  # likewise 1 MB
    try:
        image = Image.open(io.BytesIO(data), formats=readable_formats())
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            _select_page(image)
    except DecodeError:
        raise
    except MemoryError as error:
        raise DecodeError(ErrorKind.TOO_LARGE, "not enough memory") from error
    except Exception as error:  # Pillow's parsers raise many types on damaged headers
        if isinstance(error, UnidentifiedImageError) or format_of(data) is None:
            raise _unrecognized(data) from None
        raise DecodeError(ErrorKind.TRUNCATED, f"damaged header: {error}") from error
    return image


def _select_page(image: TiffImagePlugin.TiffImageFile) -> None:
    """Go to the first page that is not a reduced copy or a mask of another, if there is one."""
    if not _is_secondary(image):
        return
    if TiffImagePlugin.SUBIFD in image.tag_v2:
        raise _unsupported("TIFF with its image below a thumbnail", None)
    for page in range(1, image.n_frames):
        image.seek(page)
        if not _is_secondary(image):
            return
    image.seek(0)


def _is_secondary(image: TiffImagePlugin.TiffImageFile) -> bool:
    kind = image.tag_v2.get(254, 0)
    older = image.tag_v2.get(255, 0)
    return bool(kind & (_REDUCED_PAGE | _MASK_PAGE)) or older == _OLD_REDUCED_PAGE


def _unrecognized(data: bytes) -> DecodeError:
    """The error for bytes that Pillow does not recognize as an image."""
    found = format_of(data)
    if found is None:
        return DecodeError(ErrorKind.NOT_AN_IMAGE, f"not an image file; {describe_readable()}")
    if found.pillow not in readable_formats():
        return _unsupported(found.name, None)
    if has_tiff_directory(data) and not unreadable_variant(data):
        return _unsupported("this kind of TIFF", None)
    return DecodeError(ErrorKind.TRUNCATED, f"the {found.name} header is damaged or incomplete")


def _unsupported(name: str, size: tuple[int, int] | None) -> DecodeError:
    fix = f"pip install {_PACKAGES[name]} reads it; " if name in _PACKAGES else ""
    message = f"{name} is not supported; {fix}{describe_readable()}"
    return DecodeError(ErrorKind.UNSUPPORTED, message, size)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; broken EXIF counts as upright."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # Pillow raises many types on broken EXIF; the pixels are sound
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale to `size` and convert to 8-bit sRGB."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):  # 16-bit gray: keep the upper byte
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "I" and image.format == "PNG":  # older Pillow's name for 16-bit gray
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F", "LAB"):
        raise DecodeError(ErrorKind.UNSUPPORTED, f"pixel type {image.mode} is not supported")
    if image.mode in ("1", "P", "PA", "YCbCr", "HSV") or "transparency" in image.info:
        image = image.convert("RGBA" if _has_transparency(image) else "RGB")
    if image.mode in _ALPHA_MODES:
        return _over_white(image, size, profile)
    return to_srgb(image.resize(size, Image.Resampling.BILINEAR), profile)


def _over_white(image: Image.Image, size: tuple[int, int], profile: bytes | None) -> Image.Image:
    """As `_to_rgb`, for an image with transparency; one of nothing but that counts as opaque."""
    *bands, alpha = image.split()
    opaque_mode = "L" if len(bands) == 1 else "RGB"
    if alpha.getextrema() == (0, 0):
        opaque = Image.merge(opaque_mode, bands)
        return to_srgb(opaque.resize(size, Image.Resampling.BILINEAR), profile)
    image = image.resize(size, Image.Resampling.BILINEAR)
    image = image.convert(_ALPHA_MODES[image.mode])
    color = to_srgb(Image.merge(opaque_mode, image.split()[:-1]), profile)
    color.putalpha(image.getchannel("A"))
    white = Image.new("RGBA", size, (_WHITE, _WHITE, _WHITE, _WHITE))
    return Image.alpha_composite(white, color).convert("RGB")


def _has_transparency(image: Image.Image) -> bool:
    return image.mode == "PA" or "transparency" in image.info


def _oriented(canvas: Image.Image, orientation: int) -> np.ndarray:
    """Apply EXIF orientation to the canvas, which is smaller than the image."""
    if orientation != 1:
        canvas.getexif()[0x0112] = orientation
        canvas = ImageOps.exif_transpose(canvas)
    return np.asarray(canvas)
