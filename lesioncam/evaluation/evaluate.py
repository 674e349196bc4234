"""Evaluate: scores and labels to `evaluation.json`, and the same in Markdown.

Reads the rows that have a label, and of those the columns that are asked for.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from lesioncam.columns import (
    BOX_COLUMNS,
    STAGES,
    Status,
    check_classes,
    classes_of,
    flag_column,
    probability_columns,
)
from lesioncam.errors import InputError
from lesioncam.evaluation.curves import at_flag
from lesioncam.evaluation.localization import localization
from lesioncam.evaluation.overlays import overlay_pages
from lesioncam.evaluation.subgroups import GroupBy, Images, subgroup_tables, subgroups
from lesioncam.evaluation.submission import check_submission, write_submission
from lesioncam.storage.labels import LabelColumns, Labels, match, read_labels
from lesioncam.storage.masks import find_masks
from lesioncam.storage.results import SUCCESS, Results
from lesioncam.storage.store import Store
from lesioncam.storage.uris import open_store
from lesioncam.vision.metrics import (
    decision_table,
    evaluate_stages,
    markdown_table,
    with_interval,
)
from lesioncam.vision.overlap import overlap_table

log = logging.getLogger("lesioncam")

JSON_FILE = "evaluation.json"
MARKDOWN_FILE = "evaluation.md"
OVERLAYS_FILE = "overlays.png"  # the next pages are overlays-002.png and so on
_LATER_PAGE = re.compile(r"overlays-\d+\.png")
_MAP_COLUMNS = ("width", "height", "cam", *BOX_COLUMNS)


@dataclass(frozen=True)
class EvaluateRequest:
    """The arguments of `lesioncam evaluate`.

    Attributes:
        scores: the output of `lesioncam score`.
        labels: a table of labels.
        output: where the evaluation goes; None for `_evaluation` under the scores.
        rest_class: the class of label rows with no 1.
        masks: a directory or prefix of lesion masks, or None.
        overlays: of how many images to draw the CAM and box.
        id_column: of labels and metadata, as `LabelColumns.image_id`.
        class_column: of the labels, as `LabelColumns.class_name`.
        metadata: a table of facts about the images, or None.
        by: its columns to group the images by.
        submission: a CSV file to write for the scorer of the ISIC challenges, or None.
    """

    scores: str
    labels: str
    output: str | None
    rest_class: str
    masks: str | None = None
    overlays: int = 0
    id_column: str | None = None
    class_column: str | None = None
    metadata: str | None = None
    by: tuple[str, ...] = ()
    submission: str | None = None


def evaluate(request: EvaluateRequest) -> tuple[dict[str, Any], str, str]:
    """Compare scores with labels, and write the figures as JSON and Markdown.

    Returns:
        the content of `evaluation.json`, the same as Markdown, and where they were written.

    Raises:
        InputError: no scores, labels of other classes, no image with a label, or bad metadata.
    """
    group_by = GroupBy.of(request.metadata, request.by, request.id_column)
    if request.submission is not None:
        check_submission(request.submission)
    results = Results(request.scores)
    classes = read_classes(results)
    columns = LabelColumns(request.id_column, request.class_column)
    labels = read_labels_of(request.labels, request.rest_class, columns, classes)
    more = _MAP_COLUMNS if request.overlays or request.masks is not None else ()
    flags = flag_columns(results, classes)
    rows, counts = read_labeled(results, labels, classes, [*more, *flags.values()])
    by_group = None
    if group_by is not None:  # first: a column that is not there is reported at once
        images = Images.of(rows, classes, labels.target_classes, flags)
        by_group = subgroups(images, rows["image_id"], group_by)

    stages = stage_probabilities(rows, classes)
    figures = evaluate_stages(stages, rows["label"].to_numpy(), classes, labels.target_classes)
    content: dict[str, Any] = {**figures, "images": counts}
    lines = ["# Evaluation", "", *markdown_table(figures), "", *decision_table(figures), ""]
    content["flags"] = flag_figures(rows, classes, flags)
    if content["flags"]:
        lines += [*_flag_table(content["flags"]), ""]
    lines += [f"{count:,} {name.replace('_', ' ')}  " for name, count in counts.items()]
    if request.masks is not None:
        content["localization"], _ = localization(rows, request.masks)
        lines += ["", *overlap_table(content["localization"])]
    if by_group is not None:
        content["subgroups"] = by_group
        lines += ["", *subgroup_tables(by_group)]
    markdown = "\n".join(lines) + "\n"

    if request.submission is not None:
        missing = counts["labels_without_image"]
        write_submission(request.submission, rows, labels.target_classes, missing)
    store = open_store(request.output or f"{results.store.uri}/_evaluation")
    store.write(MARKDOWN_FILE, markdown.encode())
    store.write(JSON_FILE, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    if request.overlays:
        masks = None if request.masks is None else find_masks(request.masks)
        _write_pages(store, overlay_pages(rows, request.overlays, classes, masks))
    return content, markdown, store.uri


def _write_pages(store: Store, pages: Iterable[bytes]) -> None:
    """Write pages of overlays, and remove those of an earlier evaluation that had more."""
    written = set()
    for number, page in enumerate(pages, 1):
        name = OVERLAYS_FILE if number == 1 else f"overlays-{number:03d}.png"
        store.write(name, page)
        written.add(name)
    for name in store.names():
        if _LATER_PAGE.fullmatch(name) and name not in written:
            store.delete(name)


def read_classes(results: Results) -> tuple[str, ...]:
    """The class order of the scores.

    Raises:
        InputError: there is no Parquet, it is not lesioncam's, or no bundle has such classes.
    """
    schema = results.schema()
    if schema is None:
        raise InputError(
            f"--scores: no Parquet in {results.store.uri}; give the output of 'lesioncam score'"
        )
    classes = classes_of(schema.names)
    if not classes or "cam" not in schema.names:
        raise InputError(f"--scores: {results.store.uri} was not written by lesioncam")
    if not results.store.exists(SUCCESS):
        log.warning(
            "--scores: no %s file: the scoring run has not finished, rows may be missing", SUCCESS
        )
    return check_classes(classes, f"--scores: {results.store.uri}")


def read_labels_of(
    uri: str, rest_class: str, columns: LabelColumns, classes: tuple[str, ...]
) -> Labels:
    """The labels of the classes of the scores, as indices into them.

    Raises:
        InputError: the file cannot be read, or its classes are not those of the scores.
    """
    labels = read_labels(uri, rest_class, columns=columns)
    labels.check_classes(classes, rest_class, "--labels")
    return labels.of_classes(classes)


def read_labeled(
    results: Results, labels: Labels, classes: tuple[str, ...], more: Sequence[str] = _MAP_COLUMNS
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Read the scored images that have a label, and count the others.

    Other rows are only counted, however many there are.

    Args:
        results: the scores.
        labels: the labels, of the same classes.
        classes: the class order of the scores.
        more: columns to read beside `uri`, `image_id`, `prediction` and the probabilities.

    Returns:
        the rows, ordered by uri, with `label`, an index into `classes`; and the counts.

    Raises:
        InputError: no scored image has a label, or a label could be of several images.
    """
    columns = ["uri", "image_id", "status", "prediction", *more]
    columns += [name for stage in STAGES for name in probability_columns(classes, stage)]
    rows = results.read(columns, labels.ids).to_pandas().sort_values("uri", ignore_index=True)
    repeated = rows["image_id"][rows["image_id"].duplicated()].nunique()
    if repeated:
        raise InputError(
            f"--labels: {repeated:,} of its ids are the image_id of several images in the scores "
            f"(files of one name in several folders, or in a folder that was moved); rename the "
            f"files, or score each folder into an output of its own"
        )
    scored = rows[rows["status"] == Status.OK].drop(columns="status")
    matched = match(labels, scored["image_id"])
    totals = results.count_by_status()
    if not len(matched.rows):
        raise InputError(
            f"--labels: none of its {len(labels.ids):,} ids is an image_id of the "
            f"{totals[Status.OK]:,} scored images; an image_id is a file name without its extension"
        )
    order = np.array([classes.index(name) for name in labels.classes])
    labeled = scored.iloc[matched.rows].assign(label=order[matched.class_indices])
    counts = {
        "evaluated": len(labeled),
        "images_without_label": totals[Status.OK] - len(scored),
        "labels_without_image": matched.unused,
        "failed_images": totals[Status.FAILED],
    }
    return labeled.reset_index(drop=True), counts


def column_types(results: Results) -> dict[str, pa.DataType]:
    """The type of each column: one that was kept from a list can have any name, and is text."""
    schema = results.schema()
    return {} if schema is None else dict(zip(schema.names, schema.types, strict=True))


def flag_columns(results: Results, classes: tuple[str, ...]) -> dict[str, str]:
    """Class -> its `flag_` column, of the classes that have one."""
    types = column_types(results)
    names = {name: flag_column(name) for name in classes}
    return {name: column for name, column in names.items() if types.get(column) == pa.bool_()}


def flag_figures(
    rows: pd.DataFrame, classes: tuple[str, ...], flags: Mapping[str, str]
) -> dict[str, Any]:
    """What flags find and miss in the rows of `read_labeled`, as `at_flag` gives it, by class.

    Args:
        rows: with the columns of `flags`.
        classes: the class order.
        flags: class -> its column; one that is null in all rows is left out: the model has no
            operating point for that class.
    """
    truth = rows["label"].to_numpy()
    return {
        name: at_flag(rows[column].to_numpy(bool, na_value=False), truth == classes.index(name))
        for name, column in flags.items()
        if rows[column].notna().any()
    }


def _flag_table(flags: Mapping[str, Any]) -> list[str]:
    """The figures of `flag_figures` as lines of Markdown."""
    lines = [
        "Flags, at the model's operating points, with 95 % Wilson interval:",
        "",
        "| | flagged | sensitivity | specificity |",
        "|---|---|---|---|",
    ]
    for name, found in flags.items():
        flagged = found["true_positives"] + found["false_positives"]
        rates = [with_interval(found[key], "fraction") for key in ("sensitivity", "specificity")]
        lines.append(f"| {name} | {flagged:,} | {' | '.join(rates)} |")
    return lines


def stage_probabilities(rows: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Each stage's probabilities of the rows of `read_labeled`: (n, K) float64."""
    return {
        stage: rows[probability_columns(classes, stage)].to_numpy(np.float64) for stage in STAGES
    }
