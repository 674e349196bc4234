"""The scoring job; this file is its description, the rooms it names hold the parts.

list -> what is left to do -> fetch and decode -> CAM and crop -> classify -> Parquet
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
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
from lesioncam.scoring.fetch import fetch_and_decode, read_todo
from lesioncam.scoring.outage import Outage
from lesioncam.scoring.plan import Plan, check_cluster, make_plan
from lesioncam.scoring.progress import Progress
from lesioncam.scoring.stages import Classify, Compute, Localize
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

_NO_PROGRESS_SECONDS = 1800  # a pipeline that stands still so long breaks off
_SMALL = 0.05  # CPUs for tasks that mostly wait: reading the manifest, writing parts


@dataclass(frozen=True)
class ScoreRequest:
    """What `lesioncam score` is asked.

    Attributes:
        images: a directory or prefix, or a CSV or Parquet file of `uri`s.
        bundle: where the trained model stands.
        output: where the Parquet goes.
        retry_failed: do all failed images again, not only those with a transient error.
        max_failed_fraction: the share of the listed images that may fail, or None for any.
        limit: only the first so many images of the listing, or None for all.
        precision: `auto`, `float32` or `bfloat16`.
        gpus: to use at most, also some that the cluster has to start; None for those it has.
    """

    images: str
    bundle: str
    output: str
    retry_failed: bool = False
    max_failed_fraction: float | None = None
    limit: int | None = None
    precision: str = "auto"
    gpus: int | None = None


def score(request: ScoreRequest) -> dict[str, Any]:
    """Score every listed image that has no row yet; returns the run's summary.

    What was written stays whatever happens; the same call goes on from it.

    Raises:
        InputError: no such images or bundle, or the output is another model's, or another run is
            at work there.
        RunFailedError: a listed image ended without a row, or the lease on the output was lost.
    """
    results = Results(request.output)
    refuse_other_run(results.store)
    results.store.arrow()  # a place that pyarrow cannot name is refused before any work
    bundle = load_bundle(request.bundle)
    if f"{results.store.uri}/".startswith(f"{open_store(request.images).uri}/"):
        raise InputError("--output: it lies inside --images; name a place outside them")
    listing = Listing(request.images)
    entries = _checked(islice(listing, request.limit) if request.limit else listing.unordered())
    record = RunRecord(results.store, new_run_id())
    with (
        connected(),
        closing(_Run(request, bundle, results, record)) as run,
        Lease(results.store, record.run_id) as lease,
    ):
        results.check(bundle.settings.classes, bundle.digest)
        try:
            return run.score(listing, entries, lease)
        except BaseException as error:
            run.record_broken(error)
            told = _told(error)
            if told is None:
                raise
            raise told from error


class _Run:
    """One run on a cluster, with the output for itself."""

    def __init__(
        self,
        request: ScoreRequest,
        bundle: Bundle,
        results: Results,
        record: RunRecord,
    ):
        self.request, self.bundle, self.results = request, bundle, results
        self.record = record
        check_cluster(request.gpus)
        self.asked = {
            **asdict(request),
            "model": bundle.digest,
            "lesioncam_version": __version__,
            "started_at": datetime.now(UTC).isoformat(),
        }
        self.progress = Progress(record)

    def score(self, listing: Listing, entries: Iterator[Entry], lease: Lease) -> dict[str, Any]:
        """List, score what is left, settle, and count what stands; returns the summary."""
        started = time.monotonic()
        record, results = self.record, self.results
        results.recover()
        record.write("run", self.asked)
        rows = record.record_listing(entries)
        results.begin()
        partitions = results.partitions(record.manifest(), rows)
        todo = record.record_pending(partitions, retry_failed=self.request.retry_failed)
        log.info(
            "%s images listed, %s to score",
            f"{todo.listed:,}",
            f"{todo.pending:,}",
            extra={"run_id": record.run_id, "listed": todo.listed, "left": todo.pending},
        )
        if todo.pending:
            self._score_left(todo, lease)
        lease.check()
        results.compact(record.run_id, lease.check)

        partitions = results.partitions(record.manifest(), rows)
        tally = sum((one.tally() for one in partitions), start=Tally())
        if tally.without_row or tally.doubled:
            raise RunFailedError(
                f"{tally.without_row} of {tally.listed} listed images have no row in "
                f"{results.store.uri}, and {tally.doubled} rows are doubled; run the same command "
                f"again"
            )
        seconds = time.monotonic() - started
        summary = self._summary(tally) | {
            "skipped": dict(listing.skipped + Counter({LISTED_TWICE: todo.repeated})),
            "scored_now": todo.pending,
            "seconds": round(seconds, 1),
            "images_per_second": round(todo.pending / seconds, 2),
        }
        record.finish(summary)
        lease.check()
        results.succeed()
        return summary

    def record_broken(self, error: BaseException) -> None:
        """Leave a summary of a run that broke off, unless the store is what broke."""
        with suppress(LesioncamError):
            kind = {"outcome": "broke", "error": type(error).__name__}
            self.record.finish(kind | {"progress": self.progress.state()})

    def close(self) -> None:
        """End the showing of progress."""
        self.progress.close()

    def _score_left(self, todo: Pending, lease: Lease) -> None:
        self.progress.begin(todo.pending)
        plan = make_plan(self.request.gpus, self.request.precision, todo.pending)
        self.record.write("run", self.asked | {"plan": asdict(plan)})
        self.progress.go()
        outage = Outage(self.record)
        parts = scored_parts(self.record, todo, self.bundle, plan, self.results)
        for receipt in parts.iter_rows():
            part = dict(zip(receipt["outcomes"], receipt["counts"], strict=True))
            for outcome, count in part.items():
                self.progress.add(outcome, count)
            outage.check(part)
            lease.check()

    def _summary(self, tally: Tally) -> dict[str, Any]:
        """The outcome, and what is in the Parquet."""
        failed = tally.outcomes.copy()
        ok = failed.pop(Status.OK, 0)
        allowed = self.request.max_failed_fraction
        too_many = allowed is not None and failed.total() > allowed * tally.listed
        return {
            "outcome": "too_many_failed" if too_many else "done",
            "listed": tally.listed,
            "ok": ok,
            "failed": failed.total(),
            "failed_by_kind": dict(sorted(failed.items())),
            "unlisted": tally.unlisted,
            "without_row": tally.without_row,
            "output": self.results.store.uri,
        }


def scored_parts(
    record: RunRecord, todo: Pending, bundle: Bundle, plan: Plan, results: Results
) -> ray.data.Dataset:
    """The pipeline from what is left to do to receipts of written parts; nothing runs yet."""
    settings = bundle.settings
    compute = Compute(plan.precision, plan.batch_size)
    stage1, stage2 = ray.put(dict(bundle.stage1)), ray.put(dict(bundle.stage2))
    files = [{"name": name} for name in record.pending.names()]
    window = open_window(plan.window)
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = _NO_PROGRESS_SECONDS
    context.raise_original_map_exception = True  # a worker's words reach the user
    actors: dict[str, Any] = {
        "compute": ray.data.ActorPoolStrategy(size=plan.actors),
        "num_cpus": plan.actor_cpus,
        "batch_size": plan.batch_size,
        "batch_format": "pyarrow",
    }
    return (
        ray.data.from_items(files)
        .map_batches(
            read_todo,
            fn_kwargs={"todo": record.pending.uri},
            num_cpus=_SMALL,
            batch_size=1,
            batch_format="pyarrow",
        )
        .repartition(target_num_rows_per_block=plan.block_rows)
        .map_batches(
            fetch_and_decode,
            fn_kwargs={"canvas_size": settings.canvas_size, "window": window},
            num_cpus=plan.decode_cpus,
            batch_size=None,  # a block a task: what waits to enter the window holds nothing back
            batch_format="pyarrow",
        )
        .map_batches(
            Localize,
            fn_constructor_kwargs={"settings": settings, "state": stage1, "compute": compute},
            num_gpus=plan.actor_gpus[0],
            **actors,
        )
        .map_batches(
            Classify,
            fn_constructor_kwargs={
                "settings": settings,
                "state": stage2,
                "compute": compute,
                "model": bundle.digest,
                "run_id": record.run_id,
                "not_before": max(todo.after, datetime.now(UTC)),
            },
            num_gpus=plan.actor_gpus[1],
            **actors,
        )
        .map_batches(
            write_part,
            fn_kwargs={"output": results.store.uri, "run_id": record.run_id, "window": window},
            num_cpus=_SMALL,
            batch_size=plan.part_rows,
            batch_format="pyarrow",
        )
    )


def _checked(entries: Iterator[Entry]) -> Iterator[Entry]:
    """The same entries, the first taken already: a listing that fails does so before any write."""
    first = next(entries)
    return chain([first], entries)


def _told(error: BaseException) -> RunFailedError | None:
    """What a run that broke off says in one line; None for what says it itself, and for bugs."""
    if isinstance(error, ExecutionTimeoutError):
        minutes = _NO_PROGRESS_SECONDS / 60
        return RunFailedError(
            f"the run did nothing for {minutes:g} minutes; run the same command again"
        )
    return as_run_error(error)
