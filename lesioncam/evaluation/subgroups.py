"""Subgroups: how good the scores are in each group of images, and where groups differ most.

Figures are those of the final probabilities. Groups of one column share no image, so each is
resampled by itself. An undefined figure is None. `n` is the number of images, `K` of classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lesioncam.columns import probability_columns
from lesioncam.errors import InputError
from lesioncam.evaluation.curves import at_flag, difference
from lesioncam.evaluation.groups import UNKNOWN, group_images
from lesioncam.storage.metadata import read_metadata
from lesioncam.vision.metrics import (
    DECISION,
    calibration_error,
    percentiles,
    resample_aucs,
    with_interval,
)

SMALL = 10  # a group with fewer images of a class, or of the others, is too small to judge it
_SEED = 0

Figures = dict[str, Any]


@dataclass(frozen=True)
class GroupBy:
    """What to group images by.

    Attributes:
        metadata: a table of facts about images.
        columns: the names of its columns.
        id_column: its column of image ids; None for the one of `ID_COLUMNS` that is there.
    """

    metadata: str
    columns: tuple[str, ...]
    id_column: str | None

    @classmethod
    def of(cls, metadata: str | None, by: Sequence[str], id_column: str | None) -> "GroupBy | None":
        """From the flags; None if neither `--metadata` nor `--by` is given.

        Raises:
            InputError: only one of them is given, or a column is empty or named twice.
        """
        if metadata is None and not by:
            return None
        if metadata is None:
            raise InputError("--by: its columns are those of a table; name the table as --metadata")
        if not by:
            raise InputError("--metadata: name its columns to group the images by as --by")
        if not all(by):
            raise InputError("--by: a name is empty; put one comma between two names")
        if len(set(by)) < len(by):
            raise InputError("--by: a column is named twice; name each once")
        return cls(metadata, tuple(by), id_column)


@dataclass(frozen=True)
class Images:
    """n scored images with a label.

    Attributes:
        classes: the class order.
        target_classes: the classes that the mean AUC is over.
        probabilities: (n, K), the final ones.
        labels: (n,) int, class indices.
        called: (n, K) bool, whether an image counts as one of a class.
        decisions: class -> what `called` is by, such as `flag_melanoma`.
        folds: (n,) int, as for `evaluate_stages`; None if one model scored all images.
    """

    classes: Sequence[str]
    target_classes: Sequence[str]
    probabilities: np.ndarray
    labels: np.ndarray
    called: np.ndarray
    decisions: Mapping[str, str]
    folds: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        rows: pd.DataFrame,
        classes: Sequence[str],
        target_classes: Sequence[str],
        flags: Mapping[str, str],
    ) -> "Images":
        """From rows of the scores with `label`, a class index.

        An image counts as one of a class by the class's flag. Where no row has a value of that,
        it does from a probability of 0.5 on.

        Args:
            rows: with the final probabilities and the columns of `flags`.
            classes: the class order.
            target_classes: the classes that the mean AUC is over.
            flags: class -> its `flag_` column, of the classes that have one.
        """
        probabilities = rows[probability_columns(classes)].to_numpy(np.float64)
        called, decisions = probabilities >= DECISION, {}
        for k, name in enumerate(classes):
            (column,) = probability_columns([name])
            decisions[name] = f"{column} >= {DECISION:g}"
            if name in flags and rows[flags[name]].notna().any():
                decisions[name] = flags[name]
                called[:, k] = rows[flags[name]].to_numpy(bool, na_value=False)
        labels = rows["label"].to_numpy()
        return cls(classes, target_classes, probabilities, labels, called, decisions)

    def take(self, members: np.ndarray) -> "Images":
        """Those of them for which `members`, (n,) bool, is true."""
        return Images(
            self.classes,
            self.target_classes,
            self.probabilities[members],
            self.labels[members],
            self.called[members],
            self.decisions,
            None if self.folds is None else self.folds[members],
        )


def subgroups(images: Images, image_ids: "pd.Series[str]", group_by: GroupBy) -> Figures:
    """The figures of the groups of each column, as `evaluation.json` has them.

    Args:
        images: n of them.
        image_ids: (n,) theirs, each once.
        group_by: what to group by.

    Returns:
        `columns`, by name: the figures of its `groups`, and the `largest_difference` between two;
        `decisions`, as `Images` has them; `small_below`, the limit of a small group; and
        `images_without_metadata`, how many have no row in the table.

    Raises:
        InputError: the metadata cannot be read, or a column is not one of groups.
    """
    columns = group_by.columns
    cells = read_metadata(group_by.metadata, columns, image_ids.tolist(), group_by.id_column)
    missing = ~image_ids.isin(cells.index)
    cells = cells.reindex(image_ids, fill_value="")
    return {
        **subgroup_figures(images, {name: group_images(cells[name], name) for name in columns}),
        "images_without_metadata": int(missing.sum()),
    }


def subgroup_figures(images: Images, columns: Mapping[str, Mapping[str, np.ndarray]]) -> Figures:
    """The figures of `subgroups`, of groups that are given.

    Args:
        images: n of them.
        columns: name of a column -> name of a group -> (n,) bool, whether an image is in it.
    """
    return {
        "columns": {name: _column(images, groups) for name, groups in columns.items()},
        "decisions": dict(images.decisions),
        "small_below": SMALL,
    }


def _column(images: Images, groups: Mapping[str, np.ndarray]) -> Figures:
    random = np.random.default_rng(_SEED)  # of all groups: no two have the same resamples
    figures: dict[str, Figures] = {}
    means: dict[str, np.ndarray] = {}  # (1 + R,) mean AUCs
    targets = [images.classes.index(name) for name in images.target_classes]
    for name, members in groups.items():
        group = images.take(members)
        stages = {"final": group.probabilities}
        aucs = resample_aucs(stages, group.labels, random, group.folds)["final"]
        classes = _classes(group, aucs)
        means[name] = aucs[:, targets].mean(axis=1)
        figures[name] = {
            "n": len(group.labels),
            "classes": classes,
            "mean": {
                **percentiles(means[name]),
                "classes": list(images.target_classes),
                "small": any(classes[target]["small"] for target in images.target_classes),
            },
        }
        if figures[name]["mean"]["small"]:
            _drop_interval(figures[name]["mean"])
    return {
        "groups": figures,
        "largest_difference": {
            "mean_auc": _mean_difference(figures, means),
            "sensitivity": {
                name: _sensitivity_difference(figures, name) for name in images.classes
            },
        },
    }


def _classes(group: Images, aucs: np.ndarray) -> dict[str, Figures]:
    """The figures of each class in a group; `aucs` is (1 + R, K)."""
    figures = {}
    for k, name in enumerate(group.classes):
        positive = group.labels == k
        positives = int(positive.sum())
        point = at_flag(group.called[:, k], positive)
        figures[name] = {
            **percentiles(aucs[:, k]),
            "positives": positives,
            "small": min(positives, len(positive) - positives) < SMALL,
            "sensitivity": point["sensitivity"],
            "specificity": point["specificity"],
            "calibration_error": calibration_error(group.probabilities[:, k], positive),
        }
        if figures[name]["small"]:
            _drop_interval(figures[name], figures[name]["calibration_error"])
    return figures


def _drop_interval(*figures: Figures) -> None:
    """Leave bootstrap intervals undefined: resamples of few images spread too little."""
    for one in figures:
        one.update(low=None, high=None)


def _mean_difference(
    figures: Mapping[str, Figures], means: Mapping[str, np.ndarray]
) -> Figures | None:
    """The highest mean AUC of a group less the lowest, with a bootstrap interval."""
    found = {name: one["mean"] for name, one in figures.items()}
    pair = _highest_and_lowest(found, {name: one["auc"] for name, one in found.items()})
    if pair is None:
        return None
    highest, lowest = pair
    value = percentiles(means[highest] - means[lowest], "difference")
    return {"highest": highest, "lowest": lowest, **value}


def _sensitivity_difference(figures: Mapping[str, Figures], class_name: str) -> Figures | None:
    """The highest sensitivity of a group for a class less the lowest, with Newcombe's interval."""
    found = {name: one["classes"][class_name] for name, one in figures.items()}
    sensitivities = {name: one["sensitivity"] for name, one in found.items()}
    pair = _highest_and_lowest(
        found, {name: one["fraction"] for name, one in sensitivities.items()}
    )
    if pair is None:
        return None
    highest, lowest = pair
    value = difference(sensitivities[highest], sensitivities[lowest])
    return {"highest": highest, "lowest": lowest, **value}


def _highest_and_lowest(
    figures: Mapping[str, Figures], values: Mapping[str, float | None]
) -> tuple[str, str] | None:
    """The groups of the highest and the lowest value; None if fewer than two can be compared.

    Small groups, undefined values and `unknown` are not compared.
    """
    comparable = {
        name: value
        for name, value in values.items()
        if value is not None and not figures[name]["small"] and name != UNKNOWN
    }
    ascending = sorted(comparable, key=comparable.__getitem__)
    return (ascending[-1], ascending[0]) if len(ascending) > 1 else None


def subgroup_tables(figures: Figures) -> list[str]:
    """The figures of `subgroups` as lines of Markdown."""
    decisions = ", ".join(figures["decisions"].values())
    lines = [
        "Subgroups, by the final probabilities, with 95 % intervals. For sensitivity and "
        f"specificity an image is positive by {decisions}."
    ]
    for column, found in figures["columns"].items():
        lines += [
            "",
            f"| {_cell(column)} | class | images | AUC | sensitivity | specificity "
            "| calibration error |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, group in found["groups"].items():
            lines += _group_lines(_cell(name), group)
        lines += ["", *_difference_lines(found["largest_difference"])]
    return [
        *lines,
        "",
        f"(few): fewer than {figures['small_below']} images of the class, or of the others: too "
        "few to judge the group by. Such groups, and images without a value, are not compared. The "
        "compared groups are the highest and the lowest: with many groups, some difference is "
        "chance.",
    ]


def _group_lines(name: str, group: Figures) -> Iterator[str]:
    for class_name, one in group["classes"].items():
        cells = [
            f"{one['positives']:,} of {group['n']:,}{_mark(one)}",
            with_interval(one),
            with_interval(one["sensitivity"], "fraction"),
            with_interval(one["specificity"], "fraction"),
            with_interval(one["calibration_error"], "error"),
        ]
        yield f"| {name} | {class_name} | {' | '.join(cells)} |"
    mean = group["mean"]
    classes = ", ".join(mean["classes"])
    yield f"| {name} | mean ({classes}) | {_mark(mean).strip()} | {with_interval(mean)} | | | |"


def _difference_lines(differences: Figures) -> Iterator[str]:
    named = {"mean AUC": differences["mean_auc"]}
    named |= {f"sensitivity for {name}": one for name, one in differences["sensitivity"].items()}
    for what, one in named.items():
        shown = "undefined, as there are no two groups to compare"
        if one is not None:
            pair = f"{_cell(one['highest'])} above {_cell(one['lowest'])}"
            shown = f"{with_interval(one, 'difference')}, {pair}"
        yield f"- Largest difference in {what}: {shown}"


def _mark(figures: Figures) -> str:
    return " (few)" if figures["small"] else ""


def _cell(text: str) -> str:
    """Text that ends no cell and no line of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
