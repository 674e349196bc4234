"""Do boxes leak the label to stage 2, on the images that stage 1 was trained on?

    lesioncam score --images isic/train --bundle model --output scores
    python -m benchmarks.leakage --isic isic --bundle model --scores scores

Stage 1 has seen its training images, so its boxes there could follow their labels, and stage 2
could learn to read the label off them. Here a linear model predicts the class from the position and
size of these boxes, as stage 2 could, and is tested on other training images and on the held-out
ones. A second model uses the boxes of given lesion masks, which no network made. If boxes leak the
label, the first model beats the second on images that stage 1 was trained on, and not on the
held-out ones. (What stage 2 sees, the box with its surroundings, follows from the box.)
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
from lesioncam.evaluation.evaluate import read_classes, read_labeled
from lesioncam.settings import TrainSettings, parse
from lesioncam.storage.bundle import load_bundle
from lesioncam.storage.labels import Labels, read_labels
from lesioncam.storage.listing import image_id
from lesioncam.storage.masks import find_masks, read_mask
from lesioncam.storage.results import Results
from lesioncam.vision.metrics import evaluate_stages, with_interval
from lesioncam.vision.overlap import bounding_box


def predict_from(
    boxes: np.ndarray, labels: np.ndarray, classes: int, held_out: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """A score for each class from a box, by least squares on the boxes of other images.

    Args:
        boxes: (n, 4) x0, y0, x1, y1 in fractions of the image.
        labels: (n,) int, class indices.
        classes: K.
        held_out: (n,) bool: none of these is fitted on.
        folds: (n,) int: each of the others is predicted by a model fitted on the other folds.

    Returns:
        (n, K) scores.
    """
    size, center = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    offset = np.abs(center - 0.5)
    features = np.column_stack(
        [np.ones(len(boxes)), size, size**2, size.prod(axis=1), offset, offset**2]
    )

    def predict(part: np.ndarray, fitted: np.ndarray) -> np.ndarray:
        weights, *_ = np.linalg.lstsq(features[fitted], np.eye(classes)[labels[fitted]], rcond=None)
        return np.asarray(features[part] @ weights)

    scores = np.zeros((len(labels), classes))
    scores[held_out] = predict(held_out, ~held_out)
    for fold in np.unique(folds):
        own = (folds == fold) & ~held_out
        scores[own] = predict(own, (folds != fold) & ~held_out)
    return scores


def table(rows: pd.DataFrame, labels: Labels) -> list[str]:
    """Lines of Markdown: the AUCs from boxes and from masks' boxes, and the difference.

    Args:
        rows: each image's `label` (a class index), `held_out`, `box` and `mask_box`.
        labels: the classes.
    """
    class_indices, held_out = rows["label"].to_numpy(), rows["held_out"].to_numpy()
    folds = assign_folds(class_indices, np.arange(len(rows)))
    mask_box, box = (
        predict_from(
            np.stack(list(rows[name])), class_indices, len(labels.classes), held_out, folds
        )
        for name in ("mask_box", "box")
    )
    lines = [
        "| images | AUC of | box | mask's box | difference |",
        "|---|---|---|---|---|",
    ]
    for name, part in (("trained on", ~held_out), ("held out", held_out)):
        stages = {"stage1": mask_box[part], "stage2": mask_box[part], "final": box[part]}
        figures = evaluate_stages(
            stages,
            class_indices[part],
            labels.classes,
            labels.target_classes,
            folds=None if part is held_out else folds[part],  # one model predicted these
        )
        for target in (*labels.target_classes, "mean"):
            aucs = [with_interval(figures[stage][target]) for stage in ("final", "stage1")]
            gain = with_interval(figures["gain"]) if target == "mean" else ""
            lines.append(f"| {part.sum():,} {name} | {target} | {' | '.join(aucs)} | {gain} |")
    return lines


def main() -> None:
    """Print a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isic", type=Path, required=True, help="benchmarks.isic2017's layout")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--scores", required=True, help="of all training images, by the bundle")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    bundle = load_bundle(flags.bundle)
    settings = parse(TrainSettings, bundle.training["settings"], "bundle.json: settings")
    labels = read_labels(f"{flags.isic}/train.csv", settings.rest_class)
    held_out = set(map(image_id, held_out_images(f"{flags.isic}/train", labels, settings, bundle)))
    results = Results(flags.scores)
    joined, _ = read_labeled(results, labels, read_classes(results))
    masks = find_masks(f"{flags.isic}/masks")
    rows = joined[joined["image_id"].isin(masks)].copy()
    with ThreadPoolExecutor() as threads:
        lesions = list(threads.map(lambda name: read_mask(masks[name]), rows["image_id"]))
    rows["held_out"] = rows["image_id"].isin(held_out)
    shapes = rows[["width", "height", "width", "height"]].to_numpy(float)
    rows["box"] = list(rows[list(BOX_COLUMNS)].to_numpy(float) / shapes)
    found = [bounding_box(mask) if mask.any() else None for mask in lesions]
    rows["mask_box"] = pd.Series(found, rows.index, dtype=object)
    rows = rows.dropna(subset=["mask_box"])
    print("\n".join(table(rows, labels)))


if __name__ == "__main__":
    main()
