r"""What the recipe reaches: cross-validation through the verbs, fold by fold.

    python -m benchmarks.crossvalidate --images isic/train --labels isic/train.csv \
        --masks isic/masks --weights vgg16.safetensors --output docs/cross-validation --folds 0,1

Of each of five folds, `train` learns from the other four, and `score` scores it. The fold's
predictions go to `fold<k>.csv` in the output, so that other folds can follow on another day, and
the summary is made anew from all the folds that are there.
"""

import argparse
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lesioncam.cli import read_config
from lesioncam.evaluation.evaluate import join, read_scores
from lesioncam.evaluation.localisation import localisation
from lesioncam.schema import probability_columns
from lesioncam.scoring.pipeline import ScoreRequest, score
from lesioncam.settings import TrainSettings
from lesioncam.storage.bundle import bundle_exists
from lesioncam.storage.labels import Labels, read_labels
from lesioncam.storage.listing import image_id
from lesioncam.storage.results import Results
from lesioncam.storage.store import read_uri
from lesioncam.training.job import TrainRequest, train
from lesioncam.training.source import match_source
from lesioncam.vision.copies import SIDE, groups_of_copies, thumbnail
from lesioncam.vision.decode import decode
from lesioncam.vision.metrics import STAGES, Figures, evaluate_stages, markdown_table
from lesioncam.vision.overlap import mean_overlap, overlap_table

FOLDS = 5
SEED = 20170
OVERLAP = ["peak_inside", "box_iou", "lesion_kept", "centre_inside", "central_box_iou"]


def assign_folds(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(n,) int: each image's fold, drawn class by class; copies share one."""
    random = np.random.default_rng(SEED)
    folds = np.zeros(len(labels), int)
    for place in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == place))
        folds[members] = np.arange(len(members)) % FOLDS
    return np.asarray(folds[groups])


def read_images(flags: argparse.Namespace, labels: Labels) -> pd.DataFrame:
    """The labelled images: `uri`, `image_id`, `label` (a place in the classes) and `fold`."""
    source = match_source(flags.images, labels, "--images", "--labels")
    with ThreadPoolExecutor() as threads:
        seen = threads.map(lambda uri: decode(read_uri(uri), 2 * SIDE).canvas, source.uris)
        thumbnails = np.stack([thumbnail(canvas) for canvas in seen])
    folds = assign_folds(source.indices, groups_of_copies(thumbnails))
    names = [image_id(uri) for uri in source.uris]
    return pd.DataFrame(
        {"uri": source.uris, "image_id": names, "label": source.indices, "fold": folds}
    )


def run_fold(fold: int, images: pd.DataFrame, labels: Labels, flags: argparse.Namespace) -> None:
    """Train without a fold, score it, and keep its predictions."""
    work = Path(flags.work, f"fold{fold}")
    work.mkdir(parents=True, exist_ok=True)
    others, own = images[images["fold"] != fold], images[images["fold"] == fold]
    truth = pd.DataFrame({"image_id": images["image_id"]})
    for place, name in enumerate(labels.ranked):
        truth[name] = (images["label"] == place).astype(int)
    truth.loc[others.index].to_csv(work / "train.csv", index=False)
    truth.loc[own.index].to_csv(work / "labels.csv", index=False)
    own[["uri"]].to_csv(work / "images.csv", index=False)
    bundle, scores = f"{work}/model", f"{work}/scores"
    if not bundle_exists(bundle):
        settings = read_config(flags.config) if flags.config else TrainSettings()
        settings = replace(settings, weights=flags.weights, seed=flags.seed)
        train(TrainRequest(flags.images, f"{work}/train.csv", bundle, settings, masks=flags.masks))
    score(ScoreRequest(f"{work}/images.csv", bundle, scores))
    rows, classes = read_scores(Results(scores))
    joined, _ = join(rows, read_labels(f"{work}/labels.csv", labels.classes[-1]), classes)
    columns = [name for stage in STAGES for name in probability_columns(classes, stage)]
    found = joined[["image_id", *columns]].assign(label=[classes[k] for k in joined["label"]])
    if flags.masks:
        _, overlap = localisation(joined, flags.masks)
        found = found.join(overlap[OVERLAP], on="image_id")
    Path(flags.output).mkdir(parents=True, exist_ok=True)
    found.round(5).to_csv(Path(flags.output, f"fold{fold}.csv"), index=False)


def figures_of(rows: pd.DataFrame, labels: Labels) -> Figures:
    """AUCs and overlap of predictions as they are kept."""
    places = rows["label"].map(list(labels.classes).index).to_numpy()
    stages = {
        stage: rows[probability_columns(labels.classes, stage)].to_numpy(float) for stage in STAGES
    }
    figures = evaluate_stages(stages, places, labels.classes, labels.ranked)
    if "box_iou" in rows:
        with_mask = rows.dropna(subset=["box_iou"])
        found = ({name: float(row[name]) for name in OVERLAP} for _, row in with_mask.iterrows())
        figures["localisation"] = mean_overlap(found)
    return figures


def summarise(labels: Labels, output: Path) -> str:
    """Write `evaluation.json` and `README.md` from the folds that are there; returns the latter."""
    parts = {path.stem: pd.read_csv(path) for path in sorted(output.glob("fold*.csv"))}
    whole = figures_of(pd.concat(parts.values()), labels)
    each = {name: figures_of(rows, labels) for name, rows in parts.items()}
    lines = [
        "# Cross-validation",
        "",
        f"{len(parts)} of {FOLDS} folds, {whole['final']['mean']['n']:,} images, each scored by a "
        "model that saw neither it nor a copy of it.",
        "",
        *markdown_table(whole),
        "",
        "| fold | stage 1 | stage 2 | final |",
        "|---|---|---|---|",
    ]
    for name, figures in each.items():
        cells = " | ".join(f"{figures[stage]['mean']['auc']:.3f}" for stage in STAGES)
        lines.append(f"| {name.removeprefix('fold')} | {cells} |")
    if "localisation" in whole:
        lines += ["", *overlap_table(whole["localisation"])]
    markdown = "\n".join(lines) + "\n"
    (output / "README.md").write_text(markdown)
    (output / "evaluation.json").write_text(json.dumps(whole, indent=2) + "\n")
    return markdown


def main() -> None:
    """Run the folds that are asked for, then summarise all that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--masks")
    parser.add_argument("--weights")
    parser.add_argument("--config")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True)
    parser.add_argument("--work", default="cross-validation", help="bundles and scores")
    parser.add_argument("--folds", default="", help="which to run, as 0,1; none: only summarise")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    labels = read_labels(flags.labels, TrainSettings().rest_class)
    chosen = [int(fold) for fold in flags.folds.split(",") if fold]
    if chosen:
        images = read_images(flags, labels)
        for fold in chosen:
            run_fold(fold, images, labels, flags)
    print(summarise(labels, Path(flags.output)))


if __name__ == "__main__":
    main()
