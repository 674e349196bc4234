"""Small runs: the steps of the pipeline one after another in this process, without Ray.

Starting Ray and its processes takes longer than scoring a few images. Rows, parts and records are
those of a run on Ray.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from lesioncam.scoring.plan import Plan
from lesioncam.scoring.progress import Progress, count_parts
from lesioncam.scoring.read import decode_rows
from lesioncam.scoring.stages import load_stages
from lesioncam.scoring.write import write_rows
from lesioncam.storage.bundle import STAGES, load_weights
from lesioncam.storage.listing import read_tables
from lesioncam.storage.runs import Pending
from lesioncam.vision.hardware import BATCH_SIZES, choose_precision, hardware_of

if TYPE_CHECKING:
    from lesioncam.scoring.pipeline import Run

_PART_ROWS = 64


def score_pending(run: "Run", pending: Pending) -> None:
    """Score the images, counting each part as it becomes durable.

    Raises:
        InputError: the hardware does not have the precision; nothing was changed.
        RunFailedError: the store is out of reach, or the lease was lost.
    """
    with closing(Progress(run.record)) as run.progress:
        run.progress.begin(pending.pending)
        plan = make_plan(run.precision, quantized=run.quantized, on_gpu=run.request.gpus != 0)
        run.begin(plan)
        count_parts(run, run_pipeline(run, pending, plan, run.progress), run.progress)


def make_plan(precision: str, *, quantized: bool, on_gpu: bool) -> Plan:
    """The plan for this process.

    Args:
        precision: as for `choose_precision`.
        quantized: whether the bundle has what int8 needs.
        on_gpu: use a GPU if torch can.

    Raises:
        InputError: the bundle or the hardware does not have this precision.
    """
    device = torch.device("cuda" if on_gpu and torch.cuda.is_available() else "cpu")
    gpus = 1 if device.type == "cuda" else 0
    return Plan(
        actors=1,
        actor_cpus=os.cpu_count() or 1,
        actor_gpus=(gpus, gpus),
        decode_cpus=1,
        batch_size=BATCH_SIZES[device.type],
        block_rows=_PART_ROWS,
        part_rows=_PART_ROWS,
        window=_PART_ROWS,
        precision=choose_precision(precision, hardware_of(device), quantized=quantized),
    )


def run_pipeline(
    run: "Run", pending: Pending, plan: Plan, progress: Progress
) -> Iterator[dict[str, Any]]:
    """The receipts of the parts, each written when it is asked for."""
    settings, bundle = run.bundle.settings, run.bundle
    device = torch.device("cuda" if any(plan.actor_gpus) else "cpu")
    weights = [load_weights(bundle.weights[stage]) for stage in STAGES]
    localize, classify = load_stages(settings, weights, device, plan.precision, bundle.quantization)
    classified = 0
    progress.follow(lambda: classified, plan.window)
    images = pa.concat_tables(read_tables(run.record.pending))
    for rows in _split(images, plan.part_rows):
        scored = []
        for batch in _split(decode_rows(rows, settings.canvas_size), plan.batch_size):
            scored.append(classify(localize(batch)))
            classified += batch.num_rows
        receipt = write_rows(
            pa.concat_tables(scored),
            output=run.results.store.uri,
            classes=settings.classes,
            model=bundle.digest,
            run_id=run.record.run_id,
            not_before=max(pending.after, datetime.now(UTC)),
            precision=plan.precision,
        )
        yield from receipt.to_pylist()


def _split(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    return (table.slice(start, rows) for start in range(0, table.num_rows, rows))
