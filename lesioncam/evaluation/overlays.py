"""Overlays: a sheet of images with their box, and beside each its CAM laid over it."""

import io
import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from lesioncam.columns import BOX_COLUMNS
from lesioncam.storage.store import StoreError
from lesioncam.storage.uris import read_uri
from lesioncam.vision.decode import DecodeError, decode

_SIDE = 224
_CAPTION = 16
_COLUMNS = 3
_BOX_COLOR = (255, 255, 255)
# The ramp from the map's minimum to its peak: blue, cyan, yellow, red.
_RAMP = np.array([(0, 0, 160), (0, 200, 255), (255, 230, 0), (220, 0, 0)], float)


def overlay_sheet(rows: pd.DataFrame, count: int, classes: tuple[str, ...]) -> bytes:
    """Draw `count` rows, taken evenly over all of them, as one PNG."""
    places = np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))
    chosen = rows.iloc[places].to_dict("records")
    columns = min(_COLUMNS, len(chosen))
    size = (columns * 2 * _SIDE, math.ceil(len(chosen) / columns) * (_SIDE + _CAPTION))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(chosen):
        y, x = divmod(number, columns)
        corner = (x * 2 * _SIDE, y * (_SIDE + _CAPTION))
        try:
            sheet.paste(overlay(read_uri(row["uri"]), row), corner)
        except (StoreError, DecodeError) as error:  # moved or changed since it was scored
            draw.text((corner[0] + 4, corner[1] + _SIDE // 2), f"image: {error.kind}", fill="black")
        caption = f"{row['prediction']} {row['p_' + row['prediction']]:.2f}"
        if "label" in row:
            caption += f" (labeled {classes[row['label']]})"
        draw.text((corner[0] + 4, corner[1] + _SIDE + 2), caption, fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def overlay(data: bytes, row: Mapping[Hashable, Any]) -> Image.Image:
    """An image with its box, and beside it the CAM over it: (448, 224), squashed to squares."""
    pixels = Image.fromarray(decode(data, _SIDE).canvas)
    boxed = pixels.copy()
    scale = (_SIDE / row["width"], _SIDE / row["height"]) * 2
    corners = [row[name] * by for name, by in zip(BOX_COLUMNS, scale, strict=True)]
    corners[2:] = [corner - 1 for corner in corners[2:]]
    ImageDraw.Draw(boxed).rectangle(corners, outline=_BOX_COLOR, width=3)
    pair = Image.new("RGB", (2 * _SIDE, _SIDE))
    pair.paste(boxed, (0, 0))
    pair.paste(Image.blend(pixels, heat(row["cam"]), 0.5), (_SIDE, 0))
    return pair


def heat(cam: bytes) -> Image.Image:
    """A map as its colors: (_SIDE, _SIDE) RGB."""
    values = np.frombuffer(cam, np.uint8)
    cells = round(len(values) ** 0.5)
    gray = Image.fromarray(values.reshape(cells, cells)).resize(
        (_SIDE, _SIDE), Image.Resampling.BICUBIC
    )
    position = np.asarray(gray) / 255 * (len(_RAMP) - 1)
    channels = [np.interp(position, np.arange(len(_RAMP)), _RAMP[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, axis=2).round().astype(np.uint8))
