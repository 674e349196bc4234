"""The scoring job, which reads as its pipeline.

list -> pending -> fetch and decode -> localize -> classify -> write
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any

import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from lesioncam import __version__
from lesioncam.cluster import as_run_error, connected
from lesioncam.columns import Status
from lesioncam.errors import InputError, LesioncamError, RunFailedError
from lesioncam.scoring.actors import ClassifyActor, Compute, LocalizeActor
from lesioncam.scoring.fetch import fetch_and_decode, read_pending
from lesioncam.scoring.outage import Outage
from lesioncam.scoring.plan import Plan, check_cluster, make_plan
from lesioncam.scoring.progress import Progress
from lesioncam.scoring.window import open_window
from lesioncam.scoring.write import write_part
from lesioncam.storage.bundle import Bundle, load_bundle
from lesioncam.storage.lease import Lease, refuse_other_run
from lesioncam.storage.listing import LISTED_TWICE, Listing
from lesioncam.storage.pending import Tally
from lesioncam.storage.results import Results
from lesioncam.storage.runs import Pending, RunRecord, new_run_id
from lesioncam.storage.store import Entry
from lesioncam.storage.uris import open_store

log = logging.getLogger("lesioncam")

_NO_PROGRESS_TIMEOUT_S = 1800
_WAITING_CPUS = 0.05  # of a task that mostly waits: reading the manifest, writing a part


@dataclass(frozen=True)
class ScoreRequest:
    """The arguments of `lesioncam score`.

    Attributes:
        images: a directory or prefix, or a CSV or Parquet file of `uri`s.
        bundle: a trained model.
        output: where the Parquet goes.
        retry_failed: score all failed images again, not only those with a transient error.
        max_failed_fraction: the fraction of the listed images that may fail, or None for any.
        limit: only the first so many images of the listing, or None for all.
        precision: `auto`, `float32` or `bfloat16`.
        gpus: the maximum to use, including ones an autoscaling cluster must start; None for those
            available.
    """

    images: str
    bundle: str
    output: str
    retry_failed: bool = False
    max_failed_fraction: float | None = None
    limit: int | None = None
    precision: str = "auto"
    gpus: int | None = None


@dataclass(frozen=True)
class _Run:
    """What the steps of one run share."""

    request: ScoreRequest
    bundle: Bundle
    results: Results
    record: RunRecord
    progress: Progress
    lease: Lease
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def record_plan(self, plan: Plan | None = None) -> None:
        """Write `run.json`: the request, and the plan once there is one."""
        content = {
            **asdict(self.request),
            "model": self.bundle.digest,
            "lesioncam_version": __version__,
            "started_at": self.started_at.isoformat(),
        }
        self.record.write("run", content | ({"plan": asdict(plan)} if plan else {}))


def score(request: ScoreRequest) -> dict[str, Any]:
    """Score every listed image that has no row yet; returns the run's summary.

    Written rows stay whatever happens; the same call continues from them.

    Raises:
        InputError: no such images or bundle, or the output is another model's, or another run is
            writing to it.
        RunFailedError: a listed image ended without a row, or the lease on the output was lost.
    """
    results = Results(request.output)
    refuse_other_run(results.store)
    results.store.arrow()  # a name that pyarrow cannot take is refused before any work
    bundle = load_bundle(request.bundle)
    if f"{results.store.uri}/".startswith(f"{open_store(request.images).uri}/"):
        raise InputError("--output: it is inside --images; choose a directory outside of them")
    listing = Listing(request.images)
    entries = _started(
        listing.unordered() if request.limit is None else islice(listing, request.limit)
    )
    record = RunRecord(results.store, new_run_id())
    with connected():
        check_cluster(request.gpus)
        with closing(Progress(record)) as progress, Lease(results.store, record.run_id) as lease:
            results.check(bundle.settings.classes, bundle.digest)
            run = _Run(request, bundle, results, record, progress, lease)
            try:
                return _score(run, listing, entries)
            except BaseException as error:
                _record_failure(run, error)
                failed = _as_run_error(error)
                if failed is None:
                    raise
                raise failed from error


def _score(run: _Run, listing: Listing, entries: Iterator[Entry]) -> dict[str, Any]:
    """List, score what is pending, compact the parts and count the rows; returns the summary."""
    started = time.monotonic()
    run.results.recover()
    run.record_plan()
    rows = run.record.record_listing(entries)
    run.results.begin()
    pending = _record_pending(run, rows)
    if pending.pending:
        _score_pending(run, pending)
    run.lease.check()
    run.results.compact(run.record.run_id, run.lease.check)
    tally = _checked_tally(run, rows)
    seconds = time.monotonic() - started
    summary = _outcome(tally, run.request.max_failed_fraction) | {
        "output": run.results.store.uri,
        "skipped": dict(listing.skipped + Counter({LISTED_TWICE: pending.repeated})),
        "scored_now": pending.pending,
        "seconds": round(seconds, 1),
        "images_per_second": round(pending.pending / seconds, 2),
    }
    run.record.finish(summary)
    run.lease.check()
    run.results.succeed()
    return summary


def _record_pending(run: _Run, rows: int) -> Pending:
    """Record the listed images that have no row yet, of a manifest of so many rows."""
    partitions = run.results.partitions(run.record.manifest(), rows)
    pending = run.record.record_pending(partitions, retry_failed=run.request.retry_failed)
    log.info(
        "%s images listed, %s to score",
        f"{pending.listed:,}",
        f"{pending.pending:,}",
        extra={
            "run_id": run.record.run_id,
            "listed": pending.listed,
            "remaining": pending.pending,
        },
    )
    return pending


def _score_pending(run: _Run, pending: Pending) -> None:
    """Run the pipeline, counting each part as it becomes durable."""
    run.progress.begin(pending.pending)
    plan = make_plan(run.request.gpus, run.request.precision, pending.pending)
    run.record_plan(plan)
    run.progress.start_clock()
    outage = Outage(run.record)
    for receipt in build_pipeline(run.record, pending, run.bundle, plan, run.results).iter_rows():
        part = dict(zip(receipt["outcomes"], receipt["counts"], strict=True))
        for outcome, count in part.items():
            run.progress.add(outcome, count)
        outage.check(part)
        run.lease.check()


def build_pipeline(
    record: RunRecord, pending: Pending, bundle: Bundle, plan: Plan, results: Results
) -> ray.data.Dataset:
    """The pipeline from pending images to receipts of written parts; nothing runs yet."""
    settings = bundle.settings
    compute = Compute(settings, plan.precision, plan.batch_size)
    stage1, stage2 = ray.put(dict(bundle.stage1)), ray.put(dict(bundle.stage2))
    window = open_window(plan.window)
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
            fn_constructor_args=(compute, stage1),
            num_gpus=plan.actor_gpus[0],
            **actors,
        )
        .map_batches(
            ClassifyActor,
            fn_constructor_args=(compute, stage2),
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
                "window": window,
            },
            num_cpus=_WAITING_CPUS,
            batch_size=plan.part_rows,
            batch_format="pyarrow",
        )
    )


def _checked_tally(run: _Run, rows: int) -> Tally:
    """Count the rows against a manifest of so many rows; each image must have exactly one."""
    partitions = run.results.partitions(run.record.manifest(), rows)
    tally = sum((partition.tally() for partition in partitions), start=Tally())
    if tally.without_row or tally.doubled:
        raise RunFailedError(
            f"{tally.without_row} of {tally.listed} listed images have no row in "
            f"{run.results.store.uri}, and {tally.doubled} rows are duplicates; run the same "
            f"command again"
        )
    return tally


def _outcome(tally: Tally, max_failed_fraction: float | None) -> dict[str, Any]:
    """The summary's counts, and whether too many images failed."""
    failed = tally.outcomes.copy()
    ok = failed.pop(Status.OK, 0)
    allowed = 1.0 if max_failed_fraction is None else max_failed_fraction
    return {
        "outcome": "too_many_failed" if failed.total() > allowed * tally.listed else "done",
        "listed": tally.listed,
        "ok": ok,
        "failed": failed.total(),
        "failed_by_kind": dict(sorted(failed.items())),
        "unlisted": tally.unlisted,
        "without_row": tally.without_row,
    }


def _started(entries: Iterator[Entry]) -> Iterator[Entry]:
    """The same entries, the first taken already: a listing that fails does so before any write."""
    first = next(entries)
    return chain([first], entries)


def _record_failure(run: _Run, error: BaseException) -> None:
    """Leave a summary of a failed run, unless the store is what failed."""
    with suppress(LesioncamError):
        content = {"outcome": "failed", "error": type(error).__name__}
        run.record.finish(content | {"progress": run.progress.state()})


def _as_run_error(error: BaseException) -> RunFailedError | None:
    """The failure in one line; None for errors that are one line already, and for bugs."""
    if isinstance(error, ExecutionTimeoutError):
        minutes = _NO_PROGRESS_TIMEOUT_S / 60
        return RunFailedError(
            f"the run made no progress for {minutes:g} minutes; run the same command again"
        )
    return as_run_error(error)
