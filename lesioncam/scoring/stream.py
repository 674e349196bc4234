"""Stream: pending images through both networks to durable parts, on Ray Data.

fetch and decode -> localize -> classify -> write
"""

from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from lesioncam.cluster import as_run_error, connected
from lesioncam.errors import InputError, RunFailedError
from lesioncam.scoring.actors import ClassifyActor, Compute, LocalizeActor
from lesioncam.scoring.fetch import fetch_and_decode, read_pending
from lesioncam.scoring.plan import Plan, check_cluster, make_plan
from lesioncam.scoring.progress import Progress, count_parts
from lesioncam.scoring.window import count_classified, open_window
from lesioncam.scoring.write import write_part
from lesioncam.settings import stage_ranges
from lesioncam.storage.bundle import STAGES, BundleFiles
from lesioncam.storage.results import Results
from lesioncam.storage.runs import Pending, RunRecord

if TYPE_CHECKING:
    from lesioncam.scoring.pipeline import Run

_NO_PROGRESS_TIMEOUT_S = 1800
_WAITING_CPUS = 0.05  # of a task that mostly waits: reading the manifest, writing a part


def refuse_without_gpus(gpus: int) -> None:
    """Refuse to use GPUs that are not there and cannot come."""
    with connected():
        check_cluster(gpus)


def score_pending(run: "Run", pending: Pending) -> None:
    """Run the pipeline, counting each part as it becomes durable.

    Raises:
        InputError: Ray cannot start, or lacks what the request needs; nothing was changed.
        RunFailedError: Ray, a store or a disk ended the run.
    """
    try:
        with connected(), closing(Progress(run.record)) as run.progress:
            _score_pending(run, pending, run.progress)
    except Exception as error:
        if isinstance(error, InputError) and not run.has_begun:
            raise
        failed = _as_run_error(error)
        if failed is None:
            raise
        raise failed from error


def _score_pending(run: "Run", pending: Pending, progress: Progress) -> None:
    progress.begin(pending.pending)
    check_cluster(run.request.gpus)
    plan = make_plan(run.request.gpus, run.precision, pending.pending, quantized=run.quantized)
    run.begin(plan)
    window = open_window(plan.window)
    progress.follow(lambda: count_classified(window), plan.window)
    pipeline = build_pipeline(run.record, pending, run.bundle, plan, run.results, window)
    count_parts(run, pipeline.iter_rows(), progress)


def build_pipeline(
    record: RunRecord,
    pending: Pending,
    bundle: BundleFiles,
    plan: Plan,
    results: Results,
    window: Any,
) -> ray.data.Dataset:
    """The pipeline from pending images to receipts of written parts; nothing runs yet."""
    settings = bundle.settings
    compute = Compute(settings, plan.precision, plan.batch_size)
    stage1, stage2 = (ray.put(bundle.weights[stage]) for stage in STAGES)
    ranges = stage_ranges(bundle.quantization)
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    context.raise_original_map_exception = True  # a worker's message reaches the user
    actors: dict[str, Any] = {
        "compute": ray.data.ActorPoolStrategy(size=plan.actors),
        "num_cpus": plan.actor_cpus,
        "batch_size": plan.batch_size,
        "batch_format": "pyarrow",
    }
    return (
        ray.data.from_items([{"name": name} for name in record.pending.names()])
        .map_batches(
            read_pending,
            fn_kwargs={"pending": record.pending.uri},
            num_cpus=_WAITING_CPUS,
            batch_size=1,
            batch_format="pyarrow",
        )
        .repartition(target_num_rows_per_block=plan.block_rows)
        .map_batches(
            fetch_and_decode,
            fn_kwargs={"canvas_size": settings.canvas_size, "window": window},
            num_cpus=plan.decode_cpus,
            batch_size=None,  # a block a task: one that waits for the window holds nothing back
            batch_format="pyarrow",
        )
        .map_batches(
            LocalizeActor,
            fn_constructor_args=(compute, stage1, ranges[0]),
            num_gpus=plan.actor_gpus[0],
            **actors,
        )
        .map_batches(
            ClassifyActor,
            fn_constructor_args=(compute, stage2, ranges[1], window),
            num_gpus=plan.actor_gpus[1],
            **actors,
        )
        .map_batches(
            write_part,
            fn_kwargs={
                "output": results.store.uri,
                "classes": settings.classes,
                "model": bundle.digest,
                "run_id": record.run_id,
                "not_before": max(pending.after, datetime.now(UTC)),
                "precision": plan.precision,
                "window": window,
            },
            num_cpus=_WAITING_CPUS,
            batch_size=plan.part_rows,
            batch_format="pyarrow",
        )
    )


def _as_run_error(error: BaseException) -> RunFailedError | None:
    """The failure in one line; None for errors that are one line already, and for bugs."""
    if isinstance(error, ExecutionTimeoutError):
        minutes = _NO_PROGRESS_TIMEOUT_S / 60
        return RunFailedError(
            f"the run made no progress for {minutes:g} minutes; run the same command again"
        )
    return as_run_error(error)
