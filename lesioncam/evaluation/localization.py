"""Localization: the scored rows' CAMs and boxes against lesion masks."""

from typing import Any

import numpy as np
import pandas as pd

from lesioncam.columns import BOX_COLUMNS
from lesioncam.errors import InputError
from lesioncam.storage.masks import find_masks, read_mask
from lesioncam.vision.overlap import compare, mean_overlap


def localization(rows: pd.DataFrame, masks: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """Compare CAMs and boxes with masks.

    Args:
        rows: scored rows with `image_id`, `cam`, `width`, `height` and the box.
        masks: a directory or prefix of masks, as `find_masks` takes it.

    Returns:
        The means of `lesioncam.vision.overlap.compare`, over `masks` images and without those of
        `empty_masks`; and each image's own figures, by `image_id`.

    Raises:
        InputError: no image has a mask, or one has another aspect ratio than its image.
    """
    by_id = find_masks(masks)
    rows = rows[rows["image_id"].isin(by_id)]
    found: dict[str, dict[str, float]] = {}
    for row in rows.to_dict("records"):
        width, height = row["width"], row["height"]
        mask = read_mask(by_id[row["image_id"]], (width, height))
        if mask.any():
            cam = np.frombuffer(row["cam"], np.uint8)
            cells = round(len(cam) ** 0.5)
            x0, y0, x1, y1 = (row[name] for name in BOX_COLUMNS)
            box = (x0 / width, y0 / height, x1 / width, y1 / height)
            found[row["image_id"]] = compare(mask, cam.reshape(cells, cells), box)
    if not found:
        raise InputError(f"--masks: no evaluated image has a lesion mask in {masks}")
    figures = mean_overlap(found.values())
    figures["empty_masks"] = len(rows) - len(found)
    return figures, pd.DataFrame.from_dict(found, orient="index")
