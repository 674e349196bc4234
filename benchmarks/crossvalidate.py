r"""Cross-validation of a recipe through the verbs, fold by fold.

    python -m benchmarks.crossvalidate --images isic/train --labels isic/train.csv \
        --masks isic/masks --forms isic/forms.csv --weights vgg16.safetensors \
        --output cross-validation-again --folds 0,1

For each of five folds, `train` trains on the other four, and `score` scores it. With `--leave-out`
a fold is a collection instead, as images of another clinic would be. The fold's
predictions go to `fold<k>.csv` in the output, so that other folds can follow later, and the summary
is rewritten from all folds in the output. `recipe.json` beside them records the settings and images
of all of them; others need another output. It does not record the content of weights and masks, or
the version of the code: when these change, name another `--work`, too.
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.headline import changed_settings
from benchmarks.predictions import (
    by_class,
    by_collection,
    by_form,
    by_size,
    figures_of,
    localization_table,
    means_table,
    of_complete_collections,
    read_folds,
    read_images,
    read_predictions,
    weights_table,
)
from lesioncam import api
from lesioncam.errors import InputError
from lesioncam.scoring.pipeline import ScoreRequest, score
from lesioncam.settings import TrainSettings, parse
from lesioncam.storage.bundle import bundle_exists
from lesioncam.storage.labels import LabelColumns, Labels, read_labels
from lesioncam.training.job import TrainRequest, train
from lesioncam.vision.copies import SIZE
from lesioncam.vision.metrics import markdown_table
from lesioncam.vision.overlap import overlap_table

FOLDS = 5
SEED = 20170


def assign_folds(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(n,) int: each image's fold, drawn class by class; a group is in one fold."""
    random = np.random.default_rng(SEED)
    folds = np.zeros(len(labels), int)
    for class_index in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == class_index))
        folds[members] = np.arange(len(members)) % FOLDS
    return np.asarray(folds[groups])


def leave_out(images: pd.DataFrame, labels: Labels, collections: Sequence[str]) -> np.ndarray:
    """(n,) int: each image's fold, the number of its collection; -1, always trained on, for others.

    Raises:
        InputError: no image is of such a collection.
    """
    names = images["image_id"].map(labels.collection_by_id)
    for name in collections:
        if name not in set(names):
            raise InputError(f"--leave-out: no image is of collection {name!r}")
    numbers = {name: number for number, name in enumerate(collections)}
    return names.map(numbers).fillna(-1).to_numpy(int)


def read_settings(flags: argparse.Namespace) -> TrainSettings:
    """The recipe of `--config`, with the other flags over it."""
    settings = api.read_settings(flags.config) if flags.config else TrainSettings()
    given = {"weights": flags.weights, "seed": flags.seed}
    given = {name: value for name, value in given.items() if value is not None}
    return replace(settings, **given).resolved()


def record_recipe(
    output: Path, settings: TrainSettings, images: str, *, masks: bool, collections: bool
) -> str:
    """Write `recipe.json`, or check it; returns its digest.

    Args:
        output: the folds' directory.
        settings: the recipe.
        images: the digest of the images and their folds.
        masks: whether lesion masks are given.
        collections: whether training knows each image's collection.

    Raises:
        InputError: it holds folds of another recipe, or of other images.
    """
    recipe = {**asdict(settings), "weights": Path(settings.weights or "").name}
    del recipe["flag_classes"], recipe["flag_sensitivity"]  # which change no probability
    given = {"images": images, "masks": masks, "collections": collections}
    text = json.dumps({**recipe, **given}, indent=2) + "\n"
    path = output / "recipe.json"
    known = path.read_text() if path.exists() else None
    if known != text and any(output.glob("fold*.csv")):
        raise InputError(f"--output: {output} has folds of another recipe; name another directory")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def read_recipe(output: Path) -> TrainSettings:
    """The settings that `record_recipe` recorded.

    Raises:
        InputError: there is no `recipe.json`, or it has another version's settings.
    """
    path = output / "recipe.json"
    if not path.exists():
        raise InputError(f"--output: {path} is missing; restore it beside the folds")
    recipe = json.loads(path.read_text())
    for name in ("images", "masks", "collections"):  # which are not settings
        recipe.pop(name, None)
    recipe["weights"] = recipe["weights"] or None
    return parse(TrainSettings, recipe, f"--output: {path}")


def run_fold(
    fold: int,
    images: pd.DataFrame,
    labels: Labels,
    settings: TrainSettings,
    flags: argparse.Namespace,
    work: Path,
) -> None:
    """Train without a fold, score it, and write its predictions."""
    work.mkdir(parents=True, exist_ok=True)
    others, own = images[images["fold"] != fold], images[images["fold"] == fold]
    truth = pd.DataFrame({"image_id": images["image_id"]})
    for index, name in enumerate(labels.target_classes):
        truth[name] = (images["label"] == index).astype(int)
    others = truth.loc[others.index].assign(group=others["group"])
    collection_column = "collection" if labels.collections else None
    if collection_column:
        others["collection"] = others["image_id"].map(labels.collection_by_id)
    others.to_csv(work / "train.csv", index=False)
    truth.loc[own.index].to_csv(work / "labels.csv", index=False)
    own[["uri"]].to_csv(work / "images.csv", index=False)
    bundle, scores = f"{work}/model", f"{work}/scores"
    if not bundle_exists(bundle):
        train(
            TrainRequest(
                flags.images,
                f"{work}/train.csv",
                bundle,
                settings,
                flags.masks,
                group_column="group",
                collection_column=collection_column,
            )
        )
    score(ScoreRequest(f"{work}/images.csv", bundle, scores))
    own_labels = read_labels(f"{work}/labels.csv", labels.classes[-1])
    found = read_predictions(scores, own_labels, flags.masks)
    found.to_csv(Path(flags.output, f"fold{fold}.csv"), index=False)


def summarize(labels: Labels, output: Path, forms: pd.Series | None, masks: str | None) -> str:
    """Write `evaluation.json` and `README.md` from all folds in the output; returns the latter.

    Args:
        labels: their classes.
        output: has the folds and their `recipe.json`.
        forms: image id -> form of its file, to report each form, or None.
        masks: lesion masks, to report small and large lesions, or None.

    Raises:
        InputError: there are none, or this version cannot read their recipe.
    """
    rows = read_folds(output)
    if rows.empty:
        raise InputError(f"--output: {output} has no folds; name some as --folds")
    settings = read_recipe(output)
    kinds = {"fold": {str(fold): part for fold, part in rows.groupby("fold")}}
    if labels.collections is not None:
        complete = {"all that have all classes": of_complete_collections(rows, labels)}
        kinds["collection"] = complete | by_collection(rows, labels)
    if forms is not None:
        kinds["form"] = by_form(rows, forms)
    if masks is not None:
        kinds["lesion's longer side"] = sizes = by_size(rows, masks)
        name, smallest = next(iter(sizes.items()))
        kinds[f"fold, of {name}"] = {str(fold): part for fold, part in smallest.groupby("fold")}
    whole = figures_of(rows, labels)
    lines = [
        "# Cross-validation",
        "",
        f"{len(kinds['fold'])} folds, {whole['final']['mean']['n']:,} images, each "
        "scored by a model that was trained on neither it nor a copy of it. AUCs are taken within "
        "each fold, whose images one model scored, and averaged. Each model's epochs were chosen "
        "on images of the other folds. Settings that are not the default: "
        f"{changed_settings(settings)}.",
        "",
        *markdown_table(whole),
        "",
        *weights_table(rows, labels),
    ]
    for what, parts in kinds.items():
        lines += ["", *means_table(what, parts, labels)]
    if "localization" in whole:
        lines += ["", *overlap_table(whole["localization"])]
        for what, parts in {"class": by_class(rows, labels), **kinds}.items():
            lines += ["", *localization_table(what, parts)]
    markdown = "\n".join(lines) + "\n"
    (output / "README.md").write_text(markdown)
    (output / "evaluation.json").write_text(json.dumps(whole, indent=2) + "\n")
    return markdown


def main() -> None:
    """Run the folds that `--folds` names, then summarize all in the output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--group-column", help="images of one patient or lesion are in one fold")
    parser.add_argument("--collection-column", help="where an image comes from, as for train")
    parser.add_argument("--by", help="the same column, where only the summary is to know it")
    parser.add_argument("--leave-out", help="collections that are the folds, as a,b")
    parser.add_argument("--masks")
    parser.add_argument("--forms", help="a CSV of image_id and form, to report each form")
    parser.add_argument("--weights")
    parser.add_argument("--config")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", default="cross-validation", help="where bundles and scores go")
    parser.add_argument("--folds", default="", help="which to run, as 0,1 (default: none)")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = read_settings(flags)
    columns = LabelColumns(group=flags.group_column, collection=flags.by or flags.collection_column)
    labels = read_labels(flags.labels, settings.rest_class, columns=columns)
    forms = None
    if flags.forms is not None:
        forms = pd.read_csv(flags.forms, dtype=str).set_index("image_id")["form"]
    chosen = [int(fold) for fold in flags.folds.split(",") if fold]
    if chosen:
        images, digest = read_images(flags.images, labels, 2 * SIZE)
        if flags.leave_out is None:
            folds = assign_folds(images["label"].to_numpy(), images["group"].to_numpy())
        else:
            folds = leave_out(images, labels, flags.leave_out.split(","))
            digest += f" {flags.leave_out}"
        images["fold"] = folds
        recipe = record_recipe(
            flags.output,
            settings,
            digest,
            masks=flags.masks is not None,
            collections=flags.collection_column is not None,
        )
        known = labels if flags.collection_column else replace(labels, collections=None)
        for fold in chosen:
            run_fold(fold, images, known, settings, flags, Path(flags.work, recipe, f"fold{fold}"))
    print(summarize(labels, flags.output, forms, flags.masks))


if __name__ == "__main__":
    main()
