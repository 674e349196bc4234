r"""Two runs on the same images: their mean AUCs, stage by stage, and the paired difference.

    python -m benchmarks.compare --one OUTPUT --other docs/cross-validation \
        --labels isic/train-collections.csv --collection-column collection

`--one` and `--other` are outputs of `benchmarks.headline`, or both of `benchmarks.crossvalidate`. A
set or fold that only one of them has is named and not compared, nor is one whose images differ, as
the held-out ones of two seeds do. `--labels` says which classes have a column of their own. With
`--collection-column` the images of collections that have all classes are compared, too.
"""

import argparse
from pathlib import Path

import pandas as pd

from benchmarks.predictions import of_complete_collections, probabilities, read_folds
from lesioncam.columns import STAGES
from lesioncam.errors import InputError
from lesioncam.settings import TrainSettings
from lesioncam.storage.labels import LabelColumns, Labels, read_labels
from lesioncam.vision.metrics import evaluate_stages, with_interval


def sets_of(output: Path) -> dict[str, pd.DataFrame]:
    """The predictions in an output, by the name of their set of images."""
    sets = {path.parent.name: pd.read_csv(path) for path in output.glob("*/predictions.csv")}
    folds = read_folds(output).groupby("fold")
    return dict(sorted(sets.items())) | {f"of fold {fold}": rows for fold, rows in folds}


def common_sets(
    one: Path, other: Path
) -> tuple[dict[str, tuple[pd.DataFrame, pd.DataFrame]], list[str]]:
    """The predictions of each set that has the same images in both outputs; all folds also as one.

    Returns:
        These pairs by the set's name, and the names of the sets that are not compared.

    Raises:
        InputError: they have none in common.
    """
    first, second = sets_of(one), sets_of(other)
    pairs = {
        name: (rows, second[name])
        for name, rows in first.items()
        if name in second and set(rows["image_id"]) == set(second[name]["image_id"])
    }
    if not pairs:
        raise InputError(f"--other: {other} has none of the sets of images that {one} has")
    not_compared = sorted((first.keys() | second.keys()) - pairs.keys())
    folds = [pair for name, pair in pairs.items() if name.startswith("of fold ")]
    if len(folds) > 1:
        ones, others = zip(*folds, strict=True)
        pairs["of all folds"] = (pd.concat(ones), pd.concat(others))
    return pairs, not_compared


def compare(one: pd.DataFrame, other: pd.DataFrame, labels: Labels) -> list[list[str]]:
    """For each stage, and the mean and each target class, the AUC in each run, and the difference.

    Intervals are those of `lesioncam.vision.metrics.evaluate_stages`; the difference's is paired.
    AUCs of several folds are taken within each and averaged.

    Args:
        one: a run's predictions, as `benchmarks.predictions.read_predictions` has them.
        other: another run's, of the same images.
        labels: their classes.

    Raises:
        InputError: they are not of the same images.
    """
    one, other = (rows.set_index("image_id").sort_index() for rows in (one, other))
    if not one["label"].equals(other["label"]):
        raise InputError("--other: its images or their labels are not those of --one")
    folds = one["fold"].to_numpy() if "fold" in one else None
    class_indices = one["label"].map(list(labels.classes).index).to_numpy()
    targets = {"mean": labels.target_classes, **{name: (name,) for name in labels.target_classes}}
    lines = []
    for stage in STAGES:
        first, second = (probabilities(rows, labels, stage) for rows in (one, other))
        pair = {"final": first, "stage1": second, "stage2": second}  # the gain is final's
        for name, classes in targets.items():
            figures = evaluate_stages(pair, class_indices, labels.classes, classes, folds=folds)
            means = (figures[stage]["mean"] for stage in ("final", "stage1"))
            cells = [*map(with_interval, means), with_interval(figures["gain"])]
            lines.append([stage, name, *cells])
    return lines


def within_collections(
    pairs: dict[str, tuple[pd.DataFrame, pd.DataFrame]], labels: Labels
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """The same pairs, each also of the images of collections that have all classes alone."""
    found = dict(pairs)
    for name, (one, other) in pairs.items():
        chosen = of_complete_collections(one, labels)
        if len(chosen):
            same = other[other["image_id"].isin(chosen["image_id"])]
            found[f"{name}, collections with all classes"] = (chosen, same)
    return found


def main() -> None:
    """Print a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=Path, required=True)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--rest-class", default=TrainSettings().rest_class)
    parser.add_argument("--collection-column", help="where an image comes from, as for train")
    flags = parser.parse_args()
    columns = LabelColumns(collection=flags.collection_column)
    labels = read_labels(flags.labels, flags.rest_class, columns=columns)
    print(f"| images | stage | AUC | {flags.one} | {flags.other} | difference |")
    print("|---|---|---|---|---|---|")
    pairs, not_compared = common_sets(flags.one, flags.other)
    if labels.collections is not None:
        pairs = within_collections(pairs, labels)
    for name, (one, other) in pairs.items():
        for cells in compare(one, other, labels):
            print(f"| {len(one):,} {name} | {' | '.join(cells)} |")
    for name in not_compared:
        print(f"\nNot compared: {name}, whose images are not the same in both.")


if __name__ == "__main__":
    main()
