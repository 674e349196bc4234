"""Localisation: how well CAM and box find the lesion, against lesion masks.

Everything is compared in fractions of the image, so masks may have another size than the images,
but must show the same frame.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lesioncam.errors import InputError
from lesioncam.schema import BOX_COLUMNS
from lesioncam.storage.masks import find_masks, read_mask

CENTRAL_SIDE = 0.6  # of the fixed central box that boxes are compared with

Box = tuple[float, float, float, float]


def localisation(rows: pd.DataFrame, masks: str) -> dict[str, Any]:
    """Compare CAMs and boxes with masks.

    Args:
        rows: scored rows with `image_id`, `cam`, `width`, `height` and the box.
        masks: a directory or prefix of PNG masks, named by image id.

    Returns:
        `masks` compared and `empty_masks` left out; the share of CAM peaks inside the mask
        (`peak_inside`), the mean IoU of the box with the mask's bounding box (`box_iou`), the
        mean share of the lesion inside the box (`lesion_kept`); and the same for the image's
        centre (`centre_inside`) and a central box (`central_box_iou`), which any method must
        beat.

    Raises:
        InputError: no image has a mask.
    """
    by_id = find_masks(masks)
    rows = rows[rows["image_id"].isin(by_id)]
    found: list[dict[str, float]] = []
    for row in rows.to_dict("records"):
        mask = read_mask(by_id[row["image_id"]])
        if mask.any():
            found.append(compare(mask, row))
    if not found:
        raise InputError(f"--masks: no evaluated image has a lesion mask in {masks}")
    means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    return {"masks": len(found), "empty_masks": len(rows) - len(found), **means}


def compare(mask: np.ndarray, row: Mapping[Hashable, Any]) -> dict[str, float]:
    """One image's figures: its mask (h, w) bool, not empty, and its row."""
    height, width = mask.shape
    cam = np.frombuffer(row["cam"], np.uint8)
    cells = round(len(cam) ** 0.5)
    peak_y, peak_x = divmod(int(cam.argmax()), cells)
    x0, y0, x1, y1 = (float(row[name]) for name in BOX_COLUMNS)
    scale_x, scale_y = width / row["width"], height / row["height"]
    box = (x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y)
    lesion = bounding_box(mask)
    margin = (1 - CENTRAL_SIDE) / 2
    central = (margin * width, margin * height, (1 - margin) * width, (1 - margin) * height)
    left, top, right, bottom = (round(value) for value in box)
    return {
        "peak_inside": float(
            mask[int((peak_y + 0.5) / cells * height), int((peak_x + 0.5) / cells * width)]
        ),
        "box_iou": iou(box, lesion),
        "lesion_kept": float(mask[top:bottom, left:right].sum() / mask.sum()),
        "centre_inside": float(mask[height // 2, width // 2]),
        "central_box_iou": iou(central, lesion),
    }


def bounding_box(mask: np.ndarray) -> Box:
    """x0, y0, x1, y1 of a mask's true pixels, half-open."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)


def localisation_table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of Markdown."""
    return [
        f"Localisation against {figures['masks']} lesion masks:",
        "",
        "| | lesioncam | the image's centre |",
        "|---|---|---|",
        f"| point inside the lesion | {figures['peak_inside']:.3f} (CAM peak) | "
        f"{figures['centre_inside']:.3f} |",
        f"| mean IoU with the lesion's box | {figures['box_iou']:.3f} | "
        f"{figures['central_box_iou']:.3f} (central {CENTRAL_SIDE:.0%} box) |",
        f"| mean share of the lesion kept | {figures['lesion_kept']:.3f} | |",
    ]
