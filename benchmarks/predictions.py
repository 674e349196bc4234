"""Labeled images, their predictions as small CSV files, and tables of their figures."""

import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lesioncam.columns import STAGES, probability_columns
from lesioncam.evaluation.evaluate import read_classes, read_labeled
from lesioncam.evaluation.localization import localization
from lesioncam.storage.labels import Labels
from lesioncam.storage.listing import image_id
from lesioncam.storage.masks import find_masks, read_mask
from lesioncam.storage.results import Results
from lesioncam.storage.uris import read_uri
from lesioncam.training.source import match_source
from lesioncam.vision.classifier import mean_of_stages
from lesioncam.vision.copies import (
    groups_by_name,
    groups_of_copies,
    join_groups,
    thumbnail,
)
from lesioncam.vision.decode import decode
from lesioncam.vision.metrics import Figures, evaluate_stages, with_interval
from lesioncam.vision.overlap import bounding_box, mean_overlap

OVERLAP = ["peak_inside", "box_iou", "lesion_kept", "center_inside", "central_box_iou"]
WEIGHTS = (0.0, 0.3, 0.5, 0.7, 1.0)  # of stage 2, compared


def read_images(images: str, labels: Labels, size: int) -> tuple[pd.DataFrame, str]:
    """The labeled images: `uri`, `image_id`, `label` (a class index) and `group`.

    Images of one group show the same picture, or are of one patient or the like where the labels
    have groups; the group's number is its first image's index.

    Args:
        images: a directory or prefix.
        labels: their classes.
        size: of the canvases, in pixels, that pictures are compared on.

    Returns:
        The images, and a digest of their names and pictures.

    Raises:
        InputError: no image has a label.
        DecodeError: an image cannot be read.
    """
    source = match_source(images, labels, "--images", "--labels")
    with ThreadPoolExecutor() as threads:
        canvases = threads.map(lambda uri: decode(read_uri(uri), size).canvas, source.uris)
        thumbnails = np.stack([thumbnail(canvas) for canvas in canvases])
    names = [image_id(uri) for uri in source.uris]
    digest = hashlib.sha256("\n".join(names).encode() + thumbnails.tobytes())
    digest.update(source.class_indices.tobytes())
    groups = groups_of_copies(thumbnails)
    if labels.groups is not None:
        digest.update("\n".join(source.groups).encode())
        groups = join_groups(groups, groups_by_name(source.groups))
    columns = {"uri": source.uris, "image_id": names, "label": source.class_indices}
    return pd.DataFrame(columns).assign(group=groups), digest.hexdigest()[:16]


def read_predictions(scores: str, labels: Labels, masks: str | None) -> pd.DataFrame:
    """Each scored and labeled image's probabilities, `label` (its name) and overlap with a mask.

    Numbers have five decimals.

    Raises:
        InputError: scores, labels or masks cannot be read.
    """
    results = Results(scores)
    classes = read_classes(results)
    joined, _ = read_labeled(results, labels, classes)
    columns = [name for stage in STAGES for name in probability_columns(classes, stage)]
    found = joined[["image_id", *columns]].assign(label=[classes[k] for k in joined["label"]])
    if masks is not None:
        _, overlap = localization(joined, masks)
        found = found.join(overlap[OVERLAP], on="image_id")
    return found.round(5)


def read_folds(output: Path) -> pd.DataFrame:
    """The predictions of all folds in an output of `benchmarks.crossvalidate`, by `fold`."""
    parts = [
        pd.read_csv(path).assign(fold=int(path.stem.removeprefix("fold")))
        for path in sorted(output.glob("fold*.csv"))
    ]
    return pd.concat(parts) if parts else pd.DataFrame({"image_id": [], "fold": []})


def probabilities(rows: pd.DataFrame, labels: Labels, stage: str) -> np.ndarray:
    """(n, K) float64: a stage's probabilities in predictions."""
    return rows[probability_columns(labels.classes, stage)].to_numpy(float)


def figures_of(rows: pd.DataFrame, labels: Labels) -> Figures:
    """AUCs and overlap of predictions; if they have a `fold`, within each and averaged."""
    class_indices = rows["label"].map(list(labels.classes).index).to_numpy()
    stages = {stage: probabilities(rows, labels, stage) for stage in STAGES}
    folds = rows["fold"].to_numpy() if "fold" in rows else None
    figures = evaluate_stages(
        stages, class_indices, labels.classes, labels.target_classes, folds=folds
    )
    if "box_iou" in rows:
        with_mask = rows.dropna(subset=["box_iou"])
        found = ({name: float(row[name]) for name in OVERLAP} for _, row in with_mask.iterrows())
        figures["localization"] = mean_overlap(found)
    return figures


def means_table(what: str, parts: Mapping[str, pd.DataFrame], labels: Labels) -> list[str]:
    """Lines of Markdown: the mean AUCs of each part of the images."""
    lines = [
        f"| {what} | images | stage 1 | stage 2 | final | gain over stage 1 |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in parts.items():
        figures = figures_of(rows, labels)
        means = [*(figures[stage]["mean"] for stage in STAGES), figures["gain"]]
        cells = [name, f"{len(rows):,}", *map(with_interval, means)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def weights_table(rows: pd.DataFrame, labels: Labels) -> list[str]:
    """Lines of Markdown: the final mean AUC, and its gain over stage 1, by stage 2's weight."""
    lines = ["| stage 2's weight | final | gain over stage 1 |", "|---|---|---|"]
    first, second = (
        torch.from_numpy(probabilities(rows, labels, stage)) for stage in ("stage1", "stage2")
    )
    for weight in WEIGHTS:
        mixed = rows.copy()
        mean = mean_of_stages(first, second, weight)
        mixed[probability_columns(labels.classes, "final")] = mean.numpy()
        figures = figures_of(mixed, labels)
        means = map(with_interval, (figures["final"]["mean"], figures["gain"]))
        lines.append(f"| {weight} | {' | '.join(means)} |")
    return lines


def localization_table(what: str, parts: Mapping[str, pd.DataFrame]) -> list[str]:
    """Lines of Markdown: maps and boxes compared with masks, for the parts that have masks."""
    lines = [
        f"| {what} | masks | CAM peak in the lesion | IoU of box and lesion's box | lesion kept "
        "| the center in the lesion | IoU of a central box |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in parts.items():
        found = rows.reindex(columns=OVERLAP).dropna()
        if len(found):
            means = " | ".join(f"{mean:.3f}" for mean in found.mean())
            lines.append(f"| {name} | {len(found):,} | {means} |")
    return lines


def by_form(rows: pd.DataFrame, forms: pd.Series) -> dict[str, pd.DataFrame]:
    """Predictions by the form of each image's file."""
    return dict(list(rows.groupby(rows["image_id"].map(forms).fillna("unknown"))))


def by_class(rows: pd.DataFrame, labels: Labels) -> dict[str, pd.DataFrame]:
    """Predictions by each image's class."""
    return {name: rows[rows["label"] == name] for name in labels.classes}


def by_collection(rows: pd.DataFrame, labels: Labels) -> dict[str, pd.DataFrame]:
    """Predictions by each image's collection."""
    return dict(list(rows.groupby(rows["image_id"].map(labels.collection_by_id))))


def of_complete_collections(rows: pd.DataFrame, labels: Labels) -> pd.DataFrame:
    """Predictions of the images whose collection has images of all classes among them."""
    complete = [
        part
        for part in by_collection(rows, labels).values()
        if part["label"].nunique() == len(labels.classes)
    ]
    return pd.concat(complete) if complete else rows[:0]


def by_size(rows: pd.DataFrame, masks: str) -> dict[str, pd.DataFrame]:
    """Predictions of images with a mask, in four equal parts by the size of the lesion.

    The size is the longer side of the mask's box, as a fraction of the image's side.

    Raises:
        InputError: there are no masks, or one cannot be read.
    """
    uris = find_masks(masks)
    rows = rows[rows["image_id"].isin(uris)]
    with ThreadPoolExecutor() as threads:
        sides = threads.map(_longer_side, [uris[name] for name in rows["image_id"]])
        quarters = pd.qcut(pd.Series(list(sides), rows.index), 4, duplicates="drop")
    names = quarters.map("{0.left:.2f} to {0.right:.2f}".format, na_action="ignore")
    return {str(name): part for name, part in rows.groupby(names, observed=True)}


def _longer_side(mask: str) -> float:
    lesion = read_mask(mask)
    if not lesion.any():
        return math.nan
    left, top, right, bottom = bounding_box(lesion)
    return max(right - left, bottom - top)
