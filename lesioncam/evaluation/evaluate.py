"""Evaluate: scores and labels -> `evaluation.json` and the same in Markdown."""

import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lesioncam.columns import BOX_COLUMNS, STAGES, Status, classes_of, probability_columns
from lesioncam.errors import InputError
from lesioncam.evaluation.localization import localization
from lesioncam.evaluation.overlays import overlay_sheet
from lesioncam.storage.labels import Labels, match, read_labels
from lesioncam.storage.results import SUCCESS, Results
from lesioncam.storage.uris import open_store
from lesioncam.vision.metrics import decision_table, evaluate_stages, markdown_table
from lesioncam.vision.overlap import overlap_table

log = logging.getLogger("lesioncam")

JSON_FILE = "evaluation.json"
MARKDOWN_FILE = "evaluation.md"
OVERLAYS_FILE = "overlays.png"


@dataclass(frozen=True)
class EvaluateRequest:
    """What `lesioncam evaluate` is asked.

    Attributes:
        scores: what `lesioncam score` wrote.
        labels: an ISIC ground-truth CSV.
        output: where the evaluation goes; None for `_evaluation` under the scores.
        rest_class: the class of label rows with no 1.
        masks: lesion masks, `<image_id>.png` or `<image_id>_segmentation.png`, or None.
        overlays: how many images to draw with their CAM and box.
    """

    scores: str
    labels: str
    output: str | None
    rest_class: str
    masks: str | None = None
    overlays: int = 0


def evaluate(request: EvaluateRequest) -> tuple[dict[str, Any], str, str]:
    """Compare scores with labels and write what came out.

    Returns:
        the content of `evaluation.json`, the same as Markdown, and where they were written.

    Raises:
        InputError: no scores, labels of other classes, or no image with a label.
    """
    results = Results(request.scores)
    rows, classes = read_scores(results)
    labels = read_labels(request.labels, request.rest_class)
    _check_same_classes(labels, classes, request.rest_class)
    joined, counts = join(rows, labels, classes)

    stages = {
        stage: joined[probability_columns(classes, stage)].to_numpy(np.float64) for stage in STAGES
    }
    figures = evaluate_stages(stages, joined["label"].to_numpy(), classes, labels.target_classes)
    content: dict[str, Any] = {**figures, "images": counts}
    lines = ["# Evaluation", "", *markdown_table(figures), "", *decision_table(figures), ""]
    lines += [f"{count:,} {name.replace('_', ' ')}  " for name, count in counts.items()]
    if request.masks is not None:
        content["localization"], _ = localization(joined, request.masks)
        lines += ["", *overlap_table(content["localization"])]
    markdown = "\n".join(lines) + "\n"

    store = open_store(request.output or f"{results.store.uri}/_evaluation")
    store.write(MARKDOWN_FILE, markdown.encode())
    store.write(JSON_FILE, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    if request.overlays:
        store.write(OVERLAYS_FILE, overlay_sheet(joined, request.overlays, classes))
    return content, markdown, store.uri


def read_scores(results: Results) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """All rows, ordered by uri, and the class order.

    Raises:
        InputError: there is no Parquet, or it is not lesioncam's.
    """
    schema = results.schema()
    if schema is None:
        raise InputError(
            f"--scores: no Parquet in {results.store.uri}; give what 'lesioncam score' wrote"
        )
    classes = classes_of(schema.names)
    if not classes or "cam" not in schema.names:
        raise InputError(f"--scores: {results.store.uri} was not written by lesioncam")
    if not results.store.exists(SUCCESS):
        log.warning("--scores: no %s there; the run that writes it has not finished", SUCCESS)
    columns = ["uri", "image_id", "status", "prediction", "width", "height", "cam", *BOX_COLUMNS]
    columns += [name for stage in STAGES for name in probability_columns(classes, stage)]
    return results.read(columns).to_pandas().sort_values("uri", ignore_index=True), classes


def join(
    rows: pd.DataFrame, labels: Labels, classes: tuple[str, ...]
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The scored images that have a label, with `label`, its place in `classes`; and counts.

    Raises:
        InputError: none has one.
    """
    scored = rows[rows["status"] == Status.OK]
    matched = match(labels, scored["image_id"])
    if not len(matched.rows):
        raise InputError(
            f"--labels: none of its {len(labels.ids)} ids is an image_id of the {len(scored)} "
            f"scored images; ids are file names without their ending"
        )
    places = np.array([classes.index(name) for name in labels.classes])
    joined = scored.iloc[matched.rows].assign(label=places[matched.class_indices])
    counts = {
        "evaluated": len(joined),
        "images_without_label": matched.unlabeled,
        "labels_without_image": matched.unused,
        "images_with_a_duplicate_id": matched.duplicates,
        "failed_images": len(rows) - len(scored),
    }
    return joined.reset_index(drop=True), counts


def _check_same_classes(labels: Labels, classes: tuple[str, ...], rest_class: str) -> None:
    unknown = set(labels.classes) - set(classes)
    unlabeled = set(classes) - set(labels.target_classes) - {rest_class}
    if unknown or unlabeled:
        raise InputError(
            f"--labels: classes {', '.join(labels.classes)} are not those of the scores, "
            f"{', '.join(classes)}; check the columns and --rest-class"
        )
