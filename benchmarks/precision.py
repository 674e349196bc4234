r"""Precision: what bfloat16 or int8 changes in the scores of a trained model, against float32.

    python -m benchmarks.precision --bundle model --images isic/val --labels isic/val.csv

Scores the same images twice, each time as `lesioncam score` does.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.agreement import box_overlaps
from benchmarks.report import markdown, write
from lesioncam.cluster import connected
from lesioncam.columns import BOX_COLUMNS, DEFAULT_REST_CLASS, STAGES, Status, probability_columns
from lesioncam.evaluation.evaluate import read_labeled
from lesioncam.scoring.pipeline import ScoreRequest, score
from lesioncam.storage.bundle import load_bundle
from lesioncam.storage.labels import Labels, read_labels
from lesioncam.storage.results import Results
from lesioncam.vision.metrics import auc, mean_auc

REFERENCE = "float32"
OVERLAP = 0.95  # two boxes count as the same from this IoU on
_PERCENTILES = (0, 1, 5, 50)


def score_both(images: str, bundle: str, precision: str, work: Path) -> list[pd.DataFrame]:
    """The `ok` rows of float32 and of another precision, in the same order."""
    rows = []
    with connected():
        for name in (REFERENCE, precision):
            output = work / name
            shutil.rmtree(output, ignore_errors=True)
            score(ScoreRequest(images, bundle, str(output), precision=name))
            scored = pd.read_parquet(output)
            rows.append(scored[scored["status"] == Status.OK].sort_values("uri", ignore_index=True))
    return rows


def differences(
    rows: list[pd.DataFrame], classes: tuple[str, ...], precision: str
) -> dict[str, Any]:
    """How much the two differ, image by image."""
    reference, other = rows
    content: dict[str, Any] = {
        "images": len(reference),
        "precision": precision,
        "largest_difference": {},
    }
    for stage in STAGES:
        columns = probability_columns(classes, stage)
        difference = (reference[columns] - other[columns]).abs().to_numpy()
        content["largest_difference"][stage] = float(difference.max())
    first, second = (frame[list(BOX_COLUMNS)].to_numpy(float) for frame in rows)
    overlaps = box_overlaps(first, second)
    return content | {
        "predictions_that_flip": int((reference["prediction"] != other["prediction"]).sum()),
        "same_boxes": float((overlaps >= OVERLAP).mean()),
        "box_iou": {f"{p} %": float(np.percentile(overlaps, p)) for p in _PERCENTILES},
    }


def aucs(scores: Path, labels: Labels, classes: tuple[str, ...]) -> dict[str, float | None]:
    """The AUC of each target class and their mean, from the final probabilities."""
    rows, _ = read_labeled(Results(str(scores)), labels, classes, ())
    truth = rows["label"].to_numpy()
    probabilities = rows[probability_columns(classes)].to_numpy(float)
    targets = [classes.index(name) for name in labels.target_classes]
    return {
        **{classes[k]: auc(probabilities[:, k], truth == k) for k in targets},
        "mean": mean_auc(probabilities, truth, targets),
    }


def text_of(content: dict[str, Any]) -> str:
    """The tables of `precision.md`."""
    rows: list[list[object]] = [
        [f"largest difference of a probability, {stage}", f"{value:.4f}"]
        for stage, value in content["largest_difference"].items()
    ]
    rows += [
        ["predictions that flip", content["predictions_that_flip"]],
        [f"boxes with IoU >= {OVERLAP}", f"{content['same_boxes']:.1%}"],
    ]
    rows += [[f"box IoU, percentile {p}", f"{iou:.3f}"] for p, iou in content["box_iou"].items()]
    precisions = (REFERENCE, content["precision"])
    text = f"# Precision\n\n{precisions[1]} against {REFERENCE}, {content['images']:,} images.\n\n"
    text += markdown(["figure", "value"], rows)
    if "auc" in content:
        found = [content["auc"][precision] for precision in precisions]
        text += "\n" + markdown(
            ["AUC", *precisions, "difference"],
            [
                [name, f"{value:.4f}", f"{found[1][name]:.4f}", f"{found[1][name] - value:+.4f}"]
                for name, value in found[0].items()
                if value is not None
            ],
        )
    return text


def main() -> None:
    """Score twice, compare, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", help="the ground-truth CSV, for AUCs")
    parser.add_argument("--precision", choices=("bfloat16", "int8"), default="bfloat16")
    parser.add_argument("--output", type=Path, default=Path("lesioncam-bench"))
    flags = parser.parse_args()
    classes = load_bundle(flags.bundle).settings.classes
    labels = read_labels(flags.labels, DEFAULT_REST_CLASS) if flags.labels else None
    work = flags.output / "work"
    rows = score_both(flags.images, flags.bundle, flags.precision, work)
    content = differences(rows, classes, flags.precision)
    if labels is not None:
        content["auc"] = {
            name: aucs(work / name, labels, classes) for name in (REFERENCE, flags.precision)
        }
    write(flags.output, "precision", content, text_of(content))


if __name__ == "__main__":
    main()
