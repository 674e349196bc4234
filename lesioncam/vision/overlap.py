"""Overlap: how well a CAM and a box localize the lesion, against its mask. NumPy only.

Everything is compared in fractions of the image, so a mask may have another size than the image,
but must show the same frame.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

CENTRAL_SIZE = 0.6  # of the fixed central box that boxes are compared with, in each direction

Box = tuple[float, float, float, float]  # x0, y0, x1, y1, half-open, in fractions of the image


def compare(mask: np.ndarray, cam: np.ndarray, box: Box) -> dict[str, float]:
    """Compare one image's CAM and box with its mask.

    Args:
        mask: (H, W) bool, not empty.
        cam: (h, w), the map behind the box.
        box: where the lesion was found.

    Returns:
        `peak_inside`: 1 if the CAM's peak is inside the mask, else 0. `box_iou`: IoU of the box
        with the mask's bounding box. `lesion_kept`: the fraction of the mask inside the box. As a
        baseline, `center_inside` and `central_box_iou`: the same for the image's center and a
        central box.
    """
    height, width = mask.shape
    peak_y, peak_x = divmod(int(cam.argmax()), cam.shape[1])
    at_peak = mask[
        int((peak_y + 0.5) / cam.shape[0] * height), int((peak_x + 0.5) / cam.shape[1] * width)
    ]
    size = np.array([width, height, width, height])
    lesion = bounding_box(mask)
    x0, y0, x1, y1 = (int(value) for value in (np.array(box) * size).round())
    margin = (1 - CENTRAL_SIZE) / 2
    return {
        "peak_inside": float(at_peak),
        "box_iou": iou(box, lesion),
        "lesion_kept": float(mask[y0:y1, x0:x1].sum() / mask.sum()),
        "center_inside": float(mask[height // 2, width // 2]),
        "central_box_iou": iou((margin, margin, 1 - margin, 1 - margin), lesion),
    }


def mean_overlap(found: Iterable[dict[str, float]]) -> dict[str, Any]:
    """The means of what `compare` found, and how many images had a mask (`masks`)."""
    rows = list(found)
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
    return {"masks": len(rows), **means}


def bounding_box(mask: np.ndarray) -> Box:
    """The bounding box of a mask's true pixels."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    height, width = mask.shape
    return (
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return intersection / (areas - intersection)


def overlap_table(figures: dict[str, Any]) -> list[str]:
    """The figures of `mean_overlap` as lines of Markdown."""
    if not figures["masks"]:
        return ["Localization: undefined, none of these images has a lesion mask."]
    return [
        f"Localization against {figures['masks']:,} lesion masks:",
        "",
        "| | lesioncam | baseline: the image's center |",
        "|---|---|---|",
        f"| CAM peak inside the lesion | {figures['peak_inside']:.3f} | "
        f"{figures['center_inside']:.3f} |",
        f"| mean IoU with the lesion's box | {figures['box_iou']:.3f} | "
        f"{figures['central_box_iou']:.3f} (central {CENTRAL_SIZE:.0%} box) |",
        f"| mean fraction of the lesion inside the box | {figures['lesion_kept']:.3f} | |",
    ]
