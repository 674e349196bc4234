"""Overlays: images with their box, and beside each its CAM laid over it."""

import io
import math
from collections.abc import Hashable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from lesioncam.columns import BOX_COLUMNS
from lesioncam.storage.store import StoreError
from lesioncam.storage.uris import read_uri
from lesioncam.vision.decode import DecodeError
from lesioncam.vision.decoder import Decoder

_SIZE = 224
_CAPTION = 16
_COLUMNS = 3
_BOX_COLOR = (255, 255, 255)
# The color map from the map's minimum to its peak: blue, cyan, yellow, red.
_COLORS = np.array([(0, 0, 160), (0, 200, 255), (255, 230, 0), (220, 0, 0)], float)


def overlay_sheet(rows: pd.DataFrame, count: int, classes: tuple[str, ...]) -> bytes:
    """Draw `count` rows, evenly spaced over all of them, as one PNG.

    Args:
        rows: scored rows; with `label`, an index into `classes`, that is in the caption.
        count: of how many images.
        classes: the class order.
    """
    chosen = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]
    columns = min(_COLUMNS, len(chosen))
    size = (columns * 2 * _SIZE, math.ceil(len(chosen) / columns) * (_SIZE + _CAPTION))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    with closing(Decoder()) as decoder:
        for number, row in enumerate(chosen.to_dict("records")):
            x, y = number % columns * 2 * _SIZE, number // columns * (_SIZE + _CAPTION)
            try:
                sheet.paste(overlay(read_uri(row["uri"]), row, decoder), (x, y))
            except (StoreError, DecodeError) as error:  # moved or changed since it was scored
                draw.text((x + 4, y + _SIZE // 2), f"image: {error.kind}", fill="black")
            caption = f"{row['prediction']} {row['p_' + row['prediction']]:.2f}"
            if "label" in row:
                caption += f" (labeled {classes[row['label']]})"
            draw.text((x + 4, y + _SIZE + 2), caption, fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def overlay(
    data: bytes, row: Mapping[Hashable, Any] | pd.Series, decoder: Decoder | None = None
) -> Image.Image:
    """An image with its box, and beside it the CAM over it: (448, 224), squashed to squares.

    Args:
        data: the image file's bytes.
        row: the image's row of the scores, with status `ok`.
        decoder: decodes it; None for a process of its own, which takes half a second to start.

    Raises:
        DecodeError: the bytes are not an image that can be decoded.
    """
    if decoder is None:
        with closing(Decoder()) as own:
            return overlay(data, row, own)
    pixels = Image.fromarray(decoder.decode(data, _SIZE).canvas)
    boxed = pixels.copy()
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
