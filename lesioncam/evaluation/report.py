"""Report: scores, and labels where there are some, to `report.html` and `report.json`.

The page opens from disk without a network. Both have the same figures; the JSON has no pictures.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from lesioncam import __version__
from lesioncam.columns import (
    BOX_COLUMNS,
    DEFAULT_REST_CLASS,
    STAGES,
    TRANSIENT_KINDS,
    Status,
    probability_columns,
    risk_class,
)
from lesioncam.errors import InputError
from lesioncam.evaluation import survey
from lesioncam.evaluation.curves import calibration, confusion, roc_band
from lesioncam.evaluation.evaluate import (
    column_types,
    flag_columns,
    flag_figures,
    read_classes,
    read_labeled,
    read_labels_of,
    stage_probabilities,
)
from lesioncam.evaluation.page import render
from lesioncam.evaluation.pictures import load_pictures
from lesioncam.evaluation.subgroups import GroupBy, Images, subgroups
from lesioncam.evaluation.survey import Choice, Columns
from lesioncam.storage.labels import LabelColumns, Labels
from lesioncam.storage.results import SUCCESS, Results
from lesioncam.storage.uris import open_store
from lesioncam.vision.metrics import evaluate_stages

log = logging.getLogger("lesioncam")

HTML_FILE = "report.html"
JSON_FILE = "report.json"
_MAX_BYTES = 24_000  # of a thumbnail,
_MAX_TOTAL = 6_000_000  # and of all of them
_MISTAKES = 20  # that are listed

Figures = dict[str, Any]


@dataclass(frozen=True)
class ReportRequest:
    """The arguments of `lesioncam report`.

    Attributes:
        scores: the output of `lesioncam score`.
        labels: a table of labels, or None.
        gallery: how many images to show.
        output: where the report goes; None for `_report` under the scores.
        rest_class: the class of label rows with no 1.
        id_column: of labels and metadata, as `LabelColumns.image_id`.
        class_column: of the labels, as `LabelColumns.class_name`.
        metadata: a table of facts about the images, or None.
        by: its columns to group the labeled images by.
    """

    scores: str
    labels: str | None = None
    gallery: int = 120
    output: str | None = None
    rest_class: str = DEFAULT_REST_CLASS
    id_column: str | None = None
    class_column: str | None = None
    metadata: str | None = None
    by: tuple[str, ...] = ()


def report(request: ReportRequest) -> tuple[Figures, str]:
    """Write a page to look at, and its figures as JSON.

    Memory holds some thousands of rows, the labeled ones and the gallery, however many rows there
    are.

    Returns:
        the content of `report.json`, and where both were written.

    Raises:
        InputError: no scores, labels of other classes, no image with a label, or bad metadata.
    """
    group_by = GroupBy.of(request.metadata, request.by, request.id_column)
    if group_by is not None and request.labels is None:
        raise InputError("--metadata: groups are compared with labels; name them as --labels")
    results = Results(request.scores)
    classes = read_classes(results)
    columns = _columns(results, classes)
    labels, labeled, by_group, mistakes = None, None, None, pd.DataFrame({"uri": []})
    if request.labels is not None:
        named = LabelColumns(request.id_column, request.class_column)
        labels = read_labels_of(request.labels, request.rest_class, named, classes)
        rows, counts = read_labeled(results, labels, classes, [*columns.flags.values()])
        mistakes = _confident_mistakes(rows, classes)
        if group_by is not None:
            images = Images.of(rows, classes, labels.target_classes, columns.flags)
            by_group = subgroups(images, rows["image_id"], group_by)
    chosen_mistakes = mistakes["uri"][: request.gallery].tolist()
    found, choices = survey.survey(results, columns, request.gallery, chosen_mistakes)
    columns, figures = found.columns, found.figures()
    if labels is not None:
        labeled = {"images": counts, **_labeled_figures(rows, labels, columns)}
        labeled["mistakes"] = mistakes[:_MISTAKES].to_dict("records")
        labeled["subgroups"] = by_group
    rows_shown = _read_rows(results, choices, columns)
    log.info("reading %d images for the gallery", len(choices))
    budget = min(_MAX_BYTES, _MAX_TOTAL // max(1, len(choices)))
    pictures = load_pictures(rows_shown, budget)
    gallery = [
        _gallery_entry(row, choice, columns, labels) | {"problem": picture.problem}
        for row, choice, picture in zip(rows_shown, choices, pictures, strict=True)
    ]
    content: Figures = {
        "scores": results.store.uri,
        "lesioncam_version": __version__,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "complete": results.store.exists(SUCCESS),
        **figures,
        "retried_kinds": sorted(set(figures["failed_by_kind"]) & TRANSIENT_KINDS),
        "gallery": {"rule": _rule(choices, figures), "images": gallery},
        "labeled": labeled,
    }
    page = render(content, pictures)
    store = open_store(request.output or f"{results.store.uri}/_report")
    store.write(JSON_FILE, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    store.write(HTML_FILE, page.encode())
    return content, store.uri


def _columns(results: Results, classes: tuple[str, ...]) -> Columns:
    """The columns to survey; images are ranked by melanoma, else by the first class."""
    types = column_types(results)
    return Columns(
        classes,
        risk_class(classes) or classes[0],
        flag_columns(results, classes),
        has_quality=types.get("quality") == pa.list_(pa.string()),
    )


def _labeled_figures(rows: pd.DataFrame, labels: Labels, columns: Columns) -> Figures:
    """AUCs, curves and counts of the rows that have a label."""
    classes, truth = columns.classes, rows["label"].to_numpy()
    stages = stage_probabilities(rows, classes)
    predicted = rows["prediction"].map(classes.index).to_numpy()
    final = stages["final"]
    return {
        "metrics": evaluate_stages(stages, truth, classes, labels.target_classes),
        "roc": {name: roc_band(final[:, k], truth == k) for k, name in enumerate(classes)},
        "calibration": {
            name: calibration(final[:, k], truth == k) for k, name in enumerate(classes)
        },
        "confusion": confusion(truth, predicted, len(classes)).tolist(),
        "flags": flag_figures(rows, classes, columns.flags),
    }


def _confident_mistakes(rows: pd.DataFrame, classes: tuple[str, ...]) -> pd.DataFrame:
    """The rows whose prediction is not their label, the most confident first."""
    final = rows[probability_columns(classes)].to_numpy()
    mistakes = rows[["uri", "image_id", "prediction"]].assign(
        label=[classes[label] for label in rows["label"]], probability=final.max(axis=1)
    )
    wrong = mistakes[mistakes["prediction"] != mistakes["label"]]
    return wrong.sort_values(["probability", "uri"], ascending=[False, True], ignore_index=True)


def _read_rows(
    results: Results, choices: Sequence[Choice], columns: Columns
) -> list[dict[str, Any]]:
    """The rows of the chosen images, in their order."""
    if not choices:
        return []
    by_part: dict[str, list[int]] = {}
    for choice in choices:
        by_part.setdefault(choice.part, []).append(choice.row)
    names = [*columns.names(), "image_id", "error", "width", "height", *BOX_COLUMNS, "cam", "size"]
    table = results.read_rows(by_part, names)
    keys = [(part, row) for part, numbers in by_part.items() for row in numbers]
    rows = dict(zip(keys, table.to_pylist(), strict=True))
    return [rows[choice.part, choice.row] for choice in choices]


def _gallery_entry(
    row: Mapping[str, Any], choice: Choice, columns: Columns, labels: Labels | None
) -> Figures:
    """An image of the gallery as the JSON and the page have it."""
    classes = columns.classes
    entry: Figures = {
        "image_id": row["image_id"],
        "uri": row["uri"],
        "group": choice.group,
        "part": choice.part,
        "row": choice.row,
        **{name: row[name] for name in ("status", "error_kind", "error", "prediction")},
        "scored_at": row["scored_at"].isoformat(timespec="seconds"),
        "label": None,
    }
    if labels is not None and row["image_id"] in labels.by_id:
        entry["label"] = classes[labels.by_id[row["image_id"]]]
    if row["status"] != Status.OK:
        return entry
    stages = {
        stage: {
            name: round(row[column], 6)
            for name, column in zip(classes, probability_columns(classes, stage), strict=True)
        }
        for stage in STAGES
    }
    first, second = (
        np.array([row[column] for column in probability_columns(classes, stage)])
        for stage in STAGES[:2]
    )
    return entry | {
        "probabilities": stages,
        "stages_disagree": bool(first.argmax() != second.argmax()),
        "difference": round(float(np.abs(first - second).sum()) / 2, 6),
        "flagged": [name for name, column in columns.flags.items() if row[column]],
        "quality": (row["quality"] or []) if columns.has_quality else [],
        "width": row["width"],
        "height": row["height"],
        "box": [row[name] for name in BOX_COLUMNS],
        "cam_flat": row["cam_flat"],
    }


def _rule(choices: Sequence[Choice], figures: Figures) -> str:
    """How the images of the gallery were chosen, in words."""
    total, risk = figures["images"]["total"], f"p_{figures['risk_class']}"
    if not choices:
        return f"No image of {total:,} is shown."
    is_flagged = figures["images"]["flagged"] is not None
    words = {
        survey.SUSPICIOUS: (
            f"flagged of highest {risk}"
            if is_flagged
            else f"with the highest {risk}, at most a tenth of the scored images"
        ),
        survey.MISTAKE: "whose prediction is wrong by the labels, the most confident first",
        survey.DISAGREEMENT: "whose stages predict different classes, those that differ most first",
        survey.FAILED: "that failed, drawn at random",
        survey.RANDOM: "others" if len(choices) == total else "drawn at random from all others",
    }
    counts = {group: sum(choice.group == group for choice in choices) for group in words}
    groups = [f"{count} {words[group]}" for group, count in counts.items() if count]
    return (
        f"{len(choices):,} of {total:,} images are shown: {'; '.join(groups)}. The same scores "
        f"give the same images."
    )
