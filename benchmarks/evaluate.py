"""Evaluate: time and memory of `lesioncam evaluate` and `report` on many rows, few of them labeled.

    python -m benchmarks.evaluate --rows 10000000

The rows are made up; every column that scoring writes is there. `--complete no` leaves `_SUCCESS`
out, as while a run is under way: then rows must be compared by uri to count each image once. The
report is made without labels, and none of its images is read.
"""

import argparse
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmarks.report import machine, machine_line, markdown, write
from lesioncam.columns import BOX_COLUMNS, ErrorKind, Status, probability_columns
from lesioncam.evaluation.evaluate import EvaluateRequest, evaluate
from lesioncam.evaluation.report import ReportRequest, report
from lesioncam.schema import scores_schema
from lesioncam.storage.results import PART_ROWS, Results

CLASSES = ("melanoma", "seborrheic_keratosis", "nevus")
_MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
_FAILED_EVERY = 100  # one row in so many


def image_ids(numbers: np.ndarray) -> list[str]:
    """File names as the ISIC archive gives them."""
    return [f"ISIC_{number:010d}" for number in numbers.tolist()]


def write_scores(results: Results, rows: int) -> None:
    """Parts of compacted size; one row in a hundred is of a failed image."""
    random = np.random.default_rng(0)
    for start in range(0, rows, PART_ROWS):
        numbers = np.arange(start, min(start + PART_ROWS, rows))
        results.write_part(f"part-{start:012d}.parquet", score_table(numbers, random))


def score_table(numbers: np.ndarray, random: np.random.Generator) -> pa.Table:
    """The rows of these images."""
    schema, count = scores_schema(CLASSES), len(numbers)
    ids, failed = image_ids(numbers), numbers % _FAILED_EVERY == 0
    columns: dict[str, pa.Array] = {
        "uri": pa.array([f"s3://clinic/2026/{name[-3:]}/{name}.jpg" for name in ids]),
        "image_id": pa.array(ids),
        "status": pa.array(np.where(failed, Status.FAILED, Status.OK)),
        "error": pa.array(["it ends early" if one else None for one in failed.tolist()]),
        "error_kind": pa.array([ErrorKind.TRUNCATED if one else None for one in failed.tolist()]),
        "prediction": pa.array(np.array(CLASSES)[numbers % len(CLASSES)]),
        "cam": pa.array([random.bytes(100) for _ in ids], mask=failed),
        "etag": pa.array([f"{number:032x}" for number in numbers.tolist()]),
        "model": pa.repeat("0" * 64, count),
        "scored_at": pa.repeat(pa.scalar(_MOMENT, schema.field("scored_at").type), count),
    }
    for stage in ("final", "stage1", "stage2"):
        probabilities = random.dirichlet([1.0] * len(CLASSES), count).astype(np.float32)
        for k, name in enumerate(probability_columns(CLASSES, stage)):
            columns[name] = pa.array(probabilities[:, k], mask=failed)
    for name in ("width", "height", *BOX_COLUMNS):
        columns[name] = pa.array(np.full(count, 200, np.int32), mask=failed)
    filled = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
    return pa.table(filled, names=schema.names).cast(schema)


def write_labels(path: Path, rows: int, fraction: float) -> int:
    """A ground-truth CSV of evenly spaced images, and how many those are."""
    numbers = np.unique(np.linspace(0, rows - 1, round(rows * fraction)).astype(int))
    truth = numbers[:, None] % len(CLASSES) == np.arange(len(CLASSES))
    frame = pd.DataFrame(truth.astype(int), columns=list(CLASSES))
    frame.insert(0, "image_id", image_ids(numbers))
    frame.to_csv(path, index=False)
    return len(numbers)


@dataclass(frozen=True)
class Measured:
    """One evaluation or report.

    Attributes:
        seconds: wall time.
        peak_mib: the largest memory of its process.
        counts: `images` of `evaluation.json` or `report.json`.
    """

    seconds: float
    peak_mib: float
    counts: dict[str, int]


def measure(scores: str, labels: str) -> Measured:
    """Evaluate in this process."""
    request = EvaluateRequest(scores, labels, None, CLASSES[-1])
    return _measured(lambda: evaluate(request)[0])


def measure_report(scores: str, _: str) -> Measured:
    """Report in this process, without labels."""
    return _measured(lambda: report(ReportRequest(scores, gallery=0))[0])


def _measured(run: Callable[[], dict[str, Any]]) -> Measured:
    started = time.perf_counter()
    content = run()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Measured(seconds, peak, content["images"])


def alone(function: Callable[[str, str], Measured], scores: str, labels: str) -> Measured:
    """The same in a process of its own, whose memory holds nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, scores, labels).result()


def main() -> None:
    """Make scores and labels, evaluate and report, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--labeled", type=float, default=0.01, help="fraction (%(default)s)")
    parser.add_argument("--complete", choices=("yes", "no"), default="yes", help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("lesioncam-bench"))
    flags = parser.parse_args()
    with TemporaryDirectory(prefix="benchmark-") as folder:
        results, labels = Results(f"{folder}/scores"), Path(folder, "labels.csv")
        write_scores(results, flags.rows)
        if flags.complete == "yes":
            results.succeed()
        labeled = write_labels(labels, flags.rows, flags.labeled)
        measured = {
            name: alone(function, results.store.uri, str(labels))
            for name, function in (("evaluate", measure), ("report", measure_report))
        }
    facts = machine()
    rows = [
        [
            name, f"{flags.rows:,}", f"{labeled if name == 'evaluate' else 0:,}", flags.complete,
            f"{one.seconds:.1f}", f"{one.peak_mib:,.0f}",
        ]
        for name, one in measured.items()
    ]  # fmt: skip
    head = ["verb", "rows", "labeled", "complete", "seconds", "peak memory, MiB"]
    text = f"# Evaluate\n\n{machine_line(facts)}\n\n{markdown(head, rows)}"
    figures = {name: asdict(one) for name, one in measured.items()}
    content = {"machine": facts, "rows": flags.rows, "labeled": labeled, **figures}
    write(flags.output, f"evaluate-{flags.rows}", content, text)


if __name__ == "__main__":
    main()
