"""Overlays: images with their box and mask, and beside each its CAM laid over it, in pages."""

import io
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter

from lesioncam.columns import BOX_COLUMNS
from lesioncam.storage.masks import read_mask
from lesioncam.storage.store import StoreError
from lesioncam.storage.uris import read_uri
from lesioncam.vision.decode import DecodeError
from lesioncam.vision.decoder import Decoder

_SIZE = 224
_LINE = 14
_CAPTION = 2 * _LINE + 4
_COLUMNS = 3
_PAGE = 24  # images of a page
_MAX_ID = 64  # characters of an id that fit
_BOX_COLOR = (255, 255, 255)
_MASK_COLOR = (0, 255, 120)
_MASK_WIDTH = 2  # pixels of its outline
# The color map from the map's minimum to its peak: blue, cyan, yellow, red.
_COLORS = np.array([(0, 0, 160), (0, 200, 255), (255, 230, 0), (220, 0, 0)], float)


def overlay_pages(
    rows: pd.DataFrame,
    count: int,
    classes: tuple[str, ...],
    masks: Mapping[str, str] | None = None,
) -> Iterator[bytes]:
    """Draw `count` rows, evenly spaced over all of them, as PNGs of at most 24 images.

    Args:
        rows: scored rows; with `label`, an index into `classes`, that is in the caption.
        count: of how many images.
        classes: the class order.
        masks: image id -> uri of the mask, whose outline is drawn; None for no masks.
    """
    chosen = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]
    records = chosen.to_dict("records")
    with closing(Decoder()) as decoder:
        for start in range(0, len(records), _PAGE):
            yield _page(records[start : start + _PAGE], classes, masks or {}, decoder)


def _page(
    rows: Sequence[Mapping[Hashable, Any]],
    classes: tuple[str, ...],
    masks: Mapping[str, str],
    decoder: Decoder,
) -> bytes:
    columns = min(_COLUMNS, len(rows))
    size = (columns * 2 * _SIZE, math.ceil(len(rows) / columns) * (_SIZE + _CAPTION))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        x, y = number % columns * 2 * _SIZE, number // columns * (_SIZE + _CAPTION)
        mask = masks.get(row["image_id"])
        try:
            pair = overlay(read_uri(row["uri"]), row, decoder, _read_outline(mask, row))
            sheet.paste(pair, (x, y))
        except (StoreError, DecodeError) as error:  # moved or changed since it was scored
            draw.text((x + 4, y + _SIZE // 2), f"image: {error.kind}", fill="black")
        caption = f"{row['prediction']} {row['p_' + row['prediction']]:.2f}"
        if "label" in row:
            caption += f" (labeled {classes[row['label']]})"
        draw.text((x + 4, y + _SIZE + 2), _shortened(row["image_id"]), fill="black")
        draw.text((x + 4, y + _SIZE + 2 + _LINE), caption, fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _read_outline(mask: str | None, row: Mapping[Hashable, Any]) -> np.ndarray | None:
    """The outline of an image's mask, (224, 224) bool; None without a mask."""
    if mask is None:
        return None
    inside = read_mask(mask, (row["width"], row["height"]), _SIZE)
    shrunk = Image.fromarray(inside).convert("L").filter(ImageFilter.MinFilter(2 * _MASK_WIDTH + 1))
    outline: np.ndarray = inside & (np.asarray(shrunk) == 0)
    return outline


def _shortened(image_id: str | None) -> str:
    """An id that fits under its image; its end tells images apart more often than its start."""
    text = image_id or ""
    return text if len(text) <= _MAX_ID else f"...{text[-_MAX_ID:]}"


def overlay(
    data: bytes,
    row: Mapping[Hashable, Any] | pd.Series,
    decoder: Decoder | None = None,
    outline: np.ndarray | None = None,
) -> Image.Image:
    """An image with its box, and beside it the CAM over it: (448, 224), squashed to squares.

    Args:
        data: the image file's bytes.
        row: the image's row of the scores, with status `ok`.
        decoder: decodes it; None for a process of its own, which takes half a second to start.
        outline: of the lesion mask, (224, 224) bool, to draw on the image; None for none.

    Raises:
        DecodeError: the bytes are not an image that can be decoded.
    """
    if decoder is None:
        with closing(Decoder()) as own:
            return overlay(data, row, own, outline)
    pixels = Image.fromarray(decoder.decode(data, _SIZE).canvas)
    boxed = pixels.copy()
    if outline is not None:
        boxed.paste(_MASK_COLOR, mask=Image.fromarray(outline))
    scale = (_SIZE / row["width"], _SIZE / row["height"]) * 2
    corners = [row[name] * by for name, by in zip(BOX_COLUMNS, scale, strict=True)]
    corners[2:] = [corner - 1 for corner in corners[2:]]
    ImageDraw.Draw(boxed).rectangle(corners, outline=_BOX_COLOR, width=3)
    pair = Image.new("RGB", (2 * _SIZE, _SIZE))
    pair.paste(boxed, (0, 0))
    pair.paste(Image.blend(pixels, heat(row["cam"]), 0.5), (_SIZE, 0))
    return pair


def heat(cam: bytes) -> Image.Image:
    """A map, as the scores hold it, in colors: (224, 224) RGB."""
    values = np.frombuffer(cam, np.uint8)
    cells = round(len(values) ** 0.5)
    gray = Image.fromarray(values.reshape(cells, cells)).resize(
        (_SIZE, _SIZE), Image.Resampling.BICUBIC
    )
    position = np.asarray(gray) / 255 * (len(_COLORS) - 1)
    channels = [np.interp(position, np.arange(len(_COLORS)), _COLORS[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, axis=2).round().astype(np.uint8))
