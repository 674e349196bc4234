"""Do boxes tell stage 2 the label, on the images that stage 1 learned from?

    lesioncam score --images isic/train --bundle model --output scores
    python -m benchmarks.leakage --isic isic --bundle model --scores scores

Stage 1 knows its training images, so its boxes there could follow the label more than on new ones,
and stage 2 learn to read the label off them. Here a linear model on a box's place and size is asked
for the class, once on boxes of the images that stage 1 learned from and once on those of the images
held out, and beside it the same on the boxes of drawn outlines, which know of no network. If boxes
betray the label, the first tell more than the second, and outlines do not.
"""

import argparse
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.crossvalidate import FOLDS, assign_folds
from benchmarks.headline import held_out_images
from lesioncam.evaluation.evaluate import join, read_scores
from lesioncam.schema import BOX_COLUMNS
from lesioncam.settings import TrainSettings, from_mapping
from lesioncam.storage.bundle import load_bundle
from lesioncam.storage.labels import Labels, read_labels
from lesioncam.storage.listing import image_id
from lesioncam.storage.masks import find_masks, read_mask
from lesioncam.storage.results import Results
from lesioncam.vision.metrics import evaluate_stages, with_interval
from lesioncam.vision.overlap import bounding_box, iou

BY = {"stage1": "its box", "stage2": "the outline's box"}


def told_by(boxes: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """How much a box speaks for each class, by least squares on the boxes of other images.

    Args:
        boxes: (n, 4) x0, y0, x1, y1 in fractions of the image.
        labels: (n,) int, places of the classes.
        classes: K.

    Returns:
        (n, K) scores, each image's by a model of the other four fifths.
    """
    size, centre = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    away = np.abs(centre - 0.5)
    known = np.concatenate([np.ones((len(boxes), 1)), size, size**2, away, away**2], axis=1)
    known = np.column_stack([known, size.prod(axis=1)])
    folds = assign_folds(labels, np.arange(len(labels)))
    told = np.zeros((len(labels), classes))
    for fold in range(FOLDS):
        others = folds != fold
        truth = np.eye(classes)[labels[others]]
        weights, *_ = np.linalg.lstsq(known[others], truth, rcond=None)
        told[~others] = known[~others] @ weights
    return told


def table(rows: pd.DataFrame, labels: Labels) -> list[str]:
    """Lines of Markdown: of each part of the images, the AUCs that boxes come to.

    Args:
        rows: of each image its `label` (a place), `held_out`, `box` and the `outline`'s box.
        labels: the classes.
    """
    lines = [
        f"| images | AUC of | {' | '.join(BY.values())} | IoU of both |",
        "|---|---|---|---|---|",
    ]
    for held_out, part in rows.groupby("held_out"):
        places = part["label"].to_numpy()
        boxes, outlines = (np.stack(list(part[name])) for name in ("box", "outline"))
        stages = {
            "stage1": told_by(boxes, places, len(labels.classes)),
            "stage2": told_by(outlines, places, len(labels.classes)),
        }
        figures = evaluate_stages(
            {**stages, "final": stages["stage1"]}, places, labels.classes, labels.ranked
        )
        fit = np.array([iou(*pair) for pair in zip(boxes, outlines, strict=True)])
        name = f"{len(part):,} {'held out' if held_out else 'learned from'}"
        for place, of in enumerate(labels.classes):
            aucs = " | ".join(with_interval(figures[by][of]) for by in BY)
            lines.append(f"| {name} | {of} | {aucs} | {fit[places == place].mean():.3f} |")
    return lines


def main() -> None:
    """Print a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isic", type=Path, required=True, help="benchmarks.isic2017's layout")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--scores", required=True, help="the bundle's, of all training images")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    bundle = load_bundle(flags.bundle)
    settings = from_mapping(TrainSettings, bundle.training["settings"], "bundle.json: settings")
    labels = read_labels(f"{flags.isic}/train.csv", settings.rest_class)
    held_out = set(map(image_id, held_out_images(f"{flags.isic}/train", labels, settings, bundle)))
    scored, classes = read_scores(Results(flags.scores))
    joined, _ = join(scored, labels, classes)
    masks = find_masks(f"{flags.isic}/masks")
    rows = joined[joined["image_id"].isin(masks)].copy()
    rows["held_out"] = rows["image_id"].isin(held_out)
    shapes = rows[["width", "height", "width", "height"]].to_numpy()
    rows["box"] = list(rows[list(BOX_COLUMNS)].to_numpy() / shapes)
    with ThreadPoolExecutor() as threads:
        outlines = threads.map(lambda name: bounding_box(read_mask(masks[name])), rows["image_id"])
        rows["outline"] = list(outlines)
    print("\n".join(table(rows, labels)))


if __name__ == "__main__":
    main()
