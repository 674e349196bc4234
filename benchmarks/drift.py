"""Drift: how often `lesioncam.evaluation.drift` calls a run drifted, with and without a change.

    python -m benchmarks.drift docs/cross-validation

Runs are drawn with replacement from the kept predictions of the cross-validation, each on images
that its network was not trained on. A run is compared with five earlier ones of its size. Prints a
table in Markdown, with two common rules beside it: a Kolmogorov-Smirnov test at p < 0.05, and a
population stability index above 0.1, each in any of the classes.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from benchmarks.report import markdown
from lesioncam.columns import classes_of, probability_columns
from lesioncam.evaluation.drift import drift

EARLIER_RUNS = 5
SIZES = (200, 1_000, 10_000)  # images of a run
_BINS = 10  # of the population stability index
_EVEN = 60.0  # how even the mix of classes is where it varies: a melanoma fraction of 0.19 +- 0.05

Mix = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Change:
    """What differs between runs.

    Attributes:
        name: for the table.
        mix: of a run -> the fractions of its classes.
        last_mix: likewise of the last run.
        logits: added to the last run's logits, by class.
    """

    name: str
    mix: Mix
    last_mix: Mix
    logits: np.ndarray


class Collection:
    """The kept predictions, by class.

    Args:
        folder: the folds' CSV files.
    """

    def __init__(self, folder: Path):
        rows = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("fold*.csv"))])
        self.classes = classes_of(map(str, rows.columns))
        self.columns = probability_columns(self.classes)
        self._by_class = [
            rows.loc[rows["label"] == name, self.columns].to_numpy() for name in self.classes
        ]
        self.fractions = np.array([len(part) for part in self._by_class]) / len(rows)

    def run(self, random: np.random.Generator, size: int, fractions: np.ndarray) -> np.ndarray:
        """(size, K) probabilities of images drawn with replacement."""
        counts = random.multinomial(size, fractions)
        drawn = [
            part[random.integers(len(part), size=count)]
            for part, count in zip(self._by_class, counts, strict=True)
        ]
        return np.concatenate(drawn)

    def changes(self) -> list[Change]:
        """The changes that are measured; the first two are no drift."""

        def same(_: np.random.Generator) -> np.ndarray:
            return self.fractions

        def varying(random: np.random.Generator) -> np.ndarray:
            return random.dirichlet(_EVEN * self.fractions)

        risk = self.classes.index("melanoma")

        def twice(_: np.random.Generator) -> np.ndarray:
            fractions = self.fractions.copy()
            fractions[risk] *= 2
            return np.asarray(fractions / fractions.sum())

        def of_risk(logit: float) -> np.ndarray:
            return np.asarray(logit * np.eye(len(self.classes))[risk])

        nothing = of_risk(0)
        return [
            Change("none", same, same, nothing),
            Change("none, but the mix of classes varies", varying, varying, nothing),
            Change("melanoma twice as frequent", same, twice, nothing),
            Change("melanoma's logits + 0.5", same, same, of_risk(0.5)),
            Change("melanoma's logits + 1", same, same, of_risk(1)),
        ]


def shifted(probabilities: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(n, K) probabilities with (K,) `logits` added before the softmax."""
    raised = probabilities * np.exp(logits)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def stability_index(current: np.ndarray, earlier: np.ndarray) -> float:
    """The population stability index over bins of equal mass of `earlier`."""
    edges = np.quantile(earlier, np.linspace(0, 1, _BINS + 1)[1:-1])
    here, there = (
        (np.bincount(np.searchsorted(edges, values), minlength=_BINS) + 0.5) / (len(values) + 5)
        for values in (current, earlier)
    )
    return float(((here - there) * np.log(here / there)).sum())


def alarms(
    collection: Collection, change: Change, size: int, random: np.random.Generator
) -> tuple[bool, bool, bool]:
    """Whether `drift`, the test and the index call a run drifted, in any class."""
    runs = [collection.run(random, size, change.mix(random)) for _ in range(EARLIER_RUNS)]
    last = shifted(collection.run(random, size, change.last_mix(random)), change.logits)
    earlier = pd.DataFrame(np.concatenate(runs), columns=collection.columns)
    earlier = earlier.assign(model="", run_id=np.repeat(np.arange(EARLIER_RUNS), size))
    current = pd.DataFrame(last, columns=collection.columns).assign(model="")
    pairs = [(current[name].to_numpy(), earlier[name].to_numpy()) for name in collection.columns]
    return (
        bool(drift(current, earlier)["drifted"].any()),
        any(ks_2samp(*pair, method="asymp").pvalue < 0.05 for pair in pairs),
        any(stability_index(*pair) > 0.1 for pair in pairs),
    )


def table(collection: Collection, repeats: int) -> str:
    """How often each change is called drift."""
    rows = []
    for change in collection.changes():
        for size in SIZES:
            random = np.random.default_rng(size)
            found = [alarms(collection, change, size, random) for _ in range(repeats)]
            rows.append(
                [change.name, f"{size:,}", *(f"{rate:.0%}" for rate in np.mean(found, axis=0))]
            )
    return markdown(
        ["change", "images in a run", "lesioncam", "KS test, p < 0.05", "PSI > 0.1"], rows
    )


def main() -> None:
    """Print how often runs are called drifted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("predictions", type=Path, help="a directory of fold*.csv")
    parser.add_argument("--repeats", type=int, default=100, help="runs a line (100)")
    flags = parser.parse_args()
    print(table(Collection(flags.predictions), flags.repeats), end="")


if __name__ == "__main__":
    main()
