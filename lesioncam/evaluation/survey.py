"""Survey: one pass over the scores that counts, and chooses the images of the gallery.

Memory holds some thousands of rows and the chosen ones, however many rows there are.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lesioncam.columns import STAGES, Status, probability_columns
from lesioncam.storage.results import Results

SUSPICIOUS = "suspicious"
MISTAKE = "mistake"
DISAGREEMENT = "disagreement"
FAILED = "failed"
RANDOM = "random"
# The groups of the gallery in its order, and the fraction of it that each may take. An image is in
# the first group that takes it; those drawn at random fill what is left.
_QUOTAS = {SUSPICIOUS: 1 / 2, MISTAKE: 1 / 8, DISAGREEMENT: 1 / 8, FAILED: 1 / 16, RANDOM: 1}
# Without flags the suspicious are those of the highest risk, at most this fraction of the scored.
_HIGHEST, _TOP = "highest", 1 / 10
BINS = 1000  # of the histograms that are counted; quantiles are exact to one of them
_SHOWN_BINS = 20  # of the histograms in the report
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_SEED = "lesioncam-report"  # 16 characters: the key of the hash that draws at random

Figures = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """The columns of the scores that a survey reads.

    Attributes:
        classes: the class order.
        risk_class: images are ranked by its probability.
        flags: class -> its `flag_` column, of the classes that have one; after the survey, only
            those with a value: flags are null where the model has no operating point.
        has_quality: whether there is a column `quality`.
    """

    classes: tuple[str, ...]
    risk_class: str
    flags: Mapping[str, str]
    has_quality: bool

    def names(self) -> list[str]:
        """All columns to read."""
        names = ["uri", "status", "error_kind", "prediction", "cam_flat", "model", "run_id"]
        names += [name for stage in STAGES for name in probability_columns(self.classes, stage)]
        return [*names, "scored_at", *self.flags.values(), *["quality"] * self.has_quality]


@dataclass
class Survey:
    """What the rows are, counted.

    Attributes:
        columns: what was read; in the end without the flags that are null in all rows.
        statuses: images by status.
        kinds: failed images by error kind.
        models: images by model.
        runs: images by run.
        predictions: images by predicted class.
        flag_values: scored images by class whose flag is not null.
        flagged: images by class that is flagged.
        any_flagged: images with a flag of any class.
        quality: images by word of `quality`.
        flat: images whose map has no peak.
        histograms: (3, K, BINS) int64, of each stage's probabilities of each class.
        sums: (3, K) float64, likewise.
        differences: (BINS,) int64, a histogram of the stages' differences.
        stage_predictions: (K, K) int64, stage 1's class (rows) and stage 2's (columns).
        first: when the first row was scored.
        last: when the last row was scored.
    """

    columns: Columns
    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    predictions: Counter[str] = field(default_factory=Counter)
    flag_values: Counter[str] = field(default_factory=Counter)
    flagged: Counter[str] = field(default_factory=Counter)
    any_flagged: int = 0
    quality: Counter[str] = field(default_factory=Counter)
    flat: int = 0
    histograms: np.ndarray = field(init=False)
    sums: np.ndarray = field(init=False)
    differences: np.ndarray = field(init=False)
    stage_predictions: np.ndarray = field(init=False)
    first: Any = None
    last: Any = None

    def __post_init__(self) -> None:
        classes = len(self.columns.classes)
        self.histograms = np.zeros((len(STAGES), classes, BINS), np.int64)
        self.sums = np.zeros((len(STAGES), classes))
        self.differences = np.zeros(BINS, np.int64)
        self.stage_predictions = np.zeros((classes, classes), np.int64)

    def add(self, rows: pa.Table, batch: "_Batch") -> None:
        """Count some rows.

        Args:
            rows: with the survey's columns.
            batch: the same rows' probabilities.
        """
        self.statuses += _counts(rows["status"])
        self.kinds += _counts(rows["error_kind"])
        self.models += _counts(rows["model"])
        self.runs += _counts(rows["run_id"])
        self.predictions += _counts(rows["prediction"])
        for name, column in self.columns.flags.items():
            self.flag_values[name] += pc.count(rows[column].take(batch.ok)).as_py()
            self.flagged[name] += pc.sum(rows[column]).as_py() or 0
        self.any_flagged += int(batch.flagged.sum())
        if self.columns.has_quality:
            self.quality += _counts(pc.list_flatten(rows["quality"]))
        self.flat += pc.sum(rows["cam_flat"]).as_py() or 0
        for s, probabilities in enumerate(batch.stages):
            self.sums[s] += probabilities.sum(axis=0, dtype=np.float64)
            for k in range(probabilities.shape[1]):
                self.histograms[s, k] += _histogram(probabilities[:, k])
        self.differences += _histogram(batch.differences)
        first, second = (stage.argmax(axis=1) for stage in batch.stages[:2])
        np.add.at(self.stage_predictions, (first, second), 1)
        times = pc.min_max(rows["scored_at"]).as_py()
        if times["min"] is not None:
            self.first = min(self.first or times["min"], times["min"])
            self.last = max(self.last or times["max"], times["max"])

    def figures(self) -> Figures:
        """The counts as the report has them."""
        ok = self.statuses[Status.OK]
        disagreeing = int(self.stage_predictions.sum() - np.trace(self.stage_predictions))
        has_flags = bool(self.columns.flags)
        return {
            "images": {
                "total": sum(self.statuses.values()),
                "ok": ok,
                "failed": self.statuses[Status.FAILED],
                "flagged": self.any_flagged if has_flags else None,
                "stages_disagree": disagreeing,
                "cam_flat": self.flat,
            },
            "failed_by_kind": dict(self.kinds.most_common()),
            "quality": dict(self.quality.most_common()) if self.columns.has_quality else None,
            "models": dict(self.models.most_common()),
            "runs": len(self.runs),
            "first_scored_at": self.first and self.first.isoformat(),
            "last_scored_at": self.last and self.last.isoformat(),
            "risk_class": self.columns.risk_class,
            "classes": {
                name: {
                    "predicted": self.predictions[name],
                    "flagged": self.flagged[name] if name in self.columns.flags else None,
                    **{
                        stage: _distribution(self.histograms[s, k], self.sums[s, k])
                        for s, stage in enumerate(STAGES)
                    },
                }
                for k, name in enumerate(self.columns.classes)
            },
            "stages": {
                "predictions": self.stage_predictions.tolist(),
                "difference": _coarse(self.differences),
            },
        }


@dataclass(frozen=True)
class Choice:
    """An image that the gallery shows.

    Attributes:
        part: the name of its part.
        row: its number in it.
        group: why it is shown, such as `SUSPICIOUS`.
    """

    part: str
    row: int
    group: str


def survey(
    results: Results, columns: Columns, count: int, mistakes: Sequence[str] = ()
) -> tuple[Survey, list[Choice]]:
    """Count the rows, and choose `count` of them for the gallery.

    The same scores give the same choice, in whichever files they are: images are drawn at random by
    a hash of their uri.

    Args:
        results: the scores.
        columns: those to read.
        count: of the gallery.
        mistakes: uris of images whose prediction is confident and wrong, worst first.
    """
    found = Survey(columns)
    best = {group: _Best(count) for group in (*_QUOTAS, _HIGHEST)}
    order = {uri: -rank for rank, uri in enumerate(mistakes)}
    for part, numbers, rows in results.stream(columns.names()):
        if not rows.num_rows:
            continue
        batch = _Batch.of(rows, columns)
        found.add(rows, batch)
        uris = rows["uri"].to_numpy()
        hashes = pd.util.hash_array(uris, hash_key=_SEED, categorize=False)
        for group, members, keys in batch.groups(uris, order):
            best[group].offer(keys, hashes[members], part, numbers[members])
        best[RANDOM].offer(np.zeros(len(hashes)), hashes, part, numbers)
    quotas = {group: math.ceil(count * fraction) for group, fraction in _QUOTAS.items()}
    flags = {name: column for name, column in columns.flags.items() if found.flag_values[name]}
    found.columns = replace(columns, flags=flags)
    if not flags:
        best[SUSPICIOUS] = best[_HIGHEST]
        top = math.ceil(found.statuses[Status.OK] * _TOP)
        quotas[SUSPICIOUS] = min(quotas[SUSPICIOUS], top)
    return found, _choose(best, quotas, count)


@dataclass(frozen=True)
class _Batch:
    """Some rows as arrays: of the `n` images that are ok, unless it says otherwise.

    Attributes:
        ok: their numbers among all rows.
        failed: the numbers of the others.
        stages: each stage's (n, K) probabilities, in the order of `STAGES`.
        differences: (n,) the distance of the stages' probabilities, from 0 to 1.
        flagged: (n,) bool, whether any class is flagged.
        risk: index of the class that images are ranked by.
        has_flags: whether the scores have flags.
    """

    ok: np.ndarray
    failed: np.ndarray
    stages: list[np.ndarray]
    differences: np.ndarray
    flagged: np.ndarray
    risk: int

    @classmethod
    def of(cls, rows: pa.Table, columns: Columns) -> "_Batch":
        is_ok = pc.equal(rows["status"], Status.OK).to_numpy()
        ok = np.flatnonzero(is_ok)
        scored = rows.take(ok)
        stages = [
            np.stack(
                [scored[name].to_numpy() for name in probability_columns(columns.classes, stage)], 1
            )
            for stage in STAGES
        ]
        flagged = np.zeros(len(ok), bool)
        for column in columns.flags.values():
            flagged |= pc.fill_null(scored[column], False).to_numpy()
        return cls(
            ok,
            np.flatnonzero(~is_ok),
            stages,
            np.abs(stages[0] - stages[1]).sum(axis=1) / 2,
            flagged,
            columns.classes.index(columns.risk_class),
        )

    def groups(
        self, uris: np.ndarray, mistakes: Mapping[str, int]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Each group's members, as numbers among all rows, and their keys: the highest first."""
        risk = self.stages[-1][:, self.risk]
        yield SUSPICIOUS, self.ok[self.flagged], risk[self.flagged]
        yield _HIGHEST, self.ok, risk
        differ = self.stages[0].argmax(axis=1) != self.stages[1].argmax(axis=1)
        yield DISAGREEMENT, self.ok[differ], self.differences[differ]
        yield FAILED, self.failed, np.zeros(len(self.failed))
        if mistakes:
            wrong = np.flatnonzero([uri in mistakes for uri in uris])
            yield MISTAKE, wrong, np.array([mistakes[uris[row]] for row in wrong], float)


class _Best:
    """The rows of the highest keys; of equal keys those of the lowest hash."""

    def __init__(self, count: int):
        self._count = count
        self.keys = np.empty(0)
        self.hashes = np.empty(0, np.uint64)
        self.rows: list[tuple[str, int]] = []

    def offer(self, keys: np.ndarray, hashes: np.ndarray, part: str, rows: np.ndarray) -> None:
        """Keep the best of these and of those that were offered before."""
        first = np.lexsort((hashes, -keys))[: self._count]
        known = self.rows + [(part, int(row)) for row in rows[first]]
        keys, hashes = np.append(self.keys, keys[first]), np.append(self.hashes, hashes[first])
        order = np.lexsort((hashes, -keys))[: self._count]
        self.keys, self.hashes = keys[order], hashes[order]
        self.rows = [known[number] for number in order]


def _choose(best: Mapping[str, _Best], quotas: Mapping[str, int], count: int) -> list[Choice]:
    chosen: dict[tuple[str, int], str] = {}
    for group, quota in quotas.items():
        fresh = [row for row in best[group].rows if row not in chosen]
        chosen |= dict.fromkeys(fresh[: min(quota, count - len(chosen))], group)
    return [Choice(part, row, group) for (part, row), group in chosen.items()]


def _counts(column: pa.ChunkedArray | pa.Array) -> Counter[str]:
    """How often each value occurs; nulls are not counted."""
    counts = pc.value_counts(column.drop_null())
    return Counter(dict(zip(*(counts.field(n).to_pylist() for n in (0, 1)), strict=True)))


def _histogram(values: np.ndarray) -> np.ndarray:
    """(BINS,) int64: how many values, from 0 to 1, are in each bin."""
    bins = (values.astype(np.float64) * BINS).astype(np.int64).clip(0, BINS - 1)
    return np.bincount(bins, minlength=BINS)


def _coarse(histogram: np.ndarray) -> list[int]:
    counts: list[int] = histogram.reshape(_SHOWN_BINS, -1).sum(axis=1).tolist()
    return counts


def _distribution(histogram: np.ndarray, total: float) -> Figures:
    """The mean, quantiles and a histogram of 20 bins; None where there is no image."""
    count = int(histogram.sum())
    if not count:
        return {"mean": None, "quantiles": None, "histogram": _coarse(histogram)}
    bins = np.searchsorted(histogram.cumsum(), np.array(_QUANTILES) * count)
    return {
        "mean": round(float(total) / count, 6),
        "quantiles": {
            str(q): (b + 0.5) / BINS for q, b in zip(_QUANTILES, bins.tolist(), strict=True)
        },
        "histogram": _coarse(histogram),
    }
