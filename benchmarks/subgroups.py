r"""Subgroups of the cross-validation: figures by columns of a metadata table, from its predictions.

    python -m benchmarks.subgroups --predictions docs/cross-validation --labels isic/train.csv \
        --metadata isic2017/ISIC-2017_Training_Data_metadata.csv --by sex,age_approximate

Prints tables in Markdown. AUCs are taken within each fold, whose images one model scored, and
averaged; the other figures are of all images at once.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.predictions import read_folds
from lesioncam.errors import InputError
from lesioncam.evaluation.subgroups import (
    Figures,
    GroupBy,
    Images,
    subgroup_tables,
    subgroups,
)
from lesioncam.settings import TrainSettings
from lesioncam.storage.labels import Labels, read_labels


def figures_of(predictions: Path, labels: Labels, metadata: str, by: Sequence[str]) -> Figures:
    """The figures of the groups of each column, as `lesioncam evaluate` has them.

    Args:
        predictions: an output of `benchmarks.crossvalidate`.
        labels: their classes.
        metadata: a table of facts about the images.
        by: its columns.

    Raises:
        InputError: there are no predictions, or the metadata cannot be read.
    """
    rows = read_folds(predictions).reset_index(drop=True)
    if rows.empty:
        raise InputError(f"--predictions: {predictions} has no folds")
    indexed = rows.assign(label=rows["label"].map(list(labels.classes).index))
    images = Images.of(indexed, labels.classes, labels.target_classes, {})
    by_fold = replace(images, folds=rows["fold"].to_numpy())
    return subgroups(by_fold, rows["image_id"], GroupBy(metadata, tuple(by), None))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--metadata", required=True)
    parser.add_argument("--by", required=True, help="columns, as sex,age_approximate")
    parser.add_argument("--rest-class", default=TrainSettings().rest_class)
    flags = parser.parse_args()
    labels = read_labels(flags.labels, flags.rest_class)
    figures = figures_of(flags.predictions, labels, flags.metadata, flags.by.split(","))
    print("\n".join(subgroup_tables(figures)))


if __name__ == "__main__":
    main()
