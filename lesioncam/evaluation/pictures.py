"""Pictures: thumbnails and maps of scored rows, small enough to stand inside a page.

Images are read again from their uris, and decoded in processes of their own.
"""

import io
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lesioncam.columns import ErrorKind, Status
from lesioncam.evaluation.overlays import heat
from lesioncam.storage.store import StoreError
from lesioncam.storage.uris import MAX_BYTES, one_large_file, read_uri
from lesioncam.vision.decode import DecodeError
from lesioncam.vision.decoder import Decoders

CHANGED = "changed since it was scored"
_THREADS = 4
_DECODERS = 2
_MAX_UNREACHABLE = 4  # images in a row; each may take a minute or more until it is given up
# What a thumbnail is tried with until it fits: longer side in pixels, JPEG quality. The last one
# is at most some 4 kB, whatever the image.
_TRIES = ((256, 82), (256, 70), (256, 55), (192, 60), (128, 60), (96, 50), (64, 40))
_MAP_SIZE = 48
_MAP_QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """What is shown of an image.

    Attributes:
        thumbnail: a JPEG; None if it cannot be shown.
        cam: the map in colors, a square JPEG to be stretched over the thumbnail; likewise.
        size: width and height of the thumbnail in pixels.
        problem: why it cannot be shown; None if it is.
    """

    thumbnail: bytes | None
    cam: bytes | None
    size: tuple[int, int]
    problem: str | None


def load_pictures(rows: Sequence[Mapping[str, Any]], max_bytes: int) -> list[Picture]:
    """Make the pictures of rows, in their order.

    Args:
        rows: of the scores, with `uri`, `status`, `error_kind`, `size`, `width`, `height`, `cam`.
        max_bytes: of a thumbnail.
    """
    reader, decoders = _Reader(), Decoders(_DECODERS)
    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(lambda row: _load(row, max_bytes, reader, decoders), rows))
    finally:
        decoders.close()


class _Reader:
    """Reads images, until `_MAX_UNREACHABLE` in a row are unreachable; then it requests no more."""

    def __init__(self) -> None:
        self._unreachable = 0  # in a row
        self._counting = threading.Lock()

    def read(self, uri: str) -> bytes:
        """As `read_uri`."""
        if self._unreachable >= _MAX_UNREACHABLE:
            raise StoreError(ErrorKind.UNREACHABLE, "the store did not answer for other images")
        try:
            data = read_uri(uri, MAX_BYTES)
        except StoreError as error:
            self._count(is_unreachable=error.kind is ErrorKind.UNREACHABLE)
            raise
        self._count(is_unreachable=False)
        return data

    def _count(self, *, is_unreachable: bool) -> None:
        with self._counting:
            self._unreachable = self._unreachable + 1 if is_unreachable else 0


def _load(row: Mapping[str, Any], max_bytes: int, reader: _Reader, decoders: Decoders) -> Picture:
    if row["status"] != Status.OK:
        return _missing(row["error_kind"])
    try:
        with one_large_file(row["size"]):
            data = reader.read(row["uri"])
            if row["size"] not in (None, len(data)):
                return _missing(CHANGED)
            decoded = decoders.decode(data, _TRIES[0][0])
    except (StoreError, DecodeError) as error:
        return _missing(error.kind)
    width, height = row["width"], row["height"]
    if (decoded.width, decoded.height) != (width, height):
        return _missing(CHANGED)
    thumbnail, size = _shrunk(Image.fromarray(decoded.canvas), width / height, max_bytes)
    colors = heat(row["cam"]).resize((_MAP_SIZE, _MAP_SIZE), Image.Resampling.BOX)
    return Picture(thumbnail, _jpeg(colors, _MAP_QUALITY), size, None)


def _missing(problem: str) -> Picture:
    return Picture(None, None, (0, 0), problem)


def _shrunk(canvas: Image.Image, aspect: float, max_bytes: int) -> tuple[bytes, tuple[int, int]]:
    """The best thumbnail of at most `max_bytes`, and its size."""
    for side, quality in _TRIES:
        scale = side / max(aspect, 1)
        size = max(1, round(scale * aspect)), max(1, round(scale))
        data = _jpeg(canvas.resize(size, Image.Resampling.LANCZOS), quality)
        if len(data) <= max_bytes:
            break
    return data, size


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
