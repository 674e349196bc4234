"""Do boxes tell stage 2 the label, on the images that stage 1 learned from?

    lesioncam score --images isic/train --bundle model --output scores
    python -m benchmarks.leakage --isic isic --bundle model --scores scores

Stage 1 knows its training images, so its boxes there could follow the label more than on new ones,
and stage 2 learn to read the label off them. Here a linear model learns the class from the place
and size of these boxes, as stage 2 could, and is asked for others of the same images and for those
of the images held out; beside it one learns from the boxes of drawn outlines, which know of no
network. If boxes betray the label, the first tells more of the images that stage 1 learned from
than the second does, and of those held out it does not. (What stage 2 sees, the box with its
surroundings, follows from the box.)
"""

import argparse
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.crossvalidate import assign_folds
from benchmarks.headline import held_out_images
from lesioncam.columns import BOX_COLUMNS
from lesioncam.evaluation.evaluate import join, read_scores
from lesioncam.settings import TrainSettings, parse
from lesioncam.storage.bundle import load_bundle
from lesioncam.storage.labels import Labels, read_labels
from lesioncam.storage.listing import image_id
from lesioncam.storage.masks import find_masks, read_mask
from lesioncam.storage.results import Results
from lesioncam.vision.metrics import evaluate_stages, with_interval
from lesioncam.vision.overlap import bounding_box


def told_by(
    boxes: np.ndarray, labels: np.ndarray, classes: int, held_out: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """How much a box speaks for each class, by least squares on the boxes of other images.

    Args:
        boxes: (n, 4) x0, y0, x1, y1 in fractions of the image.
        labels: (n,) int, places of the classes.
        classes: K.
        held_out: (n,) bool: nothing is learned from these.
        folds: (n,) int: each of the others is told by a model of those in other folds.

    Returns:
        (n, K) scores.
    """
    size, center = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    away = np.abs(center - 0.5)
    known = np.column_stack([np.ones(len(boxes)), size, size**2, size.prod(axis=1), away, away**2])

    def told(of: np.ndarray, by: np.ndarray) -> np.ndarray:
        weights, *_ = np.linalg.lstsq(known[by], np.eye(classes)[labels[by]], rcond=None)
        return np.asarray(known[of] @ weights)

    scores = np.zeros((len(labels), classes))
    scores[held_out] = told(held_out, ~held_out)
    for fold in np.unique(folds):
        own = (folds == fold) & ~held_out
        scores[own] = told(own, (folds != fold) & ~held_out)
    return scores


def table(rows: pd.DataFrame, labels: Labels) -> list[str]:
    """Lines of Markdown: the AUCs that boxes and outlines come to, and how much more boxes do.

    Args:
        rows: of each image its `label` (a place), `held_out`, `box` and its `outline`'s box.
        labels: the classes.
    """
    places, held_out = rows["label"].to_numpy(), rows["held_out"].to_numpy()
    folds = assign_folds(places, np.arange(len(rows)))
    outline, box = (
        told_by(np.stack(list(rows[name])), places, len(labels.classes), held_out, folds)
        for name in ("outline", "box")
    )
    lines = [
        "| images | AUC of | its box | its outline | box less outline |",
        "|---|---|---|---|---|",
    ]
    for name, part in (("learned from", ~held_out), ("held out", held_out)):
        stages = {"stage1": outline[part], "stage2": outline[part], "final": box[part]}
        figures = evaluate_stages(
            stages,
            places[part],
            labels.classes,
            labels.target_classes,
            folds=None if part is held_out else folds[part],  # one model told all held out
        )
        for of in (*labels.target_classes, "mean"):
            aucs = [with_interval(figures[stage][of]) for stage in ("final", "stage1")]
            gain = with_interval(figures["gain"]) if of == "mean" else ""
            lines.append(f"| {part.sum():,} {name} | {of} | {' | '.join(aucs)} | {gain} |")
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
    settings = parse(TrainSettings, bundle.training["settings"], "bundle.json: settings")
    labels = read_labels(f"{flags.isic}/train.csv", settings.rest_class)
    held_out = set(map(image_id, held_out_images(f"{flags.isic}/train", labels, settings, bundle)))
    scored, classes = read_scores(Results(flags.scores))
    joined, _ = join(scored, labels, classes)
    masks = find_masks(f"{flags.isic}/masks")
    rows = joined[joined["image_id"].isin(masks)].copy()
    with ThreadPoolExecutor() as threads:
        outlines = list(threads.map(lambda name: read_mask(masks[name]), rows["image_id"]))
    rows["held_out"] = rows["image_id"].isin(held_out)
    shapes = rows[["width", "height", "width", "height"]].to_numpy(float)
    rows["box"] = list(rows[list(BOX_COLUMNS)].to_numpy(float) / shapes)
    found = [bounding_box(one) if one.any() else None for one in outlines]
    rows["outline"] = pd.Series(found, rows.index, dtype=object)
    rows = rows.dropna(subset=["outline"])
    print("\n".join(table(rows, labels)))


if __name__ == "__main__":
    main()
